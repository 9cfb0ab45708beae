/** @file Forward mode and Hessian products, both as graphs made by reverse mode. */
import { ShapeError } from '../base/errors.ts'
import { type Differentiated, differentiate } from './grad.ts'
import { dependsOn } from './graph.ts'
import { stopGradient } from './ops/index.ts'
import { zerosLike } from './ops/like.ts'
import { sameShape } from './shape.ts'
import { shown, type Tensor } from './tensor.ts'

/** A Jacobian-vector product and the counterpart of what it is a product of. */
export interface Jvp {
  /** The counterpart of `of`, to be fetched along. */
  readonly of: Tensor
  /** How `of` changes when each tensor of `at` moves along its direction; shape of `of`. */
  readonly change: Tensor
  /** The counterpart of any other tensor of the old graph. */
  map(t: Tensor): Tensor
}

/**
 * Jacobian-vector product: the change of `of` (any shape) when each of `at` moves along the tensor of `along` at the same
 * place. Exact: the vector-Jacobian product is linear in its vector, so its own gradient with respect to that vector,
 * which does not depend on the vector's value, is the product sought. Costs about two backward passes.
 */
export function jvp(of: Tensor, at: readonly Tensor[], along: readonly Tensor[]): Jvp {
  checkDirections(at, along)
  // A stand-in for the vector; no value of it is left in the result.
  const vector = zerosLike(of)
  const first = differentiate({ of, at, seed: vector })
  const slope = projected(first, along)
  if (!dependsOn(slope, vector)) return { of: first.of, change: zerosLike(first.of), map: first.map }
  const second = differentiate({ of: slope, at: [vector] })
  return { of: second.map(first.of), change: second.grads[0] as Tensor, map: (t) => second.map(first.map(t)) }
}

/** A Hessian-vector product with what it was made from. */
export interface HessianProduct {
  /** The counterpart of the scalar, to be fetched along. */
  readonly of: Tensor
  /** The gradients, as {@link differentiate} gives them. */
  readonly grads: readonly Tensor[]
  /** The products, each of the shape of its tensor of `at`. */
  readonly products: readonly Tensor[]
  /** The counterpart of any other tensor of the old graph. */
  map(t: Tensor): Tensor
}

/** Product of the Hessian of a scalar with a direction: the gradients of ⟨gradient, direction⟩, which costs about two gradients. */
export function hessianVectorProduct(of: Tensor, at: readonly Tensor[], along: readonly Tensor[]): HessianProduct {
  checkDirections(at, along)
  const first = differentiate({ of, at })
  const slope = projected(first, along)
  const places = at.map((t) => first.map(t))
  // Where the slope does not depend on a tensor, the function is linear in it: that part of the product is zero.
  const curved = places.filter((t) => dependsOn(slope, t))
  const second = curved.length > 0 ? differentiate({ of: slope, at: curved }) : undefined
  const map = (t: Tensor) => (second ? second.map(first.map(t)) : first.map(t))
  const products = places.map((t) => second?.grads[curved.indexOf(t)] ?? zerosLike(t))
  return { of: map(of), grads: second ? first.grads.map((g) => second.map(g)) : first.grads, products, map }
}

/** ⟨gradients, directions⟩, a scalar; the directions count as fixed. */
function projected(first: Differentiated, along: readonly Tensor[]): Tensor {
  return first.grads.map((g, i) => g.mul(stopGradient(first.map(along[i] as Tensor))).sum()).reduce((a, b) => a.add(b))
}

function checkDirections(at: readonly Tensor[], along: readonly Tensor[]): void {
  if (at.length !== along.length) throw new ShapeError(`${at.length} tensors need as many directions, not ${along.length}.`)
  for (const [i, t] of at.entries()) {
    const d = along[i] as Tensor
    if (!sameShape(t.shape, d.shape) || t.dtype !== d.dtype)
      throw new ShapeError(`Direction ${i} must be ${t.dtype} ${shown(t.shape)} like its tensor, not ${d.dtype} ${shown(d.shape)}.`)
  }
}
