/** @file Edits made ready for one model: sites resolved, parameters checked against their shapes, inputs computed for each step. */
import { EditError, listed, SiteError } from '../base/errors.ts'
import { type NDArray, sizeOf } from '../base/types.ts'
import type { SequenceName } from '../models/architecture.ts'
import { expertsOf } from '../models/spec.ts'
import { slotName } from '../models/traced.ts'
import type { SiteSpec } from './absent.ts'
import { positionAxis, type SiteInfo, type SiteResolver, sequenceOf } from './address.ts'
import type { OwnEdit, ParamRow } from './edit-ops.ts'
import {
  type ArrayParam,
  checkEdit,
  type DataEdit,
  type Edit,
  type EditContext,
  type FunctionEdit,
  labelOf,
  opRow,
  toArray,
} from './edits.ts'
import { gaussianAt } from './noise.ts'
import type { AxisName } from './vocabulary.ts'
import { callerRow, layerAllowed, maskOf, needsMask, type StepLayout, type When, type Where } from './where.ts'

/** A parameter, aligned with the last axes of its site. */
export interface PreparedParam {
  readonly array: NDArray<Float32Array>
  /** Axes of the site that the array's axes stand for. */
  readonly axes: readonly AxisName[]
  /** It has a value for each position, so that it is laid out anew at each step. */
  readonly positional: boolean
  /** Seed of noise that is drawn for each step. */
  readonly seed?: number
  /** Its numbers are for the first generated token, the second, …; the last one holds on. */
  readonly schedule?: true
  /** It has one value for each row of the caller's batch, the same at all positions. */
  readonly perRow?: true
}

/** An edit at one site. */
export interface PreparedEdit {
  readonly edit: Edit
  /** `add at resid_post.3` */
  readonly label: string
  readonly info: SiteInfo
  readonly params: ReadonlyMap<string, PreparedParam>
  /** A mask over positions is fed. */
  readonly masked: boolean
  readonly when?: { readonly info: SiteInfo; readonly vector: NDArray<Float32Array>; readonly threshold: number; readonly above: boolean }
  /** What it feeds and does, for ops whose parameters are no arrays against the site. */
  readonly own?: OwnEdit
  /** Sites that a function edit reads. */
  readonly reads: readonly SiteInfo[]
  /** Name under which it is fed: `edit.0`. */
  readonly key: string
  /** What of it is part of the compiled program. */
  readonly structure: string
}

/** Length of a named axis in a stack; undefined for those known only at run time. */
export function axisSize(axis: AxisName, spec: SiteSpec): number | undefined {
  const sizes: Readonly<Partial<Record<AxisName, number | undefined>>> = {
    d_model: spec.dModel,
    d_mlp: spec.dMlp,
    d_inner: spec.dMlp,
    d_vocab: spec.vocab,
    d_head: spec.headDim,
    head: spec.heads,
    kv_head: spec.kvHeads,
    one: 1,
  }
  if (axis === 'expert' || axis === 'chosen') return spec.only ? undefined : expertsOf(spec)?.[axis === 'expert' ? 'count' : 'perToken']
  return sizes[axis]
}

const functionIds = new WeakMap<object, number>()
let nextFunctionId = 0
function functionId(f: object): number {
  let id = functionIds.get(f)
  if (id === undefined) {
    id = nextFunctionId++
    functionIds.set(f, id)
  }
  return id
}

/**
 * Resolves edits for a model, in order.
 * @throws EditError, SiteError for what can never fire, does not fit, or does not exist.
 */
export function prepareEdits(edits: readonly Edit[], resolver: SiteResolver): PreparedEdit[] {
  const out: PreparedEdit[] = []
  for (const [i, value] of edits.entries()) {
    const edit = checkEdit(value, i)
    const where = edit.where ?? {}
    const infos = resolver.many(edit.site).filter((info) => layerAllowed(where, info.layer, info.stack.layers))
    if (infos.length === 0)
      throw new EditError(`The edit ${labelOf(edit)} can never fire: its 'where.layers' leaves no layer of '${edit.site}'.`)
    for (const info of infos) out.push(prepareOne(edit, info, where, resolver, out.length))
  }
  return out
}

