/** @file Ops that pick and place values by index. */
import { ShapeError } from '../../base/errors.ts'
import { need, one, product, sameShape, sameType } from '../shape.ts'
import { apply1, axisOf, defineOp, type Emitter, type Shape, shown, type Tensor } from '../tensor.ts'
import { cast } from './elementwise.ts'
import { concat, iota, transpose, unsqueeze } from './layout.ts'
import { carriers, unsqueezeAll, zerosLike } from './like.ts'

defineOp({
  name: 'gather',
  doc: 'Rows of one axis, chosen by a tensor of indices.',
  infer: (inputs, a) => {
    const [x, i] = [need('gather', inputs, 0), need('gather', inputs, 1)]
    return one(x.dtype, x.shape.toSpliced(a.axis as number, 1, ...i.shape))
  },
  lower: (e, [x, i], { attrs: a }) => e.emit('Gather', [x as string, i as string], { axis: a.axis as number }),
  gradient: ({ inputs, attrs }, [g]) => [gatherGradient(g as Tensor, inputs[0] as Tensor, inputs[1] as Tensor, attrs.axis as number)],
})

/** Adds each row of the gradient where it was taken from. */
function gatherGradient(g: Tensor, x: Tensor, indices: Tensor, axis: number): Tensor {
  const index = unsqueeze(cast(indices, 'int64'), -1)
  if (axis === 0) return scatterNd(zerosLike(x), index, g, { add: true })
  // Scattering works on leading axes: the axis is moved there, and back.
  const toFront = [axis, ...x.shape.map((_, i) => i).filter((i) => i !== axis)]
  const taken = indices.shape.map((_, i) => axis + i)
  const rows = transpose(g, [...taken, ...g.shape.map((_, i) => i).filter((i) => !taken.includes(i))])
  const zeros = zerosLike(transpose(x, toFront))
  return transpose(
    scatterNd(zeros, index, rows, { add: true }),
    x.shape.map((_, i) => toFront.indexOf(i)),
  )
}

defineOp({
  name: 'gather_elements',
  doc: 'Single values along one axis; the indices have the shape of the result.',
  infer: (inputs) => {
    const [x, i] = [need('gather_elements', inputs, 0), need('gather_elements', inputs, 1)]
    if (x.rank !== i.rank) throw new ShapeError(`'gather_elements' needs indices of rank ${x.rank}, not shape ${shown(i.shape)}.`)
    return one(x.dtype, i.shape)
  },
  lower: (e, [x, i], { attrs: a }) => e.emit('GatherElements', [x as string, i as string], { axis: a.axis as number }),
  gradient: ({ inputs: [x, i], attrs }, [g]) => [
    apply1('scatter_elements', [zerosLike(x as Tensor), i, g], { axis: attrs.axis as number, add: true }),
  ],
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
  gradient: ({ inputs, attrs, needs }, [grad]) => {
    const [i, u, g] = [inputs[1], inputs[2], grad] as [Tensor, Tensor, Tensor]
    const axis = attrs.axis as number
    return [
      !needs[0] ? undefined : attrs.add ? g : scatterElements(g, i, zerosLike(u), axis),
      undefined,
      needs[2] ? gatherElements(g, i, axis) : undefined,
    ]
  },
})

defineOp({
  name: 'gather_nd',
  doc: 'Slices chosen by index tuples, which are the last axis of the indices; the first `batch` axes of both go together.',
  infer: (inputs, a) => {
    const [x, i] = [need('gather_nd', inputs, 0), need('gather_nd', inputs, 1)]
    const batch = a.batch as number
    return one(x.dtype, [...i.shape.slice(0, -1), ...x.shape.slice(batch + tupleLength('gather_nd', x, i, batch))])
  },
  lower: (e, [x, i], { attrs: a }) => e.emit('GatherND', [x as string, i as string], { batch_dims: a.batch as number }),
  gradient: ({ inputs, attrs }, [g]) => {
    const [x, i] = inputs as [Tensor, Tensor]
    return [scatterNd(zerosLike(x), withBatchIndices(i, attrs.batch as number), g as Tensor, { add: true })]
  },
})

