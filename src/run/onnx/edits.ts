/** @file Edits at tensors of an ONNX file: checked, traced by the same table of ops as elsewhere, and spliced into the file's graph. */
import { EditError, UsageError } from '../../base/errors.ts'
import { type NDArray, sizeOf } from '../../base/types.ts'
import type { OwnEdit, ParamRow } from '../../sites/edit-ops.ts'
import { type ArrayParam, checkEdit, type DataEdit, type Edit, labelOf, opRow, toArray } from '../../sites/edits.ts'
import { gaussianAt } from '../../sites/noise.ts'
import { layerAllowed, maskOf, needsMask, type StepLayout } from '../../sites/where.ts'
import {
  and,
  cast,
  type Dim,
  greater,
  input,
  less,
  mul,
  type Splice,
  type SpliceRequest,
  splice,
  squeeze,
  sum,
  type Tensor,
  unsqueeze,
  where,
} from '../../tensor/index.ts'
import { isFloat, type OnnxSite, type OnnxSites } from './sites.ts'

/** An edit at one tensor. */
export interface OnnxEdit {
  readonly edit: Edit
  readonly label: string
  readonly at: OnnxSite
  readonly params: ReadonlyMap<string, NDArray<Float32Array>>
  /** What it feeds and does, for ops whose parameters are no arrays against the tensor. */
  readonly own?: OwnEdit
  /** Seed of noise, which is drawn for each run. */
  readonly seed?: number
  readonly masked: boolean
  readonly when?: { readonly at: OnnxSite; readonly vector: NDArray<Float32Array>; readonly threshold: number; readonly above: boolean }
  readonly reads: readonly OnnxSite[]
  /** Name under which it is fed. */
  readonly key: string
  /** What of it is part of the compiled program. */
  readonly structure: string
}

/** Positions of the tokens of a pass, in the arrays that the model was given. */
export interface OnnxStep {
  readonly layout: StepLayout
  /** Column of each position of this step, by row. */
  readonly columns: readonly (readonly number[])[]
}

const functionIds = new WeakMap<object, number>()
let nextFunctionId = 0
function functionId(f: object): number {
  const id = functionIds.get(f) ?? nextFunctionId++
  functionIds.set(f, id)
  return id
}

/**
 * Resolves edits for a file, in order.
 * @throws EditError, SiteError for what can never fire, does not fit, or does not exist.
 */
export function prepareOnnxEdits(edits: readonly Edit[], sites: OnnxSites, layers: number): OnnxEdit[] {
  const out: OnnxEdit[] = []
  for (const [i, value] of edits.entries()) {
    const edit = checkEdit(value, i)
    const clause = edit.where ?? {}
    const found = sites.many(edit.site).filter((s) => layerAllowed(clause, s.layer, layers))
    if (found.length === 0)
      throw new EditError(`The edit ${labelOf(edit)} can never fire: its 'where.layers' leaves no layer of '${edit.site}'.`)
    for (const at of found) out.push(prepareOne(edit, at, sites, out.length))
  }
  return out
}

