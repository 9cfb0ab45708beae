/** @file Ops that move values without changing them: reshape, transpose, slice, concat, expand. */
import { ShapeError } from '../../base/errors.ts'
import { broadcast, need, one, resolveReshape, sameShape, sameType } from '../shape.ts'
import { apply1, axisOf, type Dim, defineOp, type Shape, shown, type Tensor } from '../tensor.ts'

defineOp({
  name: 'reshape',
  doc: 'The same values with other axes; one axis may be -1.',
  infer: (inputs, a) => {
    const x = need('reshape', inputs, 0)
    return one(x.dtype, resolveReshape(x.shape, a.shape as Shape))
  },
  lower: (e, [x], node) => {
    const from = node.inputs[0] as Tensor
    const to = (node.outputs[0] as Tensor).shape
    if (sameShape(from.shape, to)) return [x as string]
    // 0 copies the axis at the same place, -1 stands for the one that remains: only what neither covers is read at run time.
    let open = false
    const sizes = to.map((d, i) => {
      if (typeof d === 'number') return d
      if (from.shape[i] === d) return 0
      if (open) return undefined
      open = true
      return -1
    })
    const target = sizes.includes(undefined) ? e.sizes(to, [from]) : e.constant('int64', [sizes.length], sizes as number[])
    return e.emit('Reshape', [x as string, target])
  },
})

defineOp({
  name: 'transpose',
  doc: 'Axes in another order.',
  infer: (inputs, a) => {
    const x = need('transpose', inputs, 0)
    const permutation = a.permutation as readonly number[]
    if (permutation.length !== x.rank || new Set(permutation).size !== x.rank)
      throw new ShapeError(`The permutation [${permutation}] does not fit a tensor of shape ${shown(x.shape)}.`)
    return one(
      x.dtype,
      permutation.map((p) => x.shape[p] as Dim),
    )
  },
  lower: (e, [x], node) => e.emit('Transpose', [x as string], { perm: node.attrs.permutation as number[] }),
})

defineOp({
  name: 'unsqueeze',
  doc: 'A new axis of length 1.',
  infer: (inputs, a) => {
    const x = need('unsqueeze', inputs, 0)
    return one(x.dtype, x.shape.toSpliced(a.axis as number, 0, 1))
  },
  lower: (e, [x], node) => e.emit('Unsqueeze', [x as string, e.constant('int64', [1], [node.attrs.axis as number])]),
})

defineOp({
  name: 'squeeze',
  doc: 'Removes an axis of length 1.',
  infer: (inputs, a) => {
    const x = need('squeeze', inputs, 0)
    if (x.shape[a.axis as number] !== 1) throw new ShapeError(`Axis ${a.axis} of shape ${shown(x.shape)} is not of length 1.`)
    return one(x.dtype, x.shape.toSpliced(a.axis as number, 1))
  },
  lower: (e, [x], node) => e.emit('Squeeze', [x as string, e.constant('int64', [1], [node.attrs.axis as number])]),
})

/** Length of a slice of an axis; a symbol when the axis is one and the slice does not take all of it. */
function sliceLength(d: Dim, start: number, end: number, step: number): Dim {
  if (typeof d === 'number') {
    const from = Math.min(Math.max(start < 0 ? start + d : start, 0), d)
    const to = Math.min(Math.max(end < 0 ? end + d : end, 0), d)
    return Math.max(0, Math.ceil((to - from) / step))
  }
  if (start === 0 && end === Number.MAX_SAFE_INTEGER && step === 1) return d
  if (step === 1 && start < 0 && end === Number.MAX_SAFE_INTEGER) return -start
  if (step === 1 && start >= 0 && end > 0 && end !== Number.MAX_SAFE_INTEGER) return end - start
  return `${d}[${start}:${end === Number.MAX_SAFE_INTEGER ? '' : end}${step === 1 ? '' : `:${step}`}]`
}

defineOp({
  name: 'slice',
  doc: 'A part of one axis.',
  infer: (inputs, a) => {
    const x = need('slice', inputs, 0)
    const axis = a.axis as number
    return one(x.dtype, x.shape.with(axis, sliceLength(x.shape[axis] as Dim, a.start as number, a.end as number, a.step as number)))
  },
  lower: (e, [x], { attrs: a }) => {
    const c = (n: number) => e.constant('int64', [1], [n])
    return e.emit('Slice', [x as string, c(a.start as number), c(a.end as number), c(a.axis as number), c(a.step as number)])
  },
})

