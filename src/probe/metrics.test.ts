import * as fc from 'fast-check'
import { expect, it } from 'vitest'
import { randomStream } from '../models/sampling.ts'
import { groupsOf, makeFolds } from './folds.ts'
import { accuracyOf, ascending, auroc, aurocOf, bootstrap, platt, predicted, r2Of } from './metrics.ts'

const n = 120
const first = Array.from({ length: n }, (_, i) => Math.fround(Math.sin(12.9898 * i)))
const third = Array.from({ length: n }, (_, i) => Math.fround(Math.sin(12.9898 * i + 156.466 + 1.4 * i) * 1.5 + 2))
const truth = first.map((v, i) => v - (third[i] as number) / 2 + Math.cos(3.1 * i) * 0.8)
const median =
  [...truth]
    .sort((a, b) => a - b)
    .slice(59, 61)
    .reduce((a, b) => a + b, 0) / 2
const positive = Uint8Array.from(truth, (s) => (s > median ? 1 : 0))
/** Rounded, so that there are ties. */
const scores = Float64Array.from(first, (v) => Math.round(v * 20) / 10)

it('agrees with scikit-learn 1.9.1 about AUROC with ties and about Platt calibration', () => {
  expect(auroc(ascending(scores), scores, positive)).toBeCloseTo(0.8266666667, 9)
  const { slope, offset } = platt(scores, positive)
  expect(slope).toBeCloseTo(0.94163, 4)
  expect(offset).toBeCloseTo(-0.001854, 4)
})

it('counts pairs: AUROC is the share of pairs in the right order', () => {
  fc.assert(
    fc.property(fc.array(fc.tuple(fc.integer({ min: 0, max: 6 }), fc.boolean()), { minLength: 2, maxLength: 30 }), (items) => {
      const ups = items.filter(([, p]) => p)
      const downs = items.filter(([, p]) => !p)
      fc.pre(ups.length > 0 && downs.length > 0)
      let won = 0
      for (const [u] of ups) for (const [v] of downs) won += u > v ? 1 : u === v ? 0.5 : 0
      const values = Float64Array.from(items, ([v]) => v)
      const have = auroc(
        ascending(values),
        values,
        Uint8Array.from(items, ([, p]) => (p ? 1 : 0)),
      )
      expect(have).toBeCloseTo(won / (ups.length * downs.length), 10)
    }),
  )
})

it('gives intervals that hold the truth about as often as they say, and that are wider when texts repeat', () => {
  const random = randomStream(5)
  let held = 0
  const rounds = 60
  for (let r = 0; r < rounds; r++) {
    const targets = Float64Array.from({ length: 80 }, () => (random() < 0.5 ? 1 : 0))
    const told = Int32Array.from(targets, (t) => (random() < 0.7 ? t : 1 - t))
    const { accuracy } = bootstrap({ accuracy: accuracyOf(told, targets) }, Int32Array.from(targets.keys()), { samples: 300, seed: r })
    if (accuracy.low <= 0.7 && 0.7 <= accuracy.high) held++
  }
  expect(held / rounds).toBeGreaterThan(0.85)
  const targets = Float64Array.from({ length: 200 }, (_, i) => (Math.floor(i / 10) % 2 === 0 ? 1 : 0))
  const told = Int32Array.from(targets, (t, i) => (Math.floor(i / 10) % 5 === 0 ? 1 - t : t))
  const width = (groups: Int32Array) => {
    const { a } = bootstrap({ a: accuracyOf(told, targets) }, groups, { seed: 1 })
    expect(a.value).toBe(0.8)
    return a.high - a.low
  }
  expect(width(Int32Array.from(targets, (_, i) => Math.floor(i / 10)))).toBeGreaterThan(2 * width(Int32Array.from(targets.keys())))
})

it('measures classes and numbers', () => {
  expect([...predicted(Float64Array.of(-1, 0, 2), 1)]).toEqual([0, 0, 1])
  expect([...predicted(Float64Array.of(1, 3, 2, 5, 4, 0), 3)]).toEqual([1, 0])
  const all = new Int32Array(3).fill(1)
  expect(aurocOf(Float64Array.of(9, 0, 0, 0, 9, 0, 0, 0, 9), 3, Float64Array.of(0, 1, 2))(all)).toBe(1)
  expect(r2Of(Float64Array.of(1, 2, 3), Float64Array.of(1, 2, 3))(all)).toBe(1)
  expect(r2Of(Float64Array.of(2, 2, 2), Float64Array.of(1, 2, 3))(all)).toBe(0)
})

it('never puts a group on both sides of a fold, and deals out classes evenly', () => {
  fc.assert(
    fc.property(
      fc.array(fc.tuple(fc.integer({ min: 0, max: 30 }), fc.integer({ min: 0, max: 2 })), { minLength: 40, maxLength: 120 }),
      fc.integer(),
      (items, seed) => {
        const groups = groupsOf(items.map(([g]) => String(g)))
        fc.pre(new Set(groups).size >= 4)
        const folds = makeFolds(
          groups,
          Int32Array.from(items, ([, c]) => c),
          4,
          Math.abs(seed),
        )
        const foldOf = new Map<number, number>()
        for (const [i, g] of groups.entries()) {
          expect(foldOf.get(g) ?? folds[i]).toBe(folds[i])
          foldOf.set(g, folds[i] as number)
        }
        expect(new Set(folds).size).toBe(4)
      },
    ),
  )
  const classes = Int32Array.from({ length: 100 }, (_, i) => (i < 20 ? 1 : 0))
  const folds = makeFolds(Int32Array.from(classes.keys()), classes, 5, 3)
  for (let f = 0; f < 5; f++) {
    expect(folds.filter((v) => v === f).length).toBe(20)
    expect(classes.filter((c, i) => c === 1 && folds[i] === f).length).toBe(4)
  }
  expect(makeFolds(Int32Array.from(classes.keys()), classes, 5, 3)).toEqual(folds)
  expect(() => makeFolds(Int32Array.of(0, 0, 1), Int32Array.of(0, 1, 0), 3, 0)).toThrow(/2 different source texts, too few for 3 folds/)
})
