/** @file Training sparse autoencoders: the loop of `nn`, with what is counted beside it: dead latents, thresholds, the scale of inputs. */
import { UsageError } from '../../base/errors.ts'
import type { WorkOptions } from '../../base/progress.ts'
import type { NDArray } from '../../base/types.ts'
import { foldDecoderNorms, foldScale, type SaeWeights, saeWeights } from '../../models/sae/weights.ts'
import {
  adam,
  type Batch,
  type BatchSource,
  type CheckpointOptions,
  constantRate,
  type Hook,
  newestCheckpoint,
  ParameterSet,
  RandomStream,
  type Schedule,
  type TrainingStep,
  type TrainProgress,
  trainSteps,
  warmupStableDecay,
  withWarmup,
} from '../../nn/index.ts'
import { div, mul, relu, sqrt, sub, sum, type Tensor } from '../../tensor/index.ts'
import { parameterShapes, saeInputs, saeModel, saeState, startingValues, trainingForm } from './loss.ts'
import { geometricMedian } from './median.ts'
import { recipeOf, type SaeOptions, type SaeRecipe } from './recipe.ts'
import { resample } from './resample.ts'
import { batchesOf, type RowStream } from './rows.ts'

/** What to train, and for how long. */
export interface TrainSaeOptions extends SaeOptions, WorkOptions {
  readonly rows: RowStream
  /** Rows in a batch (default 1024). */
  readonly batch?: number
  /** Rows to train on in all, instead of steps. */
  readonly tokens?: number
  readonly steps?: number
  /** Seed of the first values (default 0); the order of rows is the stream's. */
  readonly seed?: number
  readonly threads?: number
  readonly checkpoints?: CheckpointOptions
  /** Called after every step. */
  readonly onStep?: (at: SaeProgress) => void
  /** What the file should say of the model and the site. */
  readonly place?: Pick<SaeWeights, 'hook' | 'model'>
  /** Weights to go on from, by SAELens' names; first values by default. */
  readonly start?: Readonly<Record<string, NDArray<Float32Array>>>
}

/** How training stands. */
export interface SaeProgress {
  readonly step: number
  readonly steps: number
  readonly loss: number
  /** Squared error, summed over the width, mean over rows. */
  readonly mse: number
  /** Share of the variance that is not rebuilt. */
  readonly fvu: number
  readonly l0: number
  /** Latents that have not fired for longer than `deadAfter` steps. */
  readonly dead: number
  readonly aux?: number
  readonly rate: number
  readonly gradientNorm: number
  readonly secondsLeft: number
}

/** What training leaves. */
export interface TrainedSae {
  /** Folded: takes plain activations. */
  readonly weights: SaeWeights
  readonly recipe: SaeRecipe
  /** As they were trained, before anything was folded, with what was counted beside them; a `start` for another training. */
  readonly parameters: ParameterSet
  readonly steps: number
  /** The last step's figures; undefined when no step was left to do. */
  readonly last: SaeProgress | undefined
  /** Every so often, for curves. */
  readonly curve: readonly SaeProgress[]
}

/** Points of the curve that is kept. */
const curvePoints = 200
/** Batches whose mean length gives the scale of inputs. */
const scaleBatches = 10

const lengths = (w: Tensor) => sqrt(sum(mul(w, w), [-1], true))

/** Decoder rows stay at length one: their gradients lose what would change it, and each step ends with it. */
const unitRows: Hook = {
  rowwise: true,
  gradient: (g, w) => sub(g, mul(sum(mul(g, w), [-1], true), w)),
  parameter: (w) => div(w, lengths(w)),
}
/** Thresholds are never negative. */
const notNegative: Hook = { rowwise: true, parameter: (t) => relu(t) }

