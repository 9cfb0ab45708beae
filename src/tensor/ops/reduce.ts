/** @file Reductions, and the softmax family. */
import type { DType } from '../../base/types.ts'
import { need, one } from '../shape.ts'
import { apply1, axesOf, axisOf, type Dim, defineOp, type Emitter, type Shape, scalar, type Tensor } from '../tensor.ts'
import { cast, div, equal, exp, mul, sub, where } from './elementwise.ts'
import { countOf, expandTo, filledLike, isScatteredIntoZeros, times, unsqueezeAll } from './like.ts'

function reduced(shape: Shape, axes: readonly number[], keepDims: boolean): Dim[] {
  return keepDims ? shape.map((d, i) => (axes.includes(i) ? 1 : d)) : shape.filter((_, i) => !axes.includes(i))
}

/** Gradient of a reduction from that of its result and the result itself, both with reduced axes kept as 1. */
type ReductionRule = (g: Tensor, x: Tensor, y: Tensor, axes: readonly number[]) => Tensor

/** Equal extremes share the gradient evenly. */
const extreme: ReductionRule = (g, x, y, axes) => {
  const mask = cast(equal(x, y), x.dtype)
  return mul(mask, div(g, mask.sum(axes, true)))
}

/** The product of the others, right where values are zero, too; second derivatives there are not, since they count the zeros. */
const productRule: ReductionRule = (g, x, _, axes) => {
  const isZero = equal(x, 0)
  const zeros = cast(isZero, x.dtype).sum(axes, true)
  const filled = where(isZero, scalar(1, x.dtype), x)
  const others = apply1('prod', [filled], { axes, keepDims: true })
  const none = scalar(0, x.dtype)
  return mul(g, where(isZero, where(equal(zeros, 1), others, none), where(equal(zeros, 0), div(others, filled), none)))
}

/** Lowering of a reduction that is more than one node; `reduce` emits one over the axes, keeping them when told. */
type ReductionLowering = (e: Emitter, x: string, reduce: (op: string, x: string, keepDims?: boolean) => string, dtype: DType) => string

/** Written out, since ONNX Runtime's own node for it is ten times slower. */
const lowerLogSumExp: ReductionLowering = (e, x, reduce, dtype) => {
  const op = (name: string, ...inputs: string[]) => e.emit(name, inputs)[0] as string
  const shift = (keepDims?: boolean) => {
    const largest = reduce('ReduceMax', x, keepDims)
    // Where all are -∞, or one is ∞, the shift itself would make NaN.
    return op('Where', op('IsInf', largest), e.constant(dtype, [], [0]), largest)
  }
  return op('Add', op('Log', reduce('ReduceSum', op('Exp', op('Sub', x, shift(true))))), shift())
}

const reductions: Readonly<Record<string, readonly [string | ReductionLowering, string, ReductionRule]>> = {
  sum: ['ReduceSum', 'Sum over axes.', (g, x) => expandTo(g, x)],
  mean: ['ReduceMean', 'Mean over axes.', (g, x, _, axes) => expandTo(div(g, countOf(x, axes)), x)],
  sum_squares: [
    (e, x, reduce) => reduce('ReduceSum', e.emit('Mul', [x, x])[0] as string),
    'Sum of squares over axes.',
    (g, x) => mul(mul(g, 2), x),
  ],
  max: ['ReduceMax', 'Largest value over axes.', extreme],
  min: ['ReduceMin', 'Smallest value over axes.', extreme],
  prod: ['ReduceProd', 'Product over axes.', productRule],
  logsumexp: [lowerLogSumExp, 'Logarithm of the sum of exponentials over axes.', (g, x, y) => mul(g, exp(sub(x, y)))],
}

for (const [name, [onnx, doc, rule]] of Object.entries(reductions))
  defineOp({
    name,
    doc,
    infer: (inputs, a) => {
      const x = need(name, inputs, 0)
      return one(x.dtype, reduced(x.shape, a.axes as number[], a.keepDims as boolean))
    },
    lower: (e, [x], { attrs: a, inputs }) => {
      const axes = a.axes as number[]
      const list = e.constant('int64', [axes.length], axes)
      // ONNX takes an empty list for all axes; ours means none.
      const reduce = (op: string, value: string, keepDims = a.keepDims as boolean) =>
        e.emit(op, [value, list], { keepdims: keepDims ? 1 : 0, noop_with_empty_axes: 1 })[0] as string
      return [typeof onnx === 'string' ? reduce(onnx, x as string) : onnx(e, x as string, reduce, (inputs[0] as Tensor).dtype)]
    },
    gradient: ({ inputs: [x], outputs: [y], attrs }, [g]) => {
      const axes = attrs.axes as number[]
      const kept = (t: Tensor) => (attrs.keepDims ? t : unsqueezeAll(t, axes))
      return [rule(kept(g as Tensor), x as Tensor, kept(y as Tensor), axes)]
    },
  })

