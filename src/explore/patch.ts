/** @file Activation patching and ablation: a metric for each cell of sites × positions × heads, patches stacked on the batch axis. */
import { EditError, ShapeError, throwIfCancelled, UsageError } from '../base/errors.ts'
import type { OnProgress, WorkOptions } from '../base/progress.ts'
import { type NDArray, sizeOf } from '../base/types.ts'
import type { Model, ModelInput } from '../run/index.ts'
import { gaussianAt } from '../sites/noise.ts'
import { type Cell, cellsOf, type Layout, layoutOf, type Positions, type SweepTable, tableOf } from './patch-cells.ts'
import { editedModel, sitesOf, stackableRows } from './patch-graph.ts'
import { type Metric, type MetricFunction, metricOf, type PreparedMetric, prepareMetric } from './patch-metric.ts'
import { type Recorded, Stages } from './patch-stages.ts'

/** What every sweep takes. */
export interface SweepOptions extends WorkOptions {
  readonly metric: Metric | MetricFunction
  /** Sites, aliases or patterns (`resid_pre.*`); each gives one table. */
  readonly sites: string | readonly string[]
  /** A cell for each position (default), or all positions at once. */
  readonly positions?: Positions
  /** Bytes that the rows of one run may take, 512 MiB by default. */
  readonly memory?: number
  /** Most rows of one run, where parts are wanted early. */
  readonly rows?: number
  /** Is told at the start of each pair and after each run what is there so far; the sweep goes on when it returns. */
  readonly onPart?: (part: SweepPart) => void | Promise<void>
}

/** A pair of texts (or several, as batches) that differ in what matters. */
export interface PairOptions {
  readonly clean: ModelInput
  /** As many tokens as `clean`, row by row. */
  readonly corrupt: ModelInput
  /** `denoise` (default) writes clean values into the corrupted run, `noise` corrupted ones into the clean run. */
  readonly direction?: 'denoise' | 'noise'
}

/** Options of {@link patch}. */
export interface PatchOptions extends SweepOptions, PairOptions {}

/** What a sweep gives; numbers are means over the pairs. */
export interface SweepResult {
  /** By pattern as given: the metric after the change of each cell. */
  readonly tables: Readonly<Record<string, SweepTable>>
  /** The metric of the runs without changes. */
  readonly metric: { readonly clean: number; readonly corrupt: number }
}

/** A sweep as far as it has come; its tables grow and must not be changed. */
export interface SweepPart extends SweepResult {
  /** The cells that were done last: their table, and their places in its data. */
  readonly cells: readonly { readonly table: string; readonly index: number }[]
}

/** Rows of one pair, and the tokens of both texts. */
interface Pair {
  readonly clean: readonly number[]
  readonly corrupt: readonly number[]
}

/**
 * Activation patching: the metric of one run after the value of the other was written into it, for each site, position and head.
 * @returns tables [layer, pos, head], as far as the site has these axes; without `pos` for `positions: 'all'`.
 */
export async function patch(model: Model, options: PatchOptions): Promise<SweepResult> {
  const pairs = pairsOf(model, options)
  const noise = directionOf(options.direction) === 'noise'
  return sweep(model, options, pairs.length, async (index, stages) => {
    const { clean, corrupt } = pairs[index] as Pair
    const [a, b] = [await stages.record(clean, options.signal), await stages.record(corrupt, options.signal)]
    return {
      tokens: noise ? clean : corrupt,
      clean,
      base: noise ? a : b,
      recorded: { clean: a, corrupt: b },
      sources: (noise ? b : a).sites,
    }
  })
}

/** How a value is taken out: by zeros, by its mean over other texts, by its value on another text, or by adding noise. */
export type Ablation =
  | { readonly kind: 'zero' }
  /** The mean over the positions of `over`, texts of any length. */
  | { readonly kind: 'mean'; readonly over: ModelInput }
  /** The values of texts of the same length, one for each row of the input. */
  | { readonly kind: 'resample'; readonly from: ModelInput }
  /** Its own value with Gaussian noise of `scale` times its standard deviation added. */
  | { readonly kind: 'noise'; readonly scale?: number; readonly seed?: number }

/** Options of {@link ablate}. */
export interface AblateOptions extends SweepOptions {
  readonly input: ModelInput
  readonly by: Ablation
}

