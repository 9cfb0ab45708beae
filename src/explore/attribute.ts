/** @file Attribution patching: what each cell of a patching sweep would change, estimated from gradients. */
import { throwIfCancelled, UsageError } from '../base/errors.ts'
import type { NDArray } from '../base/types.ts'
import type { Model } from '../run/index.ts'
import type { SiteInfo } from '../sites/address.ts'
import { edit } from '../sites/edits.ts'
import {
  add,
  differentiate,
  input,
  isInf,
  mul,
  not,
  type Program,
  stopGradient,
  sub,
  sum,
  type Tensor,
  transpose,
  where,
} from '../tensor/index.ts'
import { directionOf, type PatchOptions, pairsOf, patternsOf, type SweepResult } from './patch.ts'
import { cellsOf, headAxis, layoutOf, type SweepTable, tableOf } from './patch-cells.ts'
import { type EditedModel, editedModel, inHead, placeholders, readLogits, rowFeeds, sitesOf } from './patch-graph.ts'
import { metricOf, type PreparedMetric, prepareMetric } from './patch-metric.ts'

/** How an attribution is estimated. */
export type AttributionMethod = 'gradient' | 'integrated'

/** Options of {@link attribute}. */
export interface AttributeOptions extends PatchOptions {
  /** The gradient at the run that is changed (default), or integrated along the way to the other run's values. */
  readonly method?: AttributionMethod
  /** Points along the way, for `integrated`; 8 by default. */
  readonly steps?: number
}

/** How well the parts of one site add up to what replacing the whole of it changes. */
export interface Completeness {
  /** Sum of the attributions of the site. */
  readonly sum: number
  /** Change of the metric when the whole site is replaced. */
  readonly change: number
}

/** What an attribution gives: tables as those of a sweep, but of estimated changes of the metric. */
export interface AttributionResult extends SweepResult {
  /** By canonical site, for `integrated`; of the last pair. */
  readonly completeness?: Readonly<Record<string, Completeness>>
}

const names = {
  source: (site: string) => `attribute.source:${site}`,
  alpha: (site: string) => `attribute.alpha:${site}`,
  part: (site: string) => `part:${site}`,
  tap: (site: string) => `tap:${site}`,
  metric: 'metric',
  logits: 'logits',
}

/**
 * Attribution patching: (other run's value − own value) · gradient of the metric, for each cell of the table that `patch` makes.
 * One forward of the one run, one forward and backward of the other, whatever the number of cells.
 */
export async function attribute(model: Model, options: AttributeOptions): Promise<AttributionResult> {
  const { method = 'gradient', steps = 8 } = options
  if (method !== 'gradient' && method !== 'integrated')
    throw new UsageError(`There is no method '${method}' here; methods are gradient and integrated.`)
  if (!Number.isInteger(steps) || steps < 1) throw new UsageError(`The number of steps must be a whole number from 1, not ${steps}.`)
  const noise = directionOf(options.direction) === 'noise'
  const pairs = pairsOf(model, options)
  const patterns = patternsOf(options)
  const metric = prepareMetric(options.metric, pairs.length, model.spec.vocab)
  const sites = [...new Map(patterns.flatMap((p) => sitesOf(model, p)).map((s) => [s.site, s])).values()]
  const edited = editedModel(model)
  const rows = method === 'integrated' ? integrationRows(sites, steps) : [{ weight: 1 }]
  const sums = new Map<string, SweepTable>()
  const total = { clean: 0, corrupt: 0 }
  const completeness: Record<string, Completeness> = {}
  for (const [index, pair] of pairs.entries()) {
    throwIfCancelled(options.signal)
    const [own, other] = noise ? [pair.clean, pair.corrupt] : [pair.corrupt, pair.clean]
    const source = await record(edited, metric, sites, other)
    const reference = metric.needsReference ? (noise ? await record(edited, metric, [], own) : source).logits : undefined
    const flat = reference && { ...reference, shape: [1, reference.shape.at(-1) as number] }
    const feeds = (count: number) => metric.feeds(index, count, pair.clean, flat)
    const parts = await attributed({ edited, metric, sites, tokens: own, source: source.sites, rows, feeds, options })
    const ends = { own: parts.base, other: (await metricOf(edited.core, metric, source.logits, feeds(1)))[0] as number }
    total.clean += (noise ? ends.own : ends.other) / pairs.length
    total.corrupt += (noise ? ends.other : ends.own) / pairs.length
    for (const pattern of patterns) {
      const layout = layoutOf(model, pattern, options.positions ?? 'each', own.length)
      const known = sums.get(pattern) ?? tableOf(layout, new Float32Array(cellsOf(layout, 0).length))
      sums.set(pattern, addParts(known, parts.sites, pairs.length))
    }
    for (const { site } of method === 'integrated' ? sites : []) {
      const own = parts.sites.get(site) as Part
      completeness[site] = { sum: own.data.reduce((a, v) => a + v, 0), change: (parts.ends.get(site) as number) - parts.base }
    }
    options.onProgress?.({ task: 'attributing', done: index + 1, total: pairs.length, unit: 'pairs' })
  }
  return { tables: Object.fromEntries(sums), metric: total, ...(method === 'integrated' ? { completeness } : {}) }
}

