/** @file Tests of significance that reports use. */
import { ranksOf } from '../explore/similarity/rsa.ts'

/** Share of controls that reach a value, the value itself counted: the p-value of a permutation test. */
export function permutationP(value: number, controls: readonly number[]): number {
  return (1 + controls.filter((c) => c >= value).length) / (1 + controls.length)
}

/** Two-sided exact p-value of McNemar's test from the pairs that only one of two methods got right. */
export function mcnemarP(onlyFirst: number, onlySecond: number): number {
  const n = onlyFirst + onlySecond
  if (n === 0) return 1
  const k = Math.min(onlyFirst, onlySecond)
  let [term, tail] = [0.5 ** n, 0]
  for (let i = 0; i <= k; i++) {
    tail += term
    term = (term * (n - i)) / (i + 1)
  }
  return Math.min(1, 2 * tail)
}

/** p-values corrected for their number by Holm's method, in the order given. */
export function holm(values: readonly number[]): number[] {
  const order = values.map((_, i) => i).sort((a, b) => (values[a] as number) - (values[b] as number))
  const out = new Array<number>(values.length)
  let largest = 0
  for (const [rank, i] of order.entries()) {
    largest = Math.max(largest, Math.min(1, (values[i] as number) * (values.length - rank)))
    out[i] = largest
  }
  return out
}

/** Φ, by the error function of Abramowitz and Stegun 7.1.26 (error below 2e-7). */
export function normalCdf(x: number): number {
  const z = Math.abs(x) / Math.SQRT2
  const t = 1 / (1 + 0.3275911 * z)
  const erf = 1 - ((((1.061405429 * t - 1.453152027) * t + 1.421413741) * t - 0.284496736) * t + 0.254829592) * t * Math.exp(-z * z)
  return x < 0 ? (1 - erf) / 2 : (1 + erf) / 2
}

/** Spearman's rank correlation; equal values share their mean rank. */
export function rankCorrelation(a: ArrayLike<number>, b: ArrayLike<number>): number {
  const [x, y] = [ranksOf(Float64Array.from(a)), ranksOf(Float64Array.from(b))]
  const middle = (x.length - 1) / 2
  const product = (p: Float64Array, q: Float64Array) => p.reduce((s, v, i) => s + (v - middle) * ((q[i] as number) - middle), 0)
  return product(x, y) / Math.sqrt(product(x, x) * product(y, y))
}
