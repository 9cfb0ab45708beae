/** @file Sparse features of a corpus, to one Parquet file: a row for each feature that is active at a place (Node). */
import { randomBytes } from 'node:crypto'
import { open, rm } from 'node:fs/promises'
import { basename, dirname, join, resolve } from 'node:path'
import { fileWriter, ParquetWriter, schemaFromColumnData } from 'hyparquet-writer'
import { RuntimeFailure, ShapeError, throwIfCancelled, UsageError } from '../base/errors.ts'
import { renameFirmly, sizeOrKind, systemCode, writeFailure } from '../base/files.ts'
import type { WorkOptions } from '../base/progress.ts'
import type { NDArray } from '../base/types.ts'
import { describeEdits } from '../run/edits-file.ts'
import type { Model } from '../run/index.ts'
import { type PassSettings, type PassWindow, passOver, planPass } from './capture-pass.ts'
import { type CorpusInput, openCorpus } from './corpus.ts'

/** Columns of a table of features, and what they hold. */
export const featureColumns = {
  feature: 'number of the feature (latent)',
  document: 'place of the document in the corpus, from 0',
  position: 'position in the document',
  token: 'token id',
  piece: 'the token as text; empty where the model has no tokenizer',
  value: 'activation of the feature, never 0',
} as const

/** Active features: arrays of one length, a column each. */
export interface FeatureRows {
  readonly feature: Int32Array
  readonly document: Int32Array
  readonly position: Int32Array
  readonly token: Int32Array
  readonly piece: readonly string[]
  readonly value: Float32Array
}

/** Whatever turns activations [rows, width] into those of features [rows, features]: an autoencoder, a probe, a rotation. */
export interface FeatureEncoder {
  encode(x: NDArray<Float32Array>, options: { readonly signal?: AbortSignal | undefined }): Promise<NDArray<Float32Array>>
}

/** Options of {@link captureFeatures}. */
export interface FeatureOptions extends Omit<PassSettings, 'sites'>, WorkOptions {
  readonly data: CorpusInput
  readonly encoder: FeatureEncoder
  /** Site whose activations the encoder takes. */
  readonly site: string
  /** Parquet file; it appears when it is whole. */
  readonly out: string
  /** Activations of at most this size are left out (default 0: all that are not zero are kept). */
  readonly threshold?: number
  /** What made the features, kept in the file's metadata. */
  readonly source?: Readonly<Record<string, unknown>>
}

/** What was written. */
export interface FeatureResult {
  readonly out: string
  /** Rows of the table. */
  readonly rows: number
  /** Places that were encoded. */
  readonly places: number
  /** Mean number of active features at a place. */
  readonly active: number
}

/** Rows of a row group at least: queries read no less than one. */
const groupRows = 2 ** 17

const schema = schemaFromColumnData({
  columnData: [
    { name: 'feature', data: [], type: 'INT32', nullable: false },
    { name: 'document', data: [], type: 'INT32', nullable: false },
    { name: 'position', data: [], type: 'INT32', nullable: false },
    { name: 'token', data: [], type: 'INT32', nullable: false },
    { name: 'piece', data: [], type: 'STRING', nullable: false },
    { name: 'value', data: [], type: 'FLOAT', nullable: false },
  ],
})

/**
 * Runs a model over a corpus, encodes a site, and writes the active features to a Parquet file with the columns of
 * {@link featureColumns}; settings and origin are its key-value metadata under `actlens`.
 */
export async function captureFeatures(model: Model, options: FeatureOptions): Promise<FeatureResult> {
  const { data, encoder, site, out, threshold = 0, source, signal, onProgress, ...settings } = options
  if (!(threshold >= 0)) throw new UsageError(`The threshold must not be negative, not ${threshold}.`)
  if ((await sizeOrKind(out)) === 'folder') throw new UsageError(`${out} is a folder; give the name of a Parquet file.`)
  const plan = planPass(model, { ...settings, sites: [site] })
  const [one] = plan.sites
  if (plan.sites.length !== 1 || !one) throw new UsageError(`'${site}' means ${plan.sites.length} sites; features are encoded from one.`)
  const corpus = await openCorpus(data, { ...(signal ? { signal } : {}) })
  const record = {
    format: 'actlens-features-1',
    columns: featureColumns,
    model: { id: model.origin.id, hash: await model.origin.hash(), family: model.architecture.family },
    site: one.site,
    data: corpus.facts,
    where: plan.where,
    threshold,
    edits: describeEdits(model.edits),
    ...(source ? { source } : {}),
  }
  let places = 0
  const pieces = new Map<number, string>()
  const pieceOf = (id: number) => {
    let piece = pieces.get(id)
    if (piece === undefined) {
      piece = model.hasTokenizer ? model.tokenizer.piece(id) : ''
      pieces.set(id, piece)
    }
    return piece
  }
  async function* rows(): AsyncGenerator<FeatureRows> {
    for await (const window of passOver(model, corpus, plan, { ...(signal ? { signal } : {}) })) {
      const x = {
        dtype: 'float32' as const,
        shape: [window.count, ...(one?.shape ?? [])],
        data: window.values.get(one?.site as string) as Float32Array,
      }
      if (window.count > 0) yield activeRows(await encoder.encode(x, { signal }), window, threshold, pieceOf)
      places += window.count
      onProgress?.({ task: 'encoding features', done: places, ...(plan.maxTokens ? { total: plan.maxTokens } : {}), unit: 'tokens' })
    }
  }
  const written = await writeFeatures(out, rows(), { metadata: record, ...(signal ? { signal } : {}) })
  return { out, rows: written, places, active: places === 0 ? 0 : written / places }
}

