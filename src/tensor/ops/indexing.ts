/** @file Ops that pick and place values by index. */
import { ShapeError } from '../../base/errors.ts'
import { need, one, sameShape } from '../shape.ts'
import { apply1, axisOf, defineOp, shown, type Tensor } from '../tensor.ts'

defineOp({
  name: 'gather',
  doc: 'Rows of one axis, chosen by a tensor of indices.',
  infer: (inputs, a) => {
    const [x, i] = [need('gather', inputs, 0), need('gather', inputs, 1)]
    return one(x.dtype, x.shape.toSpliced(a.axis as number, 1, ...i.shape))
  },
  lower: (e, [x, i], { attrs: a }) => e.emit('Gather', [x as string, i as string], { axis: a.axis as number }),
})

defineOp({
  name: 'gather_elements',
  doc: 'Single values along one axis; the indices have the shape of the result.',
  infer: (inputs) => {
    const [x, i] = [need('gather_elements', inputs, 0), need('gather_elements', inputs, 1)]
    if (x.rank !== i.rank) throw new ShapeError(`'gather_elements' needs indices of rank ${x.rank}, not shape ${shown(i.shape)}.`)
    return one(x.dtype, i.shape)
  },
  lower: (e, [x, i], { attrs: a }) => e.emit('GatherElements', [x as string, i as string], { axis: a.axis as number }),
})

defineOp({
  name: 'scatter_elements',
  doc: 'A copy in which single values along one axis are replaced, or added to.',
  infer: (inputs) => {
    const [x, i, u] = [need('scatter_elements', inputs, 0), need('scatter_elements', inputs, 1), need('scatter_elements', inputs, 2)]
    if (!sameShape(i.shape, u.shape))
      throw new ShapeError(`'scatter_elements' needs updates of the indices' shape ${shown(i.shape)}, not ${shown(u.shape)}.`)
    return one(x.dtype, x.shape)
  },
  lower: (e, [x, i, u], { attrs: a }) =>
    e.emit('ScatterElements', [x as string, i as string, u as string], { axis: a.axis as number, reduction: a.add ? 'add' : 'none' }),
})

defineOp({
  name: 'gather_rows',
  doc: 'For each item of the first axis, one row of the second, chosen by an index.',
  infer: (inputs) => {
    const [x, i] = [need('gather_rows', inputs, 0), need('gather_rows', inputs, 1)]
    return one(x.dtype, [...i.shape, ...x.shape.slice(2)])
  },
  lower: (e, [x, i]) => {
    const [index] = e.emit('Unsqueeze', [i as string, e.constant('int64', [1], [-1])])
    return e.emit('GatherND', [x as string, index as string], { batch_dims: 1 })
  },
})

defineOp({
  name: 'one_hot',
  doc: 'Ones at the given indices of a new last axis, zeros elsewhere.',
  infer: (inputs, a) => one('float32', [...need('one_hot', inputs, 0).shape, a.depth as number]),
  lower: (e, [i], { attrs: a }) =>
    e.emit('OneHot', [i as string, e.constant('int64', [], [a.depth as number]), e.constant('float32', [2], [0, 1])], { axis: -1 }),
  gradient: 'none',
})

/** Rows of one axis, chosen by a tensor of integer indices. */
export const gather = (x: Tensor, indices: Tensor, axis = 0) => apply1('gather', [x, indices], { axis: axisOf(x, axis) })
/** Single values along one axis; `indices` has the shape of the result. */
export const gatherElements = (x: Tensor, indices: Tensor, axis: number) =>
  apply1('gather_elements', [x, indices], { axis: axisOf(x, axis) })
/** A copy of `x` in which the values at `indices` along `axis` are replaced by `updates`. */
export const scatterElements = (x: Tensor, indices: Tensor, updates: Tensor, axis: number) =>
  apply1('scatter_elements', [x, indices, updates], { axis: axisOf(x, axis), add: false })
/** A copy of `x` in which `updates` are added at `indices` along `axis`; equal indices add up. */
export const scatterAdd = (x: Tensor, indices: Tensor, updates: Tensor, axis: number) =>
  apply1('scatter_elements', [x, indices, updates], { axis: axisOf(x, axis), add: true })
/** For each item of the first axis, the row of the second at `index` [batch]. */
export const gatherRows = (x: Tensor, index: Tensor) => apply1('gather_rows', [x, index])
/** Ones at the given indices of a new last axis of length `depth`, float32. */
export const oneHot = (indices: Tensor, depth: number) => apply1('one_hot', [indices], { depth })
