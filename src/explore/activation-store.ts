/** @file Captured activations, read back: by row, by document, in pieces, as a shuffled stream (Node). */
import { join } from 'node:path'
import { FormatError, listed, nearest, SiteError, throwIfCancelled, UsageError } from '../base/errors.ts'
import { sha256OfFile, sizeOrKind } from '../base/files.ts'
import type { WorkOptions } from '../base/progress.ts'
import { type NDArray, sizeOf } from '../base/types.ts'
import { openSafetensors, type WeightStore } from '../models/formats/index.ts'
import { isElementType, storedTypes, viewOf } from '../models/formats/stored-types.ts'
import { randomStream } from '../models/sampling.ts'
import { captureColumns, captureEncodings, scaleName } from './capture-encode.ts'
import { type CaptureManifest, readManifest, type ShardRecord, type SiteRecord } from './capture-manifest.ts'

/** Where a stretch of rows comes from: int32 columns, each [rows]. */
export interface RowOrigins {
  readonly tokens: Int32Array
  readonly document: Int32Array
  readonly position: Int32Array
  readonly column: Int32Array
}

/** Activations of neighbouring rows. */
export interface ActivationChunk extends RowOrigins {
  /** First row. */
  readonly from: number
  /** [rows, …axes of the site]. */
  readonly values: NDArray<Float32Array>
}

/** Options of {@link ActivationStore.shuffled}. */
export interface ShuffleOptions {
  readonly site: string
  /** Rows in a batch; the last one may hold fewer. */
  readonly batch: number
  readonly seed: number
  /** Rows that are mixed at a time (default 65,536): the memory is that of these rows and of one piece more. */
  readonly bufferTokens?: number
}

/** A batch of a shuffled stream. */
export interface ShuffledBatch {
  /** [rows, …axes of the site]; the next batch uses an array of its own. */
  readonly values: NDArray<Float32Array>
  /** Which row of the whole each is, [rows]. */
  readonly rows: Float64Array
}

/** Shards that stay open. */
const openShards = 8
/** Rows that a stream reads at once. */
const rowsAtOnce = 4096

/** Opens a folder that `capture` has written; a capture that was interrupted is read as far as it came. */
export async function openActivations(folder: string): Promise<ActivationStore> {
  const manifest = await readManifest(folder)
  for (const shard of manifest.shards) {
    const size = await sizeOrKind(join(folder, shard.file))
    if (size !== shard.bytes)
      throw new FormatError(
        `${join(folder, shard.file)} ${size === undefined ? 'is missing' : `has ${size} bytes instead of ${shard.bytes}`}; make it again with capture --resume.`,
      )
  }
  return new ActivationStore(folder, manifest)
}

/** Captured activations; nothing is loaded before it is asked for. Values come as float32 whatever their type on disk. */
export class ActivationStore {
  readonly folder: string
  readonly manifest: CaptureManifest
  private readonly open = new Map<ShardRecord, Promise<WeightStore>>()

  constructor(folder: string, manifest: CaptureManifest) {
    this.folder = folder
    this.manifest = manifest
  }

  /** Rows in all. */
  get tokens(): number {
    return this.manifest.tokens
  }

  /** Canonical names of the captured sites. */
  get sites(): string[] {
    return this.manifest.sites.map((s) => s.site)
  }

  /** What is kept of a site; refuses others, with the nearest name. */
  site(name: string): SiteRecord {
    const found = this.manifest.sites.find((s) => s.site === name)
    if (found) return found
    const near = nearest(name, this.sites)
    throw new SiteError(
      `${this.folder} has no activations of '${name}'${near ? `; did you mean '${near}'?` : '.'} It has ${listed(this.sites)}.`,
    )
  }

