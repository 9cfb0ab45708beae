/** @file Decoding: rows that grow token by token over a key-value cache, with edits and taps in force at every step. */
import { UsageError } from '../base/errors.ts'
import { type NDArray, sizeOf } from '../base/types.ts'
import type { TokenSequence } from '../models/architecture.ts'
import { cacheHolds } from '../models/rope.ts'
import { cacheName } from '../models/traced.ts'
import type { SiteInfo } from '../sites/address.ts'
import type { FireCounts, PreparedEdit, StepPlaces } from '../sites/prepare.ts'
import { startName } from '../sites/rewrite.ts'
import type { StepLayout } from '../sites/where.ts'
import { Activation, type Batch, batchOfRows, passOf, stepFeeds, toCaller } from './batch.ts'
import { type ModelCore, outputNames } from './core.ts'
import type { CachedRow } from './key-value-cache.ts'
import type { FoundPrefix } from './prefix-cache.ts'
import type { ResolvedTap } from './taps.ts'

/** What rows are decoded with. */
export interface DecodingSettings {
  readonly core: ModelCore
  readonly edits: readonly PreparedEdit[]
  /** The prompts, without padding. */
  readonly batch: Batch
  /** How often each prompt is written on, side by side (default once). */
  readonly copies?: number
  readonly taps: readonly ResolvedTap[]
  /** Positions that a row can have. */
  readonly capacity: number
  /** Logits of the last position of each row, or of all that a step reads. */
  readonly logits: 'last' | 'all'
  readonly fired: FireCounts
  readonly signal: AbortSignal | undefined
}

/** What one step gives. */
export interface DecodingStep {
  /** Logits [d_vocab] behind a position of a row that this step has read; of its last one by default. */
  readonly logits: (row: number, position?: number) => Float32Array
  readonly taps: Readonly<Record<string, Activation>>
}

/** What the steps start from. */
interface FirstPass {
  readonly feeds: Readonly<Record<string, NDArray>>
  readonly places: StepPlaces
  readonly values: Readonly<Record<string, Activation>>
}

interface Split {
  readonly early: { readonly taps: readonly ResolvedTap[]; readonly edits: readonly PreparedEdit[] }
  readonly later: { readonly taps: readonly ResolvedTap[]; readonly edits: readonly PreparedEdit[] }
}

/** Separates what a generation computes once, as an encoder's part, from what each step computes. */
function split({ core, taps, edits }: DecodingSettings): Split {
  const { once } = core.architecture
  const early = (info: SiteInfo) => info.stack !== core.writer || once.includes(info.site)
  const later = edits.filter((e) => !early(e.info))
  const foreign = later.find((e) => [...e.reads, ...(e.when ? [e.when.info] : [])].some(early))
  if (foreign) throw new UsageError(`The edit ${foreign.label} reads a site of another stack, which a generation computes only once.`)
  return {
    early: { taps: taps.filter((t) => early(t.info)), edits: edits.filter((e) => early(e.info)) },
    later: { taps: taps.filter((t) => !early(t.info)), edits: later },
  }
}

/** Rows of tokens, of which the cache holds the first ones; the rest is read by the next step. */
export class Decoding {
  /** Ids of each row; may be added to between steps. */
  readonly rows: number[][]
  /** Tokens of each row whose keys and values are in the cache. */
  readonly past: number[]
  /** The caller's number of each row. */
  readonly origin: readonly number[]
  /** Length of each row's prompt. */
  readonly prompt: readonly number[]
  private readonly settings: DecodingSettings
  private readonly parts: Split
  private readonly first: FirstPass
  private readonly cache: { readonly feeds: Record<string, NDArray>; readonly into: Record<string, NDArray> }
  /** Longest row of the pass in which the cached keys were computed. */
  private total = 0

  private constructor(settings: DecodingSettings, parts: Split, first: FirstPass) {
    const { batch, copies = 1 } = settings
    this.settings = settings
    this.parts = parts
    this.first = first
    this.origin = batch.rows.flatMap((_, b) => new Array<number>(copies).fill(b))
    this.rows = this.origin.map((b) => [...(batch.rows[b] as readonly number[])])
    this.prompt = this.rows.map((r) => r.length)
    this.past = this.rows.map(() => 0)
    this.cache = this.cacheArrays()
  }

  /** Begins: runs what is computed only once. */
  static async begin(settings: DecodingSettings): Promise<Decoding> {
    const parts = split(settings)
    const first = await firstPass(settings, parts.early)
    return new Decoding(settings, parts, repeated(first, settings))
  }