/** Trains an autoencoder on rows of activations. */
export async function trainSae(options: TrainSaeOptions): Promise<TrainedSae> {
  const { rows, batch = 1024, seed = 0, checkpoints, signal, onProgress } = options
  if (!(Number.isInteger(batch) && batch > 0)) throw new UsageError(`A batch must be a positive whole number of rows, not ${batch}.`)
  const steps = stepsOf(options, batch)
  const recipe = recipeOf(options, rows.width, steps)
  const state = new SaeState(recipe, rows.width, batch)
  const source = batchesOf(rows, batch)
  const resuming = checkpoints?.resume !== undefined && (await newestCheckpoint(checkpoints.files)) !== undefined
  await state.begin(source, options, seed, resuming)
  const curve: SaeProgress[] = []
  let last: SaeProgress | undefined
  const every = Math.max(1, Math.floor(steps / curvePoints))
  const training = trainSteps({
    model: saeModel(recipe, rows.width),
    data: state.watched(source),
    inputs: state.inputs(),
    parameters: state.parameters,
    steps,
    rate: scheduleOf(recipe, steps),
    optimizer: adam({ betas: recipe.betas }),
    trainable: (name) => !Object.values<string>(saeState).includes(name),
    ...(recipe.clip === false ? {} : { clip: { norm: recipe.clip } }),
    hooks: {
      ...(recipe.decoder === 'unit' ? { W_dec: unitRows } : {}),
      ...(recipe.kind === 'jumprelu' ? { threshold: notNegative } : {}),
    },
    seed,
    after: (step, done) => state.after(step, done),
    ...(options.threads ? { runtime: { threads: options.threads } } : {}),
    ...(checkpoints ? { checkpoints } : {}),
    ...(signal ? { signal } : {}),
  })
  for await (const done of training) {
    last = progressOf(done, state)
    options.onStep?.(last)
    if (done.step % every === 0 || done.step === steps) curve.push(last)
    onProgress?.({
      task: 'training the autoencoder',
      done: done.step,
      total: steps,
      unit: 'steps',
    })
  }
  return { weights: state.weights(options, seed, steps), recipe, parameters: state.parameters, steps, last, curve }
}

function stepsOf({ steps, tokens }: TrainSaeOptions, batch: number): number {
  if ((steps === undefined) === (tokens === undefined)) throw new UsageError('Say how long to train: give steps, or tokens.')
  const n = steps ?? Math.floor((tokens as number) / batch)
  if (!(Number.isInteger(n) && n > 0)) throw new UsageError(`Training needs at least one step of ${batch} rows, not ${steps ?? tokens}.`)
  return n
}

/** A rise, a level stretch and a fall to zero. */
function scheduleOf({ rate, warmup, decay }: SaeRecipe, steps: number): Schedule {
  const falling = Math.round(decay * steps)
  return falling === 0 ? withWarmup(constantRate(rate), warmup) : warmupStableDecay(rate, { steps, warmup, decay: falling })
}

const scalarOf = (done: TrainProgress, name: string) => Number(done.metrics[name]?.data[0])

function progressOf(done: TrainProgress, state: SaeState): SaeProgress {
  return {
    step: done.step,
    steps: done.steps,
    loss: done.loss,
    mse: scalarOf(done, 'mse'),
    fvu: scalarOf(done, 'fvu'),
    l0: scalarOf(done, 'l0'),
    dead: state.deadLatents().length,
    ...(done.metrics.aux ? { aux: scalarOf(done, 'aux') } : {}),
    rate: done.rate,
    gradientNorm: done.gradientNorm,
    secondsLeft: done.secondsLeft,
  }
}

/** What belongs to a training besides the optimiser; it is kept in untrained parameters, so that checkpoints hold it. */
class SaeState {
  readonly parameters = new ParameterSet()
  private readonly recipe: SaeRecipe
  private readonly dIn: number
  private readonly batch: number
  private last: NDArray<Float32Array> | undefined
  private seed = 0

  constructor(recipe: SaeRecipe, dIn: number, batch: number) {
    this.recipe = recipe
    this.dIn = dIn
    this.batch = batch
  }

