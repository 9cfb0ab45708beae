/** @file Ops that move values without changing them: reshape, transpose, slice, concat, expand. */
import { ShapeError } from '../../base/errors.ts'
import { broadcast, need, one, product, resolveReshape, sameShape, sameType, termsOf, total } from '../shape.ts'
import { apply, apply1, axisOf, type Dim, defineOp, type Emitter, type Shape, shown, type Tensor } from '../tensor.ts'
import { carriers, reshapeTo, unbroadcast, zerosLike } from './like.ts'

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
    const likes = node.inputs.slice(1) as Tensor[]
    const target = sizes.includes(undefined) ? e.sizes(to, [from, ...likes]) : e.constant('int64', [sizes.length], sizes as number[])
    return e.emit('Reshape', [x as string, target])
  },
  gradient: ({ inputs: [x] }, [g]) => [reshapeTo(g as Tensor, (x as Tensor).shape, x as Tensor)],
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
  gradient: ({ attrs }, [g]) => {
    const permutation = attrs.permutation as readonly number[]
    return [
      transpose(
        g as Tensor,
        permutation.map((_, i) => permutation.indexOf(i)),
      ),
    ]
  },
})

defineOp({
  name: 'unsqueeze',
  doc: 'A new axis of length 1.',
  infer: (inputs, a) => {
    const x = need('unsqueeze', inputs, 0)
    return one(x.dtype, x.shape.toSpliced(a.axis as number, 0, 1))
  },
  lower: (e, [x], node) => e.emit('Unsqueeze', [x as string, e.constant('int64', [1], [node.attrs.axis as number])]),
  gradient: ({ attrs }, [g]) => [apply1('squeeze', [g], { axis: attrs.axis })],
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
  gradient: ({ attrs }, [g]) => [apply1('unsqueeze', [g], { axis: attrs.axis })],
})

/** Settings of a slice of one axis; `end` may be beyond the axis, `step` may be negative. */
interface SliceAttrs {
  readonly axis: number
  readonly start: number
  readonly end: number
  readonly step: number
}

/** The `end` of a slice that runs backwards to the very first value. */
const beforeFirst = Number.MIN_SAFE_INTEGER

/** Length of a slice of an axis; a symbol when the axis is one and the slice does not take all of it. */
function sliceLength(d: Dim, start: number, end: number, step: number): Dim {
  if (step < 0) return backwardLength(d, start, end, step)
  if (typeof d === 'number') {
    const from = Math.min(Math.max(start < 0 ? start + d : start, 0), d)
    const to = Math.min(Math.max(end < 0 ? end + d : end, 0), d)
    return Math.max(0, Math.ceil((to - from) / step))
  }
  if (start === 0 && end === Number.MAX_SAFE_INTEGER && step === 1) return d
  if (step === 1 && start < 0 && end === Number.MAX_SAFE_INTEGER) return -start
  if (step === 1 && start >= 0 && end > 0 && end !== Number.MAX_SAFE_INTEGER) return end - start
  // Of 'n+3', a slice that leaves out three values or fewer leaves a length that has a name, too.
  const spare = termsOf(d).find((t) => typeof t === 'number') ?? 0
  const left = start + (end < 0 ? -end : 0)
  if (step === 1 && start >= 0 && (end < 0 || end === Number.MAX_SAFE_INTEGER) && left <= (spare as number)) return total([d, -left])
  return `${d}[${start}:${end === Number.MAX_SAFE_INTEGER ? '' : end}${step === 1 ? '' : `:${step}`}]`
}

function backwardLength(d: Dim, start: number, end: number, step: number): Dim {
  if (typeof d === 'number') {
    const from = Math.min(start < 0 ? start + d : start, d - 1)
    const to = Math.max(end < 0 ? end + d : end, -1)
    return Math.max(0, Math.ceil((to - from) / step))
  }
  if (start === -1 && end === beforeFirst && step === -1) return d
  return `${d}[${start}:${end === beforeFirst ? '' : end}:${step}]`
}

