/** @file Kinds of probes: how each turns labelled features into linear scores. Several fits on the same features are made at once. */
import { UsageError } from '../base/errors.ts'
import { cholesky, solve } from '../steer/rows.ts'
import { centred, type Features, fitLinear, gramOf, type LinearFit, type LinearProblem, type SolverOptions } from './solver.ts'

/** Names of the kinds. */
export type ProbeKind = 'logistic' | 'mean-difference' | 'ridge' | 'lda' | 'svm' | 'regression'

/** How strongly a fit is held back; each kind names those it has. */
export interface Regularisation {
  /** Inverse strength of the penalty, as scikit-learn counts it: penalty + C · Σ loss; for ridge and regression 1/α. */
  readonly C: number
  /** Share of the L1 penalty: 0 is L2, 1 is L1, between is elastic; logistic only. */
  readonly l1Ratio?: number
  /** LDA: weight of the sphere, or what Ledoit and Wolf estimate. */
  readonly shrinkage?: 'auto' | number
  readonly standardise: boolean
}

/** What is to be learned from some of the examples. */
export interface FitTask {
  /** Weight of each example; 0 leaves it out. */
  readonly weights: Float64Array
  /** Class index of each example, or its number for a regression. */
  readonly targets: Float64Array
  /** Number of classes; 0 for a regression. */
  readonly classes: number
  readonly regularisation: Regularisation
}

/** A kind of probe. Scores are one number where there are two classes (positive for the second) or a number is told, else one for each class. */
export interface KindRow {
  readonly doc: string
  readonly regression?: true
  /** Whether C matters, so that it is worth searching. */
  readonly searches: boolean
  readonly fit: (x: Features, tasks: readonly FitTask[], options: SolverOptions) => Promise<LinearFit[]>
}

/** The kinds of probes. */
export const probeKinds: Readonly<Record<ProbeKind, KindRow>> = {
  logistic: {
    doc: 'Logistic regression (softmax for several classes) with L2, L1 or elastic penalty.',
    searches: true,
    fit: (x, tasks, options) => fitLinear(x, tasks.map(logisticProblem), options),
  },
  'mean-difference': {
    doc: 'Direction from class mean to class mean, threshold halfway (nearest class mean for several classes).',
    searches: false,
    fit: (x, tasks) => Promise.all(tasks.map((task) => nearestMean(x, task))),
  },
  ridge: {
    doc: 'Least squares on ±1 with an L2 penalty.',
    searches: true,
    fit: (x, tasks, options) => oneByOne(x, tasks, options, 'squared', (r) => 1 / r.C),
  },
  lda: {
    doc: "Fisher's linear discriminant, the covariance within classes shrunk towards a sphere.",
    searches: false,
    fit: async (x, tasks) => {
      const fits: LinearFit[] = []
      for (const task of tasks) fits.push(await discriminant(x, task))
      return fits
    },
  },
  svm: {
    doc: 'Linear support vector machine with squared hinge loss; one against the rest for several classes.',
    searches: true,
    fit: (x, tasks, options) => oneByOne(x, tasks, options, 'squared-hinge', (r) => 1 / r.C),
  },
  regression: {
    doc: 'Ridge regression of a number.',
    regression: true,
    searches: true,
    fit: (x, tasks, options) =>
      fitLinear(
        x,
        tasks.map((t) => ({ ...common(t), loss: 'squared', targets: t.targets, outputs: 1, l2: 1 / t.regularisation.C, l1: 0 })),
        options,
      ),
  },
}

const common = ({ weights, regularisation: { standardise } }: FitTask) => ({ weights, standardise })

/** ±1 for one class against the others. */
const against = (targets: Float64Array, one: number) => targets.map((t) => (t === one ? 1 : -1))

function logisticProblem(task: FitTask): LinearProblem {
  const { C, l1Ratio = 0 } = task.regularisation
  if (!(l1Ratio >= 0 && l1Ratio <= 1)) throw new UsageError(`l1Ratio must be from 0 (L2) to 1 (L1), not ${l1Ratio}.`)
  const two = task.classes === 2
  return {
    ...common(task),
    loss: two ? 'logistic' : 'softmax',
    targets: two ? against(task.targets, 1) : task.targets,
    outputs: two ? 1 : task.classes,
    l2: (1 - l1Ratio) / C,
    l1: l1Ratio / C,
  }
}

/** Two classes are one problem, more are one each against the rest. */
async function oneByOne(
  x: Features,
  tasks: readonly FitTask[],
  options: SolverOptions,
  loss: 'squared' | 'squared-hinge',
  strength: (r: Regularisation) => number,
): Promise<LinearFit[]> {
  const ones = tasks.map((t) => (t.classes === 2 ? [1] : Array.from({ length: t.classes }, (_, k) => k)))
  const problems = tasks.flatMap((t, i) =>
    (ones[i] as number[]).map(
      (one): LinearProblem => ({ ...common(t), loss, targets: against(t.targets, one), outputs: 1, l2: strength(t.regularisation), l1: 0 }),
    ),
  )
  const fits = await fitLinear(x, problems, options)
  return ones.map((o) => joined(fits.splice(0, o.length)))
}

function joined(fits: readonly LinearFit[]): LinearFit {
  return {
    weights: Float64Array.from(fits.flatMap((f) => [...f.weights])),
    bias: Float64Array.from(fits.flatMap((f) => [...f.bias])),
    passes: Math.max(...fits.map((f) => f.passes)),
  }
}