/** Correlation and largest difference of an attribution with what patching really changed. */
export function compareAttribution(attribution: SweepResult, patched: SweepResult, direction: 'denoise' | 'noise' = 'denoise') {
  const base = direction === 'noise' ? patched.metric.clean : patched.metric.corrupt
  const pairs = Object.entries(patched.tables).flatMap(([name, t]) => {
    const estimate = attribution.tables[name]
    if (!estimate || estimate.data.length !== t.data.length)
      throw new UsageError(`The attribution has no table '${name}' of the same shape; make both with the same sites and positions.`)
    return [...t.data].map((v, i) => [estimate.data[i] as number, v - base] as const)
  })
  const mean = (k: 0 | 1) => pairs.reduce((s, p) => s + p[k], 0) / pairs.length
  const [a, b] = [mean(0), mean(1)]
  const product = (f: (x: number, y: number) => number) => pairs.reduce((s, [x, y]) => s + f(x - a, y - b), 0)
  const correlation = product((x, y) => x * y) / Math.sqrt(product((x) => x * x) * product((_, y) => y * y))
  return { correlation, largestDifference: Math.max(...pairs.map(([x, y]) => Math.abs(x - y))) }
}

/** One row of the run that is differentiated: the site that is moved, how far, and what its gradient weighs in the integral. */
interface Row {
  readonly site?: SiteInfo
  readonly alpha?: number
  readonly weight: number
}

/** For each site, the points of Gauss–Legendre quadrature between the two values, and the far end. */
function integrationRows(sites: readonly SiteInfo[], steps: number): Row[] {
  const points = gaussLegendre(steps)
  return [{ weight: 0 }, ...sites.flatMap((site) => [...points.map((p) => ({ site, ...p })), { site, alpha: 1, weight: 0 }])]
}

/** Points and weights of Gauss–Legendre quadrature on [0, 1]: exact for polynomials up to degree 2n − 1. */
export function gaussLegendre(n: number): { readonly alpha: number; readonly weight: number }[] {
  return Array.from({ length: n }, (_, i) => {
    let x = Math.cos((Math.PI * (i + 0.75)) / (n + 0.5))
    let slope = 0
    for (let round = 0; round < 100; round++) {
      let [before, now] = [1, x]
      for (let k = 2; k <= n; k++) [before, now] = [now, ((2 * k - 1) * x * now - (k - 1) * before) / k]
      slope = (n * (x * now - before)) / (x * x - 1)
      const step = now / slope
      x -= step
      if (Math.abs(step) < 1e-15) break
    }
    return { alpha: (1 - x) / 2, weight: 1 / ((1 - x * x) * slope * slope) }
  })
}