function activeRows(acts: NDArray<Float32Array>, window: PassWindow, threshold: number, pieceOf: (id: number) => string): FeatureRows {
  const width = acts.data.length / window.count
  if (!Number.isInteger(width) || acts.shape[0] !== window.count)
    throw new ShapeError(`The encoder gave [${acts.shape.join(', ')}] for ${window.count} places; it must give [places, features].`)
  let count = 0
  for (const v of acts.data) {
    if (Number.isNaN(v)) throw new RuntimeFailure('The encoder gave a value that is no number; look at the activations it was given.')
    if (Math.abs(v) > threshold) count++
  }
  const out = {
    feature: new Int32Array(count),
    document: new Int32Array(count),
    position: new Int32Array(count),
    token: new Int32Array(count),
    piece: new Array<string>(count),
    value: new Float32Array(count),
  }
  let row = 0
  for (let at = 0, i = 0; i < window.count; i++)
    for (let feature = 0; feature < width; feature++, at++) {
      const value = acts.data[at] as number
      if (!(Math.abs(value) > threshold)) continue
      out.feature[row] = feature
      out.document[row] = window.document[i] as number
      out.position[row] = window.position[i] as number
      out.token[row] = window.tokens[i] as number
      out.piece[row] = pieceOf(window.tokens[i] as number)
      out.value[row++] = value
    }
  return out
}

/** Writes features to a Parquet file, which appears when it is whole; gives the number of rows. Memory: one row group. */
export async function writeFeatures(
  path: string,
  source: Iterable<FeatureRows> | AsyncIterable<FeatureRows>,
  options: { readonly metadata?: unknown; readonly signal?: AbortSignal } = {},
): Promise<number> {
  const target = resolve(path)
  const temporary = join(dirname(target), `.${basename(target)}.${process.pid}.${randomBytes(4).toString('hex')}.tmp`)
  let total = 0
  try {
    const writer = fileWriter(temporary)
    const kvMetadata = options.metadata === undefined ? [] : [{ key: 'actlens', value: JSON.stringify(options.metadata) }]
    const parquet = new ParquetWriter({ writer, schema, kvMetadata })
    let held: FeatureRows[] = []
    let count = 0
    const flush = async () => {
      if (count === 0) return
      await parquet.write({ columnData: joined(held, count), rowGroupSize: count })
      total += count
      held = []
      count = 0
    }
    for await (const rows of source) {
      throwIfCancelled(options.signal)
      held.push(rows)
      count += rows.feature.length
      if (count >= groupRows) await flush()
    }
    await flush()
    await parquet.finish()
    const handle = await open(temporary, 'r+')
    await handle.sync().finally(() => handle.close())
    await renameFirmly(temporary, target)
  } catch (error) {
    await rm(temporary, { force: true }).catch(() => undefined)
    throw systemCode(error) === undefined ? error : writeFailure(error, path)
  }
  return total
}

function joined(parts: readonly FeatureRows[], count: number) {
  const numbers = <A extends Int32Array | Float32Array>(name: keyof FeatureRows, out: A): A => {
    let at = 0
    for (const p of parts) {
      out.set(p[name] as A, at)
      at += p.feature.length
    }
    return out
  }
  return [
    ...(['feature', 'document', 'position', 'token'] as const).map((name) => ({ name, data: numbers(name, new Int32Array(count)) })),
    { name: 'piece', data: parts.flatMap((p) => p.piece) },
    { name: 'value', data: numbers('value', new Float32Array(count)) },
  ]
}
