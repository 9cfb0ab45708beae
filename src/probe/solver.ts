/** @file Linear models by gradient, many at once: every pass over the features serves all problems, so that ten folds cost little more than one. */
import { RuntimeFailure, throwIfCancelled } from '../base/errors.ts'
import type { NDArray } from '../base/types.ts'
import { cholesky, type Symmetric, solve, topEigenpair } from '../steer/rows.ts'
import { input, matmul, mean, mul, Program, SessionCache, sub } from '../tensor/index.ts'
import { type Loss, losses } from './losses.ts'
import { lbfgs, proximal, type Stepper } from './steppers.ts'

/** Features of examples, float32 [examples, width]. */
export type Features = NDArray<Float32Array>

/** One linear model to fit: which examples it learns from, what it should say, how it is held back. */
export interface LinearProblem {
  readonly loss: Loss
  /** Weight of each example; 0 leaves it out. */
  readonly weights: Float64Array
  /** What each example should give: ±1 for two classes, a class index for `softmax`, a number for `squared`. */
  readonly targets: Float64Array
  /** Columns of weights: 1, or the number of classes for `softmax`. */
  readonly outputs: number
  /** Strength of ½‖w‖² beside the sum of the losses. */
  readonly l2: number
  /** Strength of ‖w‖₁. */
  readonly l1: number
  /** Whether the penalties see features of unit variance over the examples that are learned from. */
  readonly standardise: boolean
}

/** A fitted linear model: scores are `x · weights + bias`, in the units of the features as they were given. */
export interface LinearFit {
  /** [outputs, width] */
  readonly weights: Float64Array
  /** [outputs] */
  readonly bias: Float64Array
  /** Passes over the features that it took. */
  readonly passes: number
}

/** Options of {@link fitLinear}. */
export interface SolverOptions {
  /** Largest gradient for each unit of example weight at which a fit counts as done (default 1e-5, for features of unit size). */
  readonly tolerance?: number
  /** Most passes over the features (default 2000). */
  readonly maxPasses?: number
  readonly signal?: AbortSignal
}

/** Widest features for which the curvature is inverted; wider ones are only scaled. */
const widestCurvature = 1536

/** Passes after which the curvature of the features is worth computing. */
const patience = 25

const sessions = new SessionCache(0)
let products: ReturnType<typeof compile> | undefined

async function compile() {
  const options = { device: 'cpu' as const, cache: sessions }
  const x = input('x', 'float32', ['rows', 'width'])
  const w = input('w', 'float32', ['width', 'columns'])
  const r = input('r', 'float32', ['rows', 'columns'])
  const middle = mean(x, [0], true)
  const moved = sub(x, middle)
  const [scores, back, gram, centre, sums] = await Promise.all([
    Program.of({ z: matmul(x, w) }, options),
    Program.of({ g: matmul(x, r, { transA: true }) }, options),
    Program.of({ g: matmul(x, x, { transA: true }) }, options),
    Program.of({ mean: middle, moved, variance: mean(mul(moved, moved), [0], true) }, options),
    Program.of({ first: matmul(x, r, { transA: true }), second: matmul(mul(x, x), r, { transA: true }) }, options),
  ])
  return { scores, back, gram, centre, sums }
}

/** The products, compiled once for all sizes. */
function programs() {
  products ??= compile()
  return products
}

/** `x · w` for w [width, columns], float32 [rows, columns]. */
export async function scoresOf(x: Features, w: Float32Array, columns: number): Promise<Float32Array> {
  const { scores } = await programs()
  return (await scores.run({ x, w: { dtype: 'float32', shape: [x.shape[1] as number, columns], data: w } })).z.data as Float32Array
}

/** `xᵀ · x`, [width, width]. */
export async function gramOf(x: Features): Promise<Symmetric> {
  const { gram } = await programs()
  return { size: x.shape[1] as number, data: Float64Array.from((await gram.run({ x })).g.data as Float32Array) }
}