/** Ablation: the metric after the value of each cell was taken out; `metric.corrupt` is that of the untouched run, too, except for `resample`. */
export async function ablate(model: Model, options: AblateOptions): Promise<SweepResult> {
  const { by, input } = options
  if (by.kind === 'resample') return patch(model, { ...options, clean: input, corrupt: by.from, direction: 'noise' })
  const rows = stackableRows(model, input, 'The input')
  const means = by.kind === 'mean' ? await siteMeans(model, patternsOf(options), by.over) : {}
  return sweep(model, options, rows.length, async (index, stages) => {
    const tokens = rows[index] as readonly number[]
    const base = await stages.record(tokens, options.signal)
    const fill: Readonly<Record<Exclude<Ablation['kind'], 'resample'>, (site: string, value: NDArray) => Float32Array>> = {
      zero: (_, value) => new Float32Array(value.data.length),
      mean: (site, value) => repeated(means[site] as Float32Array, value.data.length),
      noise: (site, value) => noisy(site, value.data as Float32Array, by as Ablation & { kind: 'noise' }),
    }
    const sources = Object.fromEntries(
      Object.entries(base.sites).map(([site, value]) => [site, { ...value, data: fill[by.kind](site, value) }]),
    )
    return { tokens, clean: tokens, base, recorded: { clean: base, corrupt: base }, sources }
  })
}

/** What a sweep over one pair needs. */
interface Prepared {
  /** Tokens of the run that is changed, and of the clean one. */
  readonly tokens: readonly number[]
  readonly clean: readonly number[]
  readonly base: Recorded
  readonly recorded: { readonly clean: Recorded; readonly corrupt: Recorded }
  readonly sources: Readonly<Record<string, NDArray>>
}

async function sweep(
  model: Model,
  options: SweepOptions,
  pairs: number,
  prepare: (index: number, stages: Stages) => Promise<Prepared>,
): Promise<SweepResult> {
  const patterns = patternsOf(options)
  if (options.rows !== undefined && !(Number.isInteger(options.rows) && options.rows >= 1))
    throw new UsageError(`The rows of one run must be a whole number from 1, not ${options.rows}.`)
  const metric = prepareMetric(options.metric, pairs, model.spec.vocab)
  const sites = [...new Map(patterns.flatMap((p) => sitesOf(model, p)).map((s) => [s.site, s])).values()]
  const edited = editedModel(model)
  const stages = await Stages.of(edited, metric, sites)
  const sums = new Map<string, { layout: Layout; data: Float32Array }>()
  const total = { clean: 0, corrupt: 0 }
  let counter: ReturnType<typeof progressOf> | undefined
  for (let index = 0; index < pairs; index++) {
    const pair = await prepare(index, stages)
    const length = pair.tokens.length
    const feeds = metricFeedsOf(metric, index, pair)
    for (const side of ['clean', 'corrupt'] as const)
      total[side] += ((await metricOf(edited.core, metric, pair.recorded[side].logits, feeds(1)))[0] as number) / pairs
    const layouts = patterns.map((p) => layoutOf(model, p, options.positions ?? 'each', length))
    const cells = layouts.flatMap((l, i) => cellsOf(l, i)).sort((a, b) => stages.stageOf(a.site) - stages.stageOf(b.site))
    counter ??= progressOf(options.onProgress, cells.length * pairs)
    for (const layout of layouts) {
      const size = sizeOf(layout.axes.map((a) => a.labels.length))
      const known = sums.get(layout.name)
      if (known && known.data.length !== size)
        throw new ShapeError(
          `The pairs differ in length, so their tables cannot be averaged over positions; give pairs of one length, or positions 'all'.`,
        )
      if (!known) sums.set(layout.name, { layout, data: new Float32Array(size) })
    }
    const atOnce = Math.min(options.rows ?? 2048, rowsAtOnce(model, length, metric.everywhere ? length : 1, options.memory))
    const soFar = () => ({
      tables: Object.fromEntries([...sums].map(([name, { layout, data }]) => [name, tableOf(layout, data)])),
      metric: total,
    })
    await options.onPart?.({ ...soFar(), cells: [] })
    for (let from = 0; from < cells.length; from += atOnce) {
      throwIfCancelled(options.signal)
      const part = cells.slice(from, from + atOnce)
      const { tokens, sources, base } = pair
      const values = await stages.sweep({ tokens, cells: part, sources, base, metricFeeds: feeds(part.length), signal: options.signal })
      for (const [i, cell] of part.entries())
        addTo(sums.get(patterns[cell.pattern] as string)?.data as Float32Array, cell, (values[i] as number) / pairs)
      counter(part.length)
      await options.onPart?.({ ...soFar(), cells: part.map((c) => ({ table: patterns[c.pattern] as string, index: c.index })) })
    }
  }
  return { tables: Object.fromEntries([...sums].map(([name, { layout, data }]) => [name, tableOf(layout, data)])), metric: total }
}

