/** @file Models larger than memory: how much of them lies there at once. */
import { ModelError, UsageError } from '../base/errors.ts'
import type { TracedModel } from '../models/traced.ts'
import { segmentWeights } from '../tensor/index.ts'

/** Blocks of weights in memory at once while a model is streamed: one runs, one is made ready, one may stay for the next run. */
const blocksAtOnce = 3

/** Room for weights while a model is streamed. */
export interface StreamRoom {
  /** Bytes of weights mapped at once. */
  readonly bytes: number
  /** Most bytes of one weight that a product reads at once; a larger one, such as an unembedding, is gone through in pieces. */
  readonly pieceBytes: number
}

/** Whether a model is to be streamed: where it is asked for, and where its weights do not fit. */
export async function streams(weightBytes: number, options: { readonly stream?: boolean; readonly memory?: number }): Promise<boolean> {
  if (options.stream !== undefined) return options.stream
  if (options.memory !== undefined) return options.memory < weightBytes
  if (typeof process === 'undefined' || !process.versions?.node) return false
  return (await import('../base/node.ts')).os.totalmem() < weightBytes
}

/** Room for three blocks, or for as many as `memory` bytes hold; refuses less than three. */
export function streamRoom(traced: TracedModel, memory: number | undefined): StreamRoom {
  if (memory !== undefined && !(memory > 0)) throw new UsageError(`memory must be a positive number of bytes, not ${memory}.`)
  const segments = segmentWeights([traced.logits])
  // The last one holds the unembedding, which can be gone through in pieces.
  const block = Math.max(...(segments.length > 1 ? segments.slice(0, -1) : segments))
  const bytes = memory ?? blocksAtOnce * block
  if (bytes < blocksAtOnce * block)
    throw new ModelError(
      `A streamed model needs memory for ${blocksAtOnce} blocks of its weights, ${Math.ceil((blocksAtOnce * block) / 1e6)} MB here, but ${(bytes / 1e6).toFixed(1)} MB are allowed; allow more.`,
    )
  return { bytes, pieceBytes: bytes / blocksAtOnce }
}
