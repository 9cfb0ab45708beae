/** @file Activations that SAELens has cached (`CacheActivationsRunner`): Hugging Face data sets of Arrow files, read file by file (Node). */
import { readdir, readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { type Batch, tableFromIPC } from '@uwdata/flechette'
import { FormatError, listed, messageOf, nearest, SiteError, throwIfCancelled } from '../base/errors.ts'
import { readFailure, readJson, sizeOrKind } from '../base/files.ts'
import type { WorkOptions } from '../base/progress.ts'
import { f16ToF32 } from '../models/formats/index.ts'
import type { ActivationChunk } from './activation-store.ts'

/** What a folder of cached activations holds. */
export interface CachedActivations {
  readonly folder: string
  /** Columns of activations as the file names them (`blocks.8.hook_resid_pre`); `model.site` knows such names. */
  readonly hooks: readonly string[]
  /** Tokens of each sequence, and width of the activations, by hook. */
  readonly shapes: Readonly<Record<string, readonly [context: number, width: number]>>
  /** Whether token ids are kept; older versions kept none, and −1 stands for each. */
  readonly hasTokens: boolean
  /** The rows of a hook in order, a record batch at a time; documents are sequences. Memory: that of one file. */
  chunks(hook: string, options?: WorkOptions): AsyncGenerator<ActivationChunk>
}

interface Info {
  readonly features?: Readonly<Record<string, { readonly _type?: string; readonly shape?: readonly number[]; readonly dtype?: string }>>
}

/** Numbers of an Arrow column as float32, by what its type is called. */
const floats: Readonly<Record<string, (values: ArrayLike<number>) => Float32Array>> = {
  float16: (values) => f16ToF32(values as Uint16Array),
  float32: (values) => values as Float32Array,
  float64: (values) => Float32Array.from(values),
}

/** Opens a folder that SAELens has written: one data set, or folders `shard_0`, `shard_1` … as before version 6. */
export async function openSaelensActivations(folder: string): Promise<CachedActivations> {
  const parts = await dataSets(folder)
  const info = (await readJson(join(parts[0] as string, 'dataset_info.json'))) as Info
  const columns = Object.entries(info.features ?? {}).filter(([, f]) => f._type === 'Array2D')
  if (columns.length === 0)
    throw new FormatError(
      `${folder} holds a data set without activations: none of its columns (${listed(Object.keys(info.features ?? {}))}) is an Array2D.`,
    )
  for (const [hook, { dtype }] of columns)
    if (!floats[dtype ?? ''])
      throw new FormatError(`'${hook}' of ${folder} is ${dtype}; activations are read as ${Object.keys(floats).join(', ')}.`)
  const files = (await Promise.all(parts.map(filesOf))).flat()
  const shapes = Object.fromEntries(columns.map(([hook, { shape }]) => [hook, shape as readonly [number, number]]))
  const hasTokens = info.features?.token_ids !== undefined
  return {
    folder,
    hooks: columns.map(([hook]) => hook),
    shapes,
    hasTokens,
    async *chunks(hook, { signal, onProgress } = {}) {
      const shape = shapes[hook]
      if (!shape) {
        const near = nearest(hook, Object.keys(shapes))
        throw new SiteError(
          `${folder} has no activations of '${hook}'${near ? `; did you mean '${near}'?` : '.'} It has ${listed(Object.keys(shapes))}.`,
        )
      }
      const float = floats[columns.find(([name]) => name === hook)?.[1].dtype as string] as (values: ArrayLike<number>) => Float32Array
      let from = 0
      for (const [done, path] of files.entries()) {
        throwIfCancelled(signal)
        onProgress?.({ task: 'reading activations', done, total: files.length, unit: 'files' })
        for (const { batch, tokens } of await batchesOf(path, hook, hasTokens)) {
          const chunk = chunkOf(path, batch, tokens, shape, float, from)
          from += chunk.tokens.length
          yield chunk
        }
      }
    },
  }
}

/** The folders of data sets, in order. */
async function dataSets(folder: string): Promise<string[]> {
  const names = await readdir(folder).catch((error: unknown) => {
    throw readFailure(error, folder)
  })
  if (names.includes('state.json')) return [folder]
  const shards = names.filter((n) => /^shard_\d+$/.test(n)).sort((a, b) => Number(a.slice(6)) - Number(b.slice(6)))
  if (shards.length === 0)
    throw new FormatError(
      `${folder} holds no cached activations of SAELens: neither a data set (state.json) nor folders shard_0, shard_1 …`,
    )
  return shards.map((s) => join(folder, s))
}

async function filesOf(folder: string): Promise<string[]> {
  const state = (await readJson(join(folder, 'state.json'))) as { _data_files?: readonly { filename: string }[]; _indices_files?: unknown }
  const names = (state._data_files ?? []).map((f) => f.filename)
  if (names.length === 0 || names.some((n) => typeof n !== 'string' || /[\\/]/.test(n)))
    throw new FormatError(`${join(folder, 'state.json')} names no data files in its folder; save the data set again.`)
  const paths = names.map((n) => join(folder, n))
  for (const path of paths)
    if (typeof (await sizeOrKind(path)) !== 'number')
      throw new FormatError(`${path} is missing, though state.json names it; fetch it again.`)
  return paths
}

async function batchesOf(path: string, hook: string, hasTokens: boolean) {
  try {
    const table = tableFromIPC(await readFile(path))
    const column = table.getChild(hook)
    const tokens = hasTokens ? table.getChild('token_ids') : undefined
    if (!column || (hasTokens && !tokens)) throw new Error(`it has no column '${column ? 'token_ids' : hook}'`)
    return column.data.map((batch, i) => ({ batch: batch as ListOf, tokens: tokens?.data[i] as ListOf | undefined }))
  } catch (cause) {
    throw new FormatError(`${path} cannot be read as an Arrow file (${messageOf(cause)}); it may be truncated: fetch it again.`, { cause })
  }
}

/** A batch of lists, as the reader lays it out. */
type ListOf = Batch<unknown> & {
  readonly children: readonly ListOf[]
  readonly values: ArrayLike<number>
  readonly length: number
  readonly nullCount: number
}

function chunkOf(
  path: string,
  batch: ListOf,
  tokens: ListOf | undefined,
  [context, width]: readonly [number, number],
  float: (values: ArrayLike<number>) => Float32Array,
  from: number,
): ActivationChunk {
  const rows = batch.length * context
  const inner = batch.children[0]?.children[0]
  const ids = tokens?.children[0]
  if (!inner || inner.length !== rows * width || inner.nullCount + batch.nullCount > 0 || (tokens && ids?.length !== rows))
    throw new FormatError(
      `${path} does not hold ${batch.length} sequences of [${context}, ${width}] as dataset_info.json says; save the data set again.`,
    )
  const first = from / context
  return {
    from,
    values: { dtype: 'float32', shape: [rows, width], data: float(inner.values).slice(0, rows * width) },
    tokens: ids ? Int32Array.from(ids.values).slice(0, rows) : new Int32Array(rows).fill(-1),
    document: Int32Array.from({ length: rows }, (_, i) => first + Math.floor(i / context)),
    position: Int32Array.from({ length: rows }, (_, i) => i % context),
    column: Int32Array.from({ length: rows }, (_, i) => i % context),
  }
}
