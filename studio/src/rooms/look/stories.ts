/** @file The two stories: what is asked of the server, and the answer as it grows. */
import type { GenerateLine, WrittenToken } from '../../../../src/server/protocol.ts'
import { lines } from '../../lib/api.ts'
import { storyTopP } from '../../lib/code.ts'
import { differenceOf, type StackEdit, type View } from '../../lib/view.ts'

/** The plain story, and the one under the edits where there are any. */
export interface Stories {
  readonly ids: readonly number[]
  readonly pieces: readonly string[]
  /** Tokens of each side, as far as they are written. */
  readonly rows: readonly (readonly WrittenToken[])[]
  readonly done: boolean
  readonly tokensPerSecond: number
  readonly unfired: readonly string[]
  /** The question, so that a view can tell to which one an answer belongs. */
  readonly plainKey: string
}

/** Texts and ids are both allowed wherever a text is asked for: `ids:5,6,7`. */
export function inputOf(text: string): { text: string } | { ids: number[] } {
  const ids = /^ids:\s*(\d+(?:\s*,\s*\d+)*)\s*$/.exec(text)?.[1]
  return ids ? { ids: ids.split(',').map(Number) } : { text }
}

/** Edits that are on and complete. */
export function activeEdits(edits: readonly StackEdit[]): StackEdit['edit'][] {
  const complete = (e: StackEdit['edit']) => {
    const d = differenceOf(e)
    return !d || (d.positive.length > 0 && d.negative.length > 0)
  }
  return edits.filter((e) => e.on && complete(e.edit)).map((e) => e.edit)
}

/** What is asked for in a view. */
export function storyRequest(view: View) {
  const { model, text, maxNewTokens, temperature, seed } = view
  return {
    ...(model === '' ? {} : { model }),
    ...inputOf(text),
    edits: activeEdits(view.edits),
    maxNewTokens,
    temperature,
    seed,
    ...(temperature > 0 ? { topP: storyTopP } : {}),
  }
}

/** Asks, and hands the stories on as they grow, at most once a frame. */
export async function writeStories(
  request: ReturnType<typeof storyRequest>,
  signal: AbortSignal,
  put: (stories: Stories) => void,
): Promise<void> {
  const { edits: _, ...plain } = request
  const plainKey = JSON.stringify(plain)
  let stories: Stories | undefined
  for await (const batch of lines<GenerateLine>('generate', request, signal)) {
    for (const line of batch) {
      if (line.type === 'start')
        stories = {
          ids: line.ids,
          pieces: line.pieces,
          rows: Array.from({ length: line.rows }, () => []),
          done: false,
          tokensPerSecond: 0,
          unfired: [],
          plainKey,
        }
      else if (!stories) continue
      else if (line.type === 'token') {
        const { row, id, text, p } = line
        stories = { ...stories, rows: stories.rows.map((r, i) => (i === row ? [...r, { row, id, text, p }] : r)) }
      } else
        stories = {
          ...stories,
          done: true,
          tokensPerSecond: line.rows.at(-1)?.tokensPerSecond ?? 0,
          unfired: [...new Set(line.rows.flatMap((r) => r.unfired))],
        }
    }
    // Nothing is shown before the first tokens are there: until then the old story is the better picture.
    if (stories && (stories.done || stories.rows.every((r) => r.length > 0))) put(stories)
  }
}