/** Features moved to mean zero and, where asked for, to unit variance, and how to go back. */
export interface Centred {
  readonly x: Features
  readonly mean: Float64Array
  readonly scale: Float64Array
  /** Root mean square of all numbers of `x`. */
  readonly size: number
}

/** Moves features to mean zero, since products of large means lose the digits that differ; with `scaled` also to unit variance. */
export async function centred(features: Features, scaled: boolean): Promise<Centred> {
  const { centre } = await programs()
  const { mean, moved, variance } = await centre.run({ x: features })
  const data = moved.data as Float32Array
  const deviation = Float64Array.from(variance.data as Float32Array, Math.sqrt)
  // A feature that never changes stays zero.
  const scale = deviation.map((s) => (scaled && s > 0 ? s : 1))
  if (scaled) for (let at = 0; at < data.length; ) for (const s of scale) data[at] = (data[at++] as number) / s
  const size = Math.sqrt(deviation.reduce((sum, s, j) => sum + (s / (scale[j] as number)) ** 2, 0) / scale.length)
  const x: Features = { dtype: 'float32', shape: features.shape, data }
  return { x, mean: Float64Array.from(mean.data as Float32Array), scale, size }
}

/** Weighted mean and standard deviation of each column, for several weightings [columns][rows] at once; the features must be centred. */
async function momentsOf(x: Features, weightings: readonly Float64Array[]): Promise<{ mean: Float64Array; deviation: Float64Array }[]> {
  if (weightings.length === 0) return []
  const [n, d] = x.shape as [number, number]
  const m = weightings.length
  const r = new Float32Array(n * m)
  for (const [k, weights] of weightings.entries()) {
    const total = weights.reduce((a, b) => a + b, 0)
    for (let i = 0; i < n; i++) r[i * m + k] = (weights[i] as number) / total
  }
  const { sums } = await programs()
  const { first, second } = await sums.run({ x, r: { dtype: 'float32', shape: [n, m], data: r } })
  return weightings.map((_, k) => {
    const mean = Float64Array.from({ length: d }, (_, j) => first.data[j * m + k] as number)
    return { mean, deviation: mean.map((v, j) => Math.sqrt(Math.max(0, (second.data[j * m + k] as number) - v * v))) }
  })
}

/** Fits all problems on the same features. Equal input gives equal output. */
export async function fitLinear(features: Features, problems: readonly LinearProblem[], options: SolverOptions = {}): Promise<LinearFit[]> {
  const { tolerance = 1e-5, maxPasses = 2000, signal } = options
  const standardised = problems.filter((p) => p.standardise)
  const prepared = await centred(features, standardised.length === problems.length)
  const { x, mean, scale } = prepared
  const curvature = new Curvature(x)
  const weightings = standardised.map((p) => p.weights)
  const moments = await momentsOf(x, weightings)
  const fits: Fit[] = []
  for (const problem of problems)
    fits.push(await Fit.of(problem, prepared, curvature, problem.standardise ? moments.shift() : undefined, tolerance))
  for (let pass = 1; ; pass++) {
    throwIfCancelled(signal)
    const active = fits.filter((f) => !f.done)
    if (active.length === 0) break
    if (pass > maxPasses)
      throw new RuntimeFailure(
        `${active.length} of ${fits.length} probes did not settle in ${maxPasses} passes; regularise more (a smaller C).`,
      )
    if (pass === patience) for (const f of active) await f.precondition(curvature)
    await passOver(x, active)
  }
  return fits.map((f) => f.result(mean, scale))
}

async function passOver(x: Features, active: readonly Fit[]): Promise<void> {
  const [n, d] = x.shape as [number, number]
  const columns = active.reduce((sum, f) => sum + f.problem.outputs, 0)
  const w = new Float32Array(d * columns)
  let at = 0
  for (const f of active) at = f.put(w, at, columns)
  const z = await scoresOf(x, w, columns)
  const r = new Float32Array(n * columns)
  at = 0
  for (const f of active) at = f.residuals(z, r, at, columns)
  const { back } = await programs()
  const { g } = await back.run({ x, r: { dtype: 'float32', shape: [n, columns], data: r } })
  at = 0
  for (const f of active) at = f.step(g.data as Float32Array, at, columns)
}

