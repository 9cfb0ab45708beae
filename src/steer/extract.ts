/** @file Reading the activations of both sides of a contrast, and making vectors of them. */
import { RuntimeFailure, throwIfCancelled, UsageError } from '../base/errors.ts'
import { sha256 } from '../base/hash.ts'
import type { WorkOptions } from '../base/progress.ts'
import type { Model } from '../run/model.ts'
import { versions } from '../run/versions.ts'
import type { SiteInfo } from '../sites/index.ts'
import { type ContrastExamples, type ContrastRows, tokenised } from './examples.ts'
import { canonicalJson, type FitFacts, type Position, recordEdits, type VectorRecord } from './record.ts'
import type { Rows } from './rows.ts'
import { noDirection, SteeringVector, widthOf } from './vector.ts'

/** Options that every method takes. */
export interface ExtractOptions extends WorkOptions, ContrastExamples {
  /** Where: sites, aliases or patterns. One direction for each site that matches: `resid_post.*` is the all-layers form. */
  readonly site: string | readonly string[]
  /** Which token of each example is read (default `last`). */
  readonly position?: Position
  /** Leaves the token that begins every text out of a mean: true for the tokenizer's, or its id. */
  readonly excludeBos?: boolean | number
  /** Most examples in one forward pass (default 32). */
  readonly batchSize?: number
  /** Most bytes that the activations of one pass may take (default 256 MiB). */
  readonly memory?: number
  /** Written into the record as the time of making; without it equal work gives equal bytes. */
  readonly created?: Date
}

/** A method: from a model and a contrast to a vector. */
export type Extract<Options extends ExtractOptions = ExtractOptions> = (model: Model, options: Options) => Promise<SteeringVector>

/** What a method tells about itself, for the record. */
export interface MethodFacts {
  readonly name: string
  readonly paired: boolean
  readonly options?: Readonly<Record<string, string | number | boolean>>
}

/** Both sides at one site, each [examples, width], in the order in which the examples were given. */
export interface Contrast {
  readonly site: string
  readonly positive: Rows
  readonly negative: Rows
}

/** What a fit gives for one site: a direction [width], and facts about it. */
export interface Fit {
  readonly direction: Float64Array
  readonly facts?: FitFacts
}

type Side = 'positive' | 'negative'
/** Receives one example's activation at one site; the array must not be kept. */
type Visit = (site: number, side: Side, example: number, activation: Float32Array) => void

interface Task {
  readonly rows: ContrastRows
  readonly infos: readonly SiteInfo[]
  readonly widths: readonly number[]
  readonly position: Position
  readonly bos: number | undefined
}

/** Reads both sides at all sites, keeps them in float32, and fits each site. */
export async function fitSites(
  model: Model,
  options: ExtractOptions,
  facts: MethodFacts,
  measure: (contrast: Contrast) => Promise<Fit> | Fit,
): Promise<SteeringVector> {
  const task = prepare(model, options, facts.paired)
  const { rows, infos, widths } = task
  const kept = widths.map((w) => ({
    positive: new Float32Array(rows.positive.length * w),
    negative: new Float32Array(rows.negative.length * w),
  }))
  await read(model, task, options, (site, side, example, activation) => {
    ;(kept[site] as Record<Side, Float32Array>)[side].set(activation, example * activation.length)
  })
  const fits: Fit[] = []
  for (const [i, { site }] of infos.entries()) {
    throwIfCancelled(options.signal)
    options.onProgress?.({ task: `fitting ${facts.name}`, done: i, total: infos.length, unit: 'sites' })
    const width = widths[i] as number
    const { positive, negative } = kept[i] as Record<Side, Float32Array>
    const side = (data: Float32Array): Rows => ({ count: data.length / width, width, data: Float64Array.from(data) })
    fits.push(await measure({ site, positive: side(positive), negative: side(negative) }))
  }
  options.onProgress?.({ task: `fitting ${facts.name}`, done: infos.length, total: infos.length, unit: 'sites' })
  return vectorOf(model, options, facts, task, fits)
}

