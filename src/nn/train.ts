/** @file The training loop: batches in, progress out; stops, resumes and evaluates. */
import { ActlensError, CancelledError, UsageError } from '../base/errors.ts'
import type { WorkOptions } from '../base/progress.ts'
import type { NDArray } from '../base/types.ts'
import {
  type CheckpointFiles,
  checkpointName,
  checkpointOf,
  newestCheckpoint,
  restore,
  stepOfName,
  type TrainingCounters,
} from './checkpoint.ts'
import type { BatchSource } from './data.ts'
import { LossScale, type LossScaleOptions } from './loss-scale.ts'
import { ParameterSet } from './parameters.ts'
import { constantRate, type Schedule } from './schedules.ts'
import { type RuntimeOptions, type StepResult, TrainingStep } from './step.ts'
import type { InputType, StepOptions } from './step-graph.ts'

/** Training stopped because a value is not finite any more. */
export class NotFiniteError extends ActlensError {
  /** The step at which it appeared, from 1. */
  readonly step: number
  /** The tensor, in words. */
  readonly tensor: string
  /** The last good checkpoint, if one was written. */
  readonly checkpoint: string | undefined

  constructor(step: number, tensor: string, checkpoint: string | undefined) {
    const next = checkpoint
      ? `resume from the checkpoint ${checkpoint}, the last good one, with a lower learning rate or clipped gradients`
      : 'no checkpoint had been written, so begin again with a lower learning rate or clipped gradients'
    super(`Training stopped at step ${step} because ${tensor} is not finite; ${next}.`)
    this.step = step
    this.tensor = tensor
    this.checkpoint = checkpoint
  }
}

/** Where and how often checkpoints are written. */
export interface CheckpointOptions {
  readonly files: CheckpointFiles
  /** Steps between checkpoints; one is also written at the end, and when training is cancelled. */
  readonly every: number
  /** How many of the newest are kept; all by default. */
  readonly keep?: number
  /** Goes on from the newest checkpoint, if there is one (`'newest'`), or from one by name. */
  readonly resume?: string
}

/** A look at the model from time to time. */
export interface EvaluationOptions {
  readonly every: number
  /** Figures by name; `step.evaluate(batch)` gives the loss of a batch without training on it. */
  readonly run: (step: TrainingStep, done: number) => Promise<Readonly<Record<string, number>>>
}

/** What to train, on what, and for how long. */
export interface TrainOptions extends Omit<StepOptions, 'inputs' | 'parameters' | 'scaled'>, WorkOptions {
  readonly data: BatchSource
  /** Steps in all, those before a resumed checkpoint included. */
  readonly steps: number
  /** Learning rate, or one for each step. */
  readonly rate: number | Schedule
  /** Parameters to start from; those that the model declares beyond them are made. */
  readonly parameters?: ParameterSet
  /** Types of the model's inputs; those of the first batch by default. */
  readonly inputs?: Readonly<Record<string, InputType>>
  readonly runtime?: RuntimeOptions
  readonly evaluation?: EvaluationOptions
  /** Called after each update and before a checkpoint of it, for what is kept beside the optimiser's states: arrays of untrained parameters may be written. */
  readonly after?: (step: TrainingStep, done: Pick<TrainProgress, 'step' | 'metrics' | 'skipped'>) => Promise<void> | void
  readonly checkpoints?: CheckpointOptions
  /** Scales the loss, and leaves out updates whose gradients overflow; on by default where `compute` is float16. */
  readonly lossScale?: LossScaleOptions
}

/** How training stands after a step. */
export interface TrainProgress {
  /** Steps done, and in all. */
  readonly step: number
  readonly steps: number
  /** Mean loss of the step's batches, before its update. */
  readonly loss: number
  readonly rate: number
  /** Length of all gradients together, before clipping. */
  readonly gradientNorm: number
  /** What the model gave beside the loss, of the step's last batch. */
  readonly metrics: Readonly<Record<string, NDArray>>
  /** Whether the update was left out because gradients overflowed. */
  readonly skipped: boolean
  /** Figures of the evaluation, when one ran. */
  readonly evaluation?: Readonly<Record<string, number>>
  /** Name of the checkpoint, when one was written. */
  readonly checkpoint?: string
  readonly seconds: number
  readonly stepsPerSecond: number
  readonly secondsLeft: number
}

/** What training leaves. */
export interface TrainResult {
  readonly parameters: ParameterSet
  /** Running averages of the parameters, when `average` was asked for. */
  readonly averages: Readonly<Record<string, NDArray<Float32Array>>>
  readonly steps: number
  /** Loss of the last step; NaN when no step was left to do. */
  readonly loss: number
}

/** Trains to the end. */
export async function train(options: TrainOptions): Promise<TrainResult> {
  const steps = trainSteps(options)
  for (;;) {
    const next = await steps.next()
    if (next.done) return next.value
    options.onProgress?.({
      task: `training (loss ${next.value.loss.toPrecision(4)})`,
      done: next.value.step,
      total: options.steps,
      unit: 'steps',
    })
  }
}

/** Trains step by step: yields after each one, and goes on when asked for the next; leaving the loop ends the training and frees its sessions. */
export async function* trainSteps(options: TrainOptions): AsyncGenerator<TrainProgress, TrainResult> {
  checkOptions(options)
  const loop = await Loop.begin(options)
  try {
    yield* loop.steps()
    return loop.result()
  } finally {
    await loop.step.dispose()
  }
}

function checkOptions({ steps, checkpoints, evaluation }: TrainOptions): void {
  const counts = {
    steps,
    'checkpoints.every': checkpoints?.every ?? 1,
    'checkpoints.keep': checkpoints?.keep ?? 1,
    'evaluation.every': evaluation?.every ?? 1,
  }
  for (const [name, n] of Object.entries(counts))
    if (!Number.isInteger(n) || n < 1) throw new UsageError(`Training needs ${name} as a whole number of at least 1, not ${n}.`)
}

