/** @file Losses of linear models: value and slopes at the scores of one example. */

/** Names of the losses. */
export type Loss = 'logistic' | 'softmax' | 'squared-hinge' | 'squared'

/** A loss of one example. */
export interface LossRow {
  readonly doc: string
  /** Largest second derivative in a score. */
  readonly curvature: number
  /** The loss at `scores` [outputs] for a target; writes its slopes [outputs]. */
  readonly at: (scores: Float64Array, target: number, slopes: Float64Array) => number
}

/** The losses. */
export const losses: Readonly<Record<Loss, LossRow>> = {
  logistic: {
    doc: 'log(1 + exp(−t·s)) for t = ±1.',
    curvature: 0.25,
    at(scores, target, slopes) {
      const margin = target * (scores[0] as number)
      const e = Math.exp(-Math.abs(margin))
      slopes[0] = (-target * (margin > 0 ? e : 1)) / (1 + e)
      return Math.max(-margin, 0) + Math.log1p(e)
    },
  },
  softmax: {
    doc: 'Cross-entropy of a softmax over the scores; the target is the index of the class.',
    curvature: 0.5,
    at(scores, target, slopes) {
      let largest = Number.NEGATIVE_INFINITY
      for (const s of scores) largest = Math.max(largest, s)
      let sum = 0
      for (let k = 0; k < scores.length; k++) {
        slopes[k] = Math.exp((scores[k] as number) - largest)
        sum += slopes[k] as number
      }
      for (let k = 0; k < scores.length; k++) slopes[k] = (slopes[k] as number) / sum - (k === target ? 1 : 0)
      return largest + Math.log(sum) - (scores[target] as number)
    },
  },
  'squared-hinge': {
    doc: 'max(0, 1 − t·s)² for t = ±1.',
    curvature: 2,
    at(scores, target, slopes) {
      const short = Math.max(0, 1 - target * (scores[0] as number))
      slopes[0] = -2 * target * short
      return short * short
    },
  },
  squared: {
    doc: '½(s − t)².',
    curvature: 1,
    at(scores, target, slopes) {
      const off = (scores[0] as number) - target
      slopes[0] = off
      return 0.5 * off * off
    },
  },
}
