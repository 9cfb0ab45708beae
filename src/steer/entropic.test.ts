import { expect, test } from 'vitest'
import { RandomStream } from '../nn/index.ts'
import { choiceOf, type EntropicRun, entropicDirection, sampledEntropy } from './entropic.ts'

/** Runs whose states are a common state, an offset of the run, the entropy along a planted direction, and noise (card, part A). */
function planted(options: { constant?: boolean; offset?: (run: number) => number } = {}): { runs: EntropicRun[]; g: Float64Array } {
  const random = RandomStream.of(3)
  const width = 96
  const g = Float64Array.from({ length: width }, () => random.normal())
  const length = Math.hypot(...g)
  const common = Float64Array.from({ length: width }, () => random.normal())
  const runs = Array.from({ length: 65 }, (_, k) => {
    const own = Float64Array.from({ length: width }, () => 1.5 * random.normal())
    return Array.from({ length: 50 }, (_, t) => {
      const h = options.constant ? 0.1 + 0.005 * k : Math.max(0, 0.69 * Math.exp(-t / 15) + 0.1 * random.normal())
      const state = Float32Array.from(
        g,
        (x, i) => (common[i] as number) + (own[i] as number) + (6 * h * x) / length + random.normal() + (options.offset?.(k) ?? 0),
      )
      return { state, entropy: h }
    })
  })
  return { runs, g }
}

function cosine(a: Float64Array, b: Float64Array): number {
  const dot = (x: Float64Array, y: Float64Array) => x.reduce((s, v, i) => s + v * (y[i] as number), 0)
  return dot(a, b) / Math.sqrt(dot(a, a) * dot(b, b))
}

test('centring by run finds the planted direction, no centring does not', () => {
  const { runs, g } = planted()
  expect(cosine(entropicDirection(runs).direction, g)).toBeGreaterThan(0.93)
  expect(Math.abs(cosine(entropicDirection(runs, { centre: 'none' }).direction, g))).toBeLessThan(0.3)
})

test('the direction is the covariance of entropy and state within runs', () => {
  const { runs } = planted()
  const { direction } = entropicDirection(runs)
  const total = runs.flat().reduce((s, x) => s + x.entropy, 0)
  const wanted = new Float64Array(96)
  for (const run of runs) {
    const h = run.reduce((s, x) => s + x.entropy, 0) / run.length
    for (let i = 0; i < 96; i++) {
      const z = run.reduce((s, x) => s + (x.state[i] as number), 0) / run.length
      for (const x of run) wanted[i] = (wanted[i] as number) + ((x.entropy - h) * ((x.state[i] as number) - z)) / total
    }
  }
  for (let i = 0; i < 96; i++) expect(direction[i]).toBeCloseTo(wanted[i] as number, 10)
})

test('constant entropies within runs give nothing, and what a run adds to all its states changes nothing', () => {
  const { runs } = planted({ constant: true })
  const size = runs.flat().reduce((s, x) => s + Math.hypot(...x.state), 0)
  expect(Math.hypot(...entropicDirection(runs).direction)).toBeLessThan(1e-9 * size)
  const [a, b] = [planted(), planted({ offset: (k) => 8 * (k % 3) })]
  const [u, v] = [entropicDirection(a.runs).direction, entropicDirection(b.runs).direction]
  // Offsets are powers of two, so that float32 states keep their digits.
  for (let i = 0; i < 96; i++) expect(v[i]).toBeCloseTo(u[i] as number, 5)
})

test('the part of time is told, and can be taken out', () => {
  const { runs } = planted()
  expect(entropicDirection(runs).cosineWithTime).toBeGreaterThan(0.9)
  expect(entropicDirection(runs, { removeTime: true }).cosineWithTime).toBeLessThan(entropicDirection(runs).cosineWithTime)
})

test('logs that teach nothing are refused', () => {
  const step = { state: Float32Array.of(1, 2), entropy: 0.001 }
  expect(() => entropicDirection([])).toThrow(/no steps/)
  expect(() => entropicDirection([[step]])).toThrow(/one step/)
  expect(() => entropicDirection([[step, step]])).toThrow(/decided everywhere/)
})

test('choices among tokens, and entropies of samples', () => {
  const { probabilities, entropy, mass } = choiceOf([0, Math.log(3), 0, Math.log(4)], [0, 1])
  expect(probabilities).toEqual([expect.closeTo(0.25, 9), expect.closeTo(0.75, 9)])
  expect(entropy).toBeCloseTo(-0.25 * Math.log(0.25) - 0.75 * Math.log(0.75), 9)
  expect(mass).toBeCloseTo(4 / 9, 9)
  expect(sampledEntropy([0, 1, 0, 1, undefined])).toBeCloseTo(Math.LN2, 9)
})
