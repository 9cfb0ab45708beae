/** @file Edits: what to change, as plain data with a constructor for each op, and the general form on traced tensors. */
import { EditError, nearest } from '../base/errors.ts'
import type { NDArray, TypedArray } from '../base/types.ts'
import { isSaeWeights, type SaeWeights } from '../models/sae/weights.ts'
import type { Tensor } from '../tensor/index.ts'
import { type EditOpName, type EditOpRow, editOps, type ParamRow } from './edit-ops.ts'
import { checkWhere, type Where } from './where.ts'

/** Nested numbers, as JSON holds them. */
export type Nested = number | readonly Nested[]
/** A tensor parameter of an edit. */
export type ArrayParam = Nested | TypedArray | NDArray

/** Values by the number of a latent, or numbers of latents. */
export type Latents = Readonly<Record<number, number>> | readonly number[]
/** Any parameter of an edit. */
export type EditParam = ArrayParam | SaeWeights | Latents | string | boolean

/** An edit as plain data: it can be saved, sent and put in a link. */
export interface DataEdit {
  readonly op: EditOpName
  /** A site, an alias or a pattern. */
  readonly site: string
  readonly params?: Readonly<Record<string, EditParam>>
  readonly where?: Where
}

/** What a function edit is told besides the value. */
export interface EditContext {
  /** Canonical name of the site at which it runs. */
  readonly site: string
  readonly layer?: number
  /** The value of an earlier site of the same run. */
  readonly read: (site: string) => Tensor
}

/** The general edit: a function from traced tensor to traced tensor. Differentiable, but not serialisable. */
export interface FunctionEdit {
  readonly op: 'function'
  readonly site: string
  readonly apply: (value: Tensor, context: EditContext) => Tensor
  /** Sites that `read` may be asked for. */
  readonly reads: readonly string[]
  readonly where?: Where
}

/** A change of a model's activations. */
export type Edit = DataEdit | FunctionEdit

/** Options that every constructor takes. */
export interface EditOptions {
  readonly where?: Where
}

const data = (
  op: EditOpName,
  site: string,
  params: Readonly<Record<string, EditParam | undefined>>,
  options: EditOptions = {},
): DataEdit => ({
  op,
  site,
  params: Object.fromEntries(Object.entries(params).filter(([, v]) => v !== undefined)) as Record<string, EditParam>,
  ...(options.where ? { where: options.where } : {}),
})

/** What the constructors of additions take. */
export interface AddOptions extends EditOptions {
  /** Factor on the vector (default 1). */
  readonly scale?: number
  /** Factors for the first generated token, the second, …; the last one holds on, and the prompt is left alone. */
  readonly schedule?: readonly number[]
}

/** Adds `scale · vector` (scale 1 by default). */
export const add = (site: string, vector: ArrayParam, o: AddOptions = {}) =>
  data('add', site, { vector, scale: o.scale, schedule: o.schedule }, o)
/** Adds `scale · vector`, then gives the sum the norm that the value had (`normalize` in repeng). */
export const addKeepNorm = (site: string, vector: ArrayParam, o: AddOptions = {}) =>
  data('add_keep_norm', site, { vector, scale: o.scale, schedule: o.schedule }, o)
/** Replaces the value. */
export const set = (site: string, value: ArrayParam, o?: EditOptions) => data('set', site, { value }, o)
/** Replaces the value by zeros. */
export const zero = (site: string, o?: EditOptions) => data('zero', site, {}, o)
/** Replaces the value by its mean over a corpus. */
export const meanAblate = (site: string, mean: ArrayParam, o?: EditOptions) => data('mean_ablate', site, { mean }, o)
/** Multiplies the value. */
export const scale = (site: string, factor: ArrayParam, o?: EditOptions) => data('scale', site, { factor }, o)
/** Limits each coordinate to [min, max]; either may be left out. */
export const clamp = (site: string, limits: { min?: ArrayParam; max?: ArrayParam }, o?: EditOptions) =>
  data('clamp', site, { ...limits }, o)
/** Removes the component along a vector. */
export const projectOut = (site: string, vector: ArrayParam, o?: EditOptions) => data('project_out', site, { vector }, o)
/** Sets the component along a unit vector to `value`. */
export const projectTo = (site: string, vector: ArrayParam, value: number, o?: EditOptions) =>
  data('project_to', site, { vector, value }, o)
/** Keeps the component along a unit vector within limits; either may be left out. */
export const projectClamp = (site: string, vector: ArrayParam, limits: { min?: number; max?: number }, o?: EditOptions) =>
  data('project_clamp', site, { vector, ...limits }, o)
