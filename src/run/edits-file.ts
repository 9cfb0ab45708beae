/** @file Edits files: a JSON array of edits whose tensors are nested numbers, or lie in safetensors files beside it. For Node only. */
import { createHash } from 'node:crypto'
import { dirname, resolve } from 'node:path'
import { EditError, FormatError, listed, messageOf, ShapeError, SiteError } from '../base/errors.ts'
import { readJson } from '../base/files.ts'
import type { NDArray } from '../base/types.ts'
import { openSafetensors, type WeightStore } from '../models/formats/index.ts'
import { readSae } from '../models/sae/read.ts'
import { isSaeWeights } from '../models/sae/weights.ts'
import type { ParamRow } from '../sites/edit-ops.ts'
import { type ArrayParam, checkEdit, type DataEdit, type Edit, type EditParam, isArrayParam, opRow, toArray } from '../sites/edits.ts'

/** Edits of a file, and where they came from. */
export interface EditsFile {
  readonly path: string
  readonly edits: readonly DataEdit[]
}

/**
 * Reads an edits file: a JSON array of `{ op, site, params, where? }`; a tensor is nested numbers or `{ file, tensor }`, the file
 * relative to the edits file, `tensor` optional where it holds only one.
 * @throws FormatError for files that are missing or damaged, EditError for what is in them; both name the file and the edit's index.
 */
export async function readEditsFile(path: string): Promise<DataEdit[]> {
  const value = await readJson(path)
  if (!Array.isArray(value))
    throw new EditError(`${path} must hold a JSON array of edits, [{ "op": …, "site": …, "params": … }], and no other value.`)
  const stores = new Map<string, WeightStore>()
  const tensors: ReadTensor = async (file, name) => readTensor(await openOnce(stores, resolve(dirname(path), file)), name)
  try {
    const edits: DataEdit[] = []
    for (const [index, item] of value.entries()) edits.push(await naming(path, index, () => readEdit(item, index, tensors, dirname(path))))
    return edits
  } finally {
    for (const store of stores.values()) await store.close()
  }
}

/**
 * The model with the edits of a file.
 * @throws EditError, SiteError for edits that do not fit this model; the message names the file and the edit's index.
 */
export function withEditsFile<M extends { with(edit: DataEdit): M }>(model: M, { path, edits }: EditsFile): M {
  let edited = model
  for (const [index, edit] of edits.entries()) {
    try {
      edited = edited.with(edit)
    } catch (error) {
      throw named(error, path, index)
    }
  }
  return edited
}

/** Numbers of a parameter that a record quotes; longer arrays are told by shape and hash. */
const quotedNumbers = 16

/** Edits for a record: everything but long arrays, which are told by their shape and the SHA-256 of their float32 values. */
export function describeEdits(edits: readonly Edit[]): unknown[] {
  return edits.map((edit) => {
    const where = edit.where ? { where: { ...edit.where, ...(edit.where.when ? { when: describeWhen(edit.where.when) } : {}) } } : {}
    if (edit.op === 'function') return { op: edit.op, site: edit.site, ...where }
    const rows = opRow(edit.op).params
    const params = Object.entries(edit.params ?? {}).map(([name, value]) => [name, describe(value, rows[name])])
    return { op: edit.op, site: edit.site, params: Object.fromEntries(params), ...where }
  })
}

function describeWhen(when: { readonly vector: ArrayParam }): unknown {
  return { ...when, vector: describeParam(when.vector) }
}

function describe(value: EditParam, row: ParamRow | undefined): unknown {
  if (isArrayParam(row)) return describeParam(value as ArrayParam)
  if (!isSaeWeights(value)) return value
  const { kind, dIn, dSae, source } = value
  const sha256 = Object.fromEntries(Object.entries(value.tensors).map(([name, { data }]) => [name, hashOf(data)]))
  return { kind, dIn, dSae, ...(source === undefined ? {} : { source }), sha256 }
}

function hashOf(data: Float32Array): string {
  return createHash('sha256')
    .update(new Uint8Array(data.buffer, data.byteOffset, data.byteLength))
    .digest('hex')
}

function describeParam(value: ArrayParam): unknown {
  if (typeof value === 'number') return value
  const { shape, data } = toArray(value, 'that is recorded')
  if (shape.length <= 1 && data.length <= quotedNumbers) return Array.from(data)
  return { shape, sha256: hashOf(data) }
}

/** Reads the tensor of a reference. */
type ReadTensor = (file: string, name: string | undefined) => Promise<NDArray<Float32Array>>