function prepareOne(given: Edit, info: SiteInfo, clause: Where, resolver: SiteResolver, index: number): PreparedEdit {
  const label = `${given.op} at ${info.site}`
  const { edit, where } = scheduled(given, clause, label)
  const own = edit.op === 'function' ? undefined : ownEdit(edit, info, label)
  const params = edit.op === 'function' || own ? new Map<string, PreparedParam>() : prepareParams(edit, info, label)
  const when = where.when ? prepareWhen(where.when, info, resolver, label) : undefined
  const positional = [...params.values()].some((p) => p.positional && p.seed === undefined && !p.schedule && !p.perRow)
  const masked = needsMask(where) || positional || when !== undefined
  if (where.tokens && sequenceOf(info) === 'image')
    throw new EditError(`The edit ${label} can never fire: its 'where.tokens' names tokens, and an image has none.`)
  if (masked && positionAxis(info.row) < 0) throw new EditError(`The edit ${label} cannot have a 'where' on positions: the site has none.`)
  const reads = edit.op === 'function' ? edit.reads.map((r) => resolver.one(r)) : []
  const axesOf = (p: PreparedParam) => (p.schedule ? '' : p.array.shape.map((n, i) => (n === 1 ? 1 : p.axes[i])).join('x'))
  const shape = [...params].map(([name, p]) => `${name}:${axesOf(p)}`).join(',')
  const id = edit.op === 'function' ? `#${functionId(edit.apply)}(${edit.reads.join()})` : ''
  const structure = `${edit.op}${id}${own?.structure ?? ''}@${info.site}(${shape})${masked ? ' masked' : ''}${when ? ` when ${when.info.site} ${when.above ? '>' : '<'}` : ''}`
  return { edit, label, info, params, masked, ...(when ? { when } : {}), ...(own ? { own } : {}), reads, key: `edit.${index}`, structure }
}

/** A schedule says how strong an edit is at generated tokens, so it acts at those only. */
function scheduled(edit: Edit, where: Where, label: string): { edit: Edit; where: Where } {
  if (edit.op === 'function' || edit.params?.schedule === undefined) return { edit, where }
  if (where.phase === 'prompt')
    throw new EditError(`The edit ${label} can never fire: its schedule is for generated tokens, and its 'where' names the prompt.`)
  const narrowed: Where = { ...where, phase: 'generated' }
  return { edit: { ...edit, where: narrowed }, where: narrowed }
}

function ownEdit(edit: DataEdit, info: SiteInfo, label: string): OwnEdit | undefined {
  const { prepare } = opRow(edit.op)
  if (!prepare) return undefined
  const sizes = info.row.axes.slice(2).map((a) => axisSize(a, info.stack))
  if (info.row.axes[0] !== 'batch' || info.row.axes[1] !== 'pos' || sizes.some((n) => n === undefined))
    throw new EditError(`The edit ${label} needs a site of one value for each position, but its axes are [${info.row.axes.join(', ')}].`)
  return prepare(edit.params ?? {}, { label, site: info.site, sizes: sizes as number[] })
}

function prepareWhen(when: When, edited: SiteInfo, resolver: SiteResolver, label: string) {
  const info = resolver.one(when.site)
  const axes = info.row.axes
  if (axes.length !== 3 || axes[0] !== 'batch' || axes[1] !== 'pos')
    throw new EditError(`The 'where.when' of ${label} must read a site of axes [batch, pos, …], not '${info.site}' [${axes.join(', ')}].`)
  if (sequenceOf(info) !== sequenceOf(edited))
    throw new EditError(`The 'where.when' of ${label} reads '${info.site}', whose positions are not those of '${edited.site}'.`)
  const vector = toArray(when.vector as number[], label)
  const width = axisSize(axes[2] as AxisName, info.stack)
  if (vector.shape.length !== 1 || vector.shape[0] !== width)
    throw new EditError(
      `The vector in 'where.when' of ${label} has shape [${vector.shape.join(', ')}], but '${info.site}' is ${width} wide.`,
    )
  const above = when.above !== undefined
  return { info, vector, threshold: (above ? when.above : when.below) as number, above }
}