/** The curvature that the features give to a loss, shared by all problems: the Gram matrix of all examples stands for that of each part. */
class Curvature {
  private readonly x: Features
  private gram: Promise<Symmetric> | undefined
  private readonly factors = new Map<string, Promise<Symmetric>>()

  constructor(x: Features) {
    this.x = x
  }

  private all(): Promise<Symmetric> {
    this.gram ??= gramOf(this.x)
    return this.gram
  }

  /** Solves with `bend/rows · xᵀx + l2`, or undefined where that is too large to invert. */
  async inverse(bend: number, l2: number): Promise<((v: Float64Array) => Float64Array) | undefined> {
    if ((this.x.shape[1] as number) > widestCurvature) return undefined
    // Problems of nearly the same size share a factor.
    const rounded = Number((bend / (this.x.shape[0] as number)).toPrecision(1))
    const key = `${rounded}/${l2}`
    let factor = this.factors.get(key)
    if (!factor) {
      factor = this.all().then(({ size, data }) => {
        const floor = 1e-6 * rounded * (this.x.shape[0] as number) + l2
        return cholesky({ size, data: data.map((v, i) => rounded * v + (i % (size + 1) === 0 ? floor : 0)) })
      })
      this.factors.set(key, factor)
    }
    const ready = await factor
    return (v) => solve(ready, v)
  }

  /** Largest eigenvalue of `xᵀx`. */
  async largest(): Promise<number> {
    return topEigenpair(await this.all()).value
  }
}

const totalOf = (problem: LinearProblem) => problem.weights.reduce((a, b) => a + b, 0)

/** A problem on its way. Its parameters are, for each output, the weights of scaled features and then the bias. */
class Fit {
  readonly problem: LinearProblem
  private readonly mean: Float64Array
  private readonly scale: Float64Array
  private readonly stepper: Stepper
  private loss = 0
  private readonly slopes: Float64Array
  private passes = 0

  private constructor(problem: LinearProblem, moments: { mean: Float64Array; scale: Float64Array }, stepper: Stepper) {
    this.problem = problem
    this.mean = moments.mean
    this.scale = moments.scale
    this.stepper = stepper
    this.slopes = new Float64Array(problem.outputs)
  }

  static async of(
    problem: LinearProblem,
    prepared: Centred,
    curvature: Curvature,
    moments: { mean: Float64Array; deviation: Float64Array } | undefined,
    tolerance: number,
  ): Promise<Fit> {
    const d = prepared.x.shape[1] as number
    const mean = moments?.mean ?? new Float64Array(d)
    const scale = moments?.deviation.map((s) => (s > 1e-6 * prepared.size ? s : 1)) ?? new Float64Array(d).fill(1)
    const size = (d + 1) * problem.outputs
    const total = totalOf(problem)
    const limit = tolerance * total * (moments ? 1 : Math.max(prepared.size, 1e-12))
    const bend = losses[problem.loss].curvature
    if (problem.l1 > 0) {
      const steepest = bend * Math.max(...problem.weights) * (await curvature.largest()) * Math.max(1, 1 / Math.min(...scale) ** 2)
      const penalised = Uint8Array.from({ length: size }, (_, i) => (i % (d + 1) === d ? 0 : 1))
      const lipschitz = steepest + bend * total + problem.l2
      return new Fit(problem, { mean, scale }, proximal({ size, lipschitz, l1: problem.l1, penalised, tolerance: limit }))
    }
    const diagonal = bend * total * (moments ? 1 : prepared.size ** 2) + problem.l2
    const start = (g: Float64Array) => g.map((v, i) => v / (i % (d + 1) === d ? bend * total : diagonal))
    return new Fit(problem, { mean, scale }, lbfgs({ size, precondition: start, tolerance: limit }))
  }

