/** @file Numbers that tests share with record.py. */
import type { NDArray } from '../../base/types.ts'
import { sizeOf } from '../../base/types.ts'
import { SessionCache } from '../../tensor/index.ts'
import { ParameterSet } from '../parameters.ts'

/** Where tests run: one thread, and sessions of all tests of a file together. */
export const runtime = { threads: 1, cache: new SessionCache(1e9) } as const

/** A repeatable stream of numbers in [−½, ½). */
export function stream(seed: number): () => number {
  let state = seed >>> 0
  return () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0
    return state / 2 ** 32 - 0.5
  }
}

/** An array of drawn numbers, times a scale. */
export function drawn(next: () => number, shape: readonly number[], scale = 1): NDArray<Float32Array> {
  return { dtype: 'float32', shape, data: Float32Array.from({ length: sizeOf(shape) }, () => next() * scale) }
}

/** Whole numbers below `n`. */
export function integers(next: () => number, shape: readonly number[], n: number): NDArray<BigInt64Array> {
  return { dtype: 'int64', shape, data: BigInt64Array.from({ length: sizeOf(shape) }, () => BigInt(Math.floor((next() + 0.5) * n))) }
}

/** Parameters drawn in order: name, shape, scale, and what is added. */
export function drawnParameters(
  shapes: readonly (readonly [name: string, shape: readonly number[], scale: number, added: number])[],
  seed: number,
): ParameterSet {
  const next = stream(seed)
  return ParameterSet.from(
    Object.fromEntries(
      shapes.map(([name, shape, scale, added]) => {
        const array = drawn(next, shape, scale)
        return [name, { ...array, data: array.data.map((v) => v + added) }]
      }),
    ),
  )
}

/** Largest difference relative to the scale of the expected values. */
export function relativeError(actual: ArrayLike<number>, expected: ArrayLike<number>): number {
  let [scale, worst] = [1e-30, 0]
  for (let i = 0; i < expected.length; i++) {
    scale = Math.max(scale, Math.abs(expected[i] as number))
    const d = Math.abs((actual[i] as number) - (expected[i] as number))
    worst = Math.max(worst, Number.isNaN(d) ? Number.POSITIVE_INFINITY : d)
  }
  return actual.length === expected.length ? worst / scale : Number.POSITIVE_INFINITY
}