defineOp({
  name: 'slice',
  doc: 'A part of one axis: every step-th value from start to before end; a negative step runs backwards.',
  infer: (inputs, attrs) => {
    const x = need('slice', inputs, 0)
    const a = attrs as unknown as SliceAttrs
    if (!Number.isInteger(a.step) || a.step === 0)
      throw new ShapeError(`A slice needs a step that is a whole number other than 0, not ${a.step}.`)
    return one(x.dtype, x.shape.with(a.axis, sliceLength(x.shape[a.axis] as Dim, a.start, a.end, a.step)))
  },
  lower: (e, [x], { attrs: a }) => {
    const c = (n: number) => e.constant('int64', [1], [n])
    return e.emit('Slice', [x as string, c(a.start as number), c(a.end as number), c(a.axis as number), c(a.step as number)])
  },
  gradient: ({ inputs: [x], attrs }, [g]) => [unslice(g as Tensor, x as Tensor, attrs as unknown as SliceAttrs)],
})

/** Zeros in the shape of `x`, but `g` where the slice of `x` lies: the transpose of `slice`. */
function unslice(g: Tensor, x: Tensor, slice: SliceAttrs): Tensor {
  const size = x.shape[slice.axis] as Dim
  if (slice.step > 0) return apply1('unslice', [g, ...carriers([size], x)], { ...slice, size })
  const count = g.shape[slice.axis] as Dim
  if (slice.start === -1 && slice.end === beforeFirst && slice.step === -1) return flip(g, [slice.axis])
  if (typeof size !== 'number' || typeof count !== 'number')
    throw new ShapeError(`The gradient of a backward slice needs an axis of known length, not '${size}'; use flip, then slice forwards.`)
  const first = Math.min(slice.start < 0 ? slice.start + size : slice.start, size - 1)
  const start = first + (count - 1) * slice.step
  return unslice(flip(g, [slice.axis]), x, { axis: slice.axis, start, end: first + 1, step: -slice.step })
}

/**
 * Zeros before and after one axis, as many as numbers or names say. All axes are listed: ONNX Runtime 1.30 gets a Pad of
 * some axes wrong when it moves a transpose across it, and trips over one that measures the very value it pads.
 */
function emitZeros(e: Emitter, value: string, rank: number, axis: number, before: number | string, after: number | string): string {
  const others = (n: number) => new Array<number>(n).fill(0)
  const pads = [...others(axis), before, ...others(rank - 1), after, ...others(rank - 1 - axis)]
  if (pads.every((n) => typeof n === 'number')) return e.emit('Pad', [value, e.constant('int64', [2 * rank], pads)])[0] as string
  const parts = pads.map((n) => (typeof n === 'number' ? e.constant('int64', [1], [n]) : n))
  return e.emit('Pad', [value, e.emit('Concat', parts, { axis: 0 })[0] as string])[0] as string
}