/** The contributions of one site, [pos, head] (heads 1 where the site has none). */
interface Part {
  readonly data: Float32Array
  readonly heads: number
}

async function attributed(request: {
  readonly edited: EditedModel
  readonly metric: PreparedMetric
  readonly sites: readonly SiteInfo[]
  readonly tokens: readonly number[]
  readonly source: Readonly<Record<string, NDArray>>
  readonly rows: readonly Row[]
  readonly feeds: (rows: number) => Record<string, NDArray>
  readonly options: AttributeOptions
}) {
  const { edited, metric, sites, tokens, rows } = request
  const program = await attributionProgram(edited, metric, sites)
  const sources = Object.fromEntries(sites.map((s) => [names.source(s.site), request.source[s.site] as NDArray]))
  const totals = new Map<string, Part>()
  const ends = new Map<string, number>()
  let base = 0
  const atOnce = rowsAtOnce(edited, tokens.length, request.options.memory)
  for (let from = 0; from < rows.length; from += atOnce) {
    throwIfCancelled(request.options.signal)
    const part = rows.slice(from, from + atOnce)
    const alphas = sites.map((s): [string, NDArray] => {
      const data = Float32Array.from(part, (r) => (r.site?.site === s.site ? (r.alpha ?? 0) : 0))
      return [names.alpha(s.site), { dtype: 'float32', shape: [part.length], data }]
    })
    const out = await program.run(
      {
        ...rowFeeds(edited, new Array<readonly number[]>(part.length).fill(tokens), metric.position),
        ...sources,
        ...Object.fromEntries(alphas),
        ...request.feeds(part.length),
      },
      { fetch: [names.metric, ...sites.map((s) => names.part(s.site))], signal: request.options.signal },
    )
    for (const [b, row] of part.entries()) {
      const value = out[names.metric]?.data[b] as number
      if (row.site && row.alpha === 1) ends.set(row.site.site, value)
      if (!row.site) base = value
      if (row.weight === 0) continue
      for (const s of row.site ? [row.site] : sites) addRow(totals, s.site, out[names.part(s.site)] as NDArray<Float32Array>, b, row.weight)
    }
  }
  return { sites: totals, ends, base }
}

function addRow(totals: Map<string, Part>, site: string, value: NDArray<Float32Array>, row: number, weight: number): void {
  const [, length, heads] = value.shape as [number, number, number]
  const known = totals.get(site) ?? { data: new Float32Array(length * heads), heads }
  for (let i = 0; i < known.data.length; i++)
    known.data[i] = (known.data[i] as number) + weight * (value.data[row * known.data.length + i] as number)
  totals.set(site, known)
}

/** Adds contributions to a table, summed over positions where it has no such axis. */
function addParts(table: SweepTable, parts: ReadonlyMap<string, Part>, pairs: number): SweepTable {
  const size = table.data.length / table.sites.length
  for (const [l, site] of table.sites.entries()) {
    const { data, heads } = parts.get(site) as Part
    const each = table.axes.some((a) => a.name === 'pos')
    if (each && data.length !== size)
      throw new UsageError(
        "The pairs differ in length, so their tables cannot be averaged over positions; give pairs of one length, or positions 'all'.",
      )
    for (const [i, v] of data.entries()) {
      const at = l * size + (each ? i : i % heads)
      table.data[at] = (table.data[at] as number) + v / pairs
    }
  }
  return table
}

