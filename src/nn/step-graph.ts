/** @file The graph of a training step: forward, backward and update as one. */
import { ShapeError, UsageError } from '../base/errors.ts'
import type { DType } from '../base/types.ts'
import { sizeOf } from '../base/types.ts'
import {
  abs,
  add,
  cast,
  checkPolicy,
  concat,
  differentiate,
  differentiateWithin,
  input,
  less,
  minimum,
  mul,
  reciprocal,
  reshape,
  type SavedPolicy,
  type Shape,
  scan,
  sqrt,
  sum,
  sumSquares,
  Tensor,
  topological,
  where,
} from '../tensor/index.ts'
import { type Clip, checkClip, clipValues, normFactor } from './clip.ts'
import type { Optimizer } from './optimizers.ts'
import { type ParameterSet, parameterInput, Scope } from './parameters.ts'

/** Element type and axes of one input of a model. */
export interface InputType {
  readonly dtype: DType
  readonly shape: Shape
}

/** What a model gives: a scalar to make small, and scalars or tensors to watch. */
export type ModelOutput = Tensor | ({ readonly loss: Tensor } & Readonly<Record<string, Tensor>>)

/** A model as a function of its traced inputs and of `step`, an int64 scalar; it declares its parameters in the scope. */
export type ModelFunction = (inputs: Readonly<Record<string, Tensor>>, scope: Scope) => ModelOutput

/** A change of one parameter or its gradient beside the optimiser. */
export interface Hook {
  /** The gradient that the optimiser sees, given the parameter before the step. */
  readonly gradient?: (gradient: Tensor, parameter: Tensor) => Tensor
  /** The parameter after the optimiser's step. */
  readonly parameter?: (parameter: Tensor) => Tensor
  /** Whether each row of the first axis is changed by itself, so that a large parameter can be gone through in pieces. */
  readonly rowwise?: boolean
}

/** What is compiled into a step. */
export interface StepOptions {
  readonly model: ModelFunction
  readonly inputs: Readonly<Record<string, InputType>>
  readonly parameters: ParameterSet
  readonly optimizer: Optimizer | ((name: string, shape: readonly number[]) => Optimizer)
  /** Seed of the first values of parameters; 0 by default. */
  readonly seed?: number
  /** Parameters that are trained; the others stay as they are. All by default. */
  readonly trainable?: (name: string) => boolean
  /** Parameters that weight decay and proximal steps apply to; those with more than one axis by default. */
  readonly decays?: (name: string, shape: readonly number[]) => boolean
  readonly clip?: Clip
  /** Batches whose gradients are averaged for one update; 1 by default. */
  readonly accumulate?: number
  /** Keeps a running average of the parameters, of which `decay` stays at each update (Polyak and Juditsky 1992). */
  readonly average?: { readonly decay: number }
  /** By parameter name. */
  readonly hooks?: Readonly<Record<string, Hook>>
  /** Element type of the forward and backward pass; parameters and states stay float32. */
  readonly compute?: 'float32' | 'float16'
  /**
   * What becomes of forward values that the backward pass needs: the parts of the model between its `cut` marks are run one after another, and what lies
   * between forward and backward pass is kept, computed again, or put on disk. Needs marks; without a policy they mean nothing.
   */
  readonly saved?: SavedPolicy
  /** Whether the loss is scaled before the backward pass, and an update with infinite gradients left out. */
  readonly scaled?: boolean
}

/** One array that stays with the runtime from step to step, written in place. */
export interface StateSpec {
  /** Name of the program's input and output. */
  readonly key: string
  readonly shape: readonly number[]
}

/** A traced step. */
export interface StepGraph {
  /** Outputs of the program that updates; those in `states` and `layouts` are written in place. */
  readonly update: Readonly<Record<string, Tensor>>
  /** Outputs of the program that only looks. */
  readonly forward: Readonly<Record<string, Tensor>>
  /** Outputs of the program that only adds up gradients, when gradients are accumulated. */
  readonly gather?: Readonly<Record<string, Tensor>>
  /** Trained parameters, in order. */
  readonly trained: readonly string[]
  /** Shape under which each parameter is fed: its own, or that in pieces. */
  readonly layouts: ReadonlyMap<string, readonly number[]>
  /** States of the optimiser, by a key such as `adamw/w/mean`. */
  readonly states: readonly StateSpec[]
  /** Sums of gradients, when gradients are accumulated. */
  readonly sums: readonly StateSpec[]
  /** Names of what the model gives beside the loss. */
  readonly metrics: readonly string[]
  /** Values of the scalars of all optimisers. */
  scalars(at: { rate: number; step: number }): Record<string, number>
}

