/** @file The normal of a logistic regression that tells the two sides apart. */
import { RuntimeFailure, UsageError } from '../base/errors.ts'
import type { Model } from '../run/model.ts'
import { type ExtractOptions, type Fit, fitSites } from './extract.ts'
import {
  cholesky,
  differences,
  dot,
  gram,
  less,
  meanRow,
  plusTimes,
  type Rows,
  type Symmetric,
  solve,
  stacked,
  timesColumn,
  timesRow,
  timesSymmetric,
  unit,
} from './rows.ts'
import type { SteeringVector } from './vector.ts'

/** Options of {@link logistic}. */
export interface LogisticOptions extends ExtractOptions {
  /** Inverse strength of the L2 penalty, as scikit-learn counts it: ½‖w‖² + C · Σ loss (default 1). */
  readonly C?: number
  /** Centres each pair on its midpoint and fits no intercept, as steering-vectors does (default false: one mean, an intercept). */
  readonly paired?: boolean
}

/**
 * Normal of the L2-regularised logistic regression of side on activation, unit length, from the negative to the positive side.
 * Newton's method to the optimum, so equal data gives equal vectors (linear probes: Alain & Bengio 2016, arXiv:1610.01644).
 */
export function logistic(model: Model, options: LogisticOptions): Promise<SteeringVector> {
  const { C = 1, paired = false } = options
  if (!(C > 0 && Number.isFinite(C))) throw new UsageError(`C must be a positive number, not ${C}.`)
  return fitSites(model, options, { name: 'logistic', paired, options: { C, paired } }, ({ positive, negative }) =>
    paired ? pairFit(positive, negative, C) : sideFit(positive, negative, C),
  )
}

/** The rows ± half the differences have equal losses, so each difference enters once with twice the weight, as positive. */
async function pairFit(positive: Rows, negative: Rows, C: number): Promise<Fit> {
  const rows = differences(positive, negative, 0.5)
  const { normal, margins } = await newton(rows, new Float64Array(rows.count).fill(1), 2 * C, false)
  return { direction: normal, facts: { accuracy: share(margins) } }
}

async function sideFit(positive: Rows, negative: Rows, C: number): Promise<Fit> {
  const rows = stacked(positive, negative)
  const targets = Float64Array.from({ length: rows.count }, (_, i) => (i < positive.count ? 1 : -1))
  // The intercept takes up the mean; without it the numbers are smaller and the fit rounds less.
  const { normal, margins } = await newton(less(rows, meanRow(rows)), targets, C, true)
  return { direction: normal, facts: { accuracy: share(margins) } }
}

const share = (margins: Float64Array) => margins.reduce((n, m) => n + (m > 0 ? 1 : 0), 0) / margins.length

const mostSteps = 200

/**
 * Newton's method in the dual: w = rowsᵀ · a (Rasmussen & Williams 2006, §3.4; the intercept enters by the condition that the `a` sum
 * to zero). Its systems are as large as the smaller of the numbers of rows and of columns, and have no eigenvalue below one.
 */
async function newton(
  rows: Rows,
  targets: Float64Array,
  C: number,
  intercept: boolean,
): Promise<{ normal: Float64Array; margins: Float64Array }> {
  const problem: Problem = { rows, targets, C, intercept, ...(rows.count <= rows.width ? { kernel: await gram(rows) } : {}) }
  const objective = ({ a, ka, bias }: State) => {
    let loss = 0
    for (const [i, t] of targets.entries()) loss += softplus(-t * ((ka[i] as number) + bias))
    return 0.5 * dot(a, ka) + C * loss
  }
  const zeros = new Float64Array(rows.count)
  let state: State = { a: zeros, ka: zeros, bias: 0 }
  let value = objective(state)
  for (let step = 0; step < mostSteps; step++) {
    const direction = await newtonStep(problem, state)
    let gain = Number.NaN
    for (let length = 1; length > 1e-8 && !(gain >= 0); length /= 2) {
      const next = moved(state, direction, length)
      gain = value - objective(next)
      if (gain >= 0) state = next
    }
    // Below this gain the objective has no further digits to give.
    if (!(gain > 1e-13 * value)) {
      const margins = targets.map((t, i) => t * ((state.ka[i] as number) + state.bias))
      return { normal: unit(timesRow(rows, state.a)), margins }
    }
    value -= gain
  }
  throw new RuntimeFailure(`The logistic regression did not settle in ${mostSteps} steps; use a smaller C.`)
}

