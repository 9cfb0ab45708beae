import { describe, expect, it } from 'vitest'
import { RandomStream } from '../../nn/index.ts'
import { Bisection, betaCdf, calibrateBoost } from './bisection.ts'

/** Falls with the boost and is 0.30 at 7. */
const curve = (x: number) => 1 / (1 + Math.exp(0.8 * (x - 7) + Math.log(7 / 3)))
const options = { range: [0, 50], prior: [10, 10], target: 0.3 } as const

async function found(rounds: number, score: (x: number, random: RandomStream) => number, seeds = 100): Promise<number[]> {
  const out: number[] = []
  for (let seed = 0; seed < seeds; seed++) {
    const random = RandomStream.of(seed)
    out.push((await calibrateBoost((x) => score(x, random), { ...options, rounds, points: 2000 })).boost)
  }
  return out
}
const near = (all: readonly number[]) => all.filter((x) => Math.abs(x - 7) < 1.5).length / all.length

describe('probabilistic bisection', () => {
  it('has the beta distribution function of mpmath', () => {
    // mpmath.betainc(a, b, 0, x, regularized=True)
    const known: readonly (readonly [number, number, number, number])[] = [
      [0.3, 0.5, 5.5, 0.94733685549],
      [0.3, 5.5, 0.5, 0.00036272294],
      [0.3, 2, 4, 0.47178],
      [0.7, 3, 3, 0.83692],
    ]
    for (const [x, a, b, want] of known) expect(betaCdf(x, a, b)).toBeCloseTo(want, 8)
    expect([betaCdf(0, 2, 3), betaCdf(1, 2, 3)]).toEqual([0, 1])
  })

  it('finds where scores of yes and no cross the target', async () => {
    const yesNo = (x: number, random: RandomStream) => Number(random.next() < curve(x))
    expect(near(await found(40, yesNo))).toBeGreaterThanOrEqual(0.9)
    expect(near(await found(10, yesNo))).toBeGreaterThan(0.6)
  })

  it('finds it in ten rounds where the noise is small', async () => {
    const noisy = (x: number, random: RandomStream) => Math.min(1, Math.max(0, curve(x) + 0.16 * random.normal()))
    expect(near(await found(10, noisy))).toBeGreaterThanOrEqual(0.9)
  })

  it('runs to the upper end when it is told the wrong side', async () => {
    const flipped = (x: number) => (curve(x) >= 0.3 ? 0 : 1)
    const result = await calibrateBoost(flipped, { ...options, rounds: 40 })
    expect(result.boost).toBeGreaterThan(48)
    const rising = await calibrateBoost(() => 1, { ...options, rounds: 40 })
    expect(rising.boost).toBeGreaterThan(48)
    expect(rising.atEnd).toBe(true)
  })

  it('learns nothing from what could not be scored, and refuses what is no score', async () => {
    const silent = await calibrateBoost(() => undefined, { ...options, rounds: 3 })
    expect(silent.queries.map((q) => q.score)).toEqual([undefined, undefined, undefined])
    expect(silent.boost).toBeCloseTo(new Bisection(options).median, 10)
    await expect(calibrateBoost(() => 30, options)).rejects.toThrow(/from 0 to 1/)
    expect(() => new Bisection({ ...options, range: [5, 5] })).toThrow(/must rise/)
    expect(() => new Bisection({ ...options, prior: [5, 0] })).toThrow(/deviation/)
    expect(() => new Bisection({ ...options, target: 30 })).toThrow(/between 0 and 1/)
  })

  it('weights the two sides by how sure the answer is', () => {
    const search = new Bisection({ range: [0, 1], prior: [0.5, 100], target: 0.3, points: 1001 })
    search.update(0.5, 0)
    // A flat density: I_0.3(½, 5½) of it comes to lie below the query, so its median is where half of it is reached.
    expect(search.median).toBeCloseTo(0.25 / 0.947337, 2)
  })
})