  /** Rows `from` (inclusive) to `to` (exclusive) of a site. */
  async rows(site: string, from: number, to: number): Promise<ActivationChunk> {
    const { shape } = this.site(site)
    this.checkRange(from, to)
    const width = sizeOf(shape)
    const data = new Float32Array((to - from) * width)
    const origins = columnsOf(to - from)
    for (const shard of this.manifest.shards) {
      const [first, last] = [Math.max(from, shard.from), Math.min(to, shard.to)]
      if (first >= last) continue
      data.set(await this.values(shard, site, first - shard.from, last - first, width), (first - from) * width)
      for (const name of columnNames) origins[name].set(await this.column(shard, name, first - shard.from, last - first), first - from)
    }
    return { from, values: { dtype: 'float32', shape: [to - from, ...shape], data }, ...origins }
  }

  /** One row of a site, [site axes]. */
  async row(site: string, row: number): Promise<NDArray<Float32Array>> {
    const { values } = await this.rows(site, row, row + 1)
    return { ...values, shape: values.shape.slice(1) }
  }

  /** All rows of a document, by its place in the corpus; none where its positions were not kept. */
  async document(site: string, document: number): Promise<ActivationChunk> {
    let [from, to] = [this.tokens, 0]
    for (const shard of this.manifest.shards) {
      if (document < shard.documents[0] || document > shard.documents[1]) continue
      const column = await this.column(shard, 'document', 0, shard.to - shard.from)
      // Rows stand in the order of the corpus, so those of a document are neighbours.
      const first = column.indexOf(document)
      if (first < 0) continue
      from = Math.min(from, shard.from + first)
      to = shard.from + column.lastIndexOf(document) + 1
    }
    return this.rows(site, Math.min(from, to), to)
  }

  /** All rows of a site in order, in pieces of at most `rows` rows. */
  async *chunks(
    site: string,
    { rows = rowsAtOnce, signal }: { rows?: number; signal?: AbortSignal } = {},
  ): AsyncGenerator<ActivationChunk> {
    if (!(Number.isInteger(rows) && rows > 0)) throw new UsageError(`A piece must have a positive number of rows, not ${rows}.`)
    this.site(site)
    for (let at = 0; at < this.tokens; at += rows) {
      throwIfCancelled(signal)
      yield await this.rows(site, at, Math.min(this.tokens, at + rows))
    }
  }

  /**
   * All rows once each in a mixed order, in batches. Pieces of the shards come in random order into a buffer, from which rows are drawn
   * at random; the same seed gives the same order.
   */
  async *shuffled(options: ShuffleOptions): AsyncGenerator<ShuffledBatch> {
    const { site, batch, seed, bufferTokens = 2 ** 16 } = options
    for (const [name, value] of Object.entries({ batch, bufferTokens }))
      if (!(Number.isInteger(value) && value > 0)) throw new UsageError(`${name} must be a positive whole number, not ${value}.`)
    const { shape } = this.site(site)
    const width = sizeOf(shape)
    const random = randomStream(seed)
    const below = (n: number) => Math.floor(random() * n)
    const starts = Array.from({ length: Math.ceil(this.tokens / rowsAtOnce) }, (_, i) => i * rowsAtOnce)
    for (let i = starts.length - 1; i > 0; i--) {
      const j = below(i + 1)
      ;[starts[i], starts[j]] = [starts[j] as number, starts[i] as number]
    }
    const capacity = Math.min(bufferTokens, this.tokens)
    const buffer = new Float32Array(capacity * width)
    const numbers = new Float64Array(capacity)
    let held = 0
    let out = emptyBatch(shape, Math.min(batch, this.tokens))
    let filled = 0
    const draw = (): number => {
      const slot = below(held)
      ;(out.values.data as Float32Array).set(buffer.subarray(slot * width, (slot + 1) * width), filled * width)
      out.rows[filled++] = numbers[slot] as number
      return slot
    }
    for (const start of starts) {
      const chunk = await this.rows(site, start, Math.min(this.tokens, start + rowsAtOnce))
      for (let r = 0; r < (chunk.values.shape[0] as number); r++) {
        const slot = held < capacity ? held++ : draw()
        buffer.set(chunk.values.data.subarray(r * width, (r + 1) * width), slot * width)
        numbers[slot] = start + r
        if (filled === out.rows.length) {
          yield out
          out = emptyBatch(shape, batch)
          filled = 0
        }
      }
    }
    while (held > 0) {
      const slot = draw()
      held--
      buffer.copyWithin(slot * width, held * width, (held + 1) * width)
      numbers[slot] = numbers[held] as number
      if (filled < out.rows.length) continue
      yield out
      out = emptyBatch(shape, Math.min(batch, held))
      filled = 0
    }
    if (filled > 0) yield firstRows(out, filled, width)
  }