/** `x + scale · ((x − center)·down·up + shift)`, `down` [width, rank] and `up` [rank, width]. */
export const linear = (
  site: string,
  p: { down: ArrayParam; up: ArrayParam; center?: ArrayParam; shift?: ArrayParam; scale?: number },
  o?: EditOptions,
) => data('linear', site, { ...p }, o)
/** Turns the value by `angle` radians in the plane of two vectors, keeping its norm. */
export const rotate = (site: string, from: ArrayParam, to: ArrayParam, angle: number, o?: EditOptions) =>
  data('rotate', site, { from, to, angle }, o)
/** `scale · value + shift`, coordinate by coordinate. */
export const affine = (site: string, p: { scale?: ArrayParam; shift?: ArrayParam }, o?: EditOptions) => data('affine', site, { ...p }, o)
/** Replaces the value by a recorded activation, position by position. */
export const replace = (site: string, value: ArrayParam, o?: EditOptions) => data('replace', site, { value }, o)
/** Adds Gaussian noise of standard deviation `std`, reproducible by its seed. */
export const noise = (site: string, std: number, o: EditOptions & { seed?: number } = {}) => data('noise', site, { std, seed: o.seed }, o)

/** What an {@link sae} edit does to latents. */
export interface SaeEditOptions extends EditOptions {
  /** Values by the number of the latent, in the scale of its activations; with `ablate` a list of numbers will do. */
  readonly latents?: Latents
  /** Adds the value to the activation (the default), sets it, multiplies it, or sets it to zero. */
  readonly mode?: 'add' | 'clamp' | 'scale' | 'ablate'
  /** Keeps what the autoencoder does not reconstruct; true by default where latents are given, else false. */
  readonly error?: boolean
}

/**
 * Changes latents of a sparse autoencoder, h + Σ (new − old)·W_dec row, or replaces the value by its reconstruction. Values and
 * latents are inputs: another number, or another latent, compiles nothing. Several of them at one site act in order.
 */
export const sae = (site: string, weights: SaeWeights | { readonly weights: SaeWeights }, o: SaeEditOptions = {}) =>
  data('sae', site, { weights: 'weights' in weights ? weights.weights : weights, latents: o.latents, mode: o.mode, error: o.error }, o)

/** The general edit: any function of traced tensors that keeps shape and type. `reads` names earlier sites it looks at. */
export function edit(
  site: string,
  apply: (value: Tensor, context: EditContext) => Tensor,
  options: EditOptions & { reads?: readonly string[] } = {},
): FunctionEdit {
  return { op: 'function', site, apply, reads: options.reads ?? [], ...(options.where ? { where: options.where } : {}) }
}

/** The row of an op, by the name in an edits file. */
export function opRow(op: string): EditOpRow {
  if (Object.hasOwn(editOps, op)) return editOps[op as EditOpName]
  const near = nearest(op, Object.keys(editOps))
  throw new EditError(`There is no edit op '${op}'${near ? `; did you mean '${near}'?` : '.'} Ops are ${Object.keys(editOps).join(', ')}.`)
}

/** What to call an edit in a sentence: `add at resid_post.3`. */
export const labelOf = (e: Edit) => `${e.op} at ${e.site}`

const editKeys = ['op', 'site', 'params', 'where']

/** Checks an edit that comes from outside; refuses unknown keys, ops and parameters, missing ones, and numbers that are none. */
export function checkEdit(value: unknown, index: number): Edit {
  const place = `Edit ${index}`
  if (typeof value !== 'object' || value === null || Array.isArray(value))
    throw new EditError(`${place} must be an object with op, site and params, not ${JSON.stringify(value)}.`)
  const e = value as Edit
  if (e.op === 'function') {
    if (typeof e.apply !== 'function') throw new EditError(`${place} has no function.`)
    checkWhere(e.where, labelOf(e))
    return e
  }
  for (const key of Object.keys(e))
    if (!editKeys.includes(key)) throw new EditError(`${place} has the unknown key '${key}'; known are ${editKeys.join(', ')}.`)
  if (typeof e.op !== 'string') throw new EditError(`${place} needs an op; ops are ${Object.keys(editOps).join(', ')}.`)
  const row = opRow(e.op)
  if (typeof e.site !== 'string') throw new EditError(`${place} (${e.op}) needs a site.`)
  const label = labelOf(e)
  const params = e.params ?? {}
  if (typeof params !== 'object' || Array.isArray(params)) throw new EditError(`The params of the edit ${label} must be an object.`)
  for (const key of Object.keys(params))
    if (!Object.hasOwn(row.params, key)) {
      const known = Object.keys(row.params)
      throw new EditError(
        `The edit ${label} has the unknown parameter '${key}'; ${known.length > 0 ? `known are ${known.join(', ')}` : 'it takes none'}.`,
      )
    }
  for (const [key, p] of Object.entries(row.params) as [string, ParamRow][]) {
    if (params[key] === undefined && p.otherwise === undefined && !p.optional && !row.oneOf?.includes(key))
      throw new EditError(`The edit ${label} needs the parameter '${key}' (${p.doc}).`)
  }
  if (row.oneOf && !row.oneOf.some((k) => params[k] !== undefined))
    throw new EditError(`The edit ${label} needs ${row.oneOf.join(' or ')}.`)
  checkWhere(e.where, label)
  return e
}

