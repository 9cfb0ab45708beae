/** @file Integer ops on bits, and counting. */
import { ShapeError } from '../../base/errors.ts'
import type { DType } from '../../base/types.ts'
import { broadcast, need, one, sameType } from '../shape.ts'
import { apply1, type Dim, defineOp, scalar, type Tensor } from '../tensor.ts'
import { carriers } from './like.ts'

const isInteger = (dtype: DType) => /^u?int/.test(dtype)
/** Types that ONNX Runtime shifts. */
const shiftable: readonly DType[] = ['uint8', 'uint32', 'uint64']

const bitOps: Readonly<Record<string, readonly [string, string, Record<string, unknown>?]>> = {
  bit_and: ['BitwiseAnd', 'Bits that both integers have.'],
  bit_or: ['BitwiseOr', 'Bits that either integer has.'],
  bit_xor: ['BitwiseXor', 'Bits that one of two integers has.'],
  shift_left: ['BitShift', 'Bits moved up, zeros coming in.', { direction: 'LEFT' }],
  shift_right: ['BitShift', 'Bits moved down, zeros coming in.', { direction: 'RIGHT' }],
}

for (const [name, [onnx, doc, attrs]] of Object.entries(bitOps))
  defineOp({
    name,
    doc,
    infer: (inputs) => {
      const [a, b] = [need(name, inputs, 0), need(name, inputs, 1)]
      sameType(name, a, b)
      if (!isInteger(a.dtype)) throw new ShapeError(`'${name}' needs integers, not ${a.dtype}.`)
      if (attrs && !shiftable.includes(a.dtype)) throw new ShapeError(`'${name}' needs ${shiftable.join(', ')}, not ${a.dtype}; cast it.`)
      return one(a.dtype, broadcast(a.shape, b.shape, name))
    },
    lower: (e, [a, b]) => e.emit(onnx, [a as string, b as string], attrs),
    gradient: 'none',
  })

defineOp({
  name: 'range',
  doc: 'The numbers 0, 1, 2 … up to before a length, which may be a named axis of the inputs, int64.',
  infer: (_, a) => one('int64', [a.size as Dim]),
  lower: (e, _, { attrs: a, inputs }) => {
    const [limit] = e.emit('Squeeze', [e.sizes([a.size as Dim], inputs as Tensor[])])
    return e.emit('Range', [e.constant('int64', [], [0]), limit as string, e.constant('int64', [], [1])])
  },
  gradient: 'none',
})

const bitwise = (op: string) => (a: Tensor, b: Tensor | number) => apply1(op, [a, typeof b === 'number' ? scalar(b, a.dtype) : b])

/** Bits that both have. */
export const bitAnd = bitwise('bit_and')
/** Bits that either has. */
export const bitOr = bitwise('bit_or')
/** Bits that one of both has. */
export const bitXor = bitwise('bit_xor')
/** Bits moved up by some places (unsigned types). */
export const shiftLeft = bitwise('shift_left')
/** Bits moved down by some places (unsigned types). */
export const shiftRight = bitwise('shift_right')
/** 0, 1, 2 … up to before `size`, int64; a named size is read from one of `like`. */
export const range = (size: Dim, ...like: Tensor[]) =>
  apply1('range', like.length > 0 ? carriers([size], ...(like as [Tensor, ...Tensor[]])) : [], { size })
