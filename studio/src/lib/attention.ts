/** @file Attention patterns: one head out of many, and in a word where it looks. */
import type { Values } from './safetensors.ts'

/** The pattern of one head, [query, key] flat. */
export interface Pattern {
  readonly head: number
  readonly size: number
  readonly weights: Float32Array
}

/** The patterns of a layer's heads. */
export function patternsOf({ shape, data }: Values): Pattern[] {
  const [heads, size] = shape as [number, number, number]
  return Array.from({ length: heads }, (_, head) => ({ head, size, weights: data.subarray(head * size * size, (head + 1) * size * size) }))
}

/** The weight that a query gives to a key. */
export const weightAt = (pattern: Pattern, query: number, key: number) => pattern.weights[query * pattern.size + key] as number

/** Where a head looks for the most part: at the first token, the one before, or the token itself; and how much of its weight goes there. */
export function habit(pattern: Pattern): { where: 'the first token' | 'the token before' | 'the token itself'; share: number } {
  const { size } = pattern
  const sums = { 'the first token': 0, 'the token before': 0, 'the token itself': 0 }
  // Early queries have no choice, so they tell nothing.
  const from = Math.min(2, size - 1)
  for (let q = from; q < size; q++) {
    sums['the first token'] += weightAt(pattern, q, 0)
    sums['the token itself'] += weightAt(pattern, q, q)
    if (q > 1) sums['the token before'] += weightAt(pattern, q, q - 1)
  }
  const [where, sum] = Object.entries(sums).sort((a, b) => b[1] - a[1])[0] as [keyof typeof sums, number]
  return { where, share: sum / (size - from) }
}

/** The heaviest links of a pattern, from a token to an earlier one, at most `count` of them. */
export function links(pattern: Pattern, least: number, count: number): { query: number; key: number; weight: number }[] {
  const all: { query: number; key: number; weight: number }[] = []
  for (let query = 1; query < pattern.size; query++)
    for (let key = 0; key < query; key++) {
      const weight = weightAt(pattern, query, key)
      if (weight >= least) all.push({ query, key, weight })
    }
  return all.sort((a, b) => b.weight - a.weight).slice(0, count)
}
