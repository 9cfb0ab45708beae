import { describe, expect, it } from 'vitest'
import { gradientCases } from './testing/cases/index.ts'
import { gradientError, secondError } from './testing/check.ts'

const tolerance = { float32: 1e-2, float64: 1e-6 }

for (const [family, cases] of Object.entries(gradientCases))
  describe(`gradients of ${family} ops agree with differences`, () => {
    it.each(cases.map((c) => [c.name, c] as const))('%s', async (_, c) => {
      expect(await gradientError(c)).toBeLessThan(tolerance[c.dtype ?? 'float64'])
      if (!c.noSecond) expect(await secondError(c)).toBeLessThan(10 * tolerance[c.dtype ?? 'float64'])
    })
  })