function prepareOne(edit: Edit, at: OnnxSite, sites: OnnxSites, index: number): OnnxEdit {
  const label = `${edit.op} at ${at.site}`
  if (!isFloat(at))
    throw new EditError(
      `The edit ${label} changes numbers, but this tensor is ${at.tensor.dtype ?? at.tensor.other}; edit a floating-point one.`,
    )
  const clause = edit.where ?? {}
  const params = new Map<string, NDArray<Float32Array>>()
  let seed: number | undefined
  const own = edit.op === 'function' ? undefined : ownEdit(edit, at, label)
  if (edit.op !== 'function' && !own)
    for (const [name, p] of Object.entries(opRow(edit.op).params) as [string, ParamRow][]) {
      const value = (edit.params?.[name] as ArrayParam | undefined) ?? p.otherwise
      if (value === undefined) continue
      if (p.kind === 'seed') {
        if (!Number.isInteger(value)) throw new EditError(`The parameter '${name}' of the edit ${label} must be an integer.`)
        seed = value as number
        continue
      }
      params.set(name, fitting(toArray(value, label), p, name, at, label))
    }
  const masked = needsMask(clause) || clause.when !== undefined
  if (masked && !(at.axes?.[0] === 'batch' && at.axes.includes('pos')))
    throw new EditError(
      `The edit ${label} cannot have a 'where' on rows, positions or tokens, since ${at.axes ? `its axes are [${at.axes.join(', ')}]` : 'which of its axes these are is not known'}; leave 'where' out, or edit a canonical site.`,
    )
  const when = clause.when && prepareWhen(clause.when, sites, label)
  const reads = edit.op === 'function' ? edit.reads.map((r) => sites.one(r)) : []
  const shapes = [...params].map(([name, p]) => `${name}:${p.shape.map((n) => (n === 1 ? 1 : 'n')).join('x')}`).join(',')
  const id = edit.op === 'function' ? `#${functionId(edit.apply)}(${edit.reads.join()})` : ''
  const structure = `${edit.op}${id}${own?.structure ?? ''}@${at.tensor.name}(${shapes})${masked ? ' masked' : ''}${when ? ` when ${when.at.tensor.name} ${when.above ? '>' : '<'}` : ''}`
  return {
    edit,
    label,
    at,
    params,
    ...(own ? { own } : {}),
    ...(seed === undefined ? {} : { seed }),
    masked,
    ...(when ? { when } : {}),
    reads,
    key: `edit.${index}`,
    structure,
  }
}

function ownEdit(edit: DataEdit, at: OnnxSite, label: string): OwnEdit | undefined {
  const { prepare } = opRow(edit.op)
  if (!prepare) return undefined
  const sizes = at.tensor.shape?.slice(2) ?? []
  if (sizes.length === 0 || sizes.some((n) => typeof n !== 'number'))
    throw new EditError(`The edit ${label} needs a tensor of axes [batch, pos, …] whose last ones have known lengths.`)
  return prepare(edit.params ?? {}, { label, site: at.site, sizes: sizes as number[] })
}

function prepareWhen(clause: NonNullable<NonNullable<Edit['where']>['when']>, sites: OnnxSites, label: string) {
  const at = sites.one(clause.site)
  if (at.axes?.length !== 3 || at.axes[0] !== 'batch' || at.axes[1] !== 'pos')
    throw new EditError(`The 'where.when' of ${label} must read a site of axes [batch, pos, …], not '${at.site}'.`)
  const vector = toArray(clause.vector as number[], label)
  const width = at.tensor.shape?.[2]
  if (vector.shape.length !== 1 || (typeof width === 'number' && vector.shape[0] !== width))
    throw new EditError(`The vector in 'where.when' of ${label} has shape [${vector.shape.join(', ')}], but '${at.site}' is ${width} wide.`)
  const above = clause.above !== undefined
  return { at, vector, threshold: (above ? clause.above : clause.below) as number, above }
}

/** Refuses a parameter that cannot be laid against its tensor. */
function fitting(array: NDArray<Float32Array>, p: ParamRow, name: string, at: OnnxSite, label: string): NDArray<Float32Array> {
  const { shape } = at.tensor
  const wrong = () =>
    new EditError(
      `The parameter '${name}' of the edit ${label} has shape [${array.shape.join(', ')}], which does not fit the tensor's [${shape?.map((d) => d ?? '?').join(', ')}].`,
    )
  if (p.kind === 'number') {
    if (array.data.length !== 1)
      throw new EditError(`The parameter '${name}' of the edit ${label} must be one number, not ${array.data.length}.`)
    return { ...array, shape: [] }
  }
  if (p.kind === 'vector') {
    if (array.shape.length === 0) throw new EditError(`The parameter '${name}' of the edit ${label} must be a vector, not a number.`)
    if (array.data.every((v) => v === 0) && name !== 'mean')
      throw new EditError(`The parameter '${name}' of the edit ${label} is a zero vector, which has no direction.`)
  }
  if (shape) {
    if (array.shape.length > shape.length) throw wrong()
    for (const [i, n] of array.shape.entries()) {
      const own = shape[shape.length - array.shape.length + i]
      if (n !== 1 && typeof own === 'number' && own !== n) throw wrong()
    }
  }
  return array
}