defineOp({
  name: 'unslice',
  doc: 'Zeros, but the first input where a slice of one axis lies: what the gradient of slice is.',
  infer: (inputs, a) => {
    const g = need('unslice', inputs, 0)
    return one(g.dtype, g.shape.with(a.axis as number, a.size as Dim))
  },
  lower: (e, [x], node) => {
    const { axis, start, end, step, size } = node.attrs as unknown as SliceAttrs & { size: Dim }
    const g = node.inputs[0] as Tensor
    const own = g.shape[axis] as Dim
    let value = x as string
    if (step > 1) {
      // Each value is followed by step - 1 zeros; what that is too long is cut off by a negative pad.
      const [column] = e.emit('Unsqueeze', [value, e.constant('int64', [1], [axis + 1])])
      const spread = emitZeros(e, column as string, g.rank + 1, axis + 1, 0, step - 1)
      const sizes = g.shape.map((d, i) => (i < axis ? 0 : i === axis ? -1 : d))
      value = e.emit('Reshape', [spread, e.sizes(sizes, [g])])[0] as string
    }
    const open = end === Number.MAX_SAFE_INTEGER
    if (typeof size === 'number' && typeof own === 'number') {
      const before = Math.max(start < 0 ? start + size : start, 0)
      const after = size - before - own * step
      const post = g.shape.slice(axis + 1)
      if (axis < 2 || own === 0 || !post.every((d) => typeof d === 'number')) return [emitZeros(e, value, g.rank, axis, before, after)]
      // As a matrix, since ONNX Runtime 1.30 would take a Pad of a convolution's weight for one of its input and join them.
      const width = post.reduce((a: number, d) => a * (d as number), 1)
      const [flat] = e.emit('Reshape', [value, e.constant('int64', [2], [-1, own * step * width])])
      const out = node.outputs[0] as Tensor
      return e.emit('Reshape', [emitZeros(e, flat as string, 2, 1, before * width, after * width), e.sizes(out.shape, [g])])
    }
    // Of a named axis it is read as little as possible: where a slice that starts or ends at a border lies is known.
    const whole = e.sizes([size], node.inputs.slice(1) as Tensor[])
    const rest = (taken: number) => e.emit('Sub', [whole, e.constant('int64', [1], [taken])])[0] as string
    const after = open ? 0 : -end
    if (start < 0) return [emitZeros(e, value, g.rank, axis, rest(-start), after)]
    if (step === 1 && (open || end < 0)) return [emitZeros(e, value, g.rank, axis, start, after)]
    const [length] = e.emit('Shape', [value], { start: axis, end: axis + 1 })
    return [emitZeros(e, value, g.rank, axis, start, e.emit('Sub', [rest(start), length as string])[0] as string)]
  },
  gradient: ({ attrs }, [g]) => [apply1('slice', [g], { axis: attrs.axis, start: attrs.start, end: attrs.end, step: attrs.step })],
})

defineOp({
  name: 'flip',
  doc: 'The values of some axes in reverse order.',
  infer: (inputs) => [need('flip', inputs, 0)],
  lower: (e, [x], { attrs }) => {
    const axes = attrs.axes as number[]
    const list = (n: number) =>
      e.constant(
        'int64',
        [axes.length],
        axes.map(() => n),
      )
    return e.emit('Slice', [x as string, list(-1), list(beforeFirst), e.constant('int64', [axes.length], axes), list(-1)])
  },
  gradient: ({ attrs }, [g]) => [apply1('flip', [g], attrs)],
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
  gradient: ({ inputs: [value, count], attrs }, [g]) => {
    const x = value as Tensor
    const size = x.shape[attrs.axis as number] as Dim
    return [apply1('unslice_to', [g, count, ...carriers([size], x)], { ...attrs, size })]
  },
})

defineOp({
  name: 'unslice_to',
  doc: 'Zeros after as many values of one axis as a scalar input says: what the gradient of slice_to is.',
  infer: (inputs, a) => {
    const g = need('unslice_to', inputs, 0)
    return one(g.dtype, g.shape.with(a.axis as number, a.size as Dim))
  },
  lower: (e, [x, n], { attrs: a, inputs: [g, , ...like] }) => {
    const [count] = e.emit('Cast', e.emit('Reshape', [n as string, e.constant('int64', [1], [1])]), { to: 7 })
    const [after] = e.emit('Sub', [e.sizes([a.size as Dim], like as Tensor[]), count as string])
    return [emitZeros(e, x as string, (g as Tensor).rank, a.axis as number, 0, after as string)]
  },
  gradient: ({ inputs: [, count], attrs }, [g]) => [apply1('slice_to', [g, count], { axis: attrs.axis, symbol: attrs.symbol })],
})