defineOp({
  name: 'scatter_nd',
  doc: 'A copy in which slices chosen by index tuples are replaced, or added to.',
  infer: (inputs) => {
    const [x, i, u] = [need('scatter_nd', inputs, 0), need('scatter_nd', inputs, 1), need('scatter_nd', inputs, 2)]
    sameType('scatter_nd', x, u)
    const expected = [...i.shape.slice(0, -1), ...x.shape.slice(tupleLength('scatter_nd', x, i, 0))]
    if (!sameShape(expected, u.shape))
      throw new ShapeError(
        `'scatter_nd' into ${shown(x.shape)} at ${shown(i.shape)} needs updates of shape ${shown(expected)}, not ${shown(u.shape)}.`,
      )
    return one(x.dtype, x.shape)
  },
  lower: (e, [x, i, u], { attrs: a, inputs }) =>
    a.add
      ? lowerScatterAdd(e, [x as string, i as string, u as string], inputs as readonly Tensor[])
      : e.emit('ScatterND', [x as string, i as string, u as string]),
  gradient: ({ inputs, attrs, needs }, [grad]) => {
    const [i, u, g] = [inputs[1], inputs[2], grad] as [Tensor, Tensor, Tensor]
    return [!needs[0] ? undefined : attrs.add ? g : scatterNd(g, i, zerosLike(u)), undefined, needs[2] ? gatherNd(g, i) : undefined]
  },
})

/**
 * Adds slices value by value: ONNX Runtime's ScatterND adds from several threads without guarding what they share, and loses
 * some of what is added to one place (seen in 1.30; issue 18048 there).
 */
function lowerScatterAdd(e: Emitter, [x, i, u]: readonly [string, string, string], [into, tuples]: readonly Tensor[]): string[] {
  const op = (name: string, inputs: readonly string[], attrs: Record<string, unknown> = {}) => e.emit(name, inputs, attrs)[0] as string
  const { shape } = into as Tensor
  const length = (tuples as Tensor).shape.at(-1) as number
  const sizes = (dims: Shape) => e.sizes(dims, [into as Tensor])
  const list = (...values: number[]) => e.constant('int64', [values.length], values)
  const dims = shape.slice(0, length)
  const counted = op('Where', [op('Less', [i, list(0)]), op('Add', [i, sizes(dims)]), i])
  const strides = dims.map((_, k) => product(dims.slice(k + 1)))
  const place = length === 1 ? counted : op('ReduceSum', [op('Mul', [counted, sizes(strides)]), list(-1)], { keepdims: 1 })
  const width = product(shape.slice(length))
  const each = sizes([width])
  const column = () => op('Range', [e.constant('int64', [], [0]), op('Squeeze', [each]), e.constant('int64', [], [1])])
  const flat = width === 1 ? place : op('Add', [op('Mul', [op('Reshape', [place, list(-1, 1)]), each]), column()])
  const line = (name: string) => op('Reshape', [name, list(-1)])
  const sum = op('ScatterElements', [line(x), line(flat), line(u)], { axis: 0, reduction: 'add' })
  return [op('Reshape', [sum, sizes(shape)])]
}

/** Length of the index tuples; refuses indices that cannot address `x`. */
function tupleLength(op: string, x: Tensor, i: Tensor, batch: number): number {
  const length = i.shape.at(-1)
  if (i.rank <= batch || typeof length !== 'number' || length + batch > x.rank)
    throw new ShapeError(
      `'${op}' cannot address ${shown(x.shape)} with indices of shape ${shown(i.shape)}: their last axis must be at most ${x.rank - batch} long.`,
    )
  if (i.dtype !== 'int64') throw new ShapeError(`'${op}' needs indices of type int64, not ${i.dtype}; cast them.`)
  return length
}

/** Index tuples that name the batch axes too, instead of going along with them. */
function withBatchIndices(i: Tensor, batch: number): Tensor {
  const like = i.shape.slice(0, -1)
  const own = Array.from({ length: batch }, (_, axis) => {
    const along = unsqueezeAll(
      iota(i, axis),
      i.shape.map((_, k) => k).filter((k) => k !== axis),
    )
    const shape = [...like, 1]
    return apply1('expand', [along, ...carriers(shape, i)], { shape })
  })
  return batch === 0 ? i : concat([...own, i], -1)
}

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
  gradient: ({ inputs }, [g]) => {
    const [x, i] = inputs as [Tensor, Tensor]
    return [scatterNd(zerosLike(x), withBatchIndices(unsqueeze(cast(i, 'int64'), -1), 1), g as Tensor, { add: true })]
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
/** Slices of `x` at index tuples (last axis of `indices`, int64); the first `batch` axes of both go together. */
export const gatherNd = (x: Tensor, indices: Tensor, batch = 0) => apply1('gather_nd', [x, indices], { batch })
/** A copy of `x` in which slices at index tuples (last axis of `indices`, int64) are replaced by `updates`, or added to. */
export const scatterNd = (x: Tensor, indices: Tensor, updates: Tensor, options: { add?: boolean } = {}) =>
  apply1('scatter_nd', [x, indices, updates], { add: options.add ?? false })
/** For each item of the first axis, the row of the second at `index` [batch]. */
export const gatherRows = (x: Tensor, index: Tensor) => apply1('gather_rows', [x, index])
/** Ones at the given indices of a new last axis of length `depth`, float32. */
export const oneHot = (indices: Tensor, depth: number) => apply1('one_hot', [indices], { depth })
