/** @file Losses: from traced predictions and targets to a scalar, the mean over what counts. */
import { ShapeError } from '../base/errors.ts'
import {
  abs,
  add,
  argmax,
  cast,
  constant,
  div,
  equal,
  exp,
  gather,
  gatherElements,
  logSoftmax,
  matmul,
  maximum,
  mean,
  minimum,
  mul,
  neg,
  not,
  relu,
  softplus,
  sqrt,
  squeeze,
  sub,
  sum,
  type Tensor,
  transpose,
  unsqueeze,
  where,
} from '../tensor/index.ts'

import { logSumExpOfProduct, tableProduct } from './large-softmax.ts'

/** Which places count. */
export interface CountOptions {
  /** Weights of the places, float32 of the targets' shape; zero leaves a place out. */
  readonly mask?: Tensor
}

/** The mean over places, or over those of a mask; zero where a mask is empty. */
function meanOver(values: Tensor, mask: Tensor | undefined): Tensor {
  return mask ? div(sum(mul(values, mask)), maximum(sum(mask), 1e-12)) : mean(values)
}

/**
 * Mean cross-entropy of logits [… , class] with class numbers int64 […].
 * @param options.ignore a class number whose places do not count.
 */
export function crossEntropy(logits: Tensor, targets: Tensor, options: CountOptions & { readonly ignore?: number } = {}): Tensor {
  if (targets.rank !== logits.rank - 1)
    throw new ShapeError(`Cross-entropy needs targets of rank ${logits.rank - 1} for logits of rank ${logits.rank}, not ${targets.rank}.`)
  let { mask } = options
  let classes = targets
  if (options.ignore !== undefined) {
    const ignored = equal(targets, options.ignore)
    const counted = cast(not(ignored), logits.dtype)
    mask = mask ? mul(mask, counted) : counted
    // Any class will do where nothing counts, as long as there is one.
    classes = where(ignored, mul(targets, 0), targets)
  }
  return meanOver(negativeLogLikelihood(logits, classes), mask)
}

/** Logarithm of the probability that logits [… , class] give to class numbers int64 […]. */
export function logProbabilityOf(logits: Tensor, classes: Tensor): Tensor {
  return squeeze(gatherElements(logSoftmax(logits), unsqueeze(classes, -1), -1), -1)
}

/** Minus the logarithm of the probability of each class. Of a large vocabulary the logits are never there all at once. */
function negativeLogLikelihood(logits: Tensor, classes: Tensor): Tensor {
  const product = tableProduct(logits)
  if (!product) return neg(logProbabilityOf(logits, classes))
  return sub(logSumExpOfProduct(product), sum(mul(product.x, gather(product.table, classes)), [-1]))
}

/** How often the largest logit [… , class] is at the target […]; no gradient. */
export function accuracy(logits: Tensor, targets: Tensor): Tensor {
  return mean(cast(equal(argmax(logits, -1), targets), 'float32'))
}

/** Mean squared error. */
export function mse(prediction: Tensor, target: Tensor, options: CountOptions = {}): Tensor {
  const difference = sub(prediction, target)
  return meanOver(mul(difference, difference), options.mask)
}

/** Quadratic up to `delta`, linear beyond (Huber 1964). */
export function huber(prediction: Tensor, target: Tensor, options: CountOptions & { readonly delta?: number } = {}): Tensor {
  const { delta = 1, mask } = options
  const size = abs(sub(prediction, target))
  const near = minimum(size, delta)
  return meanOver(add(mul(mul(near, near), 0.5), mul(sub(size, near), delta)), mask)
}

/** Binary cross-entropy of logits with targets in [0, 1] of the same shape. */
export function binaryCrossEntropy(logits: Tensor, targets: Tensor, options: CountOptions = {}): Tensor {
  return meanOver(sub(softplus(logits), mul(logits, targets)), options.mask)
}

/** Kullback–Leibler divergence from a student's distribution to a teacher's, both given by logits [… , class], mean over the places; in nats. */
export function klDivergence(student: Tensor, teacher: Tensor, options: CountOptions & { readonly temperature?: number } = {}): Tensor {
  const t = options.temperature ?? 1
  const [p, q] = [logSoftmax(mul(teacher, 1 / t)), logSoftmax(mul(student, 1 / t))]
  return meanOver(sum(mul(exp(p), sub(p, q)), [-1]), options.mask)
}

/** Rows of the last axis at length one; rows of zeros stay. */
export function unit(x: Tensor): Tensor {
  // The small term keeps the slope of the root finite at zero.
  return div(x, sqrt(add(sum(mul(x, x), [-1], true), 1e-12)))
}

/** One minus the cosine of the angle between rows of the last axis. */
export function cosineLoss(a: Tensor, b: Tensor, options: CountOptions = {}): Tensor {
  return meanOver(sub(mul(sum(mul(unit(a), unit(b)), [-1]), -1), -1), options.mask)
}

/** Each row of `a` [n, d] should find its own row of `b` [n, d] among all of them, and the other way round (InfoNCE; van den Oord et al. 2018, Radford et al. 2021). */
export function contrastive(a: Tensor, b: Tensor, options: { readonly temperature?: number } = {}): Tensor {
  const n = a.shape[0]
  if (typeof n !== 'number') throw new ShapeError(`A contrastive loss needs a batch of known length, not '${n}'.`)
  const similar = mul(matmul(unit(a), unit(b), { transB: true }), 1 / (options.temperature ?? 0.07))
  const own = constant(
    'int64',
    [n],
    Array.from({ length: n }, (_, i) => i),
  )
  return mul(add(crossEntropy(similar, own), crossEntropy(transpose(similar, [1, 0]), own)), 0.5)
}

/** Triplets: the positive should be nearer than the negative by a margin, in squared distance (Schroff et al. 2015). */
export function triplet(anchor: Tensor, positive: Tensor, negative: Tensor, options: { readonly margin?: number } = {}): Tensor {
  const distance = (x: Tensor) => sum(mul(sub(anchor, x), sub(anchor, x)), [-1])
  return mean(relu(add(sub(distance(positive), distance(negative)), options.margin ?? 1)))
}

/** Sum of absolute values over the last axis, mean over the places: the penalty that makes features sparse. */
export function l1Penalty(x: Tensor, options: CountOptions = {}): Tensor {
  return meanOver(sum(abs(x), [-1]), options.mask)
}

/** Negative entropy of distributions given by logits [… , class], mean over the places, in nats; adding it to a loss keeps them broad. */
export function negativeEntropy(logits: Tensor, options: CountOptions = {}): Tensor {
  const p = logSoftmax(logits)
  return meanOver(sum(mul(exp(p), p), [-1]), options.mask)
}
