/** @file Convolutions over one, two or three axes, and their transposes; each is the gradient of the other. */
import { ShapeError } from '../../base/errors.ts'
import { need, one, product, sameType, termsOf, total } from '../shape.ts'
import { type Attrs, apply1, type Dim, defineOp, type GradientContext, shown, type Tensor } from '../tensor.ts'
import { refuseFloat64 } from './elementwise.ts'
import { slice, transpose } from './layout.ts'
import { reshapeTo } from './like.ts'
import { pad } from './padding.ts'

/** Settings of a convolution, one number for each spatial axis. */
interface ConvAttrs {
  readonly strides: readonly number[]
  readonly dilations: readonly number[]
  /** Zeros before each axis (of a transposed convolution: values cut off). */
  readonly before: readonly number[]
  readonly after: readonly number[]
  readonly groups: number
}

interface TransposeAttrs extends ConvAttrs {
  /** Values added at the end of each axis, which a stride leaves open. */
  readonly extra: readonly number[]
}

const convOf = (attrs: Attrs) => attrs as unknown as TransposeAttrs

/** Length that a kernel covers. */
const reach = (kernel: number, dilation: number) => dilation * (kernel - 1) + 1

/** Kernel sizes; they must be numbers where the lengths of the result are not given. */
function kernelOf(op: string, x: Tensor, w: Tensor, attrs: Attrs): number[] {
  const kernel = w.shape.slice(2)
  if (x.rank < 3 || x.rank > 5 || w.rank !== x.rank || !(attrs.like || kernel.every((d) => typeof d === 'number')))
    throw new ShapeError(
      `'${op}' needs [batch, channel, …] with one to three more axes and a weight of as many, not ${shown(x.shape)} and ${shown(w.shape)}.`,
    )
  return kernel as number[]
}

/** Length of an axis after a convolution. */
function shrunk(d: Dim, kernel: number, i: number, { strides, dilations, before, after }: ConvAttrs): Dim {
  const [stride, lost] = [strides[i] as number, reach(kernel, dilations[i] as number) - (before[i] as number) - (after[i] as number)]
  if (typeof d === 'number') {
    const length = Math.floor((d - lost) / stride) + 1
    if (length < 1) throw new ShapeError(`A kernel that reaches over ${lost} values more than are padded does not fit an axis of ${d}.`)
    return length
  }
  const spare = termsOf(d).find((t) => typeof t === 'number') ?? 0
  if (stride === 1 && 1 - lost + (spare as number) >= 0) return total([d, 1 - lost])
  return `conv[${d}:${lost}:${stride}]`
}

defineOp({
  name: 'conv',
  doc: 'Convolution of [batch, channel, …] with a weight [out, channel/groups, …], with stride, dilation, padding, groups and an optional bias [out].',
  infer: (inputs, attrs) => {
    const [x, w] = [need('conv', inputs, 0), need('conv', inputs, 1)]
    sameType('conv', x, w)
    refuseFloat64('conv', x)
    const kernel = kernelOf('conv', x, w, attrs)
    const a = convOf(attrs)
    if (product([w.shape[1] as Dim, a.groups]) !== x.shape[1])
      throw new ShapeError(`'conv' in ${a.groups} groups cannot use a weight ${shown(w.shape)} on ${shown(x.shape)}.`)
    checkBias('conv', inputs[2], w.shape[0] as Dim)
    const like = attrs.like as readonly Dim[] | undefined
    const lengths = like ?? x.shape.slice(2).map((d, i) => shrunk(d, kernel[i] as number, i, a))
    return one(x.dtype, [x.shape[0] as Dim, w.shape[0] as Dim, ...lengths])
  },
  lower: (e, inputs, { attrs }) => {
    const a = convOf(attrs)
    return e.emit('Conv', inputs, { strides: a.strides, dilations: a.dilations, pads: [...a.before, ...a.after], group: a.groups })
  },
  gradient: (c, [g]) => {
    const [x, w] = c.inputs as [Tensor, Tensor]
    const a = convOf(c.attrs)
    return [
      c.needs[0] ? transposedLike(g as Tensor, w, x, a) : undefined,
      c.needs[1] ? weightGradient(x, g as Tensor, w, a) : undefined,
      biasGradient(c, g as Tensor),
    ]
  },
})