/** Values from which on a parameter is gone through in pieces, and most values of a piece: parameter, gradient and states of one fit a core's cache. */
const piecewiseFrom = 1 << 17
const pieceValues = 1 << 14

/** The shape of a parameter in pieces of whole rows; its own shape where it is small or cannot be divided well. */
function layoutOf(shape: readonly number[]): readonly number[] {
  const [rows = 1, ...rest] = shape
  const width = sizeOf(rest)
  if (rows * width < piecewiseFrom || width > 4 * pieceValues) return shape
  for (let r = Math.min(rows, Math.max(1, Math.floor(pieceValues / width))); r >= 1; r--)
    if (rows % r === 0) return r * width * 8 >= pieceValues ? [rows / r, r, ...rest] : shape
  return shape
}

/** Everything that the builder knows of one trained parameter. */
interface Trained {
  readonly name: string
  readonly optimizer: Optimizer
  readonly flat: Tensor
  readonly pieces: boolean
  /** Names of the optimiser's states, and all arrays of this parameter: theirs, then the running average. */
  readonly stateNames: readonly string[]
  readonly states: readonly StateSpec[]
  readonly decays: boolean
  readonly hook: Hook | undefined
}

const scalarInput = (name: string) => `scalar:${name}`
/** Names of the program's scalars that are not an optimiser's. */
export const stepScalars = { lossScale: scalarInput('loss scale') } as const
/** Name of the input with the number of the step, which every model may read: int64 scalar, for random numbers by counting. */
export const stepInput = 'step'
/** Name of the output with the sums of squares of the gradients, [trained parameters]. */
export const squaresOutput = 'squares'
/** Name of the output of a metric. */
export const metricOutput = (name: string) => `metric:${name}`
const averageKey = (name: string) => `average/${name}`

/** Traces a step. Declares the parameters of the model that are not in the set yet. */
export function traceStep(options: StepOptions): StepGraph {
  const { parameters } = options
  const choose = typeof options.optimizer === 'function' ? options.optimizer : () => options.optimizer as Optimizer
  const trainable = options.trainable ?? (() => true)
  const layouts = new Map<string, readonly number[]>()
  const trained: Trained[] = []
  const states: StateSpec[] = []
  const view = (name: string, shape: readonly number[]): Tensor => {
    let layout = shape
    if (trainable(name)) {
      const optimizer = choose(name, shape)
      const hook = options.hooks?.[name]
      if (optimizer.elementwise && (!hook || hook.rowwise)) layout = layoutOf(shape)
      const declared = Object.entries(optimizer.states(shape, name))
      const own = declared.map(([key, s]) => ({ key: `${optimizer.name}/${name}/${key}`, shape: s === shape ? layout : s }))
      if (options.average) own.push({ key: averageKey(name), shape: layout })
      states.push(...own)
      const stateNames = declared.map(([key]) => key)
      const decays = options.decays ? options.decays(name, shape) : shape.length > 1
      const flat = input(parameterInput(name), 'float32', layout)
      trained.push({ name, optimizer, flat, pieces: layout !== shape, stateNames, states: own, decays, hook })
    }
    layouts.set(name, layout)
    const flat = trained.find((t) => t.name === name)?.flat ?? input(parameterInput(name), 'float32', layout)
    const whole = layout === shape ? flat : reshape(flat, shape)
    return options.compute === 'float16' ? cast(whole, 'float16') : whole
  }
  const scope = new Scope(parameters, { seed: options.seed ?? 0, view })
  const { loss, metrics } = traceModel(options, scope)
  if (trained.length === 0) throw new UsageError('There is nothing to train: the model declares no parameter that is trainable.')
  const unknown = Object.keys(options.hooks ?? {}).filter((name) => !layouts.has(name))
  if (unknown.length > 0) throw new UsageError(`The model has no parameter '${unknown[0]}' to change after each step; correct its name.`)

  const scale = options.scaled ? input(stepScalars.lossScale, 'float32', []) : undefined
  const wanted = { of: scale ? mul(loss, scale) : loss, at: trained.map((t) => t.flat) }
  checkPolicy(options.saved)
  if (options.saved !== undefined && !topological([loss]).some((n) => n.op.name === 'cut'))
    throw new UsageError('Nothing can be saved by parts, since the model has no marks between its parts; put x = cut(x, i) before block i.')
  const d = options.saved === undefined ? differentiate(wanted) : differentiateWithin(wanted, options.saved, new Map())
  const watched = Object.fromEntries(Object.entries(metrics).map(([name, t]) => [metricOutput(name), d.map(t)]))
  const reported = { loss: d.map(loss), ...watched }
  const builder = new UpdateBuilder(options, trained, scale)
  const accumulated = builder.accumulated(d.grads)
  return {
    forward: { loss, ...Object.fromEntries(Object.entries(metrics).map(([name, t]) => [metricOutput(name), t])) },
    update: { ...reported, ...builder.update(accumulated?.whole ?? d.grads, Object.values(reported)) },
    ...(accumulated ? { gather: { ...reported, ...accumulated.outputs } } : {}),
    trained: trained.map((t) => t.name),
    layouts,
    states,
    sums: accumulated ? trained.map((t) => ({ key: sumKey(t.name), shape: t.flat.shape as readonly number[] })) : [],
    metrics: Object.keys(metrics),
    scalars: (at) => builder.scalars(at),
  }
}