function prepareParams(edit: DataEdit, info: SiteInfo, label: string): Map<string, PreparedParam> {
  const row = opRow(edit.op)
  const out = new Map<string, PreparedParam>()
  for (const [name, p] of Object.entries(row.params) as [string, ParamRow][]) {
    const value = (edit.params?.[name] as ArrayParam | undefined) ?? p.otherwise
    if (value === undefined) continue
    if (p.kind === 'seed') {
      if (!Number.isInteger(value)) throw new EditError(`The parameter '${name}' of the edit ${label} must be an integer.`)
      out.set(name, {
        array: { dtype: 'float32', shape: [], data: new Float32Array(1) },
        axes: info.row.axes,
        positional: true,
        seed: value as number,
      })
      continue
    }
    const array = toArray(value, label)
    if (p.kind === 'schedule') {
      if (array.shape.length !== 1 || array.data.length === 0)
        throw new EditError(`The parameter '${name}' of the edit ${label} must be a list of numbers, one for each generated token.`)
      out.set(name, { array, axes: info.row.axes, positional: true, schedule: true })
      continue
    }
    if (p.kind === 'number' && array.data.length !== 1)
      throw new EditError(`The parameter '${name}' of the edit ${label} must be one number, not an array of ${array.data.length}.`)
    const prepared = p.kind === 'number' ? { array: { ...array, shape: [] }, axes: [], positional: false } : align(array, info, name, label)
    if (p.kind === 'vector' && (prepared.positional || array.shape.length === 0))
      throw new EditError(`The parameter '${name}' of the edit ${label} must be a vector, not of shape [${array.shape.join(', ')}].`)
    out.set(name, prepared)
  }
  checkDirections(edit, out, label)
  return out
}

/** Lays an array against the last axes of its site. */
function align(array: NDArray<Float32Array>, info: SiteInfo, name: string, label: string): PreparedParam {
  const { axes } = info.row
  const spec = info.stack
  const wrong = () => {
    const wanted = axes.map((a) => axisSize(a, spec) ?? a).join(', ')
    return new EditError(
      `The parameter '${name}' of the edit ${label} has shape [${array.shape.join(', ')}], which does not fit the site's [${wanted}]; a vector must be ${axisSize(axes.at(-1) as AxisName, spec) ?? 'as'} wide.`,
    )
  }
  let { shape } = array
  const perHead = axes.slice(-2).map((a) => axisSize(a, spec))
  // One flat vector for all heads is what other tools store for z.
  if (
    shape.length === 1 &&
    perHead.length === 2 &&
    axes[2] !== 'pos' &&
    perHead.every((n) => n !== undefined) &&
    shape[0] === (perHead[0] as number) * (perHead[1] as number) &&
    axes.length === 4
  )
    shape = perHead as number[]
  if (shape.length > axes.length) throw wrong()
  const own = axes.slice(axes.length - shape.length)
  let positional = false
  for (const [i, n] of shape.entries()) {
    const size = axisSize(own[i] as AxisName, spec)
    if (size === undefined) positional ||= n !== 1
    else if (n !== 1 && n !== size) throw wrong()
  }
  if (shape.length === 1 && shape[0] === 1 && axisSize(own[0] as AxisName, spec) !== 1) shape = []
  const perRow =
    shape.length === axes.length &&
    axes[0] === 'batch' &&
    shape[0] !== 1 &&
    own.every((a, i) => i === 0 || axisSize(a, spec) || shape[i] === 1)
  return {
    array: { ...array, shape },
    axes: own.slice(own.length - shape.length),
    positional,
    ...(perRow ? { perRow: true as const } : {}),
  }
}

