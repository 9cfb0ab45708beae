/** @file A corpus that a model writes itself, for where no text of its kind is at hand. */
import { throwIfCancelled, UsageError } from '../../base/errors.ts'
import type { WorkOptions } from '../../base/progress.ts'
import type { Model } from '../../run/index.ts'

/** Options of {@link sampleCorpus}. */
export interface SampleOptions extends WorkOptions {
  /** Tokens in all, those that begin a text not counted. */
  readonly tokens: number
  /** Longest text in tokens (default: the model's context, at most 256). */
  readonly length?: number
  /** Default 0. */
  readonly seed?: number
  /** Default 1: what the model believes, neither sharpened nor blurred. */
  readonly temperature?: number
  /** Texts that are written side by side (default 16). */
  readonly batch?: number
}

/** Rows of token ids that the model writes from its first token on, until it ends a text; equal seeds give equal rows. */
export async function sampleCorpus(model: Model, options: SampleOptions): Promise<number[][]> {
  const { tokens, length = Math.min(256, model.contextLength), seed = 0, temperature = 1, batch = 16, signal, onProgress } = options
  const { bos } = model.tokenizer
  if (bos === undefined)
    throw new UsageError(`${model.origin.id} has no token that begins a text, so it cannot write from nothing; give texts.`)
  for (const [name, n] of Object.entries({ tokens, length, batch }))
    if (!(Number.isInteger(n) && n > 0)) throw new UsageError(`${name} must be a positive whole number, not ${n}.`)
  const out: number[][] = []
  let written = 0
  for (let round = 0; written < tokens; round++) {
    throwIfCancelled(signal)
    const rows = Array.from({ length: batch }, () => [bos])
    const writing = model.generate({ rows }, { maxNewTokens: length - 1, temperature, seed: seed + round, ...(signal ? { signal } : {}) })
    for (const { tokens: row } of await writing.results()) {
      // A text of one token teaches nothing.
      if (row.length < 2) continue
      out.push([bos, ...row])
      written += row.length
    }
    onProgress?.({ task: `${model.origin.id} writes its own corpus`, done: Math.min(written, tokens), total: tokens, unit: 'tokens' })
  }
  return out
}