function checkBias(op: string, bias: Tensor | undefined, channels: Dim): void {
  if (bias && (bias.rank !== 1 || bias.shape[0] !== channels))
    throw new ShapeError(`'${op}' needs a bias of shape [${channels}], not ${shown(bias.shape)}.`)
}

function biasGradient({ inputs, needs }: GradientContext, g: Tensor): Tensor | undefined {
  return inputs[2] && needs[2] ? g.sum(g.shape.map((_, i) => i).filter((i) => i !== 1)) : undefined
}

/** The gradient at the input of a convolution: the transposed one, brought to the input's lengths. */
function transposedLike(g: Tensor, w: Tensor, x: Tensor, a: ConvAttrs): Tensor {
  const extra = x.shape.slice(2).map((d, i) => {
    const stride = a.strides[i] as number
    if (stride === 1) return 0
    if (typeof d !== 'number')
      throw new ShapeError(`The gradient of a convolution with stride ${stride} needs axes of known length, not '${d}'.`)
    const lost = reach(w.shape[i + 2] as number, a.dilations[i] as number) - (a.before[i] as number) - (a.after[i] as number)
    return (d - lost) % stride
  })
  const { strides, dilations, before, after, groups } = a
  return apply1('conv_transpose', [g, w], { strides, dilations, before, after, groups, extra, like: x.shape.slice(2) })
}

/**
 * The gradient at the weight: the input convolved with the gradient, batch and channels having changed places, and stride
 * and dilation, too.
 */
function weightGradient(x: Tensor, g: Tensor, w: Tensor, a: ConvAttrs): Tensor {
  const [batch, channels] = [x.shape[0] as Dim, w.shape[1] as Dim]
  const spatial = x.shape.map((_, i) => i).slice(2)
  const split = reshapeTo(x, [batch, a.groups, channels, ...x.shape.slice(2)], x)
  const turned = transpose(split, [2, 1, 0, ...spatial.map((i) => i + 1)])
  const inputs = reshapeTo(turned, [channels, product([a.groups, batch]), ...x.shape.slice(2)], x)
  const outputs = transpose(g, [1, 0, ...spatial])
  const named = [...x.shape.slice(2), ...g.shape.slice(2)].some((d) => typeof d === 'string')
  if (named && a.strides.some((s) => s !== 1))
    throw new ShapeError(`The gradient of a convolution with strides [${a.strides}] needs axes of known length, not ${shown(x.shape)}.`)
  const { before, after, groups } = a
  const settings = { strides: a.dilations, dilations: a.strides, before, after, groups, ...(named ? { like: w.shape.slice(2) } : {}) }
  // What the stride left over at the end of the input would make the kernel's gradient longer than the kernel.
  const long = apply1('conv', [inputs, outputs], settings)
  const fitted = spatial.reduce(
    (t: Tensor, axis) => (t.shape[axis] === w.shape[axis] ? t : slice(t, axis, 0, w.shape[axis] as number)),
    long,
  )
  return transpose(fitted, [1, 0, ...spatial])
}

