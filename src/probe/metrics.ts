/** @file How good scores are: accuracy, AUROC, R², intervals by bootstrap, calibration. */
import { randomStream } from '../models/sampling.ts'

/** A number and the interval in which it lies with 95 % of the bootstrap's samples. */
export interface Estimate {
  readonly value: number
  readonly low: number
  readonly high: number
}

/** Which class scores [examples, outputs] mean: the larger one, or for one output the second where positive. */
export function predicted(scores: Float64Array, outputs: number): Int32Array {
  const n = scores.length / outputs
  return Int32Array.from({ length: n }, (_, i) => {
    if (outputs === 1) return (scores[i] as number) > 0 ? 1 : 0
    let best = 0
    for (let k = 1; k < outputs; k++) if ((scores[i * outputs + k] as number) > (scores[i * outputs + best] as number)) best = k
    return best
  })
}

/** Area under the ROC curve of scores for `positive` examples against the others, each counted `times`; ties count half. NaN where a side is empty. */
export function auroc(order: Int32Array, scores: Float64Array, positive: Uint8Array, times?: Int32Array): number {
  let [below, area, up, down] = [0, 0, 0, 0]
  for (let at = 0; at < order.length; ) {
    let end = at
    let [ups, downs] = [0, 0]
    const score = scores[order[at] as number]
    for (; end < order.length && scores[order[end] as number] === score; end++) {
      const i = order[end] as number
      const n = times ? (times[i] as number) : 1
      if (positive[i] === 1) ups += n
      else downs += n
    }
    area += ups * (below + downs / 2)
    below += downs
    up += ups
    down += downs
    at = end
  }
  return area / (up * down)
}

/** Examples from the lowest score to the highest. */
export const ascending = (scores: Float64Array) =>
  Int32Array.from(scores.keys()).sort((a, b) => (scores[a] as number) - (scores[b] as number))

/** A measure of predictions in which each example counts some number of times. */
export type Measure = (times: Int32Array) => number

/** Share of right predictions. */
export function accuracyOf(predictions: Int32Array, targets: Float64Array): Measure {
  return (times) => {
    let [right, all] = [0, 0]
    for (let i = 0; i < times.length; i++) {
      all += times[i] as number
      if (predictions[i] === targets[i]) right += times[i] as number
    }
    return right / all
  }
}

/** AUROC of the second class; for several classes the mean over each against the rest. */
export function aurocOf(scores: Float64Array, outputs: number, targets: Float64Array): Measure {
  const sides = Array.from({ length: outputs }, (_, k) => {
    const own = outputs === 1 ? scores : scores.filter((_, at) => at % outputs === k)
    const positive = Uint8Array.from(targets, (t) => (t === (outputs === 1 ? 1 : k) ? 1 : 0))
    return { own, positive, order: ascending(own) }
  })
  return (times) => {
    const areas = sides.map(({ own, positive, order }) => auroc(order, own, positive, times)).filter((a) => !Number.isNaN(a))
    return areas.reduce((a, b) => a + b, 0) / areas.length
  }
}

/** Share of the variance of numbers that predictions explain. */
export function r2Of(predictions: Float64Array, targets: Float64Array): Measure {
  return (times) => {
    let [all, sum] = [0, 0]
    for (let i = 0; i < times.length; i++) {
      all += times[i] as number
      sum += (times[i] as number) * (targets[i] as number)
    }
    const mean = sum / all
    let [rest, spread] = [0, 0]
    for (let i = 0; i < times.length; i++) {
      rest += (times[i] as number) * ((targets[i] as number) - (predictions[i] as number)) ** 2
      spread += (times[i] as number) * ((targets[i] as number) - mean) ** 2
    }
    return 1 - rest / spread
  }
}

/** Measures with 95 % intervals: whole groups are drawn with replacement, since examples of a group are not independent. */
export function bootstrap<Name extends string>(
  measures: Readonly<Record<Name, Measure>>,
  groups: Int32Array,
  options: { readonly samples?: number; readonly seed?: number } = {},
): Record<Name, Estimate> {
  const { samples = 1000, seed = 0 } = options
  const names = Object.keys(measures) as Name[]
  const count = groups.reduce((most, g) => Math.max(most, g + 1), 0)
  const random = randomStream(seed)
  const drawn = Object.fromEntries(names.map((n) => [n, [] as number[]])) as Record<Name, number[]>
  for (let s = 0; s < samples; s++) {
    const ofGroup = new Int32Array(count)
    for (let i = 0; i < count; i++) {
      const g = Math.floor(random() * count)
      ofGroup[g] = (ofGroup[g] as number) + 1
    }
    const times = groups.map((g) => ofGroup[g] as number)
    for (const name of names) {
      const value = measures[name](times)
      // A sample without one of the classes tells nothing about them.
      if (Number.isFinite(value)) drawn[name].push(value)
    }
  }
  const once = new Int32Array(groups.length).fill(1)
  const estimate = (name: Name): Estimate => {
    const sorted = drawn[name].sort((a, b) => a - b)
    const at = (q: number) => sorted[Math.min(sorted.length - 1, Math.floor(q * sorted.length))] ?? Number.NaN
    return { value: measures[name](once), low: at(0.025), high: at(0.975) }
  }
  return Object.fromEntries(names.map((n) => [n, estimate(n)])) as Record<Name, Estimate>
}

/** `P(second class) = 1 / (1 + exp(−(slope · score + offset)))`. */
export interface Calibration {
  readonly slope: number
  readonly offset: number
}

/** Platt's calibration of scores that were told without having learned from their examples (Platt 1999; Newton's method of Lin, Lin & Weng 2007). */
export function platt(scores: Float64Array, positive: Uint8Array): Calibration {
  const up = positive.reduce((a, b) => a + b, 0)
  const down = positive.length - up
  // Not quite 0 and 1, so that scores that separate the classes do not ask for an infinite slope.
  const [high, low] = [(up + 1) / (up + 2), 1 / (down + 2)]
  const target = (i: number) => (positive[i] === 1 ? high : low)
  const loss = (slope: number, offset: number) => {
    let sum = 0
    for (let i = 0; i < scores.length; i++) {
      const s = slope * (scores[i] as number) + offset
      sum += Math.max(s, 0) - target(i) * s + Math.log1p(Math.exp(-Math.abs(s)))
    }
    return sum
  }
  let [slope, offset] = [0, Math.log((up + 1) / (down + 1))]
  for (let step = 0; step < 100; step++) {
    let [ga, gb, aa, ab, bb] = [0, 0, 1e-12, 0, 1e-12]
    for (let i = 0; i < scores.length; i++) {
      const x = scores[i] as number
      const p = 1 / (1 + Math.exp(-(slope * x + offset)))
      const [g, h] = [p - target(i), p * (1 - p)]
      ga += g * x
      gb += g
      aa += h * x * x
      ab += h * x
      bb += h
    }
    if (Math.max(Math.abs(ga), Math.abs(gb)) < 1e-7 * scores.length) break
    const determinant = aa * bb - ab * ab
    const [da, db] = [-(bb * ga - ab * gb) / determinant, -(aa * gb - ab * ga) / determinant]
    const before = loss(slope, offset)
    let length = 1
    while (length > 1e-10 && loss(slope + length * da, offset + length * db) > before) length /= 2
    if (length <= 1e-10) break
    slope += length * da
    offset += length * db
  }
  return { slope, offset }
}
