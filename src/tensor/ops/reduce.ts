/** @file Reductions, and the softmax family. */
import type { DType } from '../../base/types.ts'
import { need, one } from '../shape.ts'
import { apply, apply1, axesOf, axisOf, type Dim, defineOp, type Shape, type Tensor } from '../tensor.ts'

function reduced(shape: Shape, axes: readonly number[], keepDims: boolean): Dim[] {
  return keepDims ? shape.map((d, i) => (axes.includes(i) ? 1 : d)) : shape.filter((_, i) => !axes.includes(i))
}

const reductions: Readonly<Record<string, readonly [string, string]>> = {
  sum: ['ReduceSum', 'Sum over axes.'],
  mean: ['ReduceMean', 'Mean over axes.'],
  max: ['ReduceMax', 'Largest value over axes.'],
  min: ['ReduceMin', 'Smallest value over axes.'],
  prod: ['ReduceProd', 'Product over axes.'],
}

for (const [name, [onnx, doc]] of Object.entries(reductions))
  defineOp({
    name,
    doc,
    infer: (inputs, a) => {
      const x = need(name, inputs, 0)
      return one(x.dtype, reduced(x.shape, a.axes as number[], a.keepDims as boolean))
    },
    lower: (e, [x], { attrs: a }) => {
      const axes = a.axes as number[]
      return axes.length === 0
        ? [x as string]
        : e.emit(onnx, [x as string, e.constant('int64', [axes.length], axes)], { keepdims: a.keepDims ? 1 : 0 })
    },
  })

defineOp({
  name: 'argmax',
  doc: 'Index of the largest value along an axis, int64; the first one where several are equal.',
  infer: (inputs, a) => {
    const x = need('argmax', inputs, 0)
    return one('int64', reduced(x.shape, [a.axis as number], false))
  },
  lower: (e, [x], { attrs: a }) => e.emit('ArgMax', [x as string], { axis: a.axis as number, keepdims: 0 }),
  gradient: 'none',
})

defineOp({
  name: 'top_k',
  doc: 'The k largest values along an axis, sorted, and their indices.',
  infer: (inputs, a) => {
    const x = need('top_k', inputs, 0)
    const shape = x.shape.with(a.axis as number, a.k as number)
    return [
      { dtype: x.dtype, shape },
      { dtype: 'int64' as DType, shape },
    ]
  },
  lower: (e, [x], { attrs: a }) =>
    e.emit(
      'TopK',
      [x as string, e.constant('int64', [1], [a.k as number])],
      { axis: a.axis as number, largest: 1, sorted: 1 },
      { outputs: 2 },
    ),
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
})

for (const [name, onnx, doc] of [
  ['softmax', 'Softmax', 'Exponentials along an axis, scaled to sum to one.'],
  ['log_softmax', 'LogSoftmax', 'Logarithm of the softmax along an axis.'],
] as const)
  defineOp({
    name,
    doc,
    infer: (inputs) => [need(name, inputs, 0)],
    lower: (e, [x], { attrs: a }) => e.emit(onnx, [x as string], { axis: a.axis as number }),
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
/** Index of the largest value along an axis. */
export const argmax = (x: Tensor, axis: number) => apply1('argmax', [x], { axis: axisOf(x, axis) })
/** The k largest values along an axis and their indices. */
export const topK = (x: Tensor, k: number, axis = -1) => {
  const [values, indices] = apply('top_k', [x], { k, axis: axisOf(x, axis) }) as [Tensor, Tensor]
  return { values, indices }
}
/** Running sum along an axis. */
export const cumsum = (x: Tensor, axis: number, options: { exclusive?: boolean; reverse?: boolean } = {}) =>
  apply1('cumsum', [x], { axis: axisOf(x, axis), exclusive: options.exclusive ?? false, reverse: options.reverse ?? false })
/** Exponentials along an axis, scaled to sum to one. */
export const softmax = (x: Tensor, axis = -1) => apply1('softmax', [x], { axis: axisOf(x, axis) })
/** Logarithm of the softmax along an axis. */
export const logSoftmax = (x: Tensor, axis = -1) => apply1('log_softmax', [x], { axis: axisOf(x, axis) })
