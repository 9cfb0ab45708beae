/** @file Tests of significance that reports use. */

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
