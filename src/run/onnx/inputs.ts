/** @file Inputs of ONNX models: checked against what the file declares, and filled in where exports want more than tokens. */
import { nearest, ShapeError, UsageError } from '../../base/errors.ts'
import { type NDArray, sizeOf, type TypedArray } from '../../base/types.ts'
import type { OnnxTensor } from '../../tensor/index.ts'
import { batchOfTensors } from '../batch.ts'
import type { OnnxValue } from './core.ts'
import type { OnnxStep } from './edits.ts'

/** Values by the names of a model's inputs. */
export type OnnxInputs = Readonly<Record<string, OnnxValue>>

const cacheInput = /^past_key_values\.|^past_/

/** Whether an input holds keys or values of earlier tokens. */
export const isCache = (name: string) => cacheInput.test(name)

/**
 * All inputs of a model, from those that were given: what text models want besides tokens is filled in (a mask of ones, positions
 * from 0, types of 0, an empty cache). Anything else that is missing, unknown or does not fit is refused.
 */
export function completeInputs(given: OnnxInputs, wanted: readonly OnnxTensor[], optional: ReadonlySet<string>): Record<string, OnnxValue> {
  const names = new Set([...wanted.map((t) => t.name), ...optional])
  for (const name of Object.keys(given)) {
    if (names.has(name)) continue
    const near = nearest(name, names)
    throw new UsageError(
      `The model has no input '${name}'${near ? `; did you mean '${near}'?` : `; its inputs are ${[...names].join(', ')}.`}`,
    )
  }
  const out: Record<string, OnnxValue> = { ...given }
  for (const t of wanted) {
    const value = given[t.name] ?? filled(t, given)
    if (!value)
      throw new UsageError(
        `The model needs a value for its input '${t.name}' (${t.dtype ?? t.other} [${(t.shape ?? []).map((d) => d ?? '?').join(', ')}]).`,
      )
    out[t.name] = value
  }
  check(out, wanted)
  return out
}

/** A value for an input that exports of text models have besides the tokens. */
function filled(t: OnnxTensor, given: OnnxInputs): NDArray | undefined {
  const ids = given.input_ids
  if (!ids || t.dtype === undefined) return undefined
  const [rows, columns] = ids.shape as [number, number]
  const matrix = (value: (b: number, c: number) => number): NDArray => ({
    dtype: t.dtype as NDArray['dtype'],
    shape: [rows, columns],
    data: arrayOf(t.dtype as NDArray['dtype'], rows * columns, (i) => value(Math.floor(i / columns), i % columns)),
  })
  if (t.name === 'attention_mask') return matrix(() => 1)
  if (t.name === 'token_type_ids') return matrix(() => 0)
  if (t.name === 'position_ids') {
    const mask = given.attention_mask as NDArray | undefined
    if (!mask) return matrix((_, c) => c)
    const before = (b: number, c: number) => {
      let n = 0
      for (let i = 0; i < c; i++) n += Number(mask.data[b * columns + i])
      return n
    }
    return matrix(before)
  }
  if (isCache(t.name) && t.shape) {
    const dynamic = t.shape.map((d, i) => (typeof d === 'number' ? d : i === 0 ? rows : 0))
    return { dtype: t.dtype, shape: dynamic, data: arrayOf(t.dtype, sizeOf(dynamic), () => 0) }
  }
  if (t.name === 'use_cache_branch') return { dtype: t.dtype, shape: [1], data: arrayOf(t.dtype, 1, () => 0) }
  return undefined
}

/** An array of a type; half precision is given as its bits. */
export function arrayOf(dtype: NDArray['dtype'], length: number, value: (i: number) => number): TypedArray {
  const make: Partial<Record<NDArray['dtype'], () => TypedArray>> = {
    float32: () => Float32Array.from({ length }, (_, i) => value(i)),
    float64: () => Float64Array.from({ length }, (_, i) => value(i)),
    int64: () => BigInt64Array.from({ length }, (_, i) => BigInt(value(i))),
    int32: () => Int32Array.from({ length }, (_, i) => value(i)),
    bool: () => Uint8Array.from({ length }, (_, i) => value(i)),
    // Only zeros are asked of these.
    float16: () => new Uint16Array(length),
    bfloat16: () => new Uint16Array(length),
  }
  const found = make[dtype]
  if (!found) throw new UsageError(`An input of type ${dtype} must be given; it cannot be filled in.`)
  return found()
}

function check(values: OnnxInputs, wanted: readonly OnnxTensor[]): void {
  const sizes = new Map<string, { size: number; from: string }>()
  for (const t of wanted) {
    const value = values[t.name] as OnnxValue
    const expected = t.dtype ?? t.other
    const said = () => `${expected} [${t.shape?.map((d) => d ?? '?').join(', ')}]`
    const wrong = () => new ShapeError(`The input '${t.name}' must be ${said()}, not ${value.dtype} [${value.shape.join(', ')}].`)
    if (t.other !== 'unknown type' && value.dtype !== expected) throw wrong()
    if (value.data.length !== sizeOf(value.shape)) throw wrong()
    if (!t.shape) continue
    if (t.shape.length !== value.shape.length) throw wrong()
    for (const [i, d] of t.shape.entries()) {
      const size = value.shape[i] as number
      if (typeof d === 'number' && d !== size) throw wrong()
      // A name with an operator in it is a sum or product that only its author can read.
      if (typeof d !== 'string' || !/^[\w.:]+$/.test(d)) continue
      const known = sizes.get(d)
      if (known && known.size !== size)
        throw new ShapeError(`The axis '${d}' is ${known.size} in the input '${known.from}' but ${size} in '${t.name}'.`)
      sizes.set(d, { size, from: t.name })
    }
  }
}

/** The tokens of a pass, where the model is given any: what `where` clauses are told by. */
export function stepOf(values: OnnxInputs, promptLength?: number): OnnxStep | undefined {
  const ids = values.input_ids as NDArray | undefined
  if (ids?.shape.length !== 2 || !/^u?int/.test(ids.dtype)) return undefined
  const mask = values.attention_mask as NDArray | undefined
  const fits = mask && mask.shape.length === 2 && mask.shape.every((d, i) => d === ids.shape[i]) && /^u?int/.test(mask.dtype)
  const batch = batchOfTensors(fits ? { input_ids: ids, attention_mask: mask } : { input_ids: ids })
  return {
    layout: {
      rows: batch.rows,
      start: batch.rows.map(() => 0),
      width: batch.width,
      prompt: batch.rows.map((r) => Math.min(promptLength ?? r.length, r.length)),
    },
    columns: batch.columns,
  }
}