  /** Reads all tokens that the cache does not hold yet; a row without such tokens reads its last one again. */
  async step(): Promise<DecodingStep> {
    const { core, fired, signal, logits } = this.settings
    const { sequences, once } = core.architecture
    const { edits, taps } = this.parts.later
    const { inputs, name } = sequences[0] as TokenSequence
    const writtenOut = this.makeReady()
    const fresh = this.rows.map((r, b) => r.slice(this.past[b]))
    const start = [...this.past]
    const step = stepFeeds(fresh, start, undefined, inputs)
    const program = await core.program({
      edits,
      taps: [...new Set(taps.map((t) => t.info.site))],
      logits,
      cache: !this.recomputes,
      explicitPositions: false,
      ...(writtenOut ? { writtenOut } : {}),
      start: once.length > 0 ? once : undefined,
    })
    const layout: StepLayout = { rows: this.rows, start, width: step.width, prompt: this.prompt, origin: this.origin }
    const places = { ...this.first.places, [name]: { step: layout, total: step.total } }
    const feeds = { ...this.first.feeds, ...step.feeds, ...this.cache.feeds, ...program.feeds(places, fired) }
    const out = await program.run(feeds, { into: this.cache.into, signal })
    for (const e of edits) if (e.when) fired.set(e.key, (fired.get(e.key) ?? 0) + Number(out[outputNames.fired(e.key)]?.data[0] ?? 0))
    for (const [b, r] of this.rows.entries()) this.past[b] = r.length
    this.total = step.total
    const values = out.logits as NDArray<Float32Array>
    const lengths = this.rows.map((r) => r.length)
    return {
      logits: (row, position = (lengths[row] as number) - 1) => logitsAt(values, row, position - (start[row] as number)),
      taps: { ...this.first.values, ...this.tapValues(taps, out, fresh) },
    }
  }

  /** Decides what is read again, so that the cache holds and the kernel takes it. Whether attention must be written out. */
  private makeReady(): boolean {
    const { rows, past } = this
    if (this.recomputes) past.fill(0)
    const total = Math.max(...rows.map((r) => r.length))
    // Frequencies that follow the length turn all keys anew.
    if (!cacheHolds(this.settings.core.rotations, this.total, total)) past.fill(0)
    for (const [b, r] of rows.entries()) past[b] = Math.min(past[b] as number, r.length - 1)
    if (past.every((p) => p === 0)) return false
    const width = Math.max(...rows.map((r, b) => r.length - (past[b] as number)))
    if (width === 1 || rows.length === 1) return false
    // Rows of equal width, so that nobody writes beyond the end of the cache.
    for (const [b, r] of rows.entries()) past[b] = Math.max(0, r.length - width)
    return true
  }

  /** Each row goes on from another one: `parents[b]` is the row that row b continues. Rows must be of equal length. */
  reorder(parents: readonly number[]): void {
    const from = [...this.rows]
    for (const [b, p] of parents.entries()) this.rows[b] = [...(from[p] as number[])]
    const moved = parents.some((p, b) => p !== b)
    if (!moved) return
    for (const array of Object.values(this.cache.feeds)) {
      const data = array.data as Float32Array
      const size = data.length / this.rows.length
      const before = new Map([...new Set(parents)].map((p) => [p, data.slice(p * size, (p + 1) * size)]))
      for (const [b, p] of parents.entries()) if (p !== b) data.set(before.get(p) as Float32Array, b * size)
    }
  }

  /** Forgets the end of a row. */
  truncate(row: number, length: number): void {
    ;(this.rows[row] as number[]).length = length
    this.past[row] = Math.min(this.past[row] as number, length)
  }

  /** Takes positions over from a cache. */
  adopt(row: number, { row: cached, length, total }: FoundPrefix): void {
    const { kvHeads, headDim } = this.settings.core.writer
    const { capacity } = this.settings
    for (const part of ['keys', 'values'] as const)
      for (const [layer, data] of cached[part].entries()) {
        const target = this.cache.feeds[cacheName(part, layer)]?.data as Float32Array
        const width = data.length / kvHeads
        for (let h = 0; h < kvHeads; h++)
          target.set(data.subarray(h * width, h * width + length * headDim), (row * kvHeads + h) * capacity * headDim)
      }
    this.past[row] = length
    this.total = Math.max(this.total, total)
  }

  /** Keys and values of a row that the cache holds. */
  cached(row: number): CachedRow {
    const { kvHeads, headDim, layers } = this.settings.core.writer
    const { capacity } = this.settings
    const length = this.past[row] as number
    const part = (name: 'keys' | 'values') =>
      Array.from({ length: layers }, (_, layer) => {
        const source = this.cache.feeds[cacheName(name, layer)]?.data as Float32Array
        const data = new Float32Array(kvHeads * length * headDim)
        for (let h = 0; h < kvHeads; h++) {
          const at = (row * kvHeads + h) * capacity * headDim
          data.set(source.subarray(at, at + length * headDim), h * length * headDim)
        }
        return data
      })
    return {
      tokens: (this.rows[row] as number[]).slice(0, length),
      prompt: this.prompt[row] as number,
      row: this.origin[row] as number,
      keys: part('keys'),
      values: part('values'),
    }
  }

