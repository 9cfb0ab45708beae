/** @file Batches: rows of tokens without padding inside, the caller's layout outside. */

import { UsageError } from '../base/errors.ts'
import { range } from '../base/numbers.ts'
import { type NDArray, sizeOf } from '../base/types.ts'
import type { Architecture, SequenceName, TokenSequence } from '../models/architecture.ts'
import type { Picture } from '../models/image/index.ts'
import { inputNames } from '../models/traced.ts'
import { type SiteInfo, sequenceOf } from '../sites/address.ts'
import type { StepPlaces } from '../sites/prepare.ts'
import type { AxisName } from '../sites/vocabulary.ts'

/** What a model can be run on. */
export type ModelInput =
  | string
  | readonly string[]
  /** Token ids of one row. */
  | { readonly ids: readonly number[] }
  /** Token ids of several rows. */
  | { readonly rows: readonly (readonly number[])[] }
  | ModelTensors
  /** Pictures (PNG or JPEG files, or decoded), with a text for each where the model reads both. */
  | { readonly images: readonly (Uint8Array | Picture)[]; readonly text?: string | readonly string[] }

/** Tensors under their Hugging Face names; each kind of model takes some of them. */
export interface ModelTensors {
  readonly input_ids?: NDArray
  readonly attention_mask?: NDArray
  readonly position_ids?: NDArray
  readonly token_type_ids?: NDArray
  readonly pixel_values?: NDArray
  readonly decoder_input_ids?: NDArray
  readonly decoder_attention_mask?: NDArray
  readonly decoder_position_ids?: NDArray
}

/** Rows of a sequence, and how the caller had laid them out. */
export interface Layout {
  /** Token ids without padding. */
  readonly rows: readonly (readonly number[])[]
  /** Column of the caller's array at which each position stands. */
  readonly columns: readonly (readonly number[])[]
  /** Columns of the caller's array. */
  readonly width: number
  /** Given positions, where they are not simply 0, 1, 2 … */
  readonly positions?: readonly (readonly number[])[]
  /** Kind of each token, where a model knows several; all are of the first kind where absent. */
  readonly types?: readonly (readonly number[])[]
  /** There are no tokens, or they are not known: the run begins with an activation, or the positions are patches of an image. */
  readonly anonymous?: boolean
}

/** What a run is run on: its first sequence, the others by name, and what is fed as it is. */
export interface Batch extends Layout {
  readonly others?: Readonly<Partial<Record<SequenceName, Layout>>>
  readonly tensors?: Readonly<Record<string, NDArray>>
}

/** A batch from rows of ids, padded on the right where they differ in length. */
export function batchOfRows(rows: readonly (readonly number[])[]): Batch {
  return { rows, columns: rows.map((r) => r.map((_, i) => i)), width: Math.max(0, ...rows.map((r) => r.length)) }
}

/** Rows from tensors; masked columns are left out and come back as padding. `names` are those of the tensors, for messages. */
export function batchOfTensors(
  input: {
    input_ids: NDArray
    attention_mask?: NDArray | undefined
    position_ids?: NDArray | undefined
    token_type_ids?: NDArray | undefined
  },
  names: { readonly ids: string; readonly mask: string; readonly positions?: string; readonly types?: string } = {
    ids: 'input_ids',
    mask: 'attention_mask',
    positions: 'position_ids',
  },
): Layout {
  const matrix = (array: NDArray, name: string) => {
    const shape = array.shape.length === 1 ? [1, ...array.shape] : array.shape
    if (shape.length !== 2 || !/^u?int/.test(array.dtype))
      throw new UsageError(`'${name}' must hold integers of shape [batch, pos], not ${array.dtype} [${array.shape.join(', ')}].`)
    const [rows, columns] = shape as [number, number]
    return Array.from({ length: rows }, (_, b) => Array.from({ length: columns }, (_, c) => Number(array.data[b * columns + c])))
  }
  const ids = matrix(input.input_ids, names.ids)
  const width = ids[0]?.length ?? 0
  const same = (m: number[][], name: string) => {
    if (m.length !== ids.length || (m[0]?.length ?? 0) !== width)
      throw new UsageError(`'${name}' has shape [${m.length}, ${m[0]?.length ?? 0}], but '${names.ids}' has [${ids.length}, ${width}].`)
    return m
  }
  const mask = input.attention_mask && same(matrix(input.attention_mask, names.mask), names.mask)
  const columns = ids.map((r, b) => r.map((_, c) => c).filter((c) => mask?.[b]?.[c] !== 0))
  const rows = columns.map((cs, b) => cs.map((c) => ids[b]?.[c] as number))
  const picked = (array: NDArray, name: string) => {
    const given = same(matrix(array, name), name)
    return columns.map((cs, b) => cs.map((c) => given[b]?.[c] as number))
  }
  const positions = input.position_ids && picked(input.position_ids, names.positions ?? 'position_ids')
  const types = input.token_type_ids && picked(input.token_type_ids, names.types ?? 'token_type_ids')
  return {
    rows,
    columns,
    width,
    ...(positions?.some((r) => r.some((p, i) => p !== i)) ? { positions } : {}),
    ...(types ? { types } : {}),
  }
}