defineOp({
  name: 'slice_to',
  doc: 'The first values of one axis, as many as a scalar input says.',
  infer: (inputs, a) => {
    const x = need('slice_to', inputs, 0)
    return one(x.dtype, x.shape.with(a.axis as number, a.symbol as string))
  },
  lower: (e, [x, n], { attrs: a }) => {
    const [end] = e.emit('Reshape', [n as string, e.constant('int64', [1], [1])])
    const [wide] = e.emit('Cast', [end as string], { to: 7 })
    return e.emit('Slice', [x as string, e.constant('int64', [1], [0]), wide as string, e.constant('int64', [1], [a.axis as number])])
  },
})

defineOp({
  name: 'concat',
  doc: 'Tensors one after another along an axis.',
  infer: (inputs, a) => {
    const xs = inputs.map((_, i) => need('concat', inputs, i))
    const axis = a.axis as number
    sameType('concat', ...xs)
    const first = xs[0] as Tensor
    let size = 0
    const names: string[] = []
    for (const x of xs) {
      if (!sameShape(x.shape.with(axis, 0), first.shape.with(axis, 0)))
        throw new ShapeError(`'concat' along axis ${axis} cannot join shapes ${xs.map((t) => shown(t.shape)).join(' and ')}.`)
      const d = x.shape[axis] as Dim
      if (typeof d === 'number') size += d
      else names.push(d)
    }
    return one(first.dtype, first.shape.with(axis, names.length === 0 ? size : [...names, ...(size ? [size] : [])].join('+')))
  },
  lower: (e, xs, node) => (xs.length === 1 ? [xs[0] as string] : e.emit('Concat', xs, { axis: node.attrs.axis as number })),
})

defineOp({
  name: 'expand',
  doc: 'Repeats axes of length 1 up to a shape.',
  infer: (inputs, a) => {
    const x = need('expand', inputs, 0)
    return one(x.dtype, broadcast(x.shape, a.shape as Shape, 'expand'))
  },
  lower: (e, [x], node) => {
    const from = [node.inputs[0] as Tensor, ...node.inputs.slice(1).map((t) => t as Tensor)]
    return e.emit('Expand', [x as string, e.sizes((node.outputs[0] as Tensor).shape, from)])
  },
})

defineOp({
  name: 'iota',
  doc: 'The numbers 0, 1, 2 … as many as one axis of the input is long.',
  infer: (inputs, a) => one('int64', [need('iota', inputs, 0).shape[a.axis as number] as Dim]),
  lower: (e, [x], node) => {
    const axis = node.attrs.axis as number
    const [size] = e.emit('Shape', [x as string], { start: axis, end: axis + 1 })
    const [limit] = e.emit('Squeeze', [size as string])
    return e.emit('Range', [e.constant('int64', [], [0]), limit as string, e.constant('int64', [], [1])])
  },
  gradient: 'none',
})

/** The same values with other axes; one axis may be -1. */
export const reshape = (x: Tensor, shape: Shape) => apply1('reshape', [x], { shape })
/** Axes in another order. */
export const transpose = (x: Tensor, permutation: readonly number[]) => apply1('transpose', [x], { permutation })
/** A new axis of length 1 before `axis` (counted in the result). */
export const unsqueeze = (x: Tensor, axis: number) => apply1('unsqueeze', [x], { axis: axis < 0 ? axis + x.rank + 1 : axis })
/** Removes an axis of length 1. */
export const squeeze = (x: Tensor, axis: number) => apply1('squeeze', [x], { axis: axisOf(x, axis) })
/** A part of one axis. */
export const slice = (x: Tensor, axis: number, start: number, end = Number.MAX_SAFE_INTEGER, step = 1) =>
  apply1('slice', [x], { axis: axisOf(x, axis), start, end, step })
/** The first `count` values of an axis, `count` being a scalar tensor; the new length has the name `symbol`. */
export const sliceTo = (x: Tensor, axis: number, count: Tensor, symbol: string) => apply1('slice_to', [x, count], { axis, symbol })
/** Tensors one after another along an axis. */
export const concat = (xs: readonly Tensor[], axis: number) => apply1('concat', xs, { axis: axisOf(xs[0] as Tensor, axis) })
/** Repeats axes of length 1 up to a shape; symbols in it are read from `x` or from the tensors given as `like`. */
export const expand = (x: Tensor, shape: Shape, ...like: Tensor[]) => apply1('expand', [x, ...like], { shape })
/** 0, 1, 2 … as many as `axis` of `x` is long, int64. */
export const iota = (x: Tensor, axis: number) => apply1('iota', [x], { axis: axisOf(x, axis) })
/** Parts of one axis, of the given lengths. */
export const split = (x: Tensor, axis: number, sizes: readonly number[]) => {
  let start = 0
  return sizes.map((n) => slice(x, axis, start, (start += n)))
}
