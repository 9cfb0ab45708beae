/** @file Pooling over one, two or three axes. */
import { ShapeError } from '../../base/errors.ts'
import type { DType } from '../../base/types.ts'
import { need, one, product } from '../shape.ts'
import { type Attrs, apply, apply1, type Dim, defineOp, type Shape, shown, type Tensor } from '../tensor.ts'
import { div, refuseFloat64 } from './elementwise.ts'
import { scatterNd } from './indexing.ts'
import { unsqueeze } from './layout.ts'
import { constant } from './leaf.ts'
import { filledLike, reshapeTo, zerosLike } from './like.ts'
import { max, mean } from './reduce.ts'

interface PoolAttrs {
  readonly kernel: readonly number[]
  readonly strides: readonly number[]
  readonly before: readonly number[]
  readonly after: readonly number[]
  /** Whether padded zeros count in an average. */
  readonly countPadding: boolean
}

const poolOf = (attrs: Attrs) => attrs as unknown as PoolAttrs

function pooled(op: string, x: Tensor, attrs: Attrs): Dim[] {
  const a = poolOf(attrs)
  if (x.rank < 3 || x.rank > 5 || a.kernel.length !== x.rank - 2)
    throw new ShapeError(`'${op}' needs [batch, channel, …] with as many further axes as its kernel [${a.kernel}], not ${shown(x.shape)}.`)
  const spatial = x.shape.slice(2).map((d, i) => {
    const [kernel, stride, padding] = [a.kernel[i] as number, a.strides[i] as number, (a.before[i] as number) + (a.after[i] as number)]
    // Windows that hold nothing but padding would have no largest value.
    if (Math.max(a.before[i] as number, a.after[i] as number) >= kernel)
      throw new ShapeError(
        `'${op}' with a kernel of ${kernel} cannot be padded by ${Math.max(a.before[i] as number, a.after[i] as number)}.`,
      )
    if (typeof d !== 'number') return `pool[${d}:${kernel - padding}:${stride}]`
    const length = Math.floor((d + padding - kernel) / stride) + 1
    if (length < 1) throw new ShapeError(`'${op}' with a kernel of ${kernel} does not fit an axis of ${d} in ${shown(x.shape)}.`)
    return length
  })
  return [...x.shape.slice(0, 2), ...spatial]
}

const onnxAttrs = (a: PoolAttrs) => ({ kernel_shape: a.kernel, strides: a.strides, pads: [...a.before, ...a.after] })

defineOp({
  name: 'max_pool',
  doc: 'The largest value of each window of [batch, channel, …], and its index in the whole tensor.',
  infer: (inputs, attrs) => {
    const x = need('max_pool', inputs, 0)
    const shape = pooled('max_pool', x, attrs)
    return [
      { dtype: x.dtype, shape },
      { dtype: 'int64' as DType, shape },
    ]
  },
  lower: (e, [x], { attrs }) => e.emit('MaxPool', [x as string], onnxAttrs(poolOf(attrs)), { outputs: 2 }),
  gradient: ({ inputs: [value], outputs: [, indices] }, [grad]) => {
    if (!grad) return [undefined]
    const x = value as Tensor
    const flat = (t: Tensor) => reshapeTo(t, [product(t.shape)], t)
    const into = zerosLike(flat(x))
    return [reshapeTo(scatterNd(into, unsqueeze(flat(indices as Tensor), 1), flat(grad), { add: true }), x.shape, x)]
  },
})

defineOp({
  name: 'average_pool',
  doc: 'The mean of each window of [batch, channel, …], with or without the padded zeros.',
  infer: (inputs, attrs) => {
    const x = need('average_pool', inputs, 0)
    refuseFloat64('average_pool', x)
    return one(x.dtype, pooled('average_pool', x, attrs))
  },
  lower: (e, [x], { attrs }) =>
    e.emit('AveragePool', [x as string], { ...onnxAttrs(poolOf(attrs)), count_include_pad: attrs.countPadding ? 1 : 0 }),
  gradient: ({ inputs: [value], attrs }, [grad]) => {
    const [x, g] = [value as Tensor, grad as Tensor]
    const a = poolOf(attrs)
    const size = product(a.kernel) as number
    const padded = [...a.before, ...a.after].some((n) => n > 0)
    // The share of each window that lies inside, which is what its mean was taken over.
    const share = padded && !a.countPadding ? apply1('average_pool', [filledLike(x, 1)], { ...attrs, countPadding: true }) : undefined
    return [spreadOver(share ? div(g, share) : g, x, a, 1 / size)]
  },
})

/** Each value added to all places of its window, times `weight`: a transposed convolution of each channel by itself. */
function spreadOver(g: Tensor, x: Tensor, a: PoolAttrs, weight: number): Tensor {
  const planes = (t: Tensor): Shape => [product(t.shape.slice(0, 2)), 1, ...t.shape.slice(2)]
  const extra = x.shape.slice(2).map((d, i) => {
    const stride = a.strides[i] as number
    if (stride === 1) return 0
    if (typeof d !== 'number')
      throw new ShapeError(`The gradient of 'average_pool' with stride ${stride} needs axes of known length, not '${d}'.`)
    return (d + (a.before[i] as number) + (a.after[i] as number) - (a.kernel[i] as number)) % stride
  })
  const count = product(a.kernel) as number
  const kernel = constant(
    g.dtype,
    [1, 1, ...a.kernel],
    Array.from({ length: count }, () => weight),
  )
  const settings = { strides: a.strides, dilations: a.kernel.map(() => 1), before: a.before, after: a.after, groups: 1, extra }
  const spread = apply1('conv_transpose', [reshapeTo(g, planes(g), g), kernel], { ...settings, like: x.shape.slice(2) })
  return reshapeTo(spread, x.shape, x)
}

/** How windows lie: numbers hold for all spatial axes. */
export interface PoolOptions {
  readonly kernel: number | readonly number[]
  /** The kernel's size by default. */
  readonly stride?: number | readonly number[]
  readonly padding?: number | readonly number[]
  /** Whether an average counts padded zeros (it does by default, as in PyTorch). */
  readonly countPadding?: boolean
}

function settings(x: Tensor, o: PoolOptions): PoolAttrs {
  const each = (v: number | readonly number[]) => (typeof v === 'number' ? Array.from({ length: Math.max(0, x.rank - 2) }, () => v) : v)
  const padding = each(o.padding ?? 0)
  return {
    kernel: each(o.kernel),
    strides: each(o.stride ?? o.kernel),
    before: padding,
    after: padding,
    countPadding: o.countPadding ?? true,
  }
}

/** Largest value of each window, and its index in the whole tensor. */
export const maxPool = (x: Tensor, options: PoolOptions) => {
  const [values, indices] = apply('max_pool', [x], { ...settings(x, options) }) as [Tensor, Tensor]
  return { values, indices }
}
/** Mean of each window. */
export const averagePool = (x: Tensor, options: PoolOptions) => apply1('average_pool', [x], { ...settings(x, options) })

const spatialAxes = (x: Tensor) => x.shape.map((_, i) => i).slice(2)
/** Mean over all spatial axes, which stay as 1. */
export const globalAveragePool = (x: Tensor) => mean(x, spatialAxes(x), true)
/** Largest value over all spatial axes, which stay as 1. */
export const globalMaxPool = (x: Tensor) => max(x, spatialAxes(x), true)