const sumKey = (name: string) => `sum/${name}`

function traceModel(options: StepOptions, scope: Scope): { loss: Tensor; metrics: Record<string, Tensor> } {
  const half = options.compute === 'float16'
  const inputs = Object.fromEntries(
    Object.entries(options.inputs).map(([name, { dtype, shape }]) => {
      const x = input(name, dtype, shape)
      return [name, half && dtype === 'float32' ? cast(x, 'float16') : x]
    }),
  )
  const given = options.model({ [stepInput]: input(stepInput, 'int64', []), ...inputs }, scope)
  const { loss, ...metrics } = given instanceof Tensor ? { loss: given } : given
  if (!(loss instanceof Tensor)) throw new UsageError('The model must return a scalar loss, or an object with one under `loss`.')
  if (loss.shape.some((n) => n !== 1))
    throw new ShapeError(`A loss must be a scalar, but this one has shape [${loss.shape.join(', ')}]; take its mean.`)
  const single = (t: Tensor) => (t.dtype === 'float16' ? cast(t, 'float32') : t)
  return { loss: single(loss), metrics: Object.fromEntries(Object.entries(metrics).map(([k, t]) => [k, single(t)])) }
}

/** Writes the part of the step that follows the gradients. */
class UpdateBuilder {
  private readonly options: StepOptions
  private readonly trained: readonly Trained[]
  private readonly scale: Tensor | undefined
  /** Optimisers by a name of their own: two of one kind may have different settings. */
  private readonly optimizers: ReadonlyMap<Optimizer, string>

  constructor(options: StepOptions, trained: readonly Trained[], scale: Tensor | undefined) {
    this.options = options
    this.trained = trained
    this.scale = scale
    this.optimizers = new Map([...new Set(trained.map((t) => t.optimizer))].map((o, i) => [o, `${o.name} ${i}`]))
    if (options.clip) checkClip(options.clip)
  }

  scalars(at: { rate: number; step: number }): Record<string, number> {
    const named = [...this.optimizers].flatMap(([o, id]) =>
      Object.entries(o.scalars(at)).map(([k, v]) => [scalarInput(`${id}/${k}`), v] as const),
    )
    return Object.fromEntries(named)
  }

  /** Sums of the gradients so far and of this batch, and their mean. */
  accumulated(grads: readonly Tensor[]): { outputs: Record<string, Tensor>; whole: Tensor[] } | undefined {
    const times = this.options.accumulate ?? 1
    if (!Number.isInteger(times) || times < 1) throw new UsageError(`Gradients can be accumulated over one or more batches, not ${times}.`)
    if (times === 1) return undefined
    const sums = this.trained.map((t, i) => add(input(sumKey(t.name), 'float32', t.flat.shape), grads[i] as Tensor))
    return {
      outputs: Object.fromEntries(this.trained.map((t, i) => [sumKey(t.name), sums[i] as Tensor])),
      whole: sums.map((s) => mul(s, 1 / times)),
    }
  }

