/** @file Quantisation: to integers and back, and simulated in floats so that it can be trained through. */
import { ShapeError } from '../../base/errors.ts'
import type { DType } from '../../base/types.ts'
import { broadcast, need, one, sameShape, sameType } from '../shape.ts'
import { type Attrs, apply1, defineOp, type Emitter, type Node, shown, type Tensor } from '../tensor.ts'
import { clip } from './activation.ts'
import { add, cast, div, less, mul, onnxType, round, sub } from './elementwise.ts'
import { times, unbroadcast, unsqueezeAll } from './like.ts'

/** Integer types that values are quantised to. */
export type QuantizedType = 'int8' | 'uint8' | 'int16' | 'uint16'

/** Refuses a scale that is neither one value nor one for each place of the axis. */
function checkScale(op: string, x: Tensor, scale: Tensor, zero: Tensor | undefined, axis: number): void {
  if (scale.rank > 1 || (scale.rank === 1 && scale.shape[0] !== x.shape[axis]))
    throw new ShapeError(
      `'${op}' of ${shown(x.shape)} along axis ${axis} needs a scale [] or [${x.shape[axis]}], not ${shown(scale.shape)}.`,
    )
  if (zero && !sameShape(zero.shape, scale.shape))
    throw new ShapeError(`'${op}' needs a zero point of the scale's shape ${shown(scale.shape)}, not ${shown(zero.shape)}.`)
}

const emitLinear = (e: Emitter, op: string, names: readonly string[], { attrs, inputs }: Node, more: Record<string, unknown> = {}) =>
  e.emit(op, names, { ...((inputs[1] as Tensor).rank === 1 ? { axis: attrs.axis as number } : {}), ...more })

defineOp({
  name: 'quantize',
  doc: 'round(x / scale) + zero point as an integer, held in its range; one scale, or one for each place of an axis.',
  infer: (inputs, a) => {
    const [x, scale] = [need('quantize', inputs, 0), need('quantize', inputs, 1)]
    if (x.dtype !== 'float32' || scale.dtype !== 'float32')
      throw new ShapeError(`'quantize' needs float32, not ${x.dtype} and ${scale.dtype}; cast them.`)
    checkScale('quantize', x, scale, inputs[2], a.axis as number)
    if (inputs[2] && inputs[2].dtype !== a.to)
      throw new ShapeError(`'quantize' to ${a.to} needs a zero point of that type, not ${inputs[2].dtype}.`)
    return one(a.to as DType, x.shape)
  },
  lower: (e, names, node) =>
    emitLinear(e, 'QuantizeLinear', names, node, names[2] ? {} : { output_dtype: onnxType[node.attrs.to as DType] }),
  gradient: 'none',
})

defineOp({
  name: 'dequantize',
  doc: '(q − zero point) · scale as a float; one scale, or one for each place of an axis.',
  infer: (inputs, a) => {
    const [q, scale] = [need('dequantize', inputs, 0), need('dequantize', inputs, 1)]
    checkScale('dequantize', q, scale, inputs[2], a.axis as number)
    return one(scale.dtype, q.shape)
  },
  lower: (e, names, node) => emitLinear(e, 'DequantizeLinear', names, node),
  gradient: ({ inputs: [q, scale, zero], attrs }, [g]) => {
    const [value, s] = [cast(q as Tensor, (scale as Tensor).dtype), scale as Tensor]
    const along = (t: Tensor) => (t.rank === 1 ? spread(t, value, attrs.axis as number) : t)
    const steps = zero ? sub(value, along(cast(zero, s.dtype))) : value
    const summed = unbroadcast(times(g as Tensor, steps), along(s))
    return [undefined, s.rank === 1 ? summed.reshape(s.shape) : summed]
  },
})

/** One value for each place of an axis, as [1, …, n, …, 1]. */
function spread(t: Tensor, x: Tensor, axis: number): Tensor {
  return unsqueezeAll(
    t,
    x.shape.map((_, i) => i).filter((i) => i !== axis),
  )
}

interface FakeAttrs {
  readonly low: number
  readonly high: number
}

defineOp({
  name: 'fake_quantize',
  doc: 'What quantising to the integers low…high and back makes of x, in floats; the gradient passes straight through where x is in range, and those of scale and zero point are those of learned step sizes.',
  infer: (inputs, a) => {
    const [x, scale, zero] = [0, 1, 2].map((i) => need('fake_quantize', inputs, i)) as [Tensor, Tensor, Tensor]
    sameType('fake_quantize', x, scale, zero)
    const { low, high } = a as unknown as FakeAttrs
    if (!(Number.isInteger(low) && Number.isInteger(high) && low < high))
      throw new ShapeError(`'fake_quantize' needs whole numbers low < high, not ${low} and ${high}.`)
    if (!sameShape(broadcast(broadcast(x.shape, scale.shape, 'fake_quantize'), zero.shape, 'fake_quantize'), x.shape))
      throw new ShapeError(
        `'fake_quantize' cannot spread a scale ${shown(scale.shape)} and zero point ${shown(zero.shape)} over ${shown(x.shape)}.`,
      )
    return one(x.dtype, x.shape)
  },
  expand: ([x, scale, zero], a) => {
    const { low, high } = a as unknown as FakeAttrs
    const q = clip(add(round(div(x as Tensor, scale as Tensor)), zero as Tensor), low, high)
    return { outputs: [mul(sub(q, zero as Tensor), scale as Tensor)] }
  },
  gradient: ({ inputs, attrs, needs }, [grad]) => {
    const [x, scale, zero, g] = [...inputs, grad] as [Tensor, Tensor, Tensor, Tensor]
    const { low, high } = attrs as unknown as FakeAttrs
    const ratio = div(x, scale)
    const wanted = add(round(ratio), zero)
    const held = clip(wanted, low, high)
    // 1 where the integer is in range, 0 where it was held at an end.
    const inside = cast(less(sub(held, wanted).mul(sub(held, wanted)), 0.25), x.dtype)
    return [
      needs[0] ? times(g, inside) : undefined,
      needs[1] ? unbroadcast(times(g, sub(sub(held, zero), mul(inside, ratio))), scale) : undefined,
      needs[2] ? unbroadcast(times(g, mul(sub(inside, 1), scale)), zero) : undefined,
    ]
  },
})

const linearAttrs = (axis: number | undefined, more: Attrs = {}): Attrs => ({ axis: axis ?? 0, ...more })

/** round(x / scale) + zero point as integers; `scale` [] or one for each place of `axis`. */
export const quantize = (x: Tensor, scale: Tensor, to: QuantizedType, options: { zeroPoint?: Tensor; axis?: number } = {}) =>
  apply1('quantize', [x, scale, options.zeroPoint], linearAttrs(options.axis, { to }))
/** (q − zero point) · scale; `scale` [] or one for each place of `axis`. */
export const dequantize = (q: Tensor, scale: Tensor, options: { zeroPoint?: Tensor; axis?: number } = {}) =>
  apply1('dequantize', [q, scale, options.zeroPoint], linearAttrs(options.axis))
/** Quantising to whole numbers `low` … `high` and back, trained straight through; scale and zero point broadcast to x. */
export const fakeQuantize = (x: Tensor, scale: Tensor, zeroPoint: Tensor, range: { low: number; high: number }) =>
  apply1('fake_quantize', [x, scale, zeroPoint], { low: range.low, high: range.high })