/** The tensors of all edits' places and what they read, which must have a known rank before they can be traced. */
export const tracedSites = (edits: readonly OnnxEdit[]) => edits.flatMap((e) => [e.at, ...(e.when ? [e.when.at] : []), ...e.reads])

/** Ranks that were learnt by running, for tensors of which the file does not say them. */
export type Ranks = ReadonlyMap<string, number>

/** Splices for a list of edits, one for each tensor: edits at one tensor act in order. */
export function splicesOf(edits: readonly OnnxEdit[], opset: number, ranks: Ranks): Splice[] {
  const places = [...new Set(edits.map((e) => e.at.tensor.name))]
  return places.map((tensor) => {
    const own = edits.filter((e) => e.at.tensor.name === tensor)
    const traced = traceEdits(own, (site) => standIn(site, ranks))
    return splice({ tensor, ...traced, prefix: (own[0] as OnnxEdit).key, label: own.map((e) => e.label).join(', ') }, opset)
  })
}

const readName = (tensor: string) => `read:${tensor}`

/** The traced input that stands for a tensor of the file. */
function standIn(site: OnnxSite, ranks: Ranks): Tensor {
  const { name, dtype } = site.tensor
  return input(readName(name), dtype ?? 'float32', dimsOf(site, ranks))
}

/** Axes for tracing: lengths where the file says them, else a name for each. */
function dimsOf(site: OnnxSite, ranks: Ranks): Dim[] {
  const { shape, name } = site.tensor
  const rank = shape?.length ?? site.axes?.length ?? ranks.get(name)
  if (rank === undefined) throw new EditError(`The rank of '${site.site}' is not known before it runs; run the model once, then edit it.`)
  return Array.from({ length: rank }, (_, i) => {
    const d = shape?.[i]
    return typeof d === 'number' ? d : (site.axes?.[i] ?? `${name}:${i}`)
  })
}

/** The value of one tensor after its edits, traced. */
export function traceEdits(
  own: readonly OnnxEdit[],
  tensorOf: (site: OnnxSite) => Tensor,
): Pick<SpliceRequest, 'reads' | 'own' | 'result' | 'extra'> {
  const first = own[0] as OnnxEdit
  const reads = new Map<string, string>()
  const traced = new Map<string, Tensor>()
  const read = (site: OnnxSite): Tensor => {
    const { name } = site.tensor
    const t = traced.get(name) ?? tensorOf(site)
    traced.set(name, t)
    reads.set(readName(name), name)
    return t
  }
  let value = read(first.at)
  const extra: Record<string, Tensor> = {}
  for (const e of own) {
    value = traceOne(e, value, (site) => (site.tensor.name === first.at.tensor.name ? value : read(site)), extra)
    if (value.rank !== (traced.get(first.at.tensor.name) as Tensor).rank || value.dtype !== first.at.tensor.dtype)
      throw new EditError(`The edit ${e.label} must return a tensor of the same shape and type.`)
  }
  return { reads, own: readName(first.at.tensor.name), result: value, extra }
}

function traceOne(e: OnnxEdit, value: Tensor, read: (site: OnnxSite) => Tensor, extra: Record<string, Tensor>): Tensor {
  const { edit, at, when, key } = e
  const wide = cast(value, 'float32')
  const edited =
    edit.op === 'function'
      ? edit.apply(wide, {
          site: at.site,
          ...(at.layer === undefined ? {} : { layer: at.layer }),
          read: (name) => {
            const site = e.reads.find((r) => r.site === name)
            if (!site) throw new EditError(`The edit ${e.label} reads '${name}' without saying so; name it in 'reads'.`)
            return cast(read(site), 'float32')
          },
        })
      : (e.own?.apply ?? (opRow(edit.op).apply as NonNullable<OwnEdit['apply']>))(wide, paramInputs(e, value))
  const back = cast(edited, value.dtype)
  if (!e.masked) return back
  const axes = at.axes as readonly string[]
  const pos = axes.indexOf('pos')
  let mask = input(`${key}.mask`, 'bool', [value.shape[0] as Dim, value.shape[pos] as Dim])
  if (when) {
    const along = squeeze(sum(mul(cast(read(when.at), 'float32'), input(`${key}.when`, 'float32', when.vector.shape)), [-1], true), 2)
    const threshold = input(`${key}.threshold`, 'float32', [])
    mask = and(mask, when.above ? greater(along, threshold) : less(along, threshold))
    extra[firedName(e)] = sum(cast(mask, 'float32'))
  }
  let laid = mask
  for (let i = 1; i < pos; i++) laid = unsqueeze(laid, i)
  for (let i = pos + 1; i < axes.length; i++) laid = unsqueeze(laid, i)
  return where(laid, back, value)
}