  /** Goes on with the curvature of the features known, where features that move together make the way long. */
  async precondition(curvature: Curvature): Promise<void> {
    const { problem, scale } = this
    const d = scale.length
    const bend = losses[problem.loss].curvature * totalOf(problem)
    const inverse = problem.l1 > 0 ? undefined : await curvature.inverse(bend, problem.l2)
    if (!inverse) return
    this.stepper.precondition?.((g) => {
      const out = new Float64Array(g.length)
      for (let at = 0; at < g.length; at += d + 1) {
        // The curvature is that of the features as they stand; those of the problem differ by its scale.
        const turned = inverse(g.slice(at, at + d).map((v, j) => v * (scale[j] as number)))
        for (let j = 0; j < d; j++) out[at + j] = (turned[j] as number) * (scale[j] as number)
        out[at + d] = (g[at + d] as number) / bend
      }
      return out
    })
  }

  get done(): boolean {
    return this.stepper.done
  }

  /** Writes the weights at the point that is tried into columns of `w`. */
  put(w: Float32Array, column: number, columns: number): number {
    const d = this.mean.length
    for (let k = 0; k < this.problem.outputs; k++)
      for (let j = 0; j < d; j++) w[j * columns + column + k] = (this.stepper.point[k * (d + 1) + j] as number) / (this.scale[j] as number)
    return column + this.problem.outputs
  }

  private offset(k: number): number {
    const d = this.mean.length
    let offset = this.stepper.point[k * (d + 1) + d] as number
    for (let j = 0; j < d; j++)
      offset -= ((this.mean[j] as number) * (this.stepper.point[k * (d + 1) + j] as number)) / (this.scale[j] as number)
    return offset
  }

  /** From scores to the slopes of the loss, which it keeps the sums of. */
  residuals(z: Float32Array, r: Float32Array, column: number, columns: number): number {
    const { loss, outputs, weights, targets } = this.problem
    const { at: lossAt } = losses[loss]
    const offsets = Array.from({ length: outputs }, (_, k) => this.offset(k))
    const scores = new Float64Array(outputs)
    const slopes = new Float64Array(outputs)
    this.loss = 0
    this.slopes.fill(0)
    for (let i = 0; i < weights.length; i++) {
      const weight = weights[i] as number
      if (weight === 0) continue
      const start = i * columns + column
      for (let k = 0; k < outputs; k++) scores[k] = (z[start + k] as number) + (offsets[k] as number)
      this.loss += weight * lossAt(scores, targets[i] as number, slopes)
      for (let k = 0; k < outputs; k++) {
        const slope = weight * (slopes[k] as number)
        r[start + k] = slope
        this.slopes[k] = (this.slopes[k] as number) + slope
      }
    }
    return column + outputs
  }

  /** Takes the gradient of the scores back to the parameters and moves on. */
  step(g: Float32Array, column: number, columns: number): number {
    const { outputs, l2 } = this.problem
    const d = this.mean.length
    const { point } = this.stepper
    const gradient = new Float64Array(point.length)
    let value = this.loss
    for (let k = 0; k < outputs; k++) {
      const at = k * (d + 1)
      const slope = this.slopes[k] as number
      for (let j = 0; j < d; j++) {
        const u = point[at + j] as number
        const back = ((g[j * columns + column + k] as number) - (this.mean[j] as number) * slope) / (this.scale[j] as number)
        gradient[at + j] = back + l2 * u
        value += 0.5 * l2 * u * u
      }
      gradient[at + d] = slope
    }
    this.passes++
    this.stepper.feed(value, gradient)
    return column + outputs
  }

  /** The fit in the units of the features as they were given. */
  result(mean: Float64Array, scale: Float64Array): LinearFit {
    const { outputs } = this.problem
    const d = this.mean.length
    const weights = new Float64Array(outputs * d)
    const bias = new Float64Array(outputs)
    for (let k = 0; k < outputs; k++) {
      bias[k] = this.offset(k)
      for (let j = 0; j < d; j++) {
        const w = (this.stepper.point[k * (d + 1) + j] as number) / (this.scale[j] as number) / (scale[j] as number)
        weights[k * d + j] = w
        bias[k] = (bias[k] as number) - w * (mean[j] as number)
      }
    }
    return { weights, bias, passes: this.passes }
  }
}
