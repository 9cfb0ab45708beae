import { expect, test } from 'vitest'
import { holm, mcnemarP, normalCdf, permutationP } from './statistics.ts'

test('p-values agree with closed forms', () => {
  expect(permutationP(3, [1, 2, 3, 4])).toBe(3 / 5)
  expect(mcnemarP(0, 5)).toBeCloseTo(2 / 32, 12)
  expect(mcnemarP(3, 3)).toBe(1)
  expect(mcnemarP(0, 0)).toBe(1)
  expect(holm([0.01, 0.04, 0.03])).toEqual([expect.closeTo(0.03), expect.closeTo(0.06), expect.closeTo(0.06)])
  expect(normalCdf(1.959964)).toBeCloseTo(0.975, 6)
  expect(normalCdf(-1)).toBeCloseTo(0.158655, 6)
})