/** Reads both sides at all sites and keeps their means only, so that any number of examples takes the memory of two. */
export async function fitMeans(
  model: Model,
  options: ExtractOptions,
  facts: MethodFacts,
  measure: (positive: Float64Array, negative: Float64Array) => Float64Array,
): Promise<SteeringVector> {
  const task = prepare(model, options, facts.paired)
  const sums = task.widths.map((w) => ({ positive: new Float64Array(w), negative: new Float64Array(w) }))
  await read(model, task, options, (site, side, _, activation) => {
    const sum = (sums[site] as Record<Side, Float64Array>)[side]
    for (let i = 0; i < activation.length; i++) sum[i] = (sum[i] as number) + (activation[i] as number)
  })
  const { positive, negative } = task.rows
  const fits = sums.map((s) => ({
    direction: measure(
      s.positive.map((x) => x / positive.length),
      s.negative.map((x) => x / negative.length),
    ),
  }))
  return vectorOf(model, options, facts, task, fits)
}

function prepare(model: Model, options: ExtractOptions, paired: boolean): Task {
  const patterns = typeof options.site === 'string' ? [options.site] : options.site
  const infos = [...new Set(patterns.flatMap((p) => model.resolve(p)))]
  if (infos.length === 0) throw new UsageError('No site is named; say where to read, for example resid_post.3 or resid_post.*.')
  for (const { site, row } of infos) {
    const reason = noDirection(row.axes)
    if (reason) throw new UsageError(`No steering vector can be read at '${site}': ${reason}.`)
  }
  for (const [name, value] of [
    ['batchSize', options.batchSize],
    ['memory', options.memory],
  ] as const)
    if (value !== undefined && !(Number.isInteger(value) && value > 0))
      throw new UsageError(`${name} must be a positive integer, not ${value}.`)
  const position = options.position ?? 'last'
  if (position !== 'last' && position !== 'mean' && !Number.isInteger(position))
    throw new UsageError(`position must be 'last', 'mean' or an integer (negative from the end), not ${JSON.stringify(position)}.`)
  const rows = tokenised(model, options, paired)
  return { rows, infos, widths: infos.map((i) => widthOf(model, i)), position, bos: bosOf(model, options, position) }
}

function bosOf(model: Model, { excludeBos = false }: ExtractOptions, position: Position): number | undefined {
  if (excludeBos === false) return undefined
  if (position !== 'mean')
    throw new UsageError(`excludeBos concerns the position 'mean' only, not ${JSON.stringify(position)}; leave it out.`)
  if (typeof excludeBos === 'number') return excludeBos
  const bos = model.hasTokenizer ? model.tokenizer.bos : undefined
  if (bos === undefined)
    throw new UsageError(`${model.origin.id} names no token that begins texts; give excludeBos its id, or leave it out.`)
  return bos
}

/** The row of one example and everybody who wants it: equal rows run once. */
interface Wanted {
  readonly row: readonly number[]
  readonly by: { readonly side: Side; readonly example: number }[]
}

/** Runs all rows, longest first so that a pass that does not fit fails early, in passes of like length. */
async function read(model: Model, task: Task, options: ExtractOptions, visit: Visit): Promise<void> {
  const { rows, infos, widths } = task
  const wanted = new Map<string, Wanted>()
  for (const side of ['positive', 'negative'] as const)
    for (const [example, row] of rows[side].entries()) {
      checkPosition(task, row, side, example)
      const same = wanted.get(row.join())
      if (same) same.by.push({ side, example })
      else wanted.set(row.join(), { row, by: [{ side, example }] })
    }
  const all = [...wanted.values()].sort((a, b) => b.row.length - a.row.length)
  const bytesOfToken = 4 * widths.reduce((a, b) => a + b, 0)
  const sites = infos.map((i) => i.site)
  const total = rows.positive.length + rows.negative.length
  let done = 0
  const report = () => options.onProgress?.({ task: 'reading activations', done, total, unit: 'examples' })
  report()
  for (let at = 0; at < all.length; ) {
    throwIfCancelled(options.signal)
    const longest = (all[at] as Wanted).row.length
    const room = Math.floor((options.memory ?? 2 ** 28) / (longest * bytesOfToken))
    const batch = all.slice(at, at + Math.max(1, Math.min(options.batchSize ?? 32, room)))
    const { taps } = await model.run({ rows: batch.map((w) => w.row) }, { taps: sites, logits: false })
    for (const [s, site] of sites.entries())
      for (const [b, { row, by }] of batch.entries()) {
        const activation = atPosition(taps[site] as Tapped, b, row, task)
        checkFinite(activation, site)
        for (const { side, example } of by) visit(s, side, example, activation)
      }
    at += batch.length
    done += batch.reduce((n, w) => n + w.by.length, 0)
    report()
  }
}

