/** @file Tensors that are stored in ONNX files, as arrays. */
import type { DType, TypedArray } from '../../base/types.ts'
import { dtypeOf, type TensorProto } from '../../tensor/index.ts'
import type { OnnxValue } from './core.ts'

/** Arrays over bytes, by element type. */
export const arrayTypes: Readonly<Partial<Record<DType, (b: ArrayBuffer) => TypedArray>>> = {
  float32: (b) => new Float32Array(b),
  float64: (b) => new Float64Array(b),
  float16: (b) => new Uint16Array(b),
  bfloat16: (b) => new Uint16Array(b),
  int64: (b) => new BigInt64Array(b),
  uint64: (b) => new BigUint64Array(b),
  int32: (b) => new Int32Array(b),
  uint32: (b) => new Uint32Array(b),
  int16: (b) => new Int16Array(b),
  uint16: (b) => new Uint16Array(b),
  int8: (b) => new Int8Array(b),
  uint8: (b) => new Uint8Array(b),
  bool: (b) => new Uint8Array(b),
}

/** A stored tensor as a value that can be fed; undefined for types that cannot. */
export function storedValue(t: TensorProto): OnnxValue | undefined {
  const shape = t.dims.map(Number)
  if (t.dataType === 8) return { dtype: 'string', shape, data: t.stringData.map((s) => new TextDecoder().decode(s)) }
  const dtype = dtypeOf(t.dataType)
  const make = dtype && arrayTypes[dtype]
  if (!dtype || !make) return undefined
  if (t.rawData.length > 0 || shape.includes(0)) return { dtype, shape, data: make(new Uint8Array(t.rawData).buffer) }
  const lists = [t.floatData, t.doubleData, t.int64Data, t.uint64Data, t.int32Data] as (readonly (number | bigint)[])[]
  const values = lists.find((l) => l.length > 0) ?? []
  const data = make(new ArrayBuffer(values.length * make(new ArrayBuffer(0)).BYTES_PER_ELEMENT))
  const big = dtype === 'int64' || dtype === 'uint64'
  for (const [i, v] of values.entries()) data[i] = (big ? BigInt(v) : Number(v)) as never
  return { dtype, shape, data }
}