  private array(name: string): Float32Array {
    return this.parameters.get(name).data
  }

  /** First values: seeded rows, the encoder their transpose, b_dec at the median of the first batch where rows are kept at length one. */
  async begin(source: BatchSource, { start }: TrainSaeOptions, seed: number, resuming: boolean): Promise<void> {
    const { recipe, dIn } = this
    this.seed = seed
    const first = startingValues(recipe, dIn)
    for (const [name, shape] of Object.entries(parameterShapes(recipe, dIn))) {
      const given = start?.[name]
      const data = given ? given.data.slice() : (first[name] as NonNullable<(typeof first)[string]>)(shape, RandomStream.named(seed, name))
      this.parameters.add(name, { dtype: 'float32', shape, data })
    }
    const [dec, enc] = [this.array('W_dec'), this.array('W_enc')]
    if (!start?.W_enc)
      for (let i = 0; i < recipe.width; i++) for (let j = 0; j < dIn; j++) enc[j * recipe.width + i] = dec[i * dIn + j] as number
    const one = (name: string, length: number, value: number) =>
      this.parameters.add(name, { dtype: 'float32', shape: [length], data: new Float32Array(length).fill(value) })
    one(saeState.sinceFired, recipe.width, 0)
    one(saeState.threshold, 1, 0)
    if (recipe.scale === 'expected_average_only_in') one(saeState.scale, 1, 1)
    for (const name of Object.values(saeState)) if (start?.[name] && this.parameters.has(name)) this.array(name).set(start[name].data)
    // A checkpoint holds all of these, so that nothing need be run for them.
    if (resuming) return
    const began = source.position
    if (recipe.scale === 'expected_average_only_in') this.array(saeState.scale)[0] = await this.scaleOf(source)
    if (recipe.decoder === 'unit' && recipe.subtractsBias && !start?.b_dec) {
      source.seek(began)
      const { x } = (await source.next()) as { x: NDArray<Float32Array> }
      const scale = recipe.scale === 'expected_average_only_in' ? (this.array(saeState.scale)[0] as number) : 1
      if (recipe.scale === 'none' || recipe.scale === 'expected_average_only_in')
        this.array('b_dec').set(
          geometricMedian(
            x.data.map((v) => v * scale),
            dIn,
          ),
        )
    }
    source.seek(began)
  }

  /** √d over the mean length of the first rows. */
  private async scaleOf(source: BatchSource): Promise<number> {
    let [total, count] = [0, 0]
    for (let i = 0; i < scaleBatches; i++) {
      const { x } = (await source.next()) as { x: NDArray<Float32Array> }
      for (let at = 0; at < x.data.length; at += this.dIn) {
        let squares = 0
        for (let j = at; j < at + this.dIn; j++) squares += (x.data[j] as number) ** 2
        total += Math.sqrt(squares)
        count++
      }
    }
    if (!(total > 0))
      throw new UsageError('All activations of the first batches are zero or no numbers, so there is nothing to learn from.')
    return (Math.sqrt(this.dIn) * count) / total
  }

  inputs() {
    const { recipe, dIn, batch } = this
    return {
      [saeInputs.x]: { dtype: 'float32' as const, shape: [batch, dIn] },
      ...(recipe.aux > 0
        ? {
            [saeInputs.deadLatents]: { dtype: 'int64' as const, shape: ['dead'] },
            [saeInputs.deadMask]: { dtype: 'float32' as const, shape: ['dead'] },
          }
        : {}),
    }
  }

  /** Latents that count as dead now. */
  deadLatents(): number[] {
    const since = this.array(saeState.sinceFired)
    const out: number[] = []
    for (let i = 0; i < since.length; i++) if ((since[i] as number) > this.recipe.deadAfter) out.push(i)
    return out
  }

