/** @file Ops that lengthen axes or turn them round: pad, tile, roll. */
import { ShapeError } from '../../base/errors.ts'
import { need, one, product, total } from '../shape.ts'
import { apply1, axisOf, type Dim, defineOp, type Emitter, type Shape, shown, type Tensor } from '../tensor.ts'
import { gather } from './indexing.ts'
import { slice } from './layout.ts'
import { constant } from './leaf.ts'
import { reshapeTo } from './like.ts'

interface PadAttrs {
  /** Values added before each axis. */
  readonly before: readonly number[]
  /** Values added after each axis. */
  readonly after: readonly number[]
}

/** How values beyond the edge are copied: mirrored without the edge, the edge itself, or from the other end. */
export type PadMode = 'reflect' | 'edge' | 'wrap'

const inferPad = (op: string) => (inputs: readonly (Tensor | undefined)[], attrs: Readonly<Record<string, unknown>>) => {
  const x = need(op, inputs, 0)
  const { before, after } = attrs as unknown as PadAttrs
  const whole = (n: number) => Number.isInteger(n) && n >= 0
  if (before.length !== x.rank || after.length !== x.rank || ![...before, ...after].every(whole))
    throw new ShapeError(
      `'${op}' of ${shown(x.shape)} needs ${x.rank} whole numbers before and after, not [${before}] and [${after}]; slice to shorten an axis.`,
    )
  return one(
    x.dtype,
    x.shape.map((d, i) => total([d, (before[i] as number) + (after[i] as number)])),
  )
}

const emitPad = (e: Emitter, x: string, { before, after }: PadAttrs, mode: string, value = '') =>
  e.emit('Pad', [x, e.constant('int64', [2 * before.length], [...before, ...after]), value], { mode })

defineOp({
  name: 'pad',
  doc: 'One value added before and after axes.',
  infer: inferPad('pad'),
  lower: (e, [x], { attrs, outputs: [y] }) =>
    emitPad(e, x as string, attrs as unknown as PadAttrs, 'constant', e.constant((y as Tensor).dtype, [], [attrs.value as number])),
  gradient: ({ attrs }, [g]) => {
    const { before, after } = attrs as unknown as PadAttrs
    return [before.reduce((t: Tensor, b, axis) => unpadded(t, axis, b, after[axis] as number), g as Tensor)]
  },
})

function unpadded(t: Tensor, axis: number, before: number, after: number): Tensor {
  return before === 0 && after === 0 ? t : slice(t, axis, before, after === 0 ? Number.MAX_SAFE_INTEGER : -after)
}

/** Where in an axis of length `n` the values of the padded axis come from. */
const sources: Readonly<Record<PadMode, (i: number, n: number) => number>> = {
  edge: (i, n) => Math.min(Math.max(i, 0), n - 1),
  wrap: (i, n) => ((i % n) + n) % n,
  reflect: (i, n) => {
    if (n === 1) return 0
    const period = 2 * (n - 1)
    const at = ((i % period) + period) % period
    return at < n ? at : period - at
  },
}

defineOp({
  name: 'pad_copies',
  doc: 'Values of the tensor itself added before and after axes: mirrored (reflect), the last one (edge), or from the other end (wrap).',
  infer: (inputs, a) => {
    const types = inferPad('pad_copies')(inputs, a)
    const x = need('pad_copies', inputs, 0)
    const { before, after } = a as unknown as PadAttrs
    for (const [i, d] of x.shape.entries())
      if (
        a.mode !== 'edge' &&
        typeof d === 'number' &&
        Math.max(before[i] as number, after[i] as number) >= d + (a.mode === 'wrap' ? 1 : 0)
      )
        throw new ShapeError(
          `'pad_copies' (${a.mode}) of axis ${i} of ${shown(x.shape)} has no ${Math.max(before[i] as number, after[i] as number)} values to copy.`,
        )
    return types
  },
  lower: (e, [x], { attrs }) => emitPad(e, x as string, attrs as unknown as PadAttrs, attrs.mode as string),
  expand: ([x], attrs) => {
    const { before, after } = attrs as unknown as PadAttrs
    const pick = (t: Tensor, axis: number): Tensor => {
      const [b, a] = [before[axis] as number, after[axis] as number]
      if (b === 0 && a === 0) return t
      const size = t.shape[axis] as Dim
      if (typeof size !== 'number')
        throw new ShapeError(`The gradient of 'pad_copies' needs an axis of known length, not '${size}'; give that axis a number.`)
      const from = Array.from({ length: b + size + a }, (_, i) => sources[attrs.mode as PadMode](i - b, size))
      return gather(t, constant('int64', [from.length], from), axis)
    }
    return { outputs: [before.reduce((t: Tensor, _, axis) => pick(t, axis), x as Tensor)] }
  },
})

defineOp({
  name: 'tile',
  doc: 'Whole axes repeated one after another.',
  infer: (inputs, a) => {
    const x = need('tile', inputs, 0)
    const repeats = a.repeats as readonly number[]
    if (repeats.length !== x.rank || !repeats.every((n) => Number.isInteger(n) && n > 0))
      throw new ShapeError(`'tile' of ${shown(x.shape)} needs ${x.rank} positive whole numbers, not [${repeats}].`)
    return one(
      x.dtype,
      x.shape.map((d, i) => product([d, repeats[i] as number])),
    )
  },
  lower: (e, [x], { attrs: a }) => {
    const repeats = a.repeats as readonly number[]
    return e.emit('Tile', [x as string, e.constant('int64', [repeats.length], repeats)])
  },
  gradient: ({ inputs: [x], attrs }, [g]) => {
    const shape = (x as Tensor).shape
    const repeats = attrs.repeats as readonly number[]
    const split = shape.flatMap((d, i): Shape => [repeats[i] as number, d])
    return [reshapeTo(g as Tensor, split, x as Tensor).sum(shape.map((_, i) => 2 * i))]
  },
})

defineOp({
  name: 'roll',
  doc: 'The values of one axis moved on by some places, those at the end coming in at the start.',
  infer: (inputs) => [need('roll', inputs, 0)],
  lower: (e, [x], { attrs: a }) => {
    const at = (n: number) => e.constant('int64', [1], [n])
    const [axis, shift] = [a.axis as number, a.shift as number]
    const part = (start: number, end: number) => e.emit('Slice', [x as string, at(start), at(end), at(axis)])[0] as string
    return shift === 0 ? [x as string] : e.emit('Concat', [part(-shift, Number.MAX_SAFE_INTEGER), part(0, -shift)], { axis })
  },
  gradient: ({ attrs }, [g]) => [apply1('roll', [g], { ...attrs, shift: -(attrs.shift as number) })],
})

/** `before[i]` and `after[i]` values added to each axis: `value`, or copies by a mode. */
export const pad = (x: Tensor, before: readonly number[], after: readonly number[], how: number | PadMode = 0) =>
  typeof how === 'number' ? apply1('pad', [x], { before, after, value: how }) : apply1('pad_copies', [x], { before, after, mode: how })
/** Each axis repeated as often as `repeats` says. */
export const tile = (x: Tensor, repeats: readonly number[]) => apply1('tile', [x], { repeats })
/** The values of an axis moved on by `shift` places (negative: back), round the end. */
export const roll = (x: Tensor, shift: number, axis: number) => {
  const at = axisOf(x, axis)
  const size = x.shape[at]
  // A turn of more than the axis is that of the rest; of a named axis it must not be longer than the axis.
  return apply1('roll', [x], { axis: at, shift: typeof size === 'number' && size > 0 ? shift % size : shift })
}
