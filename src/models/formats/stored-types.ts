/** @file The one table of types that stored tensors have: how many bytes they take and how to make numbers of them. */
import { FormatError } from '../../base/errors.ts'
import type { DType, TypedArray } from '../../base/types.ts'
import { bf16ToF32, f8e4m3ToF32, f8e5m2ToF32, f16ToF32 } from './float.ts'
import { iquants } from './gguf-iquants.ts'
import { type BlockFormat, quants } from './gguf-quants.ts'

/** How elements that are not packed in blocks are stored, and what holds them in memory. */
interface ElementFormat extends BlockFormat {
  /** The element type of an array in memory; absent where there is none (8-bit floats). */
  readonly dtype?: DType
  /** A view of bytes that start at a multiple of the element size. */
  view(bytes: Uint8Array): TypedArray
}

type View<T extends TypedArray> = new (buffer: ArrayBufferLike, offset: number, length: number) => T

function element<T extends TypedArray>(
  size: number,
  dtype: DType | undefined,
  Kind: View<T>,
  convert: (values: T, out: Float32Array) => void,
): ElementFormat {
  const view = (bytes: Uint8Array) => new Kind(bytes.buffer, bytes.byteOffset, bytes.byteLength / size)
  const format = { values: 1, bytes: size, view, decode: (bytes: Uint8Array, out: Float32Array) => convert(view(bytes), out) }
  return dtype === undefined ? format : { ...format, dtype }
}

function copy(values: Exclude<TypedArray, BigInt64Array | BigUint64Array>, out: Float32Array): void {
  out.set(values)
}

function copyBig(values: BigInt64Array | BigUint64Array, out: Float32Array): void {
  for (let i = 0; i < values.length; i++) out[i] = Number(values[i])
}

/** Types whose every element has its own bytes, by their safetensors name. */
export const elementTypes = {
  F32: element(4, 'float32', Float32Array, copy),
  F64: element(8, 'float64', Float64Array, copy),
  F16: element(2, 'float16', Uint16Array, f16ToF32),
  BF16: element(2, 'bfloat16', Uint16Array, bf16ToF32),
  F8_E4M3: element(1, undefined, Uint8Array, f8e4m3ToF32),
  F8_E5M2: element(1, undefined, Uint8Array, f8e5m2ToF32),
  I8: element(1, 'int8', Int8Array, copy),
  U8: element(1, 'uint8', Uint8Array, copy),
  I16: element(2, 'int16', Int16Array, copy),
  U16: element(2, 'uint16', Uint16Array, copy),
  I32: element(4, 'int32', Int32Array, copy),
  U32: element(4, 'uint32', Uint32Array, copy),
  I64: element(8, 'int64', BigInt64Array, copyBig),
  U64: element(8, 'uint64', BigUint64Array, copyBig),
  BOOL: element(1, 'bool', Uint8Array, copy),
} as const satisfies Record<string, ElementFormat>

/** Types whose every element has its own bytes. */
export type ElementType = keyof typeof elementTypes

/** Types that pack several values into a block, by their GGUF name. */
export type BlockType = keyof typeof quants | keyof typeof iquants

/** The type of a tensor in a file. */
export type StoredType = ElementType | BlockType

/** Every type a stored tensor can have. */
export const storedTypes: Readonly<Record<StoredType, BlockFormat>> = { ...elementTypes, ...quants, ...iquants }

/** Whether `type` keeps an element in its own bytes. */
export function isElementType(type: string): type is ElementType {
  return Object.hasOwn(elementTypes, type)
}

/** The stored type that holds arrays of `dtype`; undefined for the 4-bit types, which no format of ours stores. */
export function storedTypeOf(dtype: DType): ElementType | undefined {
  return (Object.keys(elementTypes) as ElementType[]).find((type) => (elementTypes[type] as ElementFormat).dtype === dtype)
}

/** A view of `bytes` as elements of `type`; the bytes must start where a typed array may. */
export function viewOf(type: ElementType, bytes: Uint8Array): { dtype: DType | undefined; data: TypedArray } {
  const format: ElementFormat = elementTypes[type]
  return { dtype: format.dtype, data: format.view(bytes) }
}

/** Number of elements of a shape that came from a file; refuses sizes that are not numbers or that overflow. */
export function countOf(shape: readonly unknown[], what: string): number {
  let count = 1
  // A zero among the sizes must not hide that the others are absurd.
  let extent = 1
  for (const size of shape) {
    if (typeof size !== 'number' || !Number.isSafeInteger(size) || size < 0) {
      throw new FormatError(`${what} has the size ${JSON.stringify(size)} in its shape, which is not a whole number; fetch the file again.`)
    }
    count *= size
    extent *= Math.max(size, 1)
    if (!Number.isSafeInteger(extent)) {
      throw new FormatError(`${what} has a shape of more elements than any file can hold; fetch the file again.`)
    }
  }
  return count
}

/** Bytes that `shape` takes in a file as `type`; refuses rows that are not whole blocks and sizes that overflow. */
export function storedBytes(type: StoredType, shape: readonly number[], what: string): number {
  const count = countOf(shape, what)
  const { values, bytes } = storedTypes[type]
  if (values > 1 && (shape.at(-1) ?? 1) % values !== 0) {
    throw new FormatError(`${what} has rows of ${shape.at(-1) ?? 1} values, but ${type} packs ${values} to a block; fetch the file again.`)
  }
  const size = (count / values) * bytes
  if (!Number.isSafeInteger(size)) throw new FormatError(`${what} would take more bytes than any file can hold; fetch the file again.`)
  return size
}