/** The layout of one of a batch's sequences. */
export const layoutOf = (batch: Batch, name: SequenceName): Layout => batch.others?.[name] ?? batch

/** Refuses a batch that a model cannot run. */
export function checkInput(batch: Batch, a: Architecture, context: number): void {
  for (const s of a.sequences) if (s.kind === 'tokens') checkBatch(layoutOf(batch, s.name), s.vocab, context)
}

/** Refuses rows of tokens that a model cannot run. */
export function checkBatch(batch: Layout, vocab: number, context: number, room = 0): void {
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

/** Inputs of a traced model for one pass over a batch, and its places by sequence. @param prompt length of the prompt in each row, where it is not the whole. */
export function passOf(
  a: Architecture,
  batch: Batch,
  prompt: readonly number[] = batch.rows.map((r) => r.length),
): { feeds: Record<string, NDArray>; places: StepPlaces } {
  const feeds: Record<string, NDArray> = { ...batch.tensors }
  const places: Partial<Record<SequenceName, StepPlaces[SequenceName]>> = {}
  for (const [i, s] of a.sequences.entries()) {
    const layout = layoutOf(batch, s.name)
    const { rows } = layout
    const start = rows.map(() => 0)
    const step = s.kind === 'tokens' ? sequenceFeeds(s, layout) : { width: s.positions, total: s.positions, feeds: {} }
    Object.assign(feeds, step.feeds)
    places[s.name] = {
      step: { rows, start, width: step.width, prompt: i === 0 ? prompt : rows.map((r) => r.length) },
      caller: layout,
      total: step.total,
    }
  }
  return { feeds, places }
}

/** Inputs of one sequence of tokens, for one pass over all of it. */
function sequenceFeeds(s: TokenSequence, layout: Layout): ReturnType<typeof stepFeeds> {
  const step = stepFeeds(
    layout.rows,
    layout.rows.map(() => 0),
    layout.positions,
    s.inputs,
  )
  if (!s.tensors.types) return step
  const types = new BigInt64Array(layout.rows.length * step.width)
  for (const [b, r] of (layout.types ?? []).entries()) types.set(r.map(BigInt), b * step.width)
  return { ...step, feeds: { ...step.feeds, [s.inputs.types]: { dtype: 'int64', shape: [layout.rows.length, step.width], data: types } } }
}

/** Inputs of a traced model for one step: `fresh` tokens of each row, after `past` tokens that the cache holds. */
export function stepFeeds(
  fresh: readonly (readonly number[])[],
  past: readonly number[],
  positions: readonly (readonly number[])[] | undefined,
  names: TokenSequence['inputs'] = inputNames,
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
      [names.ids]: matrix(ids),
      [names.slots]: matrix(slots),
      [names.positions]: matrix(places),
      [names.lastSlot]: { dtype: 'int32', shape: [batch], data: lastSlot },
      [names.total]: { dtype: 'int32', shape: [], data: Int32Array.of(total) },
      [names.lastIndex]: { dtype: 'int64', shape: [batch], data: lastIndex },
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
  private readonly columns: Layout['columns']
  private readonly source: Layout['columns'] | undefined

  /** @param source columns of the sequence that the axis `source` counts. */
  constructor(
    site: string,
    axes: readonly AxisName[],
    array: NDArray<Float32Array>,
    columns: Layout['columns'],
    source?: Layout['columns'],
  ) {
    this.source = source
    this.site = site
    this.axes = axes
    this.dtype = array.dtype
    this.shape = array.shape
    this.data = array.data
    this.columns = columns
  }

  /** Columns of a row at which an axis holds positions; undefined for axes that count something else. */
  columnsOf(axis: AxisName, row: number): readonly number[] | undefined {
    return (axis === 'source' ? this.source : axis === 'pos' || axis === 'key' ? this.columns : undefined)?.[row]
  }

  /** Number of tokens of each row. */
  get lengths(): number[] {
    return this.columns.map((c) => c.length)
  }

  /** One row without padding: axes as before, without `batch`. */
  row(b: number): NDArray<Float32Array> {
    const columns = this.columns[b]
    if (!columns) throw new UsageError(`'${this.site}' has rows 0 to ${this.columns.length - 1}, not ${b}.`)
    const pick = this.axes.slice(1).map((a, i) => this.columnsOf(a, b) ?? range(this.shape[i + 1] as number))
    const sizes = pick.map((p) => p.length)
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

function stridesOf(shape: readonly number[]): number[] {
  const out = new Array<number>(shape.length).fill(1)
  for (let i = shape.length - 2; i >= 0; i--) out[i] = (out[i + 1] as number) * (shape[i + 1] as number)
  return out
}

/** For each axis of a site that counts positions, the layout of its sequence. */
function layoutsOf(info: SiteInfo, batch: Batch): readonly (Layout | undefined)[] {
  const own = layoutOf(batch, sequenceOf(info))
  return info.row.axes.map((a) => (a === 'source' ? layoutOf(batch, 'source') : a === 'pos' || a === 'key' ? own : undefined))
}

const isWhole = (layout: Layout | undefined) => !layout || layout.rows.every((r) => r.length === layout.width)
const longest = (layout: Layout) => Math.max(...layout.rows.map((r) => r.length))

/** Puts a program's output, rows from the left, into the caller's layout; places without a token hold `fill`. */
export function toCaller(info: SiteInfo, value: NDArray, batch: Batch, fill = info.row.fill ?? 0): Activation {
  const array = value as NDArray<Float32Array>
  const { axes } = info.row
  const layouts = layoutsOf(info, batch)
  const own = layoutOf(batch, sequenceOf(info))
  const made = (a: NDArray<Float32Array>) => new Activation(info.site, axes, a, own.columns, batch.others?.source?.columns)
  const posAxis = axes.indexOf('pos')
  if (layouts.every(isWhole) || (array.shape[posAxis] === 1 && own.width !== 1)) return made(array)
  const shape = array.shape.map((n, i) => layouts[i]?.width ?? n)
  const out = new Float32Array(sizeOf(shape)).fill(fill)
  moveTokens(layouts, { inside: array.shape, outside: shape }, (inside, outside, n) => {
    if (n === 1) out[outside] = array.data[inside] as number
    else out.set(array.data.subarray(inside, inside + n), outside)
  })
  return made({ dtype: array.dtype, shape, data: out })
}

/** Takes a value in the caller's layout to rows from the left, without padding in front; places behind a row's end hold `fill`. */
export function fromCaller(info: SiteInfo, value: NDArray, batch: Batch, fill = info.row.fill ?? 0): NDArray {
  const layouts = layoutsOf(info, batch)
  for (const [i, axis] of info.row.axes.entries()) {
    const wanted = axis === 'batch' ? layoutOf(batch, sequenceOf(info)).rows.length : layouts[i]?.width
    if (wanted !== undefined && wanted !== value.shape[i])
      throw new UsageError(`The value at ${info.site} has ${value.shape[i]} along its axis '${axis}', but the input has ${wanted}.`)
  }
  if (layouts.every(isWhole)) return value
  const shape = value.shape.map((n, i) => (layouts[i] ? longest(layouts[i] as Layout) : n))
  const data = new Float32Array(sizeOf(shape)).fill(fill)
  const source = value.data as Float32Array
  moveTokens(layouts, { inside: shape, outside: value.shape }, (inside, outside, n) => {
    data.set(source.subarray(outside, outside + n), inside)
  })
  return { dtype: 'float32', shape, data }
}

/** Calls `move` with the places of each run of values in an array whose rows begin at the left and in one of the caller's layout. */
function moveTokens(
  layouts: readonly (Layout | undefined)[],
  arrays: { readonly inside: readonly number[]; readonly outside: readonly number[] },
  move: (inside: number, outside: number, count: number) => void,
): void {
  const [from, to] = [stridesOf(arrays.inside), stridesOf(arrays.outside)]
  const last = layouts.findLastIndex((l) => l !== undefined)
  const inner = sizeOf(arrays.inside.slice(last + 1))
  const walk = (b: number, axis: number, inside: number, outside: number): void => {
    if (axis > last) {
      move(inside, outside, inner)
      return
    }
    const columns = layouts[axis]?.columns[b]
    const n = columns?.length ?? (arrays.inside[axis] as number)
    for (let i = 0; i < n; i++)
      walk(b, axis + 1, inside + i * (from[axis] as number), outside + (columns ? (columns[i] as number) : i) * (to[axis] as number))
  }
  const rows = arrays.inside[0] as number
  for (let b = 0; b < rows; b++) walk(b, 1, b * (from[0] as number), b * (to[0] as number))
}
