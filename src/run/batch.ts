/** @file Batches: rows of tokens without padding inside, the caller's layout outside. */
import { UsageError } from '../base/errors.ts'
import { type NDArray, sizeOf } from '../base/types.ts'
import { inputNames } from '../models/traced.ts'
import type { AxisName, SiteRow } from '../sites/vocabulary.ts'

/** What a model can be run on. */
export type ModelInput =
  | string
  | readonly string[]
  /** Token ids of one row. */
  | { readonly ids: readonly number[] }
  /** Token ids of several rows. */
  | { readonly rows: readonly (readonly number[])[] }
  /** Tensors under their Hugging Face names. */
  | { readonly input_ids: NDArray; readonly attention_mask?: NDArray; readonly position_ids?: NDArray }

/** Rows of tokens, and how the caller had laid them out. */
export interface Batch {
  /** Token ids without padding. */
  readonly rows: readonly (readonly number[])[]
  /** Column of the caller's array at which each position stands. */
  readonly columns: readonly (readonly number[])[]
  /** Columns of the caller's array. */
  readonly width: number
  /** Given positions, where they are not simply 0, 1, 2 … */
  readonly positions?: readonly (readonly number[])[]
  /** The tokens are not known: the run begins with an activation. */
  readonly anonymous?: boolean
}

/** A batch from rows of ids, padded on the right where they differ in length. */
export function batchOfRows(rows: readonly (readonly number[])[]): Batch {
  return { rows, columns: rows.map((r) => r.map((_, i) => i)), width: Math.max(0, ...rows.map((r) => r.length)) }
}

/** A batch from tensors; masked columns are left out of the rows and come back as padding. */
export function batchOfTensors(input: { input_ids: NDArray; attention_mask?: NDArray; position_ids?: NDArray }): Batch {
  const matrix = (array: NDArray, name: string) => {
    const shape = array.shape.length === 1 ? [1, ...array.shape] : array.shape
    if (shape.length !== 2 || !/^u?int/.test(array.dtype))
      throw new UsageError(`'${name}' must hold integers of shape [batch, pos], not ${array.dtype} [${array.shape.join(', ')}].`)
    const [rows, columns] = shape as [number, number]
    return Array.from({ length: rows }, (_, b) => Array.from({ length: columns }, (_, c) => Number(array.data[b * columns + c])))
  }
  const ids = matrix(input.input_ids, 'input_ids')
  const width = ids[0]?.length ?? 0
  const same = (m: number[][], name: string) => {
    if (m.length !== ids.length || (m[0]?.length ?? 0) !== width)
      throw new UsageError(`'${name}' has shape [${m.length}, ${m[0]?.length ?? 0}], but 'input_ids' has [${ids.length}, ${width}].`)
    return m
  }
  const mask = input.attention_mask && same(matrix(input.attention_mask, 'attention_mask'), 'attention_mask')
  const columns = ids.map((r, b) => r.map((_, c) => c).filter((c) => mask?.[b]?.[c] !== 0))
  const rows = columns.map((cs, b) => cs.map((c) => ids[b]?.[c] as number))
  if (!input.position_ids) return { rows, columns, width }
  const given = same(matrix(input.position_ids, 'position_ids'), 'position_ids')
  const positions = columns.map((cs, b) => cs.map((c) => given[b]?.[c] as number))
  return positions.every((r) => r.every((p, i) => p === i)) ? { rows, columns, width } : { rows, columns, width, positions }
}

/** Refuses a batch that a model cannot run. */
export function checkBatch(batch: Batch, vocab: number, context: number, room = 0): void {
  if (batch.rows.length === 0) throw new UsageError('The batch is empty; give at least one text.')
  for (const [b, row] of batch.rows.entries()) {
    const which = batch.rows.length === 1 ? 'The prompt' : `Row ${b} of the batch`
    if (row.length === 0) throw new UsageError(`${which} holds no token; give at least one.`)
    if (row.length + room > context)
      throw new UsageError(
        `${which} has ${row.length} tokens${room > 0 ? ` and ${room} are to be generated` : ''}, but the context holds ${context}; shorten it, or load the model with a larger contextLength if it was made for more.`,
      )
    for (const id of row)
      if (!Number.isInteger(id) || id < 0 || id >= vocab)
        throw new UsageError(`${which} holds the token ${id}, but the vocabulary has ids 0 to ${vocab - 1}.`)
  }
}

