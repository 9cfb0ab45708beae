/** @file How far computed values are from recorded ones: at positions that hold tokens, relative to the scale of the tensor. */
import type { NDArray } from '../base/types.ts'
import type { Precision } from '../models/quantised.ts'
import type { Activation } from './batch.ts'

/** How far values are from recorded ones, and how far they may be. */
export interface Difference {
  /** Largest absolute difference; NaN or infinite where a value is none. */
  readonly error: number
  readonly tolerance: number
  readonly note?: string
}

/** Largest difference that passes, relative to the largest recorded value. */
export const relativeTolerance = { value: 1e-4, gradient: 1e-3 } as const

/**
 * How many times wider tolerances are for weights in fewer bits, against records of float32. Products with packed weights round activations to
 * 8 bits: values of SmolLM2 in the file's own blocks differ by up to 0.08 of the largest, gradients by 0.11; rounded weights come on top.
 */
export const widening: Readonly<Record<Precision, number>> = { f32: 1, f16: 100, q8: 1000, q4: 2500 }

/** What is compared: values, or gradients, which lose more digits on the way. */
export type Compared = keyof typeof relativeTolerance

/** The difference of two lists of values; equal infinities are equal. `use` says which places count. */
export function differenceOf(ours: ArrayLike<number>, golden: Float32Array, what: Compared = 'value', use?: Uint8Array): Difference {
  if (ours.length !== golden.length)
    return { error: Number.NaN, tolerance: 0, note: `ours has ${ours.length} values, the record ${golden.length}` }
  let error = 0
  let scale = 0
  let broken = 0
  for (let i = 0; i < golden.length; i++) {
    if (use && !use[i]) continue
    const [a, b] = [ours[i] as number, golden[i] as number]
    if (Number.isFinite(b)) scale = Math.max(scale, Math.abs(b))
    if (a === b) continue
    const difference = Math.abs(a - b)
    if (Number.isFinite(difference)) error = Math.max(error, difference)
    else broken++
  }
  const tolerance = relativeTolerance[what] * scale
  if (broken === 0) return { error, tolerance }
  return { error: Number.NaN, tolerance, note: `${broken} values are infinite or not a number on one side only` }
}

/** A site's value over a batch against the recorded one, in the caller's layout; padding does not count. */
export function compareSite(value: Activation, golden: Float32Array, what: Compared = 'value'): Difference {
  const { shape, axes } = value
  const held = Array.from({ length: shape[0] as number }, (_, b) =>
    axes.map((axis, i) => {
      const columns = value.columnsOf(axis, b)
      return columns && Uint8Array.from({ length: shape[i] as number }, (_, c) => (columns.includes(c) ? 1 : 0))
    }),
  )
  const use = new Uint8Array(value.data.length)
  const index = new Array<number>(shape.length).fill(0)
  for (let flat = 0; flat < use.length; flat++) {
    const masks = held[index[0] as number] as (Uint8Array | undefined)[]
    use[flat] = masks.every((m, i) => !m || m[index[i] as number] === 1) ? 1 : 0
    for (let i = shape.length - 1; i >= 0; i--) {
      index[i] = (index[i] as number) + 1
      if ((index[i] as number) < (shape[i] as number)) break
      index[i] = 0
    }
  }
  return differenceOf(value.data, golden, what, use)
}

/** The last `count` positions of each row against the recorded ones. */
export function compareLast(value: Activation, golden: Float32Array, count: number): Difference {
  const rows = value.lengths.map((_, b) => Array.from({ length: count }, (_, i) => value.at(b, i - count)))
  return differenceOf(Float32Array.from(rows.flatMap((r) => r.flatMap((v) => Array.from(v)))), golden)
}

/** Generated tokens against recorded ones, [batch, length]: the error is the number that differ. */
export function compareTokens(ours: readonly (readonly number[])[], golden: Float32Array, length: number): Difference {
  let differing = 0
  let first: string | undefined
  for (const [b, row] of ours.entries())
    for (let i = 0; i < length; i++) {
      const recorded = golden[b * length + i] as number
      if (row[i] === recorded) continue
      differing++
      first ??= `token ${i} of row ${b} is ${row[i] ?? 'missing'}, recorded ${recorded}`
    }
  return { error: differing, tolerance: 0, ...(first ? { note: first } : {}) }
}

/** Negative log-likelihood of each token of a row after the first, from logits [pos, d_vocab]. */
export function negativeLogLikelihoods({ shape, data }: NDArray<Float32Array>, ids: readonly number[]): number[] {
  const width = shape[1] as number
  return ids.slice(1).map((id, t) => {
    const logits = data.subarray(t * width, (t + 1) * width)
    let top = Number.NEGATIVE_INFINITY
    for (const v of logits) top = Math.max(top, v)
    let sum = 0
    for (const v of logits) sum += Math.exp(v - top)
    return top + Math.log(sum) - (logits[id] as number)
  })
}
