/** @file The logit lens: what the final norm and the unembedding make of vectors of the residual stream, inside one compiled program. */
import { throwIfCancelled, UsageError } from '../base/errors.ts'
import type { Model } from '../run/model.ts'
import { edit, replace } from '../sites/index.ts'
import { softmax } from '../tensor/index.ts'
import type { TopToken } from './protocol.ts'
import type { Queue } from './queue.ts'

/** Most probabilities that one pass may return: 32 MiB of them. */
const valuesAtOnce = 8_388_608

/**
 * Reads vectors out through the plain model's own final norm and unembedding. One small program serves all layers and all
 * edits, where `lens` of explore compiles the whole model for each list of edits.
 */
export class Lens {
  private readonly model: Model
  /** The last residual stream becomes what was written into `embeddings`, so that all blocks drop out of the program. */
  private readonly bypass
  private readonly softmax

  constructor(model: Model) {
    this.model = model.plain
    this.bypass = edit(`resid_post.${model.spec.layers - 1}`, (_, context) => context.read('embeddings'), { reads: ['embeddings'] })
    this.softmax = edit('logits', (logits) => softmax(logits))
  }

  /** Vectors that one pass holds. */
  get atOnce(): number {
    return Math.max(2, Math.min(this.model.contextLength, Math.floor(valuesAtOnce / this.model.spec.vocab)))
  }

  /** The most likely tokens for each of the vectors, [count, d_model] flat. */
  async read(vectors: Float32Array, top: number, queue: Queue, signal?: AbortSignal): Promise<TopToken[][]> {
    const out: TopToken[][] = []
    await this.each(vectors, queue, signal, (p) => {
      out.push(largest(p, top).map((id) => ({ id, piece: pieceOf(this.model, id), p: p[id] as number })))
    })
    return out
  }

  /** The probability of one token for each of the vectors. */
  async probabilitiesOf(ids: readonly number[], vectors: Float32Array, queue: Queue, signal?: AbortSignal): Promise<number[]> {
    const out: number[] = []
    await this.each(vectors, queue, signal, (p) => out.push(p[ids[out.length] as number] as number))
    return out
  }

  /** Hands the probabilities that each vector gives on, [d_vocab]; they must not be kept. */
  private async each(vectors: Float32Array, queue: Queue, signal: AbortSignal | undefined, visit: (p: Float32Array) => void) {
    const { dModel, vocab } = this.model.spec
    if (vectors.length % dModel !== 0) throw new UsageError(`The lens reads vectors that are ${dModel} wide, as the residual stream is.`)
    const count = vectors.length / dModel
    const { atOnce } = this
    for (let from = 0; from < count; from += atOnce) {
      throwIfCancelled(signal)
      const n = Math.min(atOnce, count - from)
      // An axis of length 1 would make another program of it, so a single vector gets a companion.
      const length = Math.max(2, n)
      const data = new Float32Array(length * dModel)
      data.set(vectors.subarray(from * dModel, (from + n) * dModel))
      const value = { dtype: 'float32', shape: [1, length, dModel], data } as const
      const through = this.model.with(replace('embeddings', value), this.bypass, this.softmax)
      // The ids do not matter: their embeddings are replaced.
      const { logits } = await queue.run(() => through.run({ ids: new Array<number>(length).fill(0) }), signal)
      for (let i = 0; i < n; i++) visit(logits.data.subarray(i * vocab, (i + 1) * vocab))
    }
  }
}

/** Indices of the largest values, in falling order. */
export function largest(values: Float32Array, count: number): number[] {
  const best: number[] = []
  let least = Number.NEGATIVE_INFINITY
  for (let i = 0; i < values.length; i++) {
    const v = values[i] as number
    if (v <= least) continue
    let at = best.length
    while (at > 0 && v > (values[best[at - 1] as number] as number)) at--
    best.splice(at, 0, i)
    if (best.length > count) best.pop()
    if (best.length === count) least = values[best[count - 1] as number] as number
  }
  return best
}

/** How a token is shown: its text, or its id where the model has no tokenizer. */
export function pieceOf(model: Model, id: number): string {
  return model.hasTokenizer ? model.tokenizer.piece(id) : `#${id}`
}