/** Inputs of a traced model for one step: `fresh` tokens of each row, after `past` tokens that the cache holds. */
export function stepFeeds(
  fresh: readonly (readonly number[])[],
  past: readonly number[],
  positions: readonly (readonly number[])[] | undefined,
): { feeds: Record<string, NDArray>; width: number; total: number } {
  const batch = fresh.length
  const width = Math.max(...fresh.map((r) => r.length))
  const ids = new BigInt64Array(batch * width)
  const slots = new BigInt64Array(batch * width)
  const places = new BigInt64Array(batch * width)
  const lastSlot = new Int32Array(batch)
  const lastIndex = new BigInt64Array(batch)
  let total = 0
  for (const [b, row] of fresh.entries()) {
    const before = past[b] as number
    for (let c = 0; c < width; c++) {
      ids[b * width + c] = BigInt(row[c] ?? 0)
      slots[b * width + c] = BigInt(before + c)
      places[b * width + c] = BigInt(c < row.length ? (positions?.[b]?.[c] ?? before + c) : 0)
    }
    lastSlot[b] = before + row.length - 1
    lastIndex[b] = BigInt(row.length - 1)
    total = Math.max(total, before + row.length)
  }
  const matrix = (data: BigInt64Array): NDArray => ({ dtype: 'int64', shape: [batch, width], data })
  return {
    feeds: {
      [inputNames.ids]: matrix(ids),
      [inputNames.slots]: matrix(slots),
      [inputNames.positions]: matrix(places),
      [inputNames.lastSlot]: { dtype: 'int32', shape: [batch], data: lastSlot },
      [inputNames.total]: { dtype: 'int32', shape: [], data: Int32Array.of(total) },
      [inputNames.lastIndex]: { dtype: 'int64', shape: [batch], data: lastIndex },
    },
    width,
    total,
  }
}

/** A value of a site over a batch, in the caller's layout; places without a token hold the fill value, never data. */
export class Activation {
  readonly site: string
  readonly axes: readonly AxisName[]
  readonly dtype: NDArray['dtype']
  readonly shape: readonly number[]
  readonly data: Float32Array
  private readonly columns: Batch['columns']

  constructor(site: string, axes: readonly AxisName[], array: NDArray<Float32Array>, columns: Batch['columns']) {
    this.site = site
    this.axes = axes
    this.dtype = array.dtype
    this.shape = array.shape
    this.data = array.data
    this.columns = columns
  }

  /** Number of tokens of each row. */
  get lengths(): number[] {
    return this.columns.map((c) => c.length)
  }

  /** One row without padding: axes as before, without `batch`. */
  row(b: number): NDArray<Float32Array> {
    const columns = this.columns[b]
    if (!columns) throw new UsageError(`'${this.site}' has rows 0 to ${this.columns.length - 1}, not ${b}.`)
    const sizes = this.axes.map((a, i) => (a === 'pos' || a === 'key' ? columns.length : (this.shape[i] as number))).slice(1)
    const pick = this.axes.slice(1).map((a, i) => (a === 'pos' || a === 'key' ? columns : range(sizes[i] as number)))
    const out = new Float32Array(sizes.reduce((p, n) => p * n, 1))
    const strides = stridesOf(this.shape)
    let n = 0
    const walk = (axis: number, offset: number): void => {
      if (axis === pick.length) {
        out[n++] = this.data[offset] as number
        return
      }
      for (const i of pick[axis] as readonly number[]) walk(axis + 1, offset + i * (strides[axis + 1] as number))
    }
    walk(0, b * (strides[0] as number))
    return { dtype: 'float32', shape: sizes, data: out }
  }

  /** The vector of one position of one row: `at(0, -1)` is the last token of the first row. Negative positions count from the end of the unpadded row. */
  at(row: number, position: number): Float32Array {
    if (this.axes[1] !== 'pos') throw new UsageError(`'${this.site}' has axes [${this.axes.join(', ')}]; use row(${row}) and index it.`)
    const columns = this.columns[row]
    const column = columns?.[position < 0 ? position + columns.length : position]
    if (column === undefined)
      throw new UsageError(`'${this.site}' has no position ${position} in row ${row}, which has ${columns?.length ?? 0} tokens.`)
    const width = this.shape.slice(2).reduce((p, n) => p * n, 1)
    const start = (row * (this.shape[1] as number) + column) * width
    return this.data.slice(start, start + width)
  }
}

