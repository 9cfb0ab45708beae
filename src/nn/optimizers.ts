/** @file Optimisers as graphs: from parameter, gradient, states and a few scalars to the new parameter and states, all inside the step's program. */
import { UsageError } from '../base/errors.ts'
import { abs, add, div, maximum, mul, relu, sign, sqrt, sub, type Tensor } from '../tensor/index.ts'

/** What an update reads. */
export interface UpdateInput {
  readonly parameter: Tensor
  readonly gradient: Tensor
  /** By the names that {@link Optimizer.states} gives. */
  readonly states: Readonly<Record<string, Tensor>>
  /** float32 scalars, by the names that {@link Optimizer.scalars} gives. */
  readonly scalars: Readonly<Record<string, Tensor>>
  /** Whether weight decay applies to this parameter. */
  readonly decays: boolean
}

/** What an update gives. */
export interface Updated {
  readonly parameter: Tensor
  readonly states: Readonly<Record<string, Tensor>>
}

/**
 * An update rule. A state must be read by nothing that does not lead to its own new value, since new states are written over
 * the old ones.
 */
export interface Optimizer {
  readonly name: string
  /** Whether every value is updated by itself, so that large parameters can be gone through in pieces that fit the processor's cache. */
  readonly elementwise: boolean
  /** Shapes of the states of a parameter, which start at zero; refuses parameters that the rule cannot update. */
  states(shape: readonly number[], name: string): Readonly<Record<string, readonly number[]>>
  /** Values of the scalars at a learning rate and an update's number, which counts from 1. */
  scalars(at: { readonly rate: number; readonly step: number }): Readonly<Record<string, number>>
  update(u: UpdateInput): Updated
}

/** Settings of {@link sgd}. */
export interface SgdOptions {
  readonly momentum?: number
  /** Steps along the gradient at where the momentum leads (Sutskever et al. 2013, as PyTorch writes it). */
  readonly nesterov?: boolean
  /** Times the parameter, added to the gradient. */
  readonly weightDecay?: number
}

const state = (u: UpdateInput, name: string) => u.states[name] as Tensor
const scalarOf = (u: UpdateInput, name: string) => u.scalars[name] as Tensor

function refuseOutside(name: string, values: Readonly<Record<string, number>>, low: number, high: number): void {
  for (const [key, v] of Object.entries(values))
    if (!(v >= low && v < high)) throw new UsageError(`${name} needs ${key} from ${low} to below ${high}, not ${v}.`)
}

/** Gradient plus decay times the parameter, where decay applies. */
const withDecay = (u: UpdateInput, decay: number) => (u.decays && decay > 0 ? add(u.gradient, mul(u.parameter, decay)) : u.gradient)

/** Stochastic gradient descent with momentum, the numbers of `torch.optim.SGD` without dampening. */
export function sgd({ momentum = 0, nesterov = false, weightDecay = 0 }: SgdOptions = {}): Optimizer {
  refuseOutside('SGD', { momentum }, 0, 1)
  if (nesterov && momentum === 0) throw new UsageError('Nesterov steps need a momentum; give one, such as 0.9.')
  return {
    name: 'sgd',
    elementwise: true,
    states: (shape) => (momentum > 0 ? { momentum: shape } : {}),
    scalars: ({ rate }) => ({ rate }),
    update(u) {
      const g = withDecay(u, weightDecay)
      const rate = scalarOf(u, 'rate')
      if (momentum === 0) return { parameter: sub(u.parameter, mul(g, rate)), states: {} }
      const next = add(mul(state(u, 'momentum'), momentum), g)
      const direction = nesterov ? add(g, mul(next, momentum)) : next
      return { parameter: sub(u.parameter, mul(direction, rate)), states: { momentum: next } }
    },
  }
}

/** Settings of {@link adam} and {@link adamW}. */
export interface AdamOptions {
  /** How much of the running means of gradient and squared gradient stays from step to step. */
  readonly betas?: readonly [number, number]
  readonly eps?: number
  readonly weightDecay?: number
}

/**
 * Adam. The states are sums instead of means, `m/(1 − β₁)` and `v/(1 − β₂)`: this spares two passes, and the factors go with
 * those of the bias correction into two scalars.
 */