function checkPosition({ position, bos }: Task, row: readonly number[], side: Side, example: number): void {
  const which = `The ${side} example ${example}`
  if (typeof position === 'number' && (position < 0 ? -position > row.length : position >= row.length))
    throw new UsageError(`${which} has ${row.length} tokens, so it has no position ${position}; choose another position.`)
  if (position === 'mean' && bos !== undefined && row.length === 1 && row[0] === bos)
    throw new UsageError(`${which} holds only the token that begins every text, which excludeBos leaves out; give it a text.`)
}

interface Tapped {
  at(row: number, position: number): Float32Array
}

function atPosition(tapped: Tapped, b: number, row: readonly number[], { position, bos }: Task): Float32Array {
  if (position !== 'mean') return tapped.at(b, position === 'last' ? -1 : position)
  const from = bos !== undefined && row[0] === bos ? 1 : 0
  const first = tapped.at(b, from)
  const sum = Float64Array.from(first)
  for (let p = from + 1; p < row.length; p++) {
    const next = tapped.at(b, p)
    for (let i = 0; i < sum.length; i++) sum[i] = (sum[i] as number) + (next[i] as number)
  }
  return Float32Array.from(sum, (x) => x / (row.length - from))
}

function checkFinite(activation: Float32Array, site: string): void {
  const bad = activation.find((x) => !Number.isFinite(x))
  if (bad !== undefined)
    throw new RuntimeFailure(`The model gave ${bad} at '${site}', so nothing can be measured there; look at its edits and its weights.`)
}

async function vectorOf(
  model: Model,
  options: ExtractOptions,
  facts: MethodFacts,
  { rows, infos, position, bos }: Task,
  fits: readonly Fit[],
): Promise<SteeringVector> {
  const zero = infos.filter((_, i) => (fits[i] as Fit).direction.every((x) => Math.fround(x) === 0)).map((i) => i.site)
  if (zero.length > 0)
    throw new UsageError(
      `Both sides have the same activations at ${zero.join(', ')} (position ${position}), so there is no direction; read another position or site, where what differs is seen.`,
    )
  const { positive, negative } = options
  const edits = await recordEdits(model.edits)
  const record: VectorRecord = {
    method: facts.name,
    ...(facts.options ? { options: facts.options } : {}),
    model: {
      id: model.origin.id,
      hash: await model.origin.hash(),
      family: model.architecture.family,
      layers: model.architecture.stacks[0].layers,
    },
    sites: infos.map((i) => i.site),
    prompts: {
      hash: await sha256(canonicalJson({ positive, negative })),
      positive: rows.positive.length,
      negative: rows.negative.length,
    },
    position,
    ...(bos === undefined ? {} : { excludedBos: bos }),
    ...(edits ? { edits } : {}),
    precision: model.precision,
    versions: await versions(),
    ...(options.created ? { created: options.created.toISOString() } : {}),
    ...(fits.some((f) => f.facts) ? { fit: Object.fromEntries(infos.map((info, i) => [info.site, fits[i]?.facts ?? {}])) } : {}),
  }
  return new SteeringVector(
    infos.map((info, i) => [info.site, (fits[i] as Fit).direction] as const),
    record,
  )
}
