import fc from 'fast-check'
import { expect, test } from 'vitest'
import { mergeByScore } from './score-merge.ts'

/** The definition: search all pairs again after each merge. */
function bySearching(symbols: readonly string[], scoreOf: (piece: string) => number | undefined): string[] {
  const text = [...symbols]
  for (;;) {
    let best = -1
    let bestScore = Number.NEGATIVE_INFINITY
    for (let i = 0; i + 1 < text.length; i++) {
      const score = scoreOf(`${text[i]}${text[i + 1]}`)
      if (score !== undefined && score > bestScore) {
        best = i
        bestScore = score
      }
    }
    if (best < 0) return text
    text.splice(best, 2, `${text[best]}${text[best + 1]}`)
  }
}

test('merging with a heap gives what searching all pairs gives, ties included', () => {
  const piece = fc.string({ unit: fc.constantFrom('a', 'b', 'c'), minLength: 2, maxLength: 5 })
  const pieces = fc.array(fc.tuple(piece, fc.integer({ min: -4, max: 4 })), { maxLength: 40 })
  const text = fc.string({ unit: fc.constantFrom('a', 'b', 'c'), maxLength: 40 })
  fc.assert(
    fc.property(pieces, text, (vocabulary, word) => {
      const scores = new Map(vocabulary)
      const scoreOf = (union: string) => scores.get(union)
      expect(mergeByScore([...word], scoreOf)).toEqual(bySearching([...word], scoreOf))
    }),
    { numRuns: 500, seed: 5 },
  )
})

// Searching all pairs again would take hours, and run into the time limit of tests.
test('many symbols', () => {
  const scores = new Map(Array.from({ length: 10 }, (_, i) => ['a'.repeat(2 ** (i + 1)), -i]))
  const symbols = Array.from({ length: 200_000 }, () => 'a')
  const merged = mergeByScore(symbols, (piece) => scores.get(piece))
  expect(merged.length).toBeLessThan(300)
})

test('nothing to merge', () => {
  expect(mergeByScore([], () => 1)).toEqual([])
  expect(mergeByScore(['a'], () => 1)).toEqual(['a'])
  expect(mergeByScore(['a', 'b'], () => undefined)).toEqual(['a', 'b'])
})
