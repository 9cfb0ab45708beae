/** @file Clipping of gradients, as a part of the step's graph. */
import { UsageError } from '../base/errors.ts'
import { add, clip, minimum, mul, reciprocal, type Tensor } from '../tensor/index.ts'

/** How gradients are held back: by the length of all of them together, or value by value. */
export type Clip = { readonly norm: number } | { readonly value: number }

/** Refuses limits that would stop or turn every step. */
export function checkClip(limit: Clip): void {
  const [kind, v] = Object.entries(limit)[0] as [string, number]
  if (!(v > 0)) throw new UsageError(`Gradients can be clipped only at a positive ${kind}, not ${v}.`)
}

/** The factor on all gradients for a global norm, a scalar: 1 below the limit (Pascanu et al. 2013; PyTorch's small term in the denominator). */
export function normFactor(norm: Tensor, limit: number): Tensor {
  return minimum(mul(reciprocal(add(norm, 1e-6)), limit), 1)
}

/** A gradient with every value within ±limit. */
export function clipValues(gradient: Tensor, limit: number): Tensor {
  return clip(gradient, -limit, limit)
}