function checkDirections(edit: DataEdit, params: ReadonlyMap<string, PreparedParam>, label: string): void {
  if (!['project_out', 'project_to', 'project_clamp', 'rotate'].includes(edit.op)) return
  for (const [name, p] of params)
    if (p.array.shape.length > 0 && p.array.data.every((v) => v === 0))
      throw new EditError(`The parameter '${name}' of the edit ${label} is a zero vector, which has no direction.`)
  const [a, b] = [params.get('from')?.array.data, params.get('to')?.array.data]
  if (!a || !b) return
  const dot = (x: Float32Array, y: Float32Array) => x.reduce((s, v, i) => s + v * (y[i] as number), 0)
  if (Math.abs(dot(a, b)) >= (1 - 1e-6) * Math.sqrt(dot(a, a) * dot(b, b)))
    throw new EditError(`The vectors 'from' and 'to' of the edit ${label} are parallel, so they span no plane to turn in.`)
}

/** What the caller's rows look like, for parameters that come in the caller's padding. */
export interface CallerLayout {
  /** Column of the caller's array at which position p of row b stands. */
  readonly columns: readonly (readonly number[])[]
}

/** Counts what fired on the host side during a run, by edit key. */
export type FireCounts = Map<string, number>

/** One step over one sequence of a model. */
export interface StepPlace {
  readonly step: StepLayout
  readonly caller?: CallerLayout | undefined
  /** Longest row after this step. */
  readonly total: number
}

/** One step over the sequences of a model, by name. */
export type StepPlaces = Readonly<Partial<Record<SequenceName, StepPlace | undefined>>>

/** Values of an edit's inputs for one step. */
export function feedsOf(e: PreparedEdit, places: StepPlaces, fired: FireCounts): Record<string, NDArray> {
  const place = places[sequenceOf(e.info)] as StepPlace
  const { step } = place
  const feeds: Record<string, NDArray> = {}
  const batch = step.rows.length
  const { mask, fired: count } = e.masked ? maskOf(e.edit.where ?? {}, step) : { mask: undefined, fired: batch * step.width }
  for (const [name, p] of e.params) {
    const input = `${e.key}.${name}`
    if (p.seed !== undefined) feeds[input] = noiseArray(e, p.seed, place, places)
    else if (p.schedule) feeds[input] = scheduleArray(p, e.info, step)
    else if (p.positional) feeds[input] = positionalArray(p, e, place, places, mask as Uint8Array)
    else feeds[input] = p.array
  }
  for (const [name, { array }] of Object.entries(e.own?.inputs ?? {})) feeds[`${e.key}.${name}`] = array
  if (mask) feeds[`${e.key}.mask`] = { dtype: 'bool', shape: [batch, step.width], data: mask }
  if (e.when) {
    feeds[`${e.key}.when`] = e.when.vector
    feeds[`${e.key}.threshold`] = { dtype: 'float32', shape: [], data: Float32Array.of(e.when.threshold) }
  }
  // With a probe's condition the program itself counts.
  if (!e.when) fired.set(e.key, (fired.get(e.key) ?? 0) + (mask ? mask.reduce((a, v) => a + v, 0) : count))
  return feeds
}

/** The error for an edit on which nothing that was asked for depends. */
export const neverFires = (e: PreparedEdit) =>
  new EditError(`The edit ${e.label} can never fire: nothing that was asked for is computed from that site.`)

/** The error for an edit that would fire, but behind all that is read. */
export const changesNothing = (e: PreparedEdit, read: readonly string[]) =>
  new EditError(
    `The edit ${e.label} acts behind all that is read (${listed(read)}), so it would change nothing: read a site that comes after it, leave the logits on, or leave the edit out.`,
  )

/** Splits edits into those that are fed through slots and those that are compiled: a site's edits go through its slot if all of them only add. */
export function splitSlots(
  edits: readonly PreparedEdit[],
  hasSlot: (site: SiteInfo) => boolean,
): { slotted: PreparedEdit[]; compiled: PreparedEdit[] } {
  const adds = (e: PreparedEdit) =>
    e.edit.op === 'add' && !e.when && ![...e.params.values()].some((p) => p.positional && !p.schedule && !p.perRow)
  const barred = new Set(edits.filter((e) => !adds(e) || !hasSlot(e.info)).map((e) => e.info.site))
  return { slotted: edits.filter((e) => !barred.has(e.info.site)), compiled: edits.filter((e) => barred.has(e.info.site)) }
}