/** Values at sites and logits of one row. */
async function record(edited: EditedModel, metric: PreparedMetric, sites: readonly SiteInfo[], tokens: readonly number[]) {
  const outputs = [names.logits, ...sites.map((s) => names.tap(s.site))]
  const whole = await attributionProgram(edited, metric, sites)
  const feeds = rowFeeds(edited, [tokens], metric.position)
  let out: Record<string, NDArray>
  if (whole.size > 1) {
    // In segments the forward ones are run alone, so that no weight is held twice.
    const zeros = placeholders(whole, feeds, tokens.length)
    for (const s of sites) if (s.row.fill !== undefined) (zeros[names.source(s.site)] as NDArray<Float32Array>).data.fill(s.row.fill)
    out = await whole.run({ ...feeds, ...zeros }, { fetch: outputs })
  } else {
    const key = JSON.stringify(['attribute record', edited.structure, sites.map((s) => s.site), metric.everywhere])
    const program = await edited.core.compiled(key, () => {
      const { graph, logits } = graphOf(edited, metric, sites)
      return { [names.logits]: logits, ...Object.fromEntries(sites.map((s) => [names.tap(s.site), graph.taps.get(s.site) as Tensor])) }
    })
    out = await program.run(feeds)
  }
  return { logits: out[names.logits] as NDArray, sites: Object.fromEntries(sites.map((s) => [s.site, out[names.tap(s.site)] as NDArray])) }
}

function graphOf(
  edited: EditedModel,
  metric: PreparedMetric,
  sites: readonly SiteInfo[],
  edits: Parameters<EditedModel['graph']>[0]['edits'] = [],
) {
  const lastOnly = !metric.everywhere && !sites.some(inHead)
  const graph = edited.graph({ edits, taps: sites.map((s) => s.site), lastOnly })
  return { graph, logits: readLogits(graph.logits, { lastOnly, everywhere: metric.everywhere }) }
}

/** Forward and backward in one program: contributions of each site and row, [batch, pos, head]. */
function attributionProgram(edited: EditedModel, metric: PreparedMetric, sites: readonly SiteInfo[]): Promise<Program> {
  const key = JSON.stringify(['attribute', edited.structure, sites.map((s) => s.site), metric.key])
  return edited.core.compiled(key, () => {
    const changes = new Map<string, Tensor>()
    const moved = sites.map((s) =>
      edit(s.site, (value) => {
        const source = input(names.source(s.site), value.dtype, [1, ...value.shape.slice(1)])
        // Where a query may not look, both values are -inf and nothing changes.
        const change = s.row.fill === undefined ? sub(source, value) : where(not(isInf(source)), sub(source, value), 0)
        changes.set(s.site, stopGradient(change))
        const alpha = input(names.alpha(s.site), 'float32', ['batch']).reshape(['batch', ...value.shape.slice(1).map(() => 1)])
        return add(value, mul(stopGradient(change), alpha))
      }),
    )
    const { graph, logits } = graphOf(edited, metric, sites, moved)
    const values = metric.build(logits)
    const at = sites.map((s) => graph.taps.get(s.site) as Tensor)
    const d = differentiate({ of: sum(values), at, cut: true })
    const taps = sites.map((s, i) => [names.tap(s.site), d.map(at[i] as Tensor)])
    const parts = sites.map((s, i) => [names.part(s.site), partOf(s, mul(d.map(changes.get(s.site) as Tensor), d.grads[i] as Tensor))])
    return { [names.metric]: d.map(values), [names.logits]: d.map(logits), ...Object.fromEntries([...taps, ...parts]) }
  })
}

/** Sums a product at a site to [batch, pos, head]. */
function partOf(site: SiteInfo, product: Tensor): Tensor {
  const { axes } = site.row
  const heads = headAxis(axes)
  const others = axes.flatMap((a, i) => (a === 'batch' || a === 'pos' || a === heads ? [] : [i]))
  const summed = sum(product, others)
  if (!heads) return summed.reshape([...summed.shape, 1])
  return axes.indexOf(heads) < axes.indexOf('pos') ? transpose(summed, [0, 2, 1]) : summed
}

function rowsAtOnce({ core }: EditedModel, length: number, memory = 1024 * 2 ** 20): number {
  const { dModel, dMlp, heads, headDim, layers, vocab } = core.spec
  // The backward pass needs what the forward pass made in every block.
  const perToken = 4 * layers * (8 * dModel + 4 * dMlp + 6 * heads * headDim + 4 * heads * length)
  return Math.max(1, Math.min(512, Math.floor(memory / (perToken * length + 12 * vocab))))
}