/** The state of one training. */
class Loop {
  readonly step: TrainingStep
  private readonly options: TrainOptions
  private readonly rate: Schedule
  private readonly scale: LossScale | undefined
  private counters: TrainingCounters
  private saved: string | undefined
  private loss = Number.NaN

  private constructor(options: TrainOptions, step: TrainingStep, scale: LossScale | undefined) {
    this.options = options
    this.step = step
    this.scale = scale
    this.rate = typeof options.rate === 'number' ? constantRate(options.rate) : options.rate
    this.counters = { step: 0, updates: 0, data: options.data.position }
  }

  static async begin(options: TrainOptions): Promise<Loop> {
    const { data } = options
    const scale = options.lossScale || options.compute === 'float16' ? new LossScale(options.lossScale) : undefined
    let { inputs } = options
    if (!inputs) {
      const start = data.position
      const first = await data.next()
      inputs = Object.fromEntries(Object.entries(first).map(([name, { dtype, shape }]) => [name, { dtype, shape }]))
      data.seek(start)
    }
    const parameters = options.parameters ?? new ParameterSet()
    const step = await TrainingStep.of({ ...options, inputs, parameters, scaled: scale !== undefined }, options.runtime)
    const loop = new Loop(options, step, scale)
    await loop.resume()
    return loop
  }

  private async resume(): Promise<void> {
    const { checkpoints, data } = this.options
    if (!checkpoints?.resume) return
    const name = checkpoints.resume === 'newest' ? await newestCheckpoint(checkpoints.files) : checkpoints.resume
    if (name === undefined) return
    this.counters = restore(this.step, await checkpoints.files.read(name), name)
    data.seek(this.counters.data)
    if (this.scale && this.counters.lossScale) this.scale.state = this.counters.lossScale
    this.saved = name
  }

  async *steps(): AsyncGenerator<TrainProgress, void> {
    const { steps, signal } = this.options
    const began = performance.now()
    const from = this.counters.step
    while (this.counters.step < steps) {
      if (signal?.aborted) {
        await this.save()
        throw new CancelledError(
          `Training was cancelled after step ${this.counters.step} of ${steps}${this.saved ? `; resume from the checkpoint ${this.saved}.` : '.'}`,
        )
      }
      const done = await this.one()
      const { step } = this.counters
      const { evaluation, checkpoints, after } = this.options
      await after?.(this.step, { step, metrics: done.metrics, skipped: done.skipped })
      const figures = evaluation && (step % evaluation.every === 0 || step === steps) ? await evaluation.run(this.step, step) : undefined
      const due = checkpoints && (step % checkpoints.every === 0 || step === steps)
      if (due) await this.save()
      const seconds = (performance.now() - began) / 1000
      const stepsPerSecond = (step - from) / seconds
      yield {
        ...done,
        step,
        steps,
        ...(figures ? { evaluation: figures } : {}),
        ...(due && this.saved ? { checkpoint: this.saved } : {}),
        seconds,
        stepsPerSecond,
        secondsLeft: (steps - step) / stepsPerSecond,
      }
    }
  }

  result(): TrainResult {
    return { parameters: this.step.parameters, averages: this.step.averages, steps: this.counters.step, loss: this.loss }
  }

  /** One update, from as many batches as are accumulated. */
  private async one(): Promise<Pick<TrainProgress, 'loss' | 'rate' | 'gradientNorm' | 'metrics' | 'skipped'>> {
    const { data, accumulate = 1 } = this.options
    const { updates } = this.counters
    const rate = this.rate(updates)
    if (!Number.isFinite(rate)) throw new UsageError(`The schedule gave the learning rate ${rate} after ${updates} updates; correct it.`)
    const lossScale = this.scale?.state.value ?? 1
    let sum = 0
    for (let i = 1; i < accumulate; i++) {
      const result = await this.step.gather(await data.next(), { random: this.counters.step * accumulate + i, lossScale })
      if (!Number.isFinite(result.loss)) this.stop(result)
      sum += result.loss
    }
    const result = await this.step.update(await data.next(), {
      rate,
      step: updates + 1,
      random: (this.counters.step + 1) * accumulate,
      lossScale,
    })
    const skipped = result.notFinite !== undefined && this.scale !== undefined && Number.isFinite(result.loss)
    if ((result.notFinite && !skipped) || !(this.scale?.note(!skipped) ?? true)) this.stop(result)
    this.counters = {
      step: this.counters.step + 1,
      updates: updates + (skipped ? 0 : 1),
      data: data.position,
      ...(this.scale ? { lossScale: this.scale.state } : {}),
    }
    this.loss = (sum + result.loss) / accumulate
    return { loss: this.loss, rate, gradientNorm: result.gradientNorm as number, metrics: result.metrics, skipped }
  }

  private stop(result: StepResult): never {
    throw new NotFiniteError(this.counters.step + 1, result.notFinite ?? 'the loss', this.saved)
  }

  private async save(): Promise<void> {
    const { checkpoints } = this.options
    if (!checkpoints || this.counters.step === 0) return
    const name = checkpointName(this.counters.step)
    if (name !== this.saved) await checkpoints.files.write(name, checkpointOf(this.step, this.counters))
    this.saved = name
    if (checkpoints.keep === undefined) return
    const steps = (await checkpoints.files.list()).filter((n) => stepOfName(n) !== undefined).sort()
    for (const old of steps.slice(0, -checkpoints.keep)) await checkpoints.files.remove(old)
  }
}
