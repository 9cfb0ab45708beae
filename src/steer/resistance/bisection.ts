/** @file Probabilistic bisection: the boost at which a noisy score crosses a target. */
import { throwIfCancelled, UsageError } from '../../base/errors.ts'
import type { WorkOptions } from '../../base/progress.ts'

/** What is looked for, and where. */
export interface BisectionOptions {
  /** Ends between which the boost is looked for. */
  readonly range: readonly [number, number]
  /** What is thought beforehand: mean and standard deviation of a normal density, cut off at the ends. */
  readonly prior: readonly [mean: number, deviation: number]
  /** Score that is to be met, above 0 and below 1 (default 0.3). Scores fall as the boost rises. */
  readonly target?: number
  /** Points of the grid (default 10,000). */
  readonly points?: number
}

/**
 * Where a score that falls with the boost crosses a target, learnt from noisy scores (Waeber, Frazier and Henderson 2013). Each answer
 * moves the density to one side of the queried boost by the probability that it tells the right side: that of a beta distribution of
 * the score with half a success and half a failure beforehand (McKenzie et al. 2026, arXiv:2602.06941).
 */
export class Bisection {
  private readonly low: number
  private readonly step: number
  private readonly target: number
  private readonly density: Float64Array

  constructor({ range: [low, high], prior: [mean, deviation], target = 0.3, points = 10_000 }: BisectionOptions) {
    if (!(high > low && Number.isFinite(high - low))) throw new UsageError(`The range of boosts must rise, not go from ${low} to ${high}.`)
    if (!(deviation > 0 && Number.isFinite(mean)))
      throw new UsageError(`The prior needs a mean and a deviation above 0, not ${mean} and ${deviation}.`)
    if (!(target > 0 && target < 1)) throw new UsageError(`The target must lie between 0 and 1, not at ${target}.`)
    if (!(Number.isInteger(points) && points >= 2)) throw new UsageError(`The grid needs at least two points, not ${points}.`)
    this.low = low
    this.step = (high - low) / (points - 1)
    this.target = target
    // From the nearest point on, so that a prior far outside does not vanish everywhere.
    const nearest = Math.min(high, Math.max(low, mean))
    const least = ((nearest - mean) / deviation) ** 2
    this.density = Float64Array.from({ length: points }, (_, i) => Math.exp((least - ((this.at(i) - mean) / deviation) ** 2) / 2))
    this.normalise()
  }

  /** The median of what is known: the boost to try next, and the answer. */
  get median(): number {
    return this.quantile(0.5)
  }

  /** Boost below which a share of the density lies. */
  quantile(share: number): number {
    return this.at(this.index(share))
  }

  /** Takes in the score, from 0 to 1, that was seen at a boost. */
  update(boost: number, score: number): void {
    if (!(score >= 0 && score <= 1)) throw new UsageError(`A score must be a number from 0 to 1, not ${score}; check the judge.`)
    const below = betaCdf(this.target, 0.5 + 5 * score, 5.5 - 5 * score)
    let up = score >= this.target
    let sure = up ? 1 - below : below
    if (sure < 0.5) [up, sure] = [!up, 1 - sure]
    const hit = Math.round((boost - this.low) / this.step)
    const [left, right] = up ? [1 - sure, sure] : [sure, 1 - sure]
    const middle = Math.sqrt(sure * (1 - sure))
    for (let i = 0; i < this.density.length; i++)
      this.density[i] = (this.density[i] as number) * (i < hit ? left : i > hit ? right : middle)
    this.normalise()
  }

  private at(i: number): number {
    return this.low + i * this.step
  }

  private index(share: number): number {
    let sum = 0
    for (let i = 0; i < this.density.length; i++) {
      sum += this.density[i] as number
      if (sum >= share) return i
    }
    return this.density.length - 1
  }

  private normalise(): void {
    const total = this.density.reduce((s, v) => s + v, 0)
    for (let i = 0; i < this.density.length; i++) this.density[i] = (this.density[i] as number) / total
  }
}

/** A calibrated boost. */
export interface Calibration {
  readonly boost: number
  /** Boosts below and above it that hold 90 % of the density between them. */
  readonly interval: readonly [number, number]
  /** What was asked and answered, in order; scores from 0 to 1, undefined where no answer could be scored. */
  readonly queries: readonly { readonly boost: number; readonly score: number | undefined }[]
  /** Whether the answer lies at an end of the range, so that the range is likely too narrow. */
  readonly atEnd: boolean
}

/** Options of {@link calibrateBoost}. */
export interface CalibrationOptions extends BisectionOptions, WorkOptions {
  /** Queries (default 10). */
  readonly rounds?: number
}

/**
 * Finds the boost at which the mean score meets the target.
 * @param score mean score, from 0 to 1, at a boost; undefined where nothing could be scored, which teaches nothing.
 */
export async function calibrateBoost(
  score: (boost: number, round: number) => Promise<number | undefined> | number | undefined,
  options: CalibrationOptions,
): Promise<Calibration> {
  const { rounds = 10, range } = options
  if (!(Number.isInteger(rounds) && rounds > 0)) throw new UsageError(`Calibration needs at least one round, not ${rounds}.`)
  const search = new Bisection(options)
  const queries: { boost: number; score: number | undefined }[] = []
  for (let round = 0; round < rounds; round++) {
    throwIfCancelled(options.signal)
    const boost = search.median
    const found = await score(boost, round)
    queries.push({ boost, score: found })
    if (found !== undefined) search.update(boost, found)
    options.onProgress?.({ task: 'calibrating', done: round + 1, total: rounds, unit: 'rounds' })
  }
  const boost = search.median
  const edge = (range[1] - range[0]) * 0.02
  return {
    boost,
    interval: [search.quantile(0.05), search.quantile(0.95)],
    queries,
    atEnd: boost > range[1] - edge || boost < range[0] + edge,
  }
}

/** Regularised incomplete beta function I_x(a, b), by the continued fraction of DLMF 8.17.22. */
export function betaCdf(x: number, a: number, b: number): number {
  if (x <= 0) return 0
  if (x >= 1) return 1
  // The fraction converges fast on this side only.
  if (x > (a + 1) / (a + b + 2)) return 1 - betaCdf(1 - x, b, a)
  const front = Math.exp(logGamma(a + b) - logGamma(a) - logGamma(b) + a * Math.log(x) + b * Math.log1p(-x)) / a
  const tiny = 1e-300
  const whole = (v: number) => (Math.abs(v) < tiny ? tiny : v)
  let c = 1
  let d = 1 / whole(1 - ((a + b) * x) / (a + 1))
  let value = d
  for (let m = 1; m < 300; m++) {
    const before = value
    for (const term of [
      (m * (b - m) * x) / ((a + 2 * m - 1) * (a + 2 * m)),
      (-(a + m) * (a + b + m) * x) / ((a + 2 * m) * (a + 2 * m + 1)),
    ]) {
      d = 1 / whole(1 + term * d)
      c = whole(1 + term / c)
      value *= c * d
    }
    if (Math.abs(value - before) < 1e-15 * Math.abs(value)) break
  }
  return front * value
}

/** ln Γ(x) for x > 0, by Stirling's series above 8 and the recurrence below. */
function logGamma(x: number): number {
  let [shift, z] = [0, x]
  while (z < 8) shift += Math.log(z++)
  const r = 1 / (z * z)
  const series = (1 / 12 - r * (1 / 360 - r * (1 / 1260 - r * (1 / 1680 - r * (1 / 1188 - (r * 691) / 360360))))) / z
  return (z - 0.5) * Math.log(z) - z + 0.5 * Math.log(2 * Math.PI) + series - shift
}
