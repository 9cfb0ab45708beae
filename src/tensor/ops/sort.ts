/** @file Order: top-k and sort, with the permutation for a gradient. */
import type { DType } from '../../base/types.ts'
import { need } from '../shape.ts'
import { apply, axisOf, type Dim, defineOp, type GradientContext, type Tensor } from '../tensor.ts'
import { scatterElements } from './indexing.ts'
import { zerosLike } from './like.ts'

/** Values go back to where they came from. */
function backToPlace(
  { inputs: [x], outputs: [, indices], attrs }: GradientContext,
  [g]: readonly (Tensor | undefined)[],
): (Tensor | undefined)[] {
  return [g && scatterElements(zerosLike(x as Tensor), indices as Tensor, g, attrs.axis as number)]
}

defineOp({
  name: 'top_k',
  doc: 'The k largest (or smallest) values along an axis, sorted, and their indices.',
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
      { axis: a.axis as number, largest: a.smallest ? 0 : 1, sorted: 1 },
      { outputs: 2 },
    ),
  gradient: backToPlace,
})

defineOp({
  name: 'sort',
  doc: 'The values along an axis in order, and the indices that they had.',
  infer: (inputs) => {
    const x = need('sort', inputs, 0)
    return [
      { dtype: x.dtype, shape: x.shape },
      { dtype: 'int64' as DType, shape: x.shape },
    ]
  },
  lower: (e, [x], { attrs: a, inputs }) => {
    const from = inputs[0] as Tensor
    const axis = a.axis as number
    return e.emit(
      'TopK',
      [x as string, e.sizes([from.shape[axis] as Dim], [from])],
      { axis, largest: a.descending ? 1 : 0, sorted: 1 },
      { outputs: 2 },
    )
  },
  gradient: backToPlace,
})

/** The k largest values along an axis and their indices; the smallest with `smallest`. */
export const topK = (x: Tensor, k: number, axis = -1, options: { smallest?: boolean } = {}) => {
  const [values, indices] = apply('top_k', [x], { k, axis: axisOf(x, axis), ...(options.smallest ? { smallest: true } : {}) }) as [
    Tensor,
    Tensor,
  ]
  return { values, indices }
}
/** The values along an axis in ascending order (or descending) and the indices that they had, int64; the gradient follows the permutation. */
export const sort = (x: Tensor, axis = -1, options: { descending?: boolean } = {}) => {
  const [values, indices] = apply('sort', [x], { axis: axisOf(x, axis), descending: options.descending ?? false }) as [Tensor, Tensor]
  return { values, indices }
}
/** The indices that put the values along an axis in order, int64. */
export const argsort = (x: Tensor, axis = -1, options: { descending?: boolean } = {}) => sort(x, axis, options).indices
