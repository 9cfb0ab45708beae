/** @file Pairs from templates: counted, paired, and determined by the seed. */
import { describe, expect, it } from 'vitest'
import { politeReviews, templatePairs } from './templates.ts'

describe('templates', () => {
  it('draw different pairs that differ in the chosen words only', () => {
    const all = templatePairs(politeReviews, 4 * 5 * 3 * 10)
    expect(new Set(all.positive).size).toBe(600)
    expect(all.positive[0]).not.toBe(all.negative[0])
    const some = templatePairs(politeReviews, 20, 3)
    expect(templatePairs(politeReviews, 20, 3)).toEqual(some)
    expect(templatePairs(politeReviews, 20, 4)).not.toEqual(some)
    const small = { frames: ['{a} {b} {a}'], contrast: { a: { positive: ['x', 'y'], negative: ['p', 'q'] } }, shared: { b: ['1'] } }
    const { positive, negative } = templatePairs(small, 2)
    expect(positive.map((t, i) => `${t}|${negative[i]}`).sort()).toEqual(['x 1 x|p 1 p', 'y 1 y|q 1 q'])
  })
  it('refuse places without words, and more pairs than there are', () => {
    expect(() => templatePairs(politeReviews, 601)).toThrow('holds 600 pairs')
    expect(() => templatePairs({ frames: ['{a} {c}'], contrast: { a: { positive: ['x'], negative: ['y'] } } }, 1)).toThrow("the place 'c'")
    expect(() => templatePairs({ frames: ['{a}'], contrast: { a: { positive: ['x'], negative: [] } } }, 1)).toThrow('as many of each')
  })
})