/** Weighted means of the classes, [classes][width], and the share of each. */
function classMeans({ shape, data }: Features, { weights, targets, classes }: FitTask): { means: Float64Array[]; shares: number[] } {
  const d = shape[1] as number
  const means = Array.from({ length: classes }, () => new Float64Array(d))
  const totals = new Array<number>(classes).fill(0)
  for (let i = 0; i < weights.length; i++) {
    const w = weights[i] as number
    if (w === 0) continue
    const k = targets[i] as number
    const mean = means[k] as Float64Array
    totals[k] = (totals[k] as number) + w
    for (let j = 0, at = i * d; j < d; j++, at++) mean[j] = (mean[j] as number) + w * (data[at] as number)
  }
  for (const [k, mean] of means.entries()) for (let j = 0; j < d; j++) mean[j] = (mean[j] as number) / (totals[k] as number)
  const all = totals.reduce((a, b) => a + b, 0)
  return { means, shares: totals.map((t) => t / all) }
}

const dot = (a: Float64Array, b: Float64Array) => a.reduce((sum, v, j) => sum + v * (b[j] as number), 0)

/** The fit whose scores are `uᵏ · (x − μᵏ/2) + cᵏ`, as one difference where there are two classes. */
function fromCentres(directions: readonly Float64Array[], means: readonly Float64Array[], offsets: readonly number[]): LinearFit {
  const bias = directions.map((u, k) => (offsets[k] as number) - dot(u, means[k] as Float64Array) / 2)
  if (directions.length !== 2)
    return { weights: Float64Array.from(directions.flatMap((u) => [...u])), bias: Float64Array.from(bias), passes: 1 }
  const [a, b] = directions as [Float64Array, Float64Array]
  return { weights: b.map((v, j) => v - (a[j] as number)), bias: Float64Array.of((bias[1] as number) - (bias[0] as number)), passes: 1 }
}

async function nearestMean(x: Features, task: FitTask): Promise<LinearFit> {
  const { means } = classMeans(x, task)
  return fromCentres(
    means,
    means,
    means.map(() => 0),
  )
}

/** Σ⁻¹ μ for each class, Σ the covariance within classes, shrunk towards a sphere (Fisher 1936; Ledoit & Wolf 2004). */
async function discriminant(features: Features, task: FitTask): Promise<LinearFit> {
  const { shrinkage = 'auto' } = task.regularisation
  if (shrinkage !== 'auto' && !(shrinkage >= 0 && shrinkage <= 1))
    throw new UsageError(`shrinkage must be 'auto' or a number from 0 to 1, not ${shrinkage}.`)
  // Means far from zero would cost the digits of what varies about them.
  const { x, mean: origin } = await centred(features, false)
  const { means, shares } = classMeans(x, task)
  const d = x.shape[1] as number
  const within = rowsWithin(x, task, means)
  const n = within.shape[0] as number
  const gram = await gramOf(within)
  const covariance = gram.data.map((v) => v / n)
  let trace = 0
  for (let j = 0; j < d; j++) trace += covariance[j * (d + 1)] as number
  const gamma = shrinkage === 'auto' ? ledoitWolf(within, covariance, trace) : shrinkage
  if (gamma === 0 && n <= d)
    throw new UsageError(
      `With shrinkage 0, ${n} examples cannot determine a covariance of ${d} features; give more examples, or raise shrinkage.`,
    )
  // Without any variance within the classes every direction is as good, and the means themselves are meant.
  const sphere = trace === 0 ? 1 : (gamma * trace) / d
  const factor = cholesky({ size: d, data: covariance.map((v, i) => (1 - gamma) * v + (i % (d + 1) === 0 ? sphere : 0)) })
  const fit = fromCentres(
    means.map((m) => solve(factor, m)),
    means,
    shares.map(Math.log),
  )
  const bias = fit.bias.map((b, k) => b - dot(fit.weights.subarray(k * d, (k + 1) * d), origin))
  return { ...fit, bias }
}

/** The rows that are learned from, less the mean of their class, times the root of their weight. */
function rowsWithin({ shape, data }: Features, { weights, targets }: FitTask, means: readonly Float64Array[]): Features {
  const d = shape[1] as number
  const used = Array.from(weights.keys()).filter((i) => weights[i] !== 0)
  const average = used.reduce((sum, i) => sum + (weights[i] as number), 0) / used.length
  const out = new Float32Array(used.length * d)
  for (const [r, i] of used.entries()) {
    const mean = means[targets[i] as number] as Float64Array
    const root = Math.sqrt((weights[i] as number) / average)
    for (let j = 0; j < d; j++) out[r * d + j] = root * ((data[i * d + j] as number) - (mean[j] as number))
  }
  return { dtype: 'float32', shape: [used.length, d], data: out }
}

/** The shrinkage of least expected squared error. */
function ledoitWolf({ shape, data }: Features, covariance: Float64Array, trace: number): number {
  const [n, d] = shape as [number, number]
  const squares = dot(covariance, covariance)
  const spread = squares - trace ** 2 / d
  let fourth = 0
  for (let i = 0; i < n; i++) {
    let length = 0
    for (let j = i * d; j < (i + 1) * d; j++) length += (data[j] as number) ** 2
    fourth += length ** 2
  }
  const noise = (fourth / n - squares) / n
  return spread <= 0 ? 1 : Math.min(1, Math.max(0, noise / spread))
}
