/** @file Element types and the little that every floor must agree on about arrays. */

/** Element types of tensors, as safetensors and ONNX Runtime both know them. */
export type DType =
  | 'float32'
  | 'float64'
  | 'float16'
  | 'bfloat16'
  | 'int64'
  | 'int32'
  | 'int16'
  | 'int8'
  | 'uint64'
  | 'uint32'
  | 'uint16'
  | 'uint8'
  | 'bool'
  | 'uint4'
  | 'int4'

/** Bits one element takes. */
export const bitsOf: Readonly<Record<DType, number>> = {
  float32: 32,
  float64: 64,
  float16: 16,
  bfloat16: 16,
  int64: 64,
  int32: 32,
  int16: 16,
  int8: 8,
  uint64: 64,
  uint32: 32,
  uint16: 16,
  uint8: 8,
  bool: 8,
  uint4: 4,
  int4: 4,
}

/** The typed arrays that hold tensor values. float16 and bfloat16 values are held as their bits in a `Uint16Array`, bool as `Uint8Array`. */
export type TypedArray =
  | Float32Array
  | Float64Array
  | Int8Array
  | Uint8Array
  | Int16Array
  | Uint16Array
  | Int32Array
  | Uint32Array
  | BigInt64Array
  | BigUint64Array

/** A tensor in memory: values in row-major order. */
export interface NDArray<T extends TypedArray = TypedArray> {
  readonly dtype: DType
  readonly shape: readonly number[]
  readonly data: T
}

/** Number of elements of a shape; 1 for a scalar. */
export function sizeOf(shape: readonly number[]): number {
  let size = 1
  for (const d of shape) size *= d
  return size
}

/** Bytes that `count` elements of a type take, 4-bit types packed two to a byte. */
export function bytesOf(dtype: DType, count: number): number {
  return Math.ceil((bitsOf[dtype] * count) / 8)
}