function addTo(data: Float32Array, cell: Cell, value: number): void {
  data[cell.index] = (data[cell.index] as number) + value
}

function progressOf(report: OnProgress | undefined, total: number): (count: number) => void {
  let done = 0
  return (count) => {
    done += count
    report?.({ task: 'patching', done, total, unit: 'patches' })
  }
}

function metricFeedsOf(metric: PreparedMetric, index: number, pair: Prepared) {
  const { logits } = pair.recorded.clean
  const reference: NDArray | undefined = metric.needsReference ? { ...logits, shape: [1, logits.shape.at(-1) as number] } : undefined
  return (rows: number) => metric.feeds(index, rows, pair.clean, reference)
}

/** Patterns of a request, at least one, each once. */
export function patternsOf({ sites }: { readonly sites: string | readonly string[] }): string[] {
  const patterns = [...new Set(typeof sites === 'string' ? [sites] : sites)]
  if (patterns.length === 0) throw new UsageError("Name at least one site or pattern to change, such as 'resid_pre.*'.")
  return patterns
}

/** Checks a direction that may come from outside. */
export function directionOf(direction: 'denoise' | 'noise' = 'denoise'): 'denoise' | 'noise' {
  if (direction !== 'denoise' && direction !== 'noise')
    throw new UsageError(`The direction must be 'denoise' or 'noise', not '${direction}'.`)
  return direction
}

/** Pairs of rows of tokens; refuses texts of different lengths. */
export function pairsOf(model: Model, options: PairOptions): Pair[] {
  const clean = stackableRows(model, options.clean, 'The clean text')
  const corrupt = stackableRows(model, options.corrupt, 'The corrupted text')
  if (clean.length !== corrupt.length)
    throw new UsageError(
      `There are ${clean.length} clean texts and ${corrupt.length} corrupted ones; give a corrupted text for each clean one.`,
    )
  return clean.map((row, i) => {
    const other = corrupt[i] as readonly number[]
    if (row.length !== other.length)
      throw new UsageError(
        `The clean text has ${row.length} tokens and the corrupted one ${other.length}${clean.length > 1 ? ` (pair ${i})` : ''}; patching goes position by position, so word them to the same number of tokens.`,
      )
    return { clean: row, corrupt: other }
  })
}

/** Rows of one run: as many as the memory holds, so that matrix products are large. */
function rowsAtOnce(model: Model, length: number, read: number, memory = 512 * 2 ** 20): number {
  const { dModel, dMlp, heads, headDim, vocab } = model.spec
  // What lives at the same time in a block, generously; and the logits of the positions that are read.
  const perToken = 4 * (6 * dModel + 3 * dMlp + 4 * heads * headDim + 4 * heads * length)
  return Math.max(1, Math.floor(memory / (perToken * length + 8 * vocab * read)))
}

function repeated(vector: Float32Array, length: number): Float32Array {
  const out = new Float32Array(length)
  for (let i = 0; i < length; i += vector.length) out.set(vector, i)
  return out
}

function noisy(
  site: string,
  values: Float32Array,
  { scale = 1, seed = 0 }: { readonly scale?: number; readonly seed?: number },
): Float32Array {
  let [sum, squares] = [0, 0]
  for (const v of values) {
    sum += v
    squares += v * v
  }
  const std = Math.sqrt(Math.max(0, squares / values.length - (sum / values.length) ** 2))
  return values.map((v, i) => v + scale * std * gaussianAt(seed, site, 0, 0, i))
}

/** Means of sites over all positions of some texts, by canonical site. */
async function siteMeans(model: Model, patterns: readonly string[], over: ModelInput): Promise<Record<string, Float32Array>> {
  const sites = patterns.flatMap((p) => sitesOf(model, p))
  const keyed = sites.find((s) => s.row.axes.includes('key'))
  if (keyed)
    throw new EditError(`'${keyed.site}' has no mean over positions, since its width depends on them; ablate it by zero or resample.`)
  const rows = stackableRows(model, over, 'The reference')
  const sums = new Map<string, Float32Array>()
  let count = 0
  for (const row of rows) {
    const { taps } = await model.run({ ids: row }, { taps: sites.map((s) => s.site), logits: false })
    count += row.length
    for (const { site } of sites) {
      const value = taps[site] as NDArray<Float32Array>
      const width = sizeOf(value.shape.slice(2))
      const sum = sums.get(site) ?? new Float32Array(width)
      for (let i = 0; i < value.data.length; i++) sum[i % width] = (sum[i % width] as number) + (value.data[i] as number)
      sums.set(site, sum)
    }
  }
  return Object.fromEntries([...sums].map(([site, sum]) => [site, sum.map((v) => v / count)]))
}