  /**
   * Reads every shard and compares its SHA-256 with the manifest.
   * @throws FormatError that names a shard whose bytes are others.
   */
  async verify(options: WorkOptions = {}): Promise<void> {
    for (const shard of this.manifest.shards) {
      const path = join(this.folder, shard.file)
      if ((await sha256OfFile(path, options)) !== shard.sha256)
        throw new FormatError(
          `${path} is not what the manifest promises: its SHA-256 differs. Delete it and make it again with capture --resume.`,
        )
    }
  }

  /** Closes the files; what was read stays valid. */
  async close(): Promise<void> {
    const stores = [...this.open.values()]
    this.open.clear()
    for (const store of stores) await (await store).close()
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close()
  }

  private checkRange(from: number, to: number): void {
    if (!(Number.isInteger(from) && Number.isInteger(to) && from >= 0 && from <= to && to <= this.tokens))
      throw new UsageError(`${this.folder} has rows 0 to ${this.tokens - 1}, so ${from} to ${to} cannot be read.`)
  }

  private async store(shard: ShardRecord): Promise<WeightStore> {
    const known = this.open.get(shard)
    if (known) {
      this.open.delete(shard)
      this.open.set(shard, known)
      return known
    }
    for (const [old, store] of [...this.open].slice(0, Math.max(0, this.open.size - openShards + 1))) {
      this.open.delete(old)
      await (await store).close()
    }
    const opening = openSafetensors(join(this.folder, shard.file))
    this.open.set(shard, opening)
    opening.catch(() => this.open.delete(shard))
    return opening
  }

  /** Elements of a tensor from one row on, as they are stored. */
  private async raw(shard: ShardRecord, name: string, first: number, count: number, width: number) {
    const store = await this.store(shard)
    const { type, offset, source } = store.get(name)
    if (!isElementType(type)) throw new FormatError(`'${name}' in ${store.name} is ${type}, which no capture writes; make it again.`)
    const size = storedTypes[type].bytes * width
    return viewOf(type, await source.read(offset + first * size, count * size)).data
  }

  private async values(shard: ShardRecord, site: string, first: number, count: number, width: number): Promise<Float32Array> {
    const encoding = captureEncodings[this.manifest.dtype]
    const scales = encoding.scaled ? await this.raw(shard, scaleName(site), first, count, 1) : undefined
    return encoding.read(await this.raw(shard, site, first, count, width), width, scales as Float32Array | undefined)
  }

  private async column(shard: ShardRecord, name: keyof RowOrigins, first: number, count: number): Promise<Int32Array> {
    return (await this.raw(shard, name, first, count, 1)) as Int32Array
  }
}

const columnNames = Object.keys(captureColumns) as (keyof RowOrigins)[]

const columnsOf = (count: number) => Object.fromEntries(columnNames.map((n) => [n, new Int32Array(count)])) as unknown as RowOrigins

function emptyBatch(shape: readonly number[], rows: number): ShuffledBatch {
  const data = new Float32Array(rows * sizeOf(shape))
  return { values: { dtype: 'float32', shape: [rows, ...shape], data }, rows: new Float64Array(rows) }
}

function firstRows({ values, rows }: ShuffledBatch, count: number, width: number): ShuffledBatch {
  const data = values.data.slice(0, count * width)
  return { values: { ...values, shape: [count, ...values.shape.slice(1)], data }, rows: rows.slice(0, count) }
}
