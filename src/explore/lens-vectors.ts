/** @file Vectors of the residual stream read through the model's head, in one small program without any block. */
import { ShapeError, UsageError } from '../base/errors.ts'
import type { NDArray } from '../base/types.ts'
import type { Model } from '../run/index.ts'
import { exp, gatherElements, input, logSoftmax, squeeze, type Tensor, topK, unsqueeze } from '../tensor/index.ts'
import { endOf, throughHead } from './lens.ts'
import { editedModel, int64 } from './patch-graph.ts'

/** What is wanted of {@link readVectors}. */
export interface VectorReading {
  /** Most likely tokens that are kept, 10 by default; 0 for none. */
  readonly top?: number
  /** A token for each vector, whose probability is wanted. */
  readonly of?: readonly number[]
}

/** What the head says of vectors. */
export interface VectorRead {
  /** int64 [vector, top], with their probabilities. */
  readonly topIds: NDArray<BigInt64Array>
  readonly topProbs: NDArray<Float32Array>
  /** Probability of the token asked for, [vector]. */
  readonly probabilities?: NDArray<Float32Array>
}

/** Numbers of top tokens that programs are compiled for, so that asking for a few more compiles nothing. */
const steps = [0, 16, 128, 1024, 8192]

/** Reads vectors [vector, d_model], flat, through the final norm (with statistics of its own) and the unembedding; edits of the model are not looked at. */
export async function readVectors(model: Model, vectors: Float32Array, { top = 10, of }: VectorReading = {}): Promise<VectorRead> {
  const { dModel, vocab } = model.spec
  const count = vectors.length / dModel
  if (!Number.isInteger(count) || count === 0)
    throw new ShapeError(`The lens reads vectors that are ${dModel} wide, as the residual stream is, not ${vectors.length} numbers.`)
  if (!Number.isInteger(top) || top < 0 || top > vocab)
    throw new UsageError(`The number of top tokens must be between 0 and ${vocab}, not ${top}.`)
  if (of && of.length !== count) throw new UsageError(`There are ${count} vectors, but ${of.length} tokens; give one for each.`)
  const k = Math.min(steps.find((n) => n >= top) ?? vocab, vocab)
  const edited = editedModel(model.plain)
  const program = await edited.core.compiled(JSON.stringify(['lens of vectors', edited.structure, k, of !== undefined]), () => {
    const end = endOf(model)
    const graph = edited.graph({ taps: [end], lastOnly: false })
    const value = input('lens.vectors', 'float32', ['batch', 'pos', dModel])
    const logProbs = logSoftmax(throughHead(graph.taps.get(end) as Tensor, value, graph.logits))
    const outputs: Record<string, Tensor> = {}
    if (k > 0) {
      const best = topK(logProbs, k)
      Object.assign(outputs, { ids: best.indices, probs: exp(best.values) })
    }
    if (of) outputs.of = squeeze(exp(gatherElements(logProbs, unsqueeze(input('lens.of', 'int64', ['batch', 'pos']), 2), 2)), 2)
    return outputs
  })
  const feeds: Record<string, NDArray> = {
    ...edited.core.constantFeeds,
    'lens.vectors': { dtype: 'float32', shape: [1, count, dModel], data: vectors },
    ...(of ? { 'lens.of': int64(of, [1, count]) } : {}),
  }
  const known = Object.fromEntries(Object.entries(feeds).filter(([name]) => program.inputs.has(name)))
  const out = await program.run(known)
  const shape = [count, top]
  const kept = <T extends Float32Array | BigInt64Array>(name: string, empty: T): T =>
    k === 0 ? empty : (firstOf(out[name]?.data as T, count, k, top) as T)
  return {
    topIds: { dtype: 'int64', shape, data: kept('ids', new BigInt64Array(0)) },
    topProbs: { dtype: 'float32', shape, data: kept('probs', new Float32Array(0)) },
    ...(of ? { probabilities: { dtype: 'float32', shape: [count], data: out.of?.data as Float32Array } } : {}),
  }
}

/** The first `top` of each `k`. */
function firstOf<T extends Float32Array | BigInt64Array>(data: T, count: number, k: number, top: number): T {
  const kept = new (data.constructor as new (n: number) => T)(count * top)
  for (let i = 0; i < count; i++) kept.set(data.subarray(i * k, i * k + top) as never, i * top)
  return kept
}