for (const [name, onnx, doc] of [
  ['argmax', 'ArgMax', 'Index of the largest value along an axis, int64; the first one where several are equal.'],
  ['argmin', 'ArgMin', 'Index of the smallest value along an axis, int64; the first one where several are equal.'],
] as const)
  defineOp({
    name,
    doc,
    infer: (inputs, a) => one('int64', reduced(need(name, inputs, 0).shape, [a.axis as number], false)),
    lower: (e, [x], { attrs: a }) => e.emit(onnx, [x as string], { axis: a.axis as number, keepdims: 0 }),
    gradient: 'none',
  })

defineOp({
  name: 'cumsum',
  doc: 'Running sum along an axis.',
  infer: (inputs) => [need('cumsum', inputs, 0)],
  lower: (e, [x], { attrs: a }) =>
    e.emit('CumSum', [x as string, e.constant('int64', [], [a.axis as number])], {
      exclusive: a.exclusive ? 1 : 0,
      reverse: a.reverse ? 1 : 0,
    }),
  gradient: ({ attrs }, [g]) => [apply1('cumsum', [g], { ...attrs, reverse: !attrs.reverse })],
})

/** Gradients of the softmax family from that of the result `g`, the input `x` and the result `y`. */
const softmaxRules: Readonly<Record<string, (g: Tensor, x: Tensor, y: Tensor, axis: number) => Tensor>> = {
  softmax: (g, _, y, axis) => {
    const gy = times(g, y)
    return sub(gy, mul(y, gy.sum([axis], true)))
  },
  log_softmax: (g, x, _, axis) => {
    // Computed again from the input, which takes less than the exponentials of the result would.
    const p = softmax(x, axis)
    const { inputs, attrs } = g.node
    // The usual case of a cross-entropy: the gradient is there for one target a row, so nothing of full width is summed, and
    // what scales the rows comes last, where a matrix product after it can take it over.
    if (g.node.op.name === 'scatter_elements' && attrs.axis === axis && isScatteredIntoZeros(g)) {
      const [, index, values] = inputs as [Tensor, Tensor, Tensor]
      if (values.shape[axis] === 1) return mul(apply1('scatter_elements', [p, index, filledLike(values, -1)], attrs), values.neg())
      return apply1('scatter_elements', [mul(p, values.sum([axis], true).neg()), index, values], attrs)
    }
    return sub(g, mul(p, g.sum([axis], true)))
  },
}

for (const [name, onnx, doc] of [
  ['softmax', 'Softmax', 'Exponentials along an axis, scaled to sum to one.'],
  ['log_softmax', 'LogSoftmax', 'Logarithm of the softmax along an axis.'],
] as const)
  defineOp({
    name,
    doc,
    infer: (inputs) => [need(name, inputs, 0)],
    lower: (e, [x], { attrs: a }) => e.emit(onnx, [x as string], { axis: a.axis as number }),
    gradient: ({ inputs: [x], outputs: [y], attrs }, [g]) => [
      softmaxRules[name]?.(g as Tensor, x as Tensor, y as Tensor, attrs.axis as number),
    ],
  })

const reduction =
  (op: string) =>
  (x: Tensor, axes?: readonly number[], keepDims = false) =>
    apply1(op, [x], { axes: axesOf(x, axes), keepDims })

/** Sum over axes (all by default). */
export const sum = reduction('sum')
/** Mean over axes (all by default). */
export const mean = reduction('mean')
/** Largest value over axes (all by default). */
export const max = reduction('max')
/** Smallest value over axes (all by default). */
export const min = reduction('min')
/** Product over axes (all by default). */
export const prod = reduction('prod')
/** Sum of squares over axes (all by default). */
export const sumSquares = reduction('sum_squares')
/** Logarithm of the sum of exponentials over axes (all by default). */
export const logSumExp = reduction('logsumexp')
/** Index of the smallest value along an axis. */
export const argmin = (x: Tensor, axis: number) => apply1('argmin', [x], { axis: axisOf(x, axis) })
/** Index of the largest value along an axis. */
export const argmax = (x: Tensor, axis: number) => apply1('argmax', [x], { axis: axisOf(x, axis) })
/** Running sum along an axis. */
export const cumsum = (x: Tensor, axis: number, options: { exclusive?: boolean; reverse?: boolean } = {}) =>
  apply1('cumsum', [x], { axis: axisOf(x, axis), exclusive: options.exclusive ?? false, reverse: options.reverse ?? false })
/** Exponentials along an axis, scaled to sum to one. */
export const softmax = (x: Tensor, axis = -1) => apply1('softmax', [x], { axis: axisOf(x, axis) })
/** Logarithm of the softmax along an axis. */
export const logSoftmax = (x: Tensor, axis = -1) => apply1('log_softmax', [x], { axis: axisOf(x, axis) })