defineOp({
  name: 'conv_transpose',
  doc: 'Transposed convolution of [batch, channel, …] with a weight [channel, out/groups, …]: what the gradient of conv is; with an optional bias [out].',
  infer: (inputs, attrs) => {
    const [x, w] = [need('conv_transpose', inputs, 0), need('conv_transpose', inputs, 1)]
    sameType('conv_transpose', x, w)
    refuseFloat64('conv_transpose', x)
    const kernel = kernelOf('conv_transpose', x, w, attrs)
    const a = convOf(attrs)
    const out = product([w.shape[1] as Dim, a.groups])
    if (w.shape[0] !== x.shape[1]) throw new ShapeError(`'conv_transpose' cannot use a weight ${shown(w.shape)} on ${shown(x.shape)}.`)
    checkBias('conv_transpose', inputs[2], out)
    const like = attrs.like as readonly Dim[] | undefined
    const lengths = like ?? x.shape.slice(2).map((d, i) => grown(d, kernel[i] as number, i, a))
    return one(x.dtype, [x.shape[0] as Dim, out, ...lengths])
  },
  lower: (e, inputs, { attrs }) => {
    const a = convOf(attrs)
    return e.emit('ConvTranspose', inputs, {
      strides: a.strides,
      dilations: a.dilations,
      pads: [...a.before, ...a.after],
      output_padding: a.extra,
      group: a.groups,
    })
  },
  gradient: (c, [grad]) => {
    const [x, w, g] = [...c.inputs.slice(0, 2), grad] as [Tensor, Tensor, Tensor]
    const { strides, dilations, before, after, groups } = convOf(c.attrs)
    const a = { strides, dilations, before, after, groups }
    return [
      c.needs[0] ? apply1('conv', [g, w], { ...a, like: x.shape.slice(2) }) : undefined,
      c.needs[1] ? weightGradient(g, x, w, a) : undefined,
      biasGradient(c, g),
    ]
  },
})

/** Length of an axis after a transposed convolution. */
function grown(d: Dim, kernel: number, i: number, a: TransposeAttrs): Dim {
  const stride = a.strides[i] as number
  const added = reach(kernel, a.dilations[i] as number) - (a.before[i] as number) - (a.after[i] as number) + (a.extra[i] as number) - stride
  if (typeof d === 'number') return d * stride + added
  if (added < 0) return `spread[${d}:${stride}:${added}]`
  return total([product([d, stride]), added])
}

/** How a convolution is laid out: numbers hold for all spatial axes, lists give one for each. */
export interface ConvOptions {
  readonly stride?: number | readonly number[]
  readonly dilation?: number | readonly number[]
  /** Zeros on both sides of each axis, or before and after it. */
  readonly padding?: number | readonly (number | readonly [number, number])[]
  readonly groups?: number
}

function settings(x: Tensor, options: ConvOptions): ConvAttrs {
  const axes = Array.from({ length: Math.max(0, x.rank - 2) }, (_, i) => i)
  const each = (value: number | readonly number[] | undefined, otherwise: number) => {
    if (Array.isArray(value) && value.length !== axes.length)
      throw new ShapeError(`A convolution of ${shown(x.shape)} needs ${axes.length} numbers, not [${value}].`)
    return axes.map((i) => (typeof value === 'number' ? value : (value?.[i] ?? otherwise)))
  }
  const { padding } = options
  const side = (k: 0 | 1) =>
    each(typeof padding === 'number' || padding === undefined ? padding : padding.map((p) => (typeof p === 'number' ? p : p[k])), 0)
  return {
    strides: each(options.stride, 1),
    dilations: each(options.dilation, 1),
    before: side(0),
    after: side(1),
    groups: options.groups ?? 1,
  }
}

/** Convolution of x [batch, channel, …] with w [out, channel/groups, …] over one to three axes; `b` is [out]. */
export const conv = (x: Tensor, w: Tensor, b?: Tensor, options: ConvOptions = {}) => apply1('conv', [x, w, b], { ...settings(x, options) })
/** Transposed convolution of x [batch, channel, …] with w [channel, out/groups, …]; `extra` values are added at the end of each axis. */
export const convTranspose = (x: Tensor, w: Tensor, b?: Tensor, options: ConvOptions & { extra?: number | readonly number[] } = {}) => {
  const a = settings(x, options)
  return apply1('conv_transpose', [x, w, b], { ...a, extra: settings(x, { stride: options.extra ?? 0 }).strides })
}
/** Convolution whose input is padded by copies of its own values instead of zeros. */
export const convPadded = (x: Tensor, w: Tensor, b: Tensor | undefined, mode: 'reflect' | 'edge' | 'wrap', options: ConvOptions = {}) => {
  const a = settings(x, options)
  const padded = pad(x, [0, 0, ...a.before], [0, 0, ...a.after], mode)
  return apply1('conv', [padded, w, b], { ...a, before: a.before.map(() => 0), after: a.after.map(() => 0) })
}
