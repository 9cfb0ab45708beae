/** @file Small arithmetic on plain lists of numbers, where a program would cost more than it does. */

/** The whole numbers from 0 to n − 1. */
export const range = (n: number): number[] => Array.from({ length: n }, (_, i) => i)

/** The mean; NaN of none. */
export function meanOf(values: ArrayLike<number>): number {
  let sum = 0
  for (let i = 0; i < values.length; i++) sum += values[i] as number
  return sum / values.length
}

/** The cosine of the angle between two vectors; 0 where one of them is zero. */
export function cosineOf(a: ArrayLike<number>, b: ArrayLike<number>): number {
  let [ab, aa, bb] = [0, 0, 0]
  for (let i = 0; i < a.length; i++) {
    const [x, y] = [a[i] as number, b[i] as number]
    ab += x * y
    aa += x * x
    bb += y * y
  }
  return aa === 0 || bb === 0 ? 0 : ab / Math.sqrt(aa * bb)
}
