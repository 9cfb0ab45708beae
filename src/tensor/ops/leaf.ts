/** @file Ops without arithmetic: inputs, constants, weights, and marks in the graph. */
import { ShapeError, UsageError } from '../../base/errors.ts'
import { bytesOf, type DType, type NDArray, sizeOf, type TypedArray } from '../../base/types.ts'
import { need, one } from '../shape.ts'
import { apply1, defineOp, type Shape, type Tensor } from '../tensor.ts'

/** Where the bytes of a weight lie: in a file (mapped by the runtime, never copied into JavaScript) or in memory. */
export type WeightPlace =
  | { readonly path: string; readonly offset: number; readonly bytes: number }
  | { readonly data: Uint8Array; readonly key: string }

/** A weight as the engine sees it: a name, a type, a shape and a place. */
export interface WeightRef {
  readonly name: string
  readonly dtype: DType
  readonly shape: readonly number[]
  readonly place: WeightPlace
}

defineOp({
  name: 'input',
  doc: 'A value fed at every run.',
  infer: (_, a) => one(a.dtype as DType, a.shape as Shape),
  gradient: 'none',
})

defineOp({
  name: 'constant',
  doc: 'Values fixed in the program.',
  infer: (_, a) => one(a.dtype as DType, a.shape as Shape),
  gradient: 'none',
})

defineOp({
  name: 'weight',
  doc: 'A parameter: stored once, mapped by the runtime.',
  infer: (_, a) => one((a.ref as WeightRef).dtype, (a.ref as WeightRef).shape),
  gradient: 'none',
})

defineOp({
  name: 'identity',
  doc: 'The same value; a place where a site can be rewritten.',
  infer: (inputs) => [need('identity', inputs, 0)],
  lower: (_, [x]) => [x as string],
  gradient: (_, [g]) => [g],
})

defineOp({
  name: 'cut',
  doc: 'The same value; a program may be cut into segments here.',
  infer: (inputs) => [need('cut', inputs, 0)],
  lower: (_, [x]) => [x as string],
  gradient: (_, [g]) => [g],
})

defineOp({
  name: 'stop_gradient',
  doc: 'The same value; gradients do not pass.',
  infer: (inputs) => [need('stop_gradient', inputs, 0)],
  lower: (_, [x]) => [x as string],
  gradient: 'none',
})

defineOp({
  name: 'slot',
  doc: 'The value plus an input that broadcasts against it: a place where something can be added without compiling anew.',
  infer: (inputs) => [need('slot', inputs, 0)],
  lower: (e, [x, added]) => e.emit('Add', [x as string, added as string]),
  gradient: ({ needs }, [g]) => {
    if (needs[1])
      throw new UsageError(
        "'slot' has no gradient at what is added, since its axes may be 1; take the gradient at the place that it is added to.",
      )
    return [g, undefined]
  },
})

/** `x` plus the input `name`, whose axes may each be as long as those of `x`, or 1: zeros of shape [1, …, width] change nothing. */
export function slot(x: Tensor, name: string): Tensor {
  const shape = x.shape.map((d, i) => (typeof d === 'string' ? `${name}:${i}` : d))
  return apply1('slot', [x, input(name, x.dtype, shape)])
}

/** A value fed at every run, under a name. Axes may be symbols. */
export function input(name: string, dtype: DType, shape: Shape): Tensor {
  return apply1('input', [], { name, dtype, shape })
}

/** A constant of the program, from nested-free row-major numbers. */
export function constant(dtype: DType, shape: readonly number[], data: TypedArray | readonly number[]): Tensor {
  if (data.length !== sizeOf(shape))
    throw new ShapeError(`A constant of shape [${shape}] needs ${sizeOf(shape)} values, not ${data.length}.`)
  return apply1('constant', [], { dtype, shape, data })
}

/** A constant from an array in memory. */
export function fromArray(array: NDArray): Tensor {
  return constant(array.dtype, array.shape, array.data)
}

/** Bytes that a weight takes where it lies. */
export const weightBytes = (ref: WeightRef) => ('path' in ref.place ? ref.place.bytes : ref.place.data.byteLength)

/** A weight leaf. */
export function weight(ref: WeightRef): Tensor {
  const bytes = weightBytes(ref)
  const expected = bytesOf(ref.dtype, sizeOf(ref.shape))
  if (bytes !== expected)
    throw new ShapeError(`The weight '${ref.name}' of shape [${ref.shape.join(', ')}] needs ${expected} bytes, but ${bytes} are stored.`)
  return apply1('weight', [], { ref })
}

/** The same value under a new identity, so that a rewrite can address it alone. */
export function identity(x: Tensor): Tensor {
  return apply1('identity', [x])
}

/** The same value; what follows belongs to the segment `index` or a later one. */
export function cut(x: Tensor, index: number): Tensor {
  return apply1('cut', [x], { index })
}

/** The same value, through which no gradient passes. */
export function stopGradient(x: Tensor): Tensor {
  return apply1('stop_gradient', [x])
}