const range = (n: number) => Array.from({ length: n }, (_, i) => i)

function stridesOf(shape: readonly number[]): number[] {
  const out = new Array<number>(shape.length).fill(1)
  for (let i = shape.length - 2; i >= 0; i--) out[i] = (out[i + 1] as number) * (shape[i + 1] as number)
  return out
}

/** Puts a program's output, rows from the left, into the caller's layout. */
export function toCaller(site: string, row: SiteRow, value: NDArray, batch: Batch): Activation {
  const array = value as NDArray<Float32Array>
  const posAxis = row.axes.indexOf('pos')
  const whole = batch.rows.every((r) => r.length === batch.width)
  if (whole || (array.shape[posAxis] === 1 && batch.width !== 1)) return new Activation(site, row.axes, array, batch.columns)
  const shape = array.shape.map((n, i) => (row.axes[i] === 'pos' || row.axes[i] === 'key' ? batch.width : n))
  const out = new Float32Array(sizeOf(shape)).fill(row.fill ?? 0)
  moveTokens(row, batch, { inside: array, outside: shape }, (inside, outside, n) => {
    if (n === 1) out[outside] = array.data[inside] as number
    else out.set(array.data.subarray(inside, inside + n), outside)
  })
  return new Activation(site, row.axes, { dtype: array.dtype, shape, data: out }, batch.columns)
}

/** Takes a value in the caller's layout to rows from the left, without padding in front. */
export function fromCaller(site: string, row: SiteRow, value: NDArray, batch: Batch): NDArray {
  const width = Math.max(...batch.rows.map((r) => r.length))
  const of: Readonly<Partial<Record<AxisName, readonly [number, number]>>> = {
    batch: [batch.rows.length, batch.rows.length],
    pos: [batch.width, width],
    key: [batch.width, width],
  }
  for (const [i, axis] of row.axes.entries()) {
    const wanted = of[axis]?.[0]
    if (wanted !== undefined && wanted !== value.shape[i])
      throw new UsageError(`The value at ${site} has ${value.shape[i]} along its axis '${axis}', but the input has ${wanted}.`)
  }
  if (batch.rows.every((r) => r.length === batch.width)) return value
  const shape = value.shape.map((n, i) => of[row.axes[i] as AxisName]?.[1] ?? n)
  const data = new Float32Array(sizeOf(shape)).fill(row.fill ?? 0)
  const source = value.data as Float32Array
  moveTokens(row, batch, { inside: { shape }, outside: value.shape }, (inside, outside, n) => {
    data.set(source.subarray(outside, outside + n), inside)
  })
  return { dtype: 'float32', shape, data }
}

/** Calls `move` with the places of each run of values in an array whose rows begin at the left and in one of the caller's layout. */
function moveTokens(
  row: SiteRow,
  batch: Batch,
  arrays: { readonly inside: { readonly shape: readonly number[] }; readonly outside: readonly number[] },
  move: (inside: number, outside: number, count: number) => void,
): void {
  const { shape } = arrays.inside
  const [from, to] = [stridesOf(shape), stridesOf(arrays.outside)]
  const posAxis = row.axes.indexOf('pos')
  const keyed = row.axes.includes('key')
  const inner = keyed ? 1 : sizeOf(shape.slice(posAxis + 1))
  const walk = (b: number, axis: number, inside: number, outside: number): void => {
    if (axis === (keyed ? shape.length : posAxis + 1)) {
      move(inside, outside, inner)
      return
    }
    const columns = batch.columns[b] as readonly number[]
    const moved = row.axes[axis] === 'pos' || row.axes[axis] === 'key'
    const n = moved ? columns.length : (shape[axis] as number)
    for (let i = 0; i < n; i++)
      walk(b, axis + 1, inside + i * (from[axis] as number), outside + (moved ? (columns[i] as number) : i) * (to[axis] as number))
  }
  for (let b = 0; b < batch.rows.length; b++) walk(b, 1, b * (from[0] as number), b * (to[0] as number))
}
