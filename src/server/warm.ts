/** @file What a page asks first, asked once before it is there, so that its programs are compiled already. */
import { writeStories } from './generate.ts'
import { writeGrid } from './grid.ts'
import { bodies } from './protocol.ts'
import type { Held } from './registry.ts'

/** Compiles what the page's first pictures and its steered story need. */
export async function warm(held: Held, signal: AbortSignal): Promise<void> {
  const { layers, dModel, vocab } = held.model.spec
  // Any two tokens do; numbers are inputs of the programs.
  const ids = [0, Math.min(1, vocab - 1)]
  await writeGrid(held, bodies.grid.parse({ ids, what: 'lens' }), () => {}, signal)
  const vector = new Array<number>(dModel).fill(0)
  const steering = { op: 'add', site: `resid_post.${Math.floor((2 * layers) / 3)}`, params: { vector, scale: 0 } }
  await writeStories(held, bodies.generate.parse({ ids, edits: [steering], maxNewTokens: 2 }), () => {}, signal)
}