defineOp({
  name: 'concat',
  doc: 'Tensors one after another along an axis.',
  infer: (inputs, a) => {
    const xs = inputs.map((_, i) => need('concat', inputs, i))
    const axis = a.axis as number
    sameType('concat', ...xs)
    const first = xs[0] as Tensor
    for (const x of xs)
      if (!sameShape(x.shape.with(axis, 0), first.shape.with(axis, 0)))
        throw new ShapeError(`'concat' along axis ${axis} cannot join shapes ${xs.map((t) => shown(t.shape)).join(' and ')}.`)
    return one(first.dtype, first.shape.with(axis, total(xs.map((x) => x.shape[axis] as Dim))))
  },
  lower: (e, xs, node) => (xs.length === 1 ? [xs[0] as string] : e.emit('Concat', xs, { axis: node.attrs.axis as number })),
  gradient: ({ inputs, attrs, needs }, [g]) => {
    const axis = attrs.axis as number
    const xs = inputs as Tensor[]
    const sizes = xs.map((x) => x.shape[axis] as Dim)
    const parts = splitAs(g as Tensor, axis, sizes, xs)
    return parts.map((part, i) => (needs[i] ? part : undefined))
  },
})

/** Parts of one axis, of the given lengths, which `xs` have along the same axis. */
function splitAs(g: Tensor, axis: number, sizes: readonly Dim[], xs: readonly Tensor[]): readonly Tensor[] {
  if (sizes.every((n) => typeof n === 'number')) return split(g, axis, sizes as number[])
  return apply('split', [g, ...new Set(xs.flatMap((x, i) => carriers([sizes[i] as Dim], x)))], { axis, sizes })
}

defineOp({
  name: 'split',
  doc: 'Parts of one axis, of the given lengths; named lengths are read from the other inputs.',
  infer: (inputs, a) => {
    const x = need('split', inputs, 0)
    const axis = a.axis as number
    const sizes = a.sizes as readonly Dim[]
    if (total(sizes) !== x.shape[axis])
      throw new ShapeError(`Parts of ${sizes.join(', ')} do not make up axis ${axis} of ${shown(x.shape)}.`)
    return sizes.map((n) => ({ dtype: x.dtype, shape: x.shape.with(axis, n) }))
  },
  lower: (e, [x], { attrs: a, inputs }) => {
    const sizes = a.sizes as readonly Dim[]
    return e.emit('Split', [x as string, e.sizes(sizes, inputs as Tensor[])], { axis: a.axis as number }, { outputs: sizes.length })
  },
  gradient: ({ outputs, attrs }, grads) => [
    concat(
      outputs.map((y, i) => grads[i] ?? zerosLike(y)),
      attrs.axis as number,
    ),
  ],
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
  gradient: ({ inputs: [x] }, [g]) => [unbroadcast(g as Tensor, x as Tensor)],
})

defineOp({
  name: 'extent',
  doc: 'The product of some lengths as a scalar, int64; named ones are read from the inputs.',
  infer: () => one('int64', []),
  lower: (e, _, { attrs, inputs }) => e.emit('Squeeze', [e.sizes([product(attrs.shape as Shape)], inputs as Tensor[])]),
  gradient: 'none',
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
/** Some axes in reverse order. */
export const flip = (x: Tensor, axes: readonly number[]) => apply1('flip', [x], { axes: axes.map((a) => axisOf(x, a)) })
/** Tensors one after another along an axis. */
export const concat = (xs: readonly Tensor[], axis: number) => apply1('concat', xs, { axis: axisOf(xs[0] as Tensor, axis) })
/** Repeats axes of length 1 up to a shape; symbols in it are read from `x` or from the tensors given as `like`. */
export const expand = (x: Tensor, shape: Shape, ...like: Tensor[]) => apply1('expand', [x, ...like], { shape })
/** 0, 1, 2 … as many as `axis` of `x` is long, int64. */
export const iota = (x: Tensor, axis: number) => apply1('iota', [x], { axis: axisOf(x, axis) })
/** Parts of one axis, of the given lengths. */
export const split = (x: Tensor, axis: number, sizes: readonly number[]) => {
  let start = 0
  return sizes.map((n) => {
    start += n
    return slice(x, axis, start - n, start)
  })
}