/** A tensor parameter as an array of float32, its numbers checked. */
export function toArray(value: ArrayParam, label: string): NDArray<Float32Array> {
  const array = isNDArray(value)
    ? fromND(value, label)
    : ArrayBuffer.isView(value)
      ? flat(value as TypedArray)
      : nested(value as Nested, label)
  for (const v of array.data)
    if (!Number.isFinite(v)) throw new EditError(`A parameter of the edit ${label} holds ${v}, which is not a finite number.`)
  return array
}

function isNDArray(value: ArrayParam): value is NDArray {
  return typeof value === 'object' && !Array.isArray(value) && !ArrayBuffer.isView(value) && 'data' in value && 'shape' in value
}

function fromND(value: NDArray, label: string): NDArray<Float32Array> {
  if (value.dtype === 'float16' || value.dtype === 'bfloat16')
    throw new EditError(`A parameter of the edit ${label} is ${value.dtype}; give it as float32.`)
  return { dtype: 'float32', shape: value.shape, data: flat(value.data).data }
}

function flat(value: TypedArray): NDArray<Float32Array> {
  const values = value instanceof Float32Array ? value : Float32Array.from(value as ArrayLike<number | bigint>, Number)
  return { dtype: 'float32', shape: [value.length], data: values }
}

function nested(value: Nested, label: string): NDArray<Float32Array> {
  const shape: number[] = []
  for (let v: unknown = value; Array.isArray(v); v = v[0]) shape.push(v.length)
  const out: number[] = []
  const walk = (v: Nested, depth: number): void => {
    if (Array.isArray(v)) {
      if (v.length !== shape[depth]) throw new EditError(`A parameter of the edit ${label} is ragged: its lists differ in length.`)
      for (const item of v) walk(item, depth + 1)
    } else {
      if (depth !== shape.length || typeof v !== 'number')
        throw new EditError(`A parameter of the edit ${label} must be nested lists of numbers.`)
      out.push(v)
    }
  }
  walk(value, 0)
  return { dtype: 'float32', shape, data: Float32Array.from(out) }
}

/**
 * Edits as JSON holds them: arrays become nested lists, so that an edits file, a link or a request carries the same numbers.
 * @throws EditError for edits that are functions.
 */
export function plainEdits(edits: readonly Edit[]): DataEdit[] {
  return edits.map((e) => {
    if (e.op === 'function')
      throw new EditError(`The edit at ${e.site} is a function, which cannot be saved or sent; use edits that are data.`)
    const rows = opRow(e.op).params
    const params = Object.fromEntries(
      Object.entries(e.params ?? {}).map(([name, value]) => [name, plainParam(value, rows[name], labelOf(e))]),
    )
    const when = e.where?.when
    const where = when ? { ...e.where, when: { ...when, vector: [...when.vector] } } : e.where
    return { op: e.op, site: e.site, params, ...(where ? { where } : {}) }
  })
}

function plainParam(value: EditParam, row: ParamRow | undefined, label: string): EditParam {
  if (isArrayParam(row)) return listsOf(value as ArrayParam, label)
  if (!isSaeWeights(value)) return value
  if (value.source === undefined)
    throw new EditError(`The autoencoder of the edit ${label} is in memory only, so it cannot be saved or sent; save it and load it again.`)
  return { file: value.source } as unknown as EditParam
}

/** Whether a parameter is numbers laid against the axes of a site. */
export const isArrayParam = (row: ParamRow | undefined) =>
  row !== undefined && ['number', 'vector', 'array', 'matrix', 'seed', 'schedule'].includes(row.kind)

function listsOf(value: ArrayParam, label: string): Nested {
  if (typeof value === 'number' || Array.isArray(value)) return value as Nested
  const { shape, data } = toArray(value, label)
  const build = (axis: number, offset: number): Nested => {
    const inner = shape.slice(axis + 1).reduce((p, n) => p * n, 1)
    if (axis === shape.length) return data[offset] as number
    return Array.from({ length: shape[axis] as number }, (_, i) => build(axis + 1, offset + i * inner))
  }
  return build(0, 0)
}