  /** The source with the list of dead latents beside each batch. */
  watched(source: BatchSource): BatchSource {
    const next = async (): Promise<Batch> => {
      const batch = await source.next()
      this.last = batch.x as NDArray<Float32Array>
      return this.recipe.aux > 0 ? { ...batch, ...this.deadInputs() } : batch
    }
    return {
      get position() {
        return source.position
      },
      seek: (to) => source.seek(to),
      next,
    }
  }

  private deadInputs(): Batch {
    const dead = this.deadLatents()
    const isDead = new Set(dead)
    const list = [...dead]
    for (let i = 0; list.length < this.recipe.auxK; i++) if (!isDead.has(i)) list.push(i)
    const shape = [list.length]
    return {
      [saeInputs.deadLatents]: { dtype: 'int64', shape, data: BigInt64Array.from(list, BigInt) },
      [saeInputs.deadMask]: { dtype: 'float32', shape, data: Float32Array.from(list, (_, i) => Number(i < dead.length)) },
    }
  }

  async after(step: TrainingStep, done: Pick<TrainProgress, 'step' | 'metrics' | 'skipped'>): Promise<void> {
    const { recipe } = this
    const fired = done.metrics.fired?.data as Float32Array
    const since = this.array(saeState.sinceFired)
    for (let i = 0; i < since.length; i++) since[i] = (fired[i] as number) > 0 ? 0 : (since[i] as number) + 1
    const least = done.metrics.least ? Number(done.metrics.least.data[0]) : Number.POSITIVE_INFINITY
    const threshold = this.array(saeState.threshold)
    // An average from the first batch on, since one from zero would take hundreds of steps to arrive.
    if (least < Number.MAX_VALUE)
      threshold[0] = done.step === 1 ? least : (threshold[0] as number) + recipe.thresholdRate * (least - (threshold[0] as number))
    const { resample: when } = recipe
    if (when && done.step % when.every === 0 && done.step <= when.until && this.last) {
      const dead = this.deadLatents()
      if (dead.length === 0) return
      await resample({
        parameters: this.parameters,
        states: step.states,
        form: trainingForm(recipe),
        keepsLargest: recipe.k !== undefined,
        x: this.scaledRows(this.last),
        dead,
        random: RandomStream.named(this.seed, `resample ${done.step}`),
      })
      for (const i of dead) since[i] = 0
    }
  }

  private scaledRows(x: NDArray<Float32Array>): NDArray<Float32Array> {
    if (this.recipe.scale !== 'expected_average_only_in') return x
    const scale = this.array(saeState.scale)[0] as number
    return { ...x, data: x.data.map((v) => v * scale) }
  }

  /** The trained weights, for plain activations. */
  weights({ place, rows }: TrainSaeOptions, seed: number, steps: number): SaeWeights {
    const { recipe } = this
    const names = Object.keys(parameterShapes(recipe, this.dIn))
    const tensors = Object.fromEntries(names.map((n) => [n, this.parameters.get(n)]))
    const form = trainingForm(recipe)
    const byBatch = recipe.kind === 'batchtopk' || recipe.kind === 'matryoshka'
    if (byBatch) {
      const value = this.array(saeState.threshold)[0] as number
      tensors.threshold = { dtype: 'float32', shape: [recipe.width], data: new Float32Array(recipe.width).fill(value) }
    }
    const metadata = { training: { ...recipe, seed, steps, batch: this.batch, rows: rows.facts } }
    const plain = saeWeights({ ...form, tensors, metadata, ...place })
    const unscaled = recipe.scale === 'expected_average_only_in' ? foldScale(plain, this.array(saeState.scale)[0] as number) : plain
    // Copied, since the arrays here go on being the loop's.
    const folded = recipe.rescales ? foldDecoderNorms(unscaled) : unscaled
    return { ...folded, tensors: Object.fromEntries(Object.entries(folded.tensors).map(([n, a]) => [n, { ...a, data: a.data.slice() }])) }
  }
}