/** The name under which the places where an edit's condition held are counted. */
export const firedName = (e: OnnxEdit) => `${e.key}.fired`

function paramInputs(e: OnnxEdit, value: Tensor): Record<string, Tensor> {
  const out: Record<string, Tensor> = {}
  for (const [name, p] of e.params) {
    const shape = p.shape.map((n, i) => (n === 1 ? 1 : (value.shape[value.rank - p.shape.length + i] as Dim)))
    out[name] = input(`${e.key}.${name}`, 'float32', shape)
  }
  for (const [name, own] of Object.entries(e.own?.inputs ?? {}))
    out[name] = input(
      `${e.key}.${name}`,
      own.array.dtype,
      // Two edits of one kind may differ in these lengths.
      own.shape.map((d) => (typeof d === 'string' ? `${e.key}.${d}` : d)),
    )
  if (e.seed !== undefined) out.seed = input(`${e.key}.seed`, 'float32', value.shape)
  return out
}

/** How often edits fired, by key. */
export type Fired = Map<string, number>

/** Values of an edit's inputs for one pass. `shapeOf` tells the shape of a tensor in this pass, for noise. */
export function editFeeds(
  e: OnnxEdit,
  step: OnnxStep | undefined,
  shape: readonly number[] | undefined,
  fired: Fired,
): Record<string, NDArray> {
  const feeds: Record<string, NDArray> = {}
  for (const [name, p] of e.params) feeds[`${e.key}.${name}`] = p
  for (const [name, { array }] of Object.entries(e.own?.inputs ?? {})) feeds[`${e.key}.${name}`] = array
  if (e.seed !== undefined) feeds[`${e.key}.seed`] = noiseArray(e, e.seed, shape as readonly number[], step)
  if (!e.masked) {
    fired.set(e.key, (fired.get(e.key) ?? 0) + 1)
    return feeds
  }
  if (!step)
    throw new UsageError(
      `The edit ${e.label} has a 'where' on tokens, but the model was given no 'input_ids' from which to tell them; leave 'where' out.`,
    )
  const { mask, fired: count } = maskOf(e.edit.where ?? {}, step.layout)
  const { width } = step.layout
  const laid = new Uint8Array(mask.length)
  for (const [b, columns] of step.columns.entries())
    for (const [c, column] of columns.entries()) laid[b * width + column] = mask[b * width + c] as number
  feeds[`${e.key}.mask`] = { dtype: 'bool', shape: [step.columns.length, width], data: laid }
  if (e.when) {
    feeds[`${e.key}.when`] = e.when.vector
    feeds[`${e.key}.threshold`] = { dtype: 'float32', shape: [], data: Float32Array.of(e.when.threshold) }
  } else fired.set(e.key, (fired.get(e.key) ?? 0) + count)
  return feeds
}

/** Noise of a tensor: the same for a token whatever the padding where its axes are known, else by its place in the array. */
function noiseArray(e: OnnxEdit, seed: number, shape: readonly number[], step: OnnxStep | undefined): NDArray {
  const data = new Float32Array(sizeOf(shape))
  if (step && e.at.axes?.[0] === 'batch' && e.at.axes[1] === 'pos') {
    const width = sizeOf(shape.slice(2))
    for (const [b, columns] of step.columns.entries())
      for (const [c, column] of columns.entries())
        for (let i = 0; i < width; i++)
          data[(b * (shape[1] as number) + column) * width + i] = gaussianAt(seed, e.at.site, b, (step.layout.start[b] as number) + c, i)
  } else for (let i = 0; i < data.length; i++) data[i] = gaussianAt(seed, e.at.site, 0, 0, i)
  return { dtype: 'float32', shape, data }
}