/** Values of all slots for one step: zeros where no edit adds anything. */
export function slotFeeds(
  sites: readonly string[],
  slotted: readonly PreparedEdit[],
  step: StepLayout,
  width: number,
  fired: FireCounts,
): Record<string, NDArray> {
  const feeds: Record<string, NDArray> = {}
  const nothing: NDArray = zeros(width)
  for (const site of sites) feeds[slotName(site)] = nothing
  for (const site of new Set(slotted.map((e) => e.info.site))) {
    const own = slotted.filter((e) => e.info.site === site)
    const whole = own.every((e) => !e.masked && !e.params.get('vector')?.perRow)
    const [batch, columns] = whole ? [1, 1] : [step.rows.length, step.width]
    const data = new Float32Array(batch * columns * width)
    for (const e of own) {
      const { mask, fired: count } = e.masked ? maskOf(e.edit.where ?? {}, step) : { mask: undefined, fired: step.rows.length * step.width }
      fired.set(e.key, (fired.get(e.key) ?? 0) + count)
      const vectors = e.params.get('vector') as PreparedParam
      checkRows(vectors, e, step)
      const scale = e.params.get('scale')?.array.data[0] as number
      const schedule = e.params.get('schedule')
      for (let at = 0; at < batch * columns; at++) {
        if (mask && !mask[at]) continue
        const factor = schedule ? scale * scheduledAt(schedule, step, Math.floor(at / columns), at % columns) : scale
        const vector = vectorOf(vectors, step, Math.floor(at / columns), width)
        for (let i = 0; i < width; i++)
          data[at * width + i] = (data[at * width + i] as number) + factor * (vector[vector.length === 1 ? 0 : i] as number)
      }
    }
    feeds[slotName(site)] = { dtype: 'float32', shape: [batch, columns, width], data }
  }
  return feeds
}

const zeroArrays = new Map<number, NDArray>()
function zeros(width: number): NDArray {
  let array = zeroArrays.get(width)
  if (!array) {
    array = { dtype: 'float32', shape: [1, 1, width], data: new Float32Array(width) }
    zeroArrays.set(width, array)
  }
  return array
}

function stepShape({ row, stack }: SiteInfo, { step, total }: StepPlace, places: StepPlaces): number[] {
  const dynamic: Readonly<Partial<Record<AxisName, number | undefined>>> = {
    batch: step.rows.length,
    pos: step.width,
    key: total,
    source: places.source?.total,
  }
  return row.axes.map((a) => dynamic[a] ?? (axisSize(a, stack) as number))
}

/** The vector of a row. */
function vectorOf({ array: { data }, perRow }: PreparedParam, step: StepLayout, b: number, width: number): Float32Array {
  if (!perRow) return data
  const row = callerRow(step, b)
  return data.subarray(row * width, (row + 1) * width)
}

/** Refuses values for another number of rows than the caller's batch has. */
function checkRows({ array: { shape } }: PreparedParam, e: PreparedEdit, step: StepLayout): void {
  const batchAxis = e.info.row.axes.indexOf('batch') - (e.info.row.axes.length - shape.length)
  const given = batchAxis < 0 ? 1 : (shape[batchAxis] as number)
  const rows = step.origin ? Math.max(...step.origin) + 1 : step.rows.length
  // Rows of a generation end one by one, and what was given for them is not read any more.
  const ended = step.origin !== undefined && step.start.some((s) => s > 0)
  if (given !== 1 && (ended ? given < rows : given !== rows))
    throw new EditError(`The edit ${e.label} has values for ${given} rows, but the batch has ${rows}.`)
}

/** The factor of a schedule at a column of a row: 0 in the prompt. */
function scheduledAt({ array: { data } }: PreparedParam, step: StepLayout, b: number, column: number): number {
  const written = (step.start[b] as number) + column - (step.prompt[b] as number)
  return written < 0 ? 0 : (data[Math.min(written, data.length - 1)] as number)
}

