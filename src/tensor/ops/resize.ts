/** @file Images in other sizes: interpolation, and the exchange of channels for pixels. */
import { ShapeError } from '../../base/errors.ts'
import { need, one } from '../shape.ts'
import { type Attrs, apply1, type Dim, defineOp, shown, type Tensor } from '../tensor.ts'
import { refuseFloat64 } from './elementwise.ts'
import { transpose } from './layout.ts'
import { constant } from './leaf.ts'
import { reshapeTo } from './like.ts'
import { matmul } from './linear.ts'

interface ResizeAttrs {
  /** New lengths of the spatial axes. */
  readonly sizes: readonly number[]
  readonly mode: 'nearest' | 'linear'
  /** Whether the first and last values of both lie on each other (linear only). */
  readonly alignCorners: boolean
}

/** Share of each old value (columns) in each new one (rows) along one axis. */
function weights(from: number, to: number, { mode, alignCorners }: ResizeAttrs): number[][] {
  const scale = alignCorners ? (to > 1 ? (from - 1) / (to - 1) : 0) : from / to
  return Array.from({ length: to }, (_, i) => {
    const row = Array.from({ length: from }, () => 0)
    if (mode === 'nearest') {
      row[Math.min(Math.floor(i * scale), from - 1)] = 1
      return row
    }
    const at = Math.min(Math.max(alignCorners ? i * scale : (i + 0.5) * scale - 0.5, 0), from - 1)
    const low = Math.floor(at)
    row[low] = 1 - (at - low)
    if (at > low) row[low + 1] = at - low
    return row
  })
}

defineOp({
  name: 'resize',
  doc: 'The spatial axes of [batch, channel, …] brought to other lengths by the nearest value or linear interpolation, as PyTorch places them.',
  infer: (inputs, attrs) => {
    const x = need('resize', inputs, 0)
    const a = attrs as unknown as ResizeAttrs
    refuseFloat64('resize', x)
    if (x.rank < 3 || x.rank > 5 || a.sizes.length !== x.rank - 2 || !a.sizes.every((n) => Number.isInteger(n) && n > 0))
      throw new ShapeError(`'resize' of ${shown(x.shape)} needs ${Math.max(1, x.rank - 2)} positive whole sizes, not [${a.sizes}].`)
    return one(x.dtype, [...x.shape.slice(0, 2), ...a.sizes])
  },
  lower: (e, [x], { attrs, inputs }) => {
    const a = attrs as unknown as ResizeAttrs
    const from = inputs[0] as Tensor
    const linear = a.mode === 'linear'
    const sizes = e.sizes([...from.shape.slice(0, 2), ...a.sizes], [from])
    return e.emit('Resize', [x as string, '', '', sizes], {
      mode: a.mode,
      coordinate_transformation_mode: linear ? (a.alignCorners ? 'align_corners' : 'half_pixel') : 'asymmetric',
      nearest_mode: 'floor',
    })
  },
  gradient: ({ inputs: [x], attrs }, [g]) => [resizedBack(g as Tensor, x as Tensor, attrs)],
})

/** Along each axis the transpose of the interpolation, which is a small matrix. */
function resizedBack(g: Tensor, x: Tensor, attrs: Attrs): Tensor {
  const a = attrs as unknown as ResizeAttrs
  return a.sizes.reduce((t: Tensor, to, i) => {
    const axis = i + 2
    const from = x.shape[axis] as Dim
    if (from === to) return t
    if (typeof from !== 'number') throw new ShapeError(`The gradient of 'resize' needs axes of known length, not '${from}'.`)
    const matrix = constant(t.dtype, [to, from], weights(from, to, a).flat())
    const last = t.rank - 1
    const swap = t.shape.map((_, k) => (k === axis ? last : k === last ? axis : k))
    return axis === last ? matmul(t, matrix) : transpose(matmul(transpose(t, swap), matrix), swap)
  }, g)
}

/** Sizes that `factor` divides, with a sentence otherwise. */
function divided(op: string, d: Dim, by: number, x: Tensor): number {
  if (typeof d !== 'number' || d % by !== 0) throw new ShapeError(`'${op}' cannot divide an axis of ${d} in ${shown(x.shape)} by ${by}.`)
  return d / by
}

defineOp({
  name: 'pixel_shuffle',
  doc: 'Channels of [batch, channel·f², height, width] become pixels of [batch, channel, f·height, f·width].',
  infer: (inputs, a) => {
    const x = need('pixel_shuffle', inputs, 0)
    const f = a.factor as number
    if (x.rank !== 4) throw new ShapeError(`'pixel_shuffle' needs [batch, channel, height, width], not ${shown(x.shape)}.`)
    const [batch, channels, height, width] = x.shape as [Dim, Dim, Dim, Dim]
    const times = (d: Dim) => f * divided('pixel_shuffle', d, 1, x)
    return one(x.dtype, [batch, divided('pixel_shuffle', channels, f * f, x), times(height), times(width)])
  },
  lower: (e, [x], { attrs: a }) => e.emit('DepthToSpace', [x as string], { blocksize: a.factor as number, mode: 'CRD' }),
  gradient: ({ attrs }, [g]) => [apply1('pixel_unshuffle', [g], attrs)],
})

defineOp({
  name: 'pixel_unshuffle',
  doc: 'Pixels of [batch, channel, f·height, f·width] become channels of [batch, channel·f², height, width].',
  infer: (inputs, a) => {
    const x = need('pixel_unshuffle', inputs, 0)
    const f = a.factor as number
    if (x.rank !== 4) throw new ShapeError(`'pixel_unshuffle' needs [batch, channel, height, width], not ${shown(x.shape)}.`)
    const [batch, channels, height, width] = x.shape as [Dim, Dim, Dim, Dim]
    const per = (d: Dim) => divided('pixel_unshuffle', d, f, x)
    return one(x.dtype, [batch, divided('pixel_unshuffle', channels, 1, x) * f * f, per(height), per(width)])
  },
  expand: ([value], a) => {
    const x = value as Tensor
    const f = a.factor as number
    const [batch, channels, height, width] = x.shape as [Dim, number, number, number]
    const [h, w] = [height / f, width / f]
    const split = transpose(reshapeTo(x, [batch, channels, h, f, w, f], x), [0, 1, 3, 5, 2, 4])
    return { outputs: [reshapeTo(split, [batch, channels * f * f, h, w], x)] }
  },
  gradient: ({ attrs }, [g]) => [apply1('pixel_shuffle', [g], attrs)],
})

/** The spatial axes of x [batch, channel, …] brought to `sizes`; the gradient needs lengths that are known. */
export const resize = (
  x: Tensor,
  sizes: readonly number[],
  mode: 'nearest' | 'linear' = 'nearest',
  options: { alignCorners?: boolean } = {},
) => {
  if (mode === 'nearest' && options.alignCorners)
    throw new ShapeError('Only linear interpolation can align corners; leave alignCorners out.')
  return apply1('resize', [x], { sizes, mode, alignCorners: options.alignCorners ?? false })
}
/** Channels become pixels: [batch, channel·f², height, width] to [batch, channel, f·height, f·width]. */
export const pixelShuffle = (x: Tensor, factor: number) => apply1('pixel_shuffle', [x], { factor })
/** Pixels become channels, the reverse of {@link pixelShuffle}. */
export const pixelUnshuffle = (x: Tensor, factor: number) => apply1('pixel_unshuffle', [x], { factor })
