import { describe, expect, it } from 'vitest'
import { resistanceRates, splitAttempts, splitTokens, wilson } from './attempts.ts'

describe('attempts', () => {
  it('begin where a sentence says that it starts again', () => {
    const text =
      "Boil the whale song. Wait, that's wrong. Let me start over! First, heat the water.\nOops – I forgot to add the eggs. Sorry."
    expect(splitAttempts(text)).toEqual([
      'Boil the whale song.',
      "Wait, that's wrong. Let me start over! First, heat the water.",
      'Oops – I forgot to add the eggs. Sorry.',
    ])
    expect(splitAttempts('Cats are great. "I’m sorry," she said. That’s not right: use flour and eggs.')).toEqual([
      'Cats are great. "I’m sorry," she said.',
      'That’s not right: use flour and eggs.',
    ])
  })

  it('do not begin within a sentence, within a word, or at the start of an answer', () => {
    expect(splitAttempts('Stir. Wait 5 minutes. Hold on to the rail. Sorrywort grows here.')).toHaveLength(1)
    expect(splitAttempts('Mix it and wait. The waiter came. Waiting helps.')).toHaveLength(1)
    expect(splitAttempts('Sorry, I do not know.')).toEqual(['Sorry, I do not know.'])
    expect(splitAttempts('  \n ')).toEqual([])
    expect(splitAttempts('One. NOPE two is what I meant.', ['nope'])).toEqual(['One.', 'NOPE two is what I meant.'])
  })

  it('of tokens lie between those that start again', () => {
    expect(splitTokens([1, 9, 9, 2, 3], [9])).toEqual([[1], [], [2, 3]])
    expect(splitTokens([], [9])).toEqual([[]])
  })
})

describe('rates', () => {
  it('count what starts again, and what is better for it', () => {
    const rates = resistanceRates([[90], [10, 80], [50, 20], [30, 60, 30], [], [0, 5]])
    expect(rates).toMatchObject({ answers: 5, dropped: 1, firstScore: 36 })
    expect(rates.multiAttempt).toMatchObject({ count: 4, of: 5, value: 0.8 })
    // The last attempt against the first one, whatever lies between.
    expect(rates.resistance).toMatchObject({ count: 2, of: 5 })
    expect(rates.improvement).toMatchObject({ count: 2, of: 4 })
    expect(rates.change).toBeCloseTo((70 - 30 + 0 + 5) / 4, 12)
    expect(() => resistanceRates([[101]])).toThrow(/0 to 100/)
    expect(() => resistanceRates([[Number.NaN]])).toThrow(/0 to 100/)
  })

  it('have intervals by Wilson', () => {
    // Roots of (p − p̂)² = z² p (1 − p) / n, by mpmath.
    const known: readonly (readonly [number, number, number, number])[] = [
      [8, 10, 0.4901625, 0.9433178],
      [0, 20, 0, 0.1611252],
      [20, 20, 0.8388748, 1],
      [361, 4877, 0.0670038, 0.0817086],
    ]
    for (const [count, of, low, high] of known) {
      const rate = wilson(count, of)
      expect(rate.low).toBeCloseTo(low, 6)
      expect(rate.high).toBeCloseTo(high, 6)
    }
    expect(wilson(0, 0)).toMatchObject({ value: Number.NaN, low: 0, high: 1 })
    expect(() => wilson(3, 2)).toThrow(/whole numbers/)
  })
})
