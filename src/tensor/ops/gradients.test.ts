import { describe, expect, it } from 'vitest'
import { attentionCases } from './testing/cases/attention.ts'
import { elementwiseCases } from './testing/cases/elementwise.ts'
import { layoutCases } from './testing/cases/layout.ts'
import { reduceCases } from './testing/cases/reduce.ts'
import { gradientError, secondError } from './testing/check.ts'

const tolerance = { float32: 1e-2, float64: 1e-6 }

for (const [family, cases] of Object.entries({
  elementwise: elementwiseCases,
  layout: layoutCases,
  reduce: reduceCases,
  attention: attentionCases,
}))
  describe(`gradients of ${family} ops agree with differences`, () => {
    it.each(cases.map((c) => [c.name, c] as const))('%s', async (_, c) => {
      expect(await gradientError(c)).toBeLessThan(tolerance[c.dtype ?? 'float64'])
      if (!c.noSecond) expect(await secondError(c)).toBeLessThan(10 * tolerance[c.dtype ?? 'float64'])
    })
  })