async function readEdit(value: unknown, index: number, tensors: ReadTensor, folder: string): Promise<DataEdit> {
  if (!isObject(value)) return checkEdit(value, index) as DataEdit
  // Data cannot hold a function, so the table refuses this op as it refuses any other unknown one.
  if (value.op === 'function') opRow(value.op)
  const rows = typeof value.op === 'string' ? opRow(value.op).params : {}
  const params = isObject(value.params) ? await readParams(value.params, rows, tensors, folder) : value.params
  const where = isObject(value.where) ? await readWhere(value.where, tensors) : value.where
  const edit = checkEdit(
    { ...value, ...(params === undefined ? {} : { params }), ...(where === undefined ? {} : { where }) },
    index,
  ) as DataEdit
  // Numbers that are none, and ragged lists, are told here, where file and index are known, and before a model is loaded.
  for (const [name, param] of Object.entries(edit.params ?? {}))
    if (isArrayParam(rows[name])) toArray(param as ArrayParam, `${edit.op} at ${edit.site} ('${name}')`)
  return edit
}

async function readParams(
  params: Record<string, unknown>,
  rows: Readonly<Record<string, ParamRow>>,
  tensors: ReadTensor,
  folder: string,
): Promise<Record<string, unknown>> {
  const out: Record<string, unknown> = {}
  for (const [name, value] of Object.entries(params)) {
    const row = rows[name]
    if (row === undefined || isArrayParam(row)) out[name] = await readParam(value, `The parameter '${name}'`, tensors)
    else out[name] = row.kind === 'sae' ? await readAutoencoder(value, name, folder) : value
  }
  return out
}

async function readAutoencoder(value: unknown, name: string, folder: string): Promise<unknown> {
  if (!isObject(value) || typeof value.file !== 'string' || Object.keys(value).length !== 1)
    throw new EditError(`The parameter '${name}' must be { "file": a folder or file that holds a sparse autoencoder }.`)
  return readSae(resolve(folder, value.file))
}

async function readWhere(where: Record<string, unknown>, tensors: ReadTensor): Promise<Record<string, unknown>> {
  if (!isObject(where.when)) return where
  const vector = await readParam(where.when.vector, "The vector of 'where.when'", tensors)
  return { ...where, when: { ...where.when, ...(vector === undefined ? {} : { vector: vectorOf(vector) }) } }
}

/** The clause wants plain numbers; a tensor from a file comes with a shape. */
function vectorOf(value: unknown): unknown {
  return isObject(value) && 'data' in value ? value.data : value
}

async function readParam(value: unknown, what: string, tensors: ReadTensor): Promise<unknown> {
  if (value === null || typeof value === 'string' || typeof value === 'boolean')
    throw new EditError(`${what} must be numbers or { "file", "tensor" }, not ${JSON.stringify(value)}.`)
  if (!isObject(value)) return value
  const unknown = Object.keys(value).filter((key) => key !== 'file' && key !== 'tensor')
  if (unknown.length > 0) throw new EditError(`${what} has the unknown key '${unknown[0]}'; a tensor in a file is { "file", "tensor" }.`)
  const { file, tensor } = value
  if (typeof file !== 'string' || (tensor !== undefined && typeof tensor !== 'string'))
    throw new EditError(`${what} must name its "file" (and "tensor") as texts.`)
  return tensors(file, tensor)
}

async function openOnce(stores: Map<string, WeightStore>, path: string): Promise<WeightStore> {
  const store = stores.get(path) ?? (await openSafetensors(path))
  stores.set(path, store)
  return store
}

async function readTensor(store: WeightStore, name: string | undefined): Promise<NDArray<Float32Array>> {
  const names = [...store.tensors.keys()]
  if (name === undefined && names.length !== 1)
    throw new EditError(`${store.name} holds ${names.length} tensors (${listed(names)}), so "tensor" must say which.`)
  const stored = store.get(name ?? (names[0] as string))
  const data = await store.readFloat32(stored.name)
  return { dtype: 'float32', shape: [...stored.shape], data }
}

const isObject = (value: unknown): value is Record<string, unknown> => typeof value === 'object' && value !== null && !Array.isArray(value)

async function naming<T>(path: string, index: number, work: () => Promise<T>): Promise<T> {
  try {
    return await work()
  } catch (error) {
    throw named(error, path, index)
  }
}

/** The same error, its message beginning with the place in the file. */
function named(error: unknown, path: string, index: number): unknown {
  const Kind = [EditError, SiteError, ShapeError, FormatError].find((K) => error instanceof K)
  // Without "Edit 3": the place says it already.
  const message = messageOf(error).replace(/^Edit \d+ /, 'It ')
  return Kind ? new Kind(`${path}, edit ${index}: ${message}`, { cause: error }) : error
}