/** A schedule for one step, [batch, pos, 1, …] as the axes of the site. */
function scheduleArray(p: PreparedParam, info: SiteInfo, step: StepLayout): NDArray {
  const { axes } = info.row
  if (axes[0] !== 'batch' || positionAxis(info.row) !== 1)
    throw new SiteError(`A schedule needs a site of axes [batch, pos, …], but those of '${info.site}' are [${axes.join(', ')}].`)
  const batch = step.rows.length
  const data = Float32Array.from({ length: batch * step.width }, (_, i) => scheduledAt(p, step, Math.floor(i / step.width), i % step.width))
  return { dtype: 'float32', shape: [batch, step.width, ...axes.slice(2).map(() => 1)], data }
}

function noiseArray(e: PreparedEdit, seed: number, place: StepPlace, places: StepPlaces): NDArray {
  const { step } = place
  if (positionAxis(e.info.row) !== 1) throw new SiteError(`The edit ${e.label} is not defined: noise needs a site of axes [batch, pos, …].`)
  const shape = stepShape(e.info, place, places)
  const width = sizeOf(shape.slice(2))
  const data = new Float32Array(sizeOf(shape))
  for (let b = 0; b < step.rows.length; b++)
    for (let c = 0; c < step.width; c++) {
      const position = (step.start[b] as number) + c
      for (let i = 0; i < width; i++)
        data[(b * step.width + c) * width + i] = gaussianAt(seed, e.info.site, callerRow(step, b), position, i)
    }
  return { dtype: 'float32', shape, data }
}

/** Lays a recorded array out for one step; positions beyond the record are taken out of the mask. */
function positionalArray(p: PreparedParam, e: PreparedEdit, place: StepPlace, places: StepPlaces, mask: Uint8Array): NDArray {
  const { shape: from, data: source } = p.array
  const { axes } = e.info.row
  const { step } = place
  const shape = stepShape(e.info, place, places)
  const own = positionAxis(e.info.row)
  const data = new Float32Array(sizeOf(shape))
  const missing = axes.length - from.length
  const size = (i: number) => (i < missing ? 1 : (from[i - missing] as number))
  const batchAxis = axes.indexOf('batch')
  checkRows(p, e, step)
  const column = ({ caller }: StepPlace, b: number, position: number, length: number) => {
    const c =
      caller && length === (caller.columns[b]?.length ?? -1) + padding(caller, b, length) ? (caller.columns[b]?.[position] ?? -1) : position
    return c < length ? c : -1
  }
  const index = new Array<number>(axes.length).fill(0)
  for (let flat = 0; flat < data.length; flat++) {
    let offset = 0
    let inside = true
    for (const [i, axis] of axes.entries()) {
      const n = size(i)
      let at = n === 1 ? 0 : (index[i] as number)
      const b = callerRow(step, index[batchAxis] as number)
      if (n !== 1 && i === batchAxis) at = b
      if (n !== 1 && i === own) at = column(place, b, (step.start[index[batchAxis] as number] as number) + (index[i] as number), n)
      else if (n !== 1 && axis === 'key') at = column(place, b, index[i] as number, n)
      else if (n !== 1 && axis === 'source') at = column(places.source as StepPlace, b, index[i] as number, n)
      if (at < 0) {
        inside = false
        if (i === own) mask[(index[batchAxis] as number) * step.width + (index[i] as number)] = 0
        break
      }
      offset = offset * n + at
    }
    if (inside) data[flat] = source[offset] as number
    for (let i = axes.length - 1; i >= 0; i--) {
      index[i] = (index[i] as number) + 1
      if ((index[i] as number) < (shape[i] as number)) break
      index[i] = 0
    }
  }
  return { dtype: 'float32', shape, data }
}

/** Columns of the caller's row that hold no token, when the record is as wide as the caller's batch. */
function padding(caller: CallerLayout, row: number, width: number): number {
  return width - (caller.columns[row]?.length ?? 0)
}

/** Whether an edit is a function. */
export const isFunction = (e: Edit): e is FunctionEdit => e.op === 'function'
export type { EditContext }