  update(grads: readonly Tensor[], reported: readonly Tensor[]): Record<string, Tensor> {
    const { options } = this
    const changed = this.trained.map((t, i) => this.hooked(t, grads[i] as Tensor))
    const limited = options.clip && 'value' in options.clip ? options.clip.value : undefined
    const squares = changed.map((g) => sumSquares(g))
    const all = squares.reduce((a, b) => add(a, b))
    const norm = this.scale ? mul(sqrt(all), reciprocal(this.scale)) : sqrt(all)
    // Parameters are written over while the program runs, so nothing may be updated before everything that reads them is done:
    // all updates wait for a zero made of all gradients and of all that is reported.
    const wait = [norm, ...reported].map((t) => minimum(abs(cast(t.rank === 0 ? t : sum(t), 'float32')), 0)).reduce((a, b) => add(a, b))
    const inverse = this.scale && reciprocal(this.scale)
    const clipped = options.clip && 'norm' in options.clip ? normFactor(norm, options.clip.norm) : undefined
    const factor = clipped && inverse ? mul(clipped, inverse) : (clipped ?? inverse)
    const apply = this.scale ? less(abs(norm), Number.MAX_VALUE) : undefined
    const scalars = new Map(
      [...this.optimizers].map(([o, id]) => {
        const names = Object.keys(o.scalars({ rate: 0, step: 1 }))
        return [o, Object.fromEntries(names.map((k) => [k, add(input(scalarInput(`${id}/${k}`), 'float32', []), wait)]))]
      }),
    )
    const outputs: Record<string, Tensor> = {
      [squaresOutput]: concat(
        squares.map((s) => reshape(s, [1])),
        0,
      ),
    }
    for (const [i, t] of this.trained.entries())
      Object.assign(outputs, this.one(t, changed[i] as Tensor, { factor, limited, apply, scalars: scalars.get(t.optimizer) ?? {} }))
    return outputs
  }

  private hooked(t: Trained, gradient: Tensor): Tensor {
    const { hook } = t
    if (!hook?.gradient) return gradient
    const change = hook.gradient
    if (!t.pieces) return change(gradient, t.flat)
    const { each } = scan([], [gradient, t.flat], (_, items) => ({ carry: [], each: [change(items[0] as Tensor, items[1] as Tensor)] }))
    return each[0] as Tensor
  }

  /** New values of one parameter and its states. */
  private one(
    t: Trained,
    gradient: Tensor,
    by: { factor: Tensor | undefined; limited: number | undefined; apply: Tensor | undefined; scalars: Record<string, Tensor> },
  ): Record<string, Tensor> {
    const { average } = this.options
    const states = t.states.map(({ key, shape }) => input(key, 'float32', shape))
    const run = (args: readonly Tensor[]): Tensor[] => {
      const [p, given, ...old] = args as [Tensor, Tensor, ...Tensor[]]
      const scaled = by.factor ? mul(given, by.factor) : given
      const g = by.limited === undefined ? scaled : clipValues(scaled, by.limited)
      const named = Object.fromEntries(t.stateNames.map((n, i) => [n, old[i] as Tensor]))
      const updated = t.optimizer.update({ parameter: p, gradient: g, states: named, scalars: by.scalars, decays: t.decays })
      const next = t.hook?.parameter ? t.hook.parameter(updated.parameter) : updated.parameter
      const results = [next, ...t.stateNames.map((n) => updated.states[n] as Tensor)]
      if (average) results.push(add(mul(old.at(-1) as Tensor, average.decay), mul(next, 1 - average.decay)))
      const before = [p, ...old]
      const chosen = by.apply ? results.map((r, i) => where(by.apply as Tensor, r, before[i] as Tensor)) : results
      refuseLateReads(t, before, chosen)
      return chosen
    }
    const args = [t.flat, gradient, ...states]
    const results = t.pieces ? scan([], args, (_, items) => ({ carry: [], each: run(items) })).each : run(args)
    return Object.fromEntries([parameterInput(t.name), ...t.states.map((s) => s.key)].map((key, i) => [key, results[i] as Tensor]))
  }
}

/** Refuses an update that reads an old value in a place that the new one does not wait for, since the new one is written over the old. */
function refuseLateReads(t: Trained, before: readonly Tensor[], after: readonly Tensor[]): void {
  const nodes = topological(after)
  for (const [i, old] of before.entries()) {
    const earlier = new Set(topological([after[i] as Tensor]))
    if (nodes.some((n) => n.inputs.includes(old) && !earlier.has(n)))
      throw new UsageError(
        `The optimiser ${t.optimizer.name} reads ${i === 0 ? `the parameter '${t.name}'` : `a state of '${t.name}'`} in a way that its new value does not depend on, but the new value is written over the old one; derive the new value from everything that reads the old one.`,
      )
  }
}
