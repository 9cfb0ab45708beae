/** @file The logit lens as requests ask for it: in passes of bounded size, each waiting for its turn. */
import { throwIfCancelled, UsageError } from '../base/errors.ts'
import { readVectors, type VectorReading } from '../explore/index.ts'
import type { Model } from '../run/model.ts'
import type { TopToken } from './protocol.ts'
import type { Queue } from './queue.ts'

/** Most logits of one pass: 32 MiB of them. */
const valuesAtOnce = 8_388_608

/** Reads vectors out through the plain model's own final norm and unembedding. */
export class Lens {
  private readonly model: Model

  constructor(model: Model) {
    this.model = model
  }

  /** Vectors that one pass holds. */
  get atOnce(): number {
    return Math.max(1, Math.min(this.model.contextLength, Math.floor(valuesAtOnce / this.model.spec.vocab)))
  }

  /** The most likely tokens for each of the vectors, [count, d_model] flat. */
  async read(vectors: Float32Array, top: number, queue: Queue, signal?: AbortSignal): Promise<TopToken[][]> {
    const out: TopToken[][] = []
    for await (const { topIds, topProbs } of this.passes(vectors, () => ({ top }), queue, signal))
      for (let at = 0; at < topIds.data.length; at += top)
        out.push(
          Array.from({ length: top }, (_, i) => {
            const id = Number(topIds.data[at + i])
            return { id, piece: pieceOf(this.model, id), p: topProbs.data[at + i] as number }
          }),
        )
    return out
  }

  /** The probability of one token for each of the vectors. */
  async probabilitiesOf(ids: readonly number[], vectors: Float32Array, queue: Queue, signal?: AbortSignal): Promise<number[]> {
    const out: number[] = []
    for await (const { probabilities } of this.passes(vectors, (from, to) => ({ top: 0, of: ids.slice(from, to) }), queue, signal))
      out.push(...(probabilities?.data ?? []))
    return out
  }

  private async *passes(
    vectors: Float32Array,
    wanted: (from: number, to: number) => VectorReading,
    queue: Queue,
    signal: AbortSignal | undefined,
  ) {
    const { dModel } = this.model.spec
    if (vectors.length % dModel !== 0) throw new UsageError(`The lens reads vectors that are ${dModel} wide, as the residual stream is.`)
    const count = vectors.length / dModel
    for (let from = 0; from < count; from += this.atOnce) {
      throwIfCancelled(signal)
      const to = Math.min(count, from + this.atOnce)
      const part = vectors.subarray(from * dModel, to * dModel)
      yield await queue.run(() => readVectors(this.model, part, wanted(from, to)), signal)
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