  /** The model has no keys and values: each step reads the whole rows. */
  private get recomputes(): boolean {
    return this.settings.core.architecture.recomputes ?? false
  }

  /** Longest row when the cached keys were computed. */
  get cachedTotal(): number {
    return this.total
  }

  private cacheArrays(): { feeds: Record<string, NDArray>; into: Record<string, NDArray> } {
    const { layers, kvHeads, headDim } = this.settings.core.writer
    const shape = [this.rows.length, kvHeads, this.settings.capacity, headDim]
    const feeds: Record<string, NDArray> = {}
    const into: Record<string, NDArray> = {}
    if (this.recomputes) return { feeds, into }
    for (let layer = 0; layer < layers; layer++)
      for (const part of ['keys', 'values'] as const) {
        const array: NDArray = { dtype: 'float32', shape, data: new Float32Array(sizeOf(shape)) }
        // The runtime writes into the very array that it reads.
        feeds[cacheName(part, layer)] = array
        into[outputNames.cache(part, layer)] = array
      }
    return { feeds, into }
  }

  private tapValues(
    taps: readonly ResolvedTap[],
    out: Record<string, NDArray>,
    fresh: readonly (readonly number[])[],
  ): Record<string, Activation> {
    const { others } = this.settings.batch
    const batch: Batch = { ...batchOfRows(fresh), ...(others ? { others } : {}) }
    const values: Record<string, Activation> = {}
    for (const t of taps) {
      const value = out[outputNames.tap(t.info.site)] as NDArray<Float32Array>
      const keyed = t.info.row.axes.includes('key')
      const activation = keyed ? new Activation(t.info.site, t.info.row.axes, value, batch.columns) : toCaller(t.info, value, batch)
      values[t.info.site] = activation
      values[t.name] = activation
    }
    return values
  }
}

/** What each step starts from: what an encoder makes of its input, computed once, with the edits and taps that come before it. */
async function firstPass({ core, batch, fired, signal }: DecodingSettings, { taps, edits }: Split['early']): Promise<FirstPass> {
  const { architecture } = core
  const { once } = architecture
  if (once.length === 0) return { feeds: {}, places: {}, values: {} }
  const pass = passOf(architecture, batch)
  const sites = [...new Set([...once, ...taps.map((t) => t.info.site)])]
  const program = await core.program({ edits, taps: sites, logits: 'none', cache: false, explicitPositions: false })
  const out = await program.run({ ...pass.feeds, ...program.feeds(pass.places, fired) }, { signal })
  for (const e of edits) if (e.when) fired.set(e.key, Number(out[outputNames.fired(e.key)]?.data[0] ?? 0))
  const values: Record<string, Activation> = {}
  for (const t of taps) {
    values[t.info.site] = toCaller(t.info, out[outputNames.tap(t.info.site)] as NDArray, batch)
    values[t.name] = values[t.info.site] as Activation
  }
  const starts = Object.fromEntries(once.map((site) => [startName(site), out[outputNames.tap(site)] as NDArray]))
  return { feeds: { ...pass.feeds, ...starts }, places: pass.places, values }
}

/** A first pass for rows that are written several times side by side. */
function repeated(first: FirstPass, { batch, copies = 1 }: DecodingSettings): FirstPass {
  if (copies === 1) return first
  const rows = batch.rows.length
  const feeds = Object.entries(first.feeds).map(([name, array]) => [name, array.shape[0] === rows ? repeatRows(array, copies) : array])
  return { ...first, feeds: Object.fromEntries(feeds) as FirstPass['feeds'] }
}

function repeatRows(array: NDArray, copies: number): NDArray {
  const rows = array.shape[0] as number
  const size = array.data.length / rows
  const data = new (array.data.constructor as new (n: number) => Float32Array)(array.data.length * copies)
  for (let b = 0; b < rows * copies; b++) {
    const from = Math.floor(b / copies)
    data.set((array.data as Float32Array).subarray(from * size, (from + 1) * size), b * size)
  }
  return { ...array, shape: array.shape.with(0, rows * copies), data }
}

function logitsAt(logits: NDArray<Float32Array>, row: number, column: number): Float32Array {
  const [, positions, width] = logits.shape as [number, number, number]
  const at = row * positions + (positions === 1 ? 0 : column)
  return logits.data.slice(at * width, (at + 1) * width)
}
