/** @file Picks the runtime of the place we run in. */
import type { Runtime } from './runtime.ts'

let loaded: Promise<Runtime> | undefined

/** ONNX Runtime of this place: onnxruntime-node in Node, onnxruntime-web in a browser. Loaded on first use. */
export function getRuntime(): Promise<Runtime> {
  const inNode = typeof process !== 'undefined' && process.versions?.node !== undefined
  loaded ??= (inNode ? import('./node.ts') : import('./web.ts')).then((m) => m.runtime)
  return loaded
}