/** A point of the search, or a direction of it: the dual weights, `rows · rowsᵀ` times them, the intercept. */
interface State {
  readonly a: Float64Array
  readonly ka: Float64Array
  readonly bias: number
}

const moved = (s: State, d: State, length: number): State => ({
  a: plusTimes(s.a, length, d.a),
  ka: plusTimes(s.ka, length, d.ka),
  bias: s.bias + length * d.bias,
})

interface Problem {
  readonly rows: Rows
  /** `rows · rowsᵀ`, where it is the smaller one. */
  readonly kernel?: Symmetric
  readonly targets: Float64Array
  readonly C: number
  readonly intercept: boolean
}

/** Where the linearised condition of the optimum, a = C · t · (1 - p), would be met; p is the probability of the right side. */
async function newtonStep(problem: Problem, { a, ka, bias }: State): Promise<State> {
  const { targets, C } = problem
  const margins = targets.map((t, i) => t * ((ka[i] as number) + bias))
  const rest = margins.map((m, i) => C * (targets[i] as number) * Math.exp(-softplus(m)) - (a[i] as number))
  const weights = margins.map((m) => C * Math.exp(-softplus(m) - softplus(-m)))
  const inverse = await stepInverse(problem, weights)
  let da = inverse(rest)
  let dbias = 0
  if (problem.intercept) {
    const ones = inverse(weights)
    dbias = (total(a) + total(da)) / total(ones)
    da = plusTimes(da, -dbias, ones)
  }
  return { a: da, ka: timesKernel(problem, da), bias: dbias }
}

/** `(I + W K)⁻¹` with K = rows · rowsᵀ, by Woodbury's identity. Nothing is divided by weights, since they vanish where the fit is sure. */
async function stepInverse(problem: Problem, weights: Float64Array): Promise<(v: Float64Array) => Float64Array> {
  const { rows, kernel } = problem
  const root = weights.map(Math.sqrt)
  const weighted = (v: Float64Array) => v.map((x, i) => x * (root[i] as number))
  if (kernel) {
    const factor = cholesky(plusIdentity({ size: kernel.size, data: scaled(kernel.data, root, root) }))
    return (v) => plusTimes(v, -1, weighted(solve(factor, weighted(timesKernel(problem, v)))))
  }
  const { count, width, data } = rows
  const product = await gram({ count, width, data: scaled(data, root, new Float64Array(width).fill(1)) })
  const factor = cholesky(plusIdentity(product))
  return (v) => plusTimes(v, -1, weighted(weighted(timesColumn(rows, solve(factor, timesRow(rows, v))))))
}

const timesKernel = ({ rows, kernel }: Problem, v: Float64Array) =>
  kernel ? timesSymmetric(kernel, v) : timesColumn(rows, timesRow(rows, v))

/** A matrix, its rows and its columns scaled. */
function scaled(data: Float64Array, rows: Float64Array, columns: Float64Array): Float64Array {
  const out = new Float64Array(data.length)
  let at = 0
  for (const r of rows)
    for (const c of columns) {
      out[at] = r * c * (data[at] as number)
      at++
    }
  return out
}

function plusIdentity({ size, data }: Symmetric): Symmetric {
  const out = Float64Array.from(data)
  for (let i = 0; i < size; i++) out[i * (size + 1)] = (out[i * (size + 1)] as number) + 1
  return { size, data: out }
}

const total = (v: Float64Array) => v.reduce((sum, x) => sum + x, 0)

/** log(1 + exp(x)) without overflow. */
const softplus = (x: number) => Math.max(x, 0) + Math.log1p(Math.exp(-Math.abs(x)))