function adamRule(name: string, { betas = [0.9, 0.999], eps = 1e-8, weightDecay = 0 }: AdamOptions, decoupled: boolean): Optimizer {
  const [b1, b2] = betas
  refuseOutside(name, { 'β₁': b1, 'β₂': b2 }, 0, 1)
  return {
    name,
    elementwise: true,
    states: (shape) => ({ mean: shape, square: shape }),
    scalars: ({ rate, step }) => {
      const root = Math.sqrt((1 - b2) / (1 - b2 ** step))
      return {
        rate: (rate * (1 - b1)) / ((1 - b1 ** step) * root),
        floor: eps / root,
        ...(decoupled ? { keep: 1 - rate * weightDecay } : {}),
      }
    },
    update(u) {
      const g = decoupled ? u.gradient : withDecay(u, weightDecay)
      const mean = add(mul(state(u, 'mean'), b1), g)
      const square = add(mul(state(u, 'square'), b2), mul(g, g))
      const step = mul(div(mean, add(sqrt(square), scalarOf(u, 'floor'))), scalarOf(u, 'rate'))
      const kept = decoupled && u.decays && weightDecay > 0 ? mul(u.parameter, scalarOf(u, 'keep')) : u.parameter
      return { parameter: sub(kept, step), states: { mean, square } }
    },
  }
}

/** Adam (Kingma and Ba 2015); weight decay is added to the gradient. */
export const adam = (options: AdamOptions = {}): Optimizer => adamRule('adam', options, false)
/** Adam with decoupled weight decay, 0.01 by default (Loshchilov and Hutter 2019). */
export const adamW = (options: AdamOptions = {}): Optimizer => adamRule('adamw', { weightDecay: 0.01, ...options }, true)

/** Lion: the sign of an average of momentum and gradient, with decoupled weight decay (Chen et al. 2023). */
export function lion({ betas = [0.9, 0.99], weightDecay = 0 }: Omit<AdamOptions, 'eps'> = {}): Optimizer {
  const [b1, b2] = betas
  refuseOutside('Lion', { 'β₁': b1, 'β₂': b2 }, 0, 1)
  if (b1 === 0) throw new UsageError('Lion needs β₁ above 0, such as 0.9.')
  return {
    name: 'lion',
    elementwise: true,
    states: (shape) => ({ momentum: shape }),
    scalars: ({ rate }) => ({ rate, keep: 1 - rate * weightDecay }),
    update(u) {
      const g = u.gradient
      const mixed = add(mul(state(u, 'momentum'), b1), mul(g, 1 - b1))
      // β₂·m + (1 − β₂)·g from the mixture: the old momentum is read only once, before the new one is written over it.
      const momentum = add(mul(mixed, b2 / b1), mul(g, 1 - b2 / b1))
      const kept = u.decays && weightDecay > 0 ? mul(u.parameter, scalarOf(u, 'keep')) : u.parameter
      return { parameter: sub(kept, mul(sign(mixed), scalarOf(u, 'rate'))), states: { momentum } }
    },
  }
}

/** Values moved towards zero by `by`, those that reach it staying there: the proximal step of the L1 norm. */
export function softThreshold(x: Tensor, by: Tensor | number): Tensor {
  return mul(sign(x), relu(sub(abs(x), by)))
}

/** Rows of the last axis shortened by `by`, those that reach zero staying there: the proximal step of the group lasso (Yuan and Lin 2006). */
export function groupThreshold(x: Tensor, by: Tensor | number): Tensor {
  const length = sqrt(mul(x, x).sum([-1], true))
  return mul(x, div(relu(sub(length, by)), maximum(length, 1e-30)))
}

/** An optimiser whose every step is followed by the proximal step of `strength`·‖x‖₁ (or of the sum of row lengths), scaled by the learning rate. */
export function proximal(inner: Optimizer, options: { readonly strength: number; readonly kind?: 'l1' | 'rows' }): Optimizer {
  const { strength, kind = 'l1' } = options
  refuseOutside('A proximal step', { strength }, 0, Number.POSITIVE_INFINITY)
  const prox = { l1: softThreshold, rows: groupThreshold }[kind]
  return {
    ...inner,
    name: `${inner.name}+${kind}`,
    elementwise: inner.elementwise && kind === 'l1',
    scalars: (at) => ({ ...inner.scalars(at), threshold: at.rate * strength }),
    update(u) {
      const { parameter, states } = inner.update(u)
      return { parameter: u.decays ? prox(parameter, scalarOf(u, 'threshold')) : parameter, states }
    },
  }
}
