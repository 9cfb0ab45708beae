/** @file Circuits: the edges of the residual stream that a behaviour needs, found automatically and judged by running them alone. */

import { throwIfCancelled, UsageError } from '../base/errors.ts'
import { range } from '../base/numbers.ts'
import type { WorkOptions } from '../base/progress.ts'
import type { NDArray } from '../base/types.ts'
import { randomStream } from '../models/sampling.ts'
import type { Model, ModelInput } from '../run/index.ts'
import { attributeEdges } from './attribute-edge.ts'
import { CutModel, type CutRun, type EdgeGraph, type EdgeMask, type Replacement } from './circuit-run.ts'
import { type PairOptions, pairsOf } from './patch.ts'
import { stackableRows } from './patch-graph.ts'
import { type Metric, type MetricFunction, prepareMetric } from './patch-metric.ts'

/** How edges are chosen. */
export type CircuitSearch =
  /** The edges of largest estimated effect (edge attribution patching, Syed et al. 2023). */
  | { readonly kind: 'top'; readonly count: number }
  /** All edges whose estimated effect on the metric is at least so large. */
  | { readonly kind: 'threshold'; readonly threshold: number }
  /** From the logits backwards, every edge is cut for good whose cutting changes the metric by less than the threshold (ACDC, Conmy et al. 2023). */
  | { readonly kind: 'acdc'; readonly threshold: number }

/** Options of {@link findCircuit}. */
export interface CircuitOptions extends Omit<PairOptions, 'direction'>, WorkOptions {
  readonly metric: Metric | MetricFunction
  readonly search: CircuitSearch
  /** What stands in for cut edges: the corrupted text's writes (default), their means over texts, or nothing. */
  readonly ablation?: Replacement
  /** Texts for `ablation: 'mean'`; the clean and corrupted ones by default. */
  readonly over?: ModelInput
  /** Random parts of the circuit that completeness is measured by, 10 by default. */
  readonly samples?: number
  readonly seed?: number
  /** Runs with cut edges that are made at once, 16 by default. */
  readonly batch?: number
}

/** An edge of a circuit. */
export interface CircuitEdge {
  readonly sender: string
  readonly receiver: string
  /** Estimated change of the metric when it alone is cut; for ACDC the change that was measured when it was tried. */
  readonly score: number
}

/** A found circuit, and how it does alone. Numbers are means over the pairs. */
export interface Circuit {
  /** Labels of the axes of the tables. */
  readonly senders: readonly string[]
  readonly receivers: readonly string[]
  /** [sender, receiver] */
  readonly scores: NDArray<Float32Array>
  /** 1 where an edge belongs to the circuit, [sender, receiver]. */
  readonly kept: NDArray<Float32Array>
  /** The same as a list, the largest first. */
  readonly edges: readonly CircuitEdge[]
  /** Edges that there are. */
  readonly total: number
  readonly metric: {
    /** The whole model on the clean text. */
    readonly full: number
    /** Every edge cut. */
    readonly ablated: number
    /** The circuit alone: all other edges cut. */
    readonly circuit: number
    /** All but the circuit: its edges cut. */
    readonly complement: number
  }
  /** (circuit − ablated) / (full − ablated): 1 where the circuit alone does what the model does. */
  readonly faithfulness: number
  /** 1 − (complement − ablated) / (full − ablated): 1 where nothing outside the circuit does it, too. */
  readonly completeness: number
  /** Mean |F(circuit without K) − F(model without K)| over random parts K of the circuit, F as faithfulness (Wang et al. 2022): small where it is complete. */
  readonly incompleteness: number
}

/** Finds the edges that a metric of the clean text needs, and measures the circuit that they make. */
export async function findCircuit(model: Model, options: CircuitOptions): Promise<Circuit> {
  const { search, samples = 10, seed = 0, batch = 16 } = options
  checkSearch(search)
  if (!Number.isInteger(samples) || samples < 1)
    throw new UsageError(`The number of samples must be a whole number from 1, not ${samples}.`)
  if (!Number.isInteger(batch) || batch < 1) throw new UsageError(`The batch must be a whole number from 1, not ${batch}.`)
  const cut = CutModel.of(model)
  const judge = await judgeOf(model, cut, options, batch)
  const { graph } = cut
  const all = allEdges(graph)
  const [full, ablated] = (await judge([all, new Float32Array(all.length)])) as [number, number]
  const found =
    search.kind === 'acdc'
      ? await greedy(graph, all, full, search.threshold, judge, options)
      : await byAttribution(model, graph, all, search, options)
  const mask = connected(graph, found.mask)
  const parts = range(samples).map((i) => randomPart(mask, seed + i))
  const masks = [mask, without(all, mask), ...parts.flatMap((part) => [without(mask, part), without(all, part)])]
  const [circuit, complement, ...rest] = (await judge(masks)) as [number, number, ...number[]]
  const span = full - ablated
  if (Math.abs(span) < 1e-5 * Math.max(1, Math.abs(full)))
    throw new UsageError(
      `Cutting every edge leaves the metric at ${full}, so there is nothing to find; choose texts, or an ablation, between which the metric differs.`,
    )
  const gaps = parts.map((_, i) => Math.abs((rest[2 * i] as number) - (rest[2 * i + 1] as number)) / Math.abs(span))
  return {
    ...tablesOf(graph, found.scores, mask),
    total: all.reduce((n, v) => n + v, 0),
    metric: { full, ablated, circuit, complement },
    faithfulness: (circuit - ablated) / span,
    completeness: 1 - (complement - ablated) / span,
    incompleteness: gaps.reduce((a, v) => a + v, 0) / gaps.length,
  }
}

function checkSearch(search: CircuitSearch): void {
  const kinds = ['top', 'threshold', 'acdc']
  if (!kinds.includes(search.kind)) throw new UsageError(`There is no search '${search.kind}' for circuits; choose ${kinds.join(', ')}.`)
  if (search.kind === 'top' ? !(Number.isInteger(search.count) && search.count >= 1) : !(search.threshold >= 0))
    throw new UsageError('A circuit needs a count of at least 1 edge, or a threshold of at least 0.')
}

/** The metric of each mask, mean over the pairs. */
type Judge = (masks: readonly EdgeMask[]) => Promise<number[]>

async function judgeOf(model: Model, cut: CutModel, options: CircuitOptions, batch: number): Promise<Judge> {
  const { ablation = 'resample', signal } = options
  if (!['resample', 'mean', 'zero'].includes(ablation))
    throw new UsageError(`Cut edges carry 'resample', 'mean' or 'zero', not '${ablation}'.`)
  if (options.over !== undefined && ablation !== 'mean') throw new UsageError("'over' is for the ablation 'mean'; leave it out.")
  const pairs = pairsOf(model, options)
  const metric = prepareMetric(options.metric, pairs.length, model.spec.vocab)
  const over =
    ablation !== 'mean'
      ? []
      : options.over === undefined
        ? pairs.flatMap((p) => [p.clean, p.corrupt])
        : stackableRows(model, options.over, 'The reference')
  const runs: { run: CutRun; reference: NDArray | undefined }[] = []
  for (const pair of pairs) {
    throwIfCancelled(signal)
    const { writes, rest } = await cut.writesOf(pair.clean)
    const replacement =
      ablation === 'resample'
        ? (await cut.writesOf(pair.corrupt)).writes
        : ablation === 'mean'
          ? await cut.meanWrites(over, pair.clean.length)
          : { ...writes, data: new Float32Array(writes.data.length) }
    const reference = metric.needsReference ? await referenceOf(model, pair.clean, metric.position) : undefined
    runs.push({ run: { tokens: pair.clean, own: writes, replacement, rest }, reference })
  }
  return async (masks) => {
    const sums = masks.map(() => 0)
    for (let from = 0; from < masks.length; from += batch) {
      const part = masks.slice(from, from + batch)
      for (const [i, { run, reference }] of runs.entries()) {
        const values = await cut.run(run, part, metric, metric.feeds(i, part.length, run.tokens, reference), signal)
        for (const [m, v] of values.entries()) sums[from + m] = (sums[from + m] as number) + v / runs.length
      }
    }
    return sums
  }
}

async function referenceOf(model: Model, ids: readonly number[], position = -1): Promise<NDArray> {
  const { logits } = await model.run({ ids })
  return { dtype: 'float32', shape: [1, model.spec.vocab], data: Float32Array.from(logits.at(0, position)) }
}

/** Every edge that there is, [receiver · sender]. */
function allEdges({ senders, receivers }: EdgeGraph): EdgeMask {
  return Float32Array.from(receivers.flatMap((r) => senders.map((s) => (s.order < r.order ? 1 : 0))))
}

const without = (mask: EdgeMask, part: EdgeMask) => mask.map((v, i) => (part[i] === 1 ? 0 : v))

/** About half of a circuit's edges. */
function randomPart(mask: EdgeMask, seed: number): EdgeMask {
  const random = randomStream(seed)
  return mask.map((v) => (v === 1 && random() < 0.5 ? 1 : 0))
}

/** Scores [receiver · sender] and the edges that they choose. */
interface Found {
  readonly scores: Float32Array
  readonly mask: EdgeMask
}

async function byAttribution(
  model: Model,
  graph: EdgeGraph,
  all: EdgeMask,
  search: Exclude<CircuitSearch, { kind: 'acdc' }>,
  options: CircuitOptions,
): Promise<Found> {
  const { clean, corrupt, metric, signal, onProgress } = options
  const work = { ...(signal ? { signal } : {}), ...(onProgress ? { onProgress } : {}) }
  const edges = await attributeEdges(model, { clean, corrupt, metric, direction: 'noise', ...work })
  const scores = new Float32Array(all.length)
  for (const [r, { label: receiver }] of graph.receivers.entries())
    for (const [s, { label: sender }] of graph.senders.entries())
      scores[r * graph.senders.length + s] = edges.scores.data[
        edges.senders.indexOf(sender) * edges.receivers.length + edges.receivers.indexOf(receiver)
      ] as number
  const order = [...all.keys()].filter((i) => all[i] === 1).sort((a, b) => Math.abs(scores[b] as number) - Math.abs(scores[a] as number))
  const chosen =
    search.kind === 'top' ? order.slice(0, search.count) : order.filter((i) => Math.abs(scores[i] as number) >= search.threshold)
  const mask = new Float32Array(all.length)
  for (const i of chosen) mask[i] = 1
  return { scores, mask }
}

/** ACDC: readers from the last to the first, and of each its senders from the last to the first. */
async function greedy(
  graph: EdgeGraph,
  all: EdgeMask,
  full: number,
  threshold: number,
  judge: Judge,
  { signal, onProgress }: CircuitOptions,
): Promise<Found> {
  const mask = Float32Array.from(all)
  const scores = new Float32Array(all.length)
  const width = graph.senders.length
  const order = range(graph.receivers.length)
    .toReversed()
    .flatMap((r) =>
      range(width)
        .toReversed()
        .map((s) => r * width + s),
    )
    .filter((i) => all[i] === 1)
  let current = full
  for (const [done, edge] of order.entries()) {
    throwIfCancelled(signal)
    // A reader that nothing in the circuit hears any more needs no runs.
    if (leadsNowhere(graph, mask, Math.floor(edge / width))) mask[edge] = 0
    else {
      mask[edge] = 0
      const [value] = (await judge([mask])) as [number]
      scores[edge] = value - current
      if (Math.abs(value - current) >= threshold) mask[edge] = 1
      else current = value
    }
    onProgress?.({ task: 'cutting edges', done: done + 1, total: order.length, unit: 'edges' })
  }
  return { scores, mask }
}

/** The writes that a reading belongs to: a head's queries, keys and values to the heads that use them. */
function writersBehind(graph: EdgeGraph, receiver: number): number[] {
  const { label } = graph.receivers[receiver] as { label: string }
  if (label === 'logits') return []
  if (label.startsWith('mlp')) return [graph.senders.findIndex((s) => s.label === label)]
  const [part, place] = label.split(' ') as [string, string]
  const [layer, head] = place.split('.').map(Number) as [number, number]
  const heads = graph.senders.filter((s) => s.label.startsWith(`head ${layer}.`)).length
  const shared = part === 'q' ? 1 : heads / graph.receivers.filter((r) => r.label.startsWith(`${part} ${layer}.`)).length
  return range(shared).map((i) => graph.senders.findIndex((s) => s.label === `head ${layer}.${head * shared + i}`))
}

function leadsNowhere(graph: EdgeGraph, mask: EdgeMask, receiver: number): boolean {
  const behind = writersBehind(graph, receiver)
  if (behind.length === 0) return false
  return behind.every((s) => graph.receivers.every((_, r) => mask[r * graph.senders.length + s] !== 1))
}

/** Takes out edges into what leads nowhere, until none is left: they can change nothing. */
function connected(graph: EdgeGraph, mask: EdgeMask): EdgeMask {
  const out = Float32Array.from(mask)
  const width = graph.senders.length
  // Readers in falling order of their place, so that one pass is enough.
  for (const r of range(graph.receivers.length).toReversed()) if (leadsNowhere(graph, out, r)) out.fill(0, r * width, (r + 1) * width)
  return out
}

function tablesOf(graph: EdgeGraph, scores: Float32Array, mask: EdgeMask) {
  const [senders, receivers] = [graph.senders.map((s) => s.label), graph.receivers.map((r) => r.label)]
  const turned = (data: Float32Array): NDArray<Float32Array> => ({
    dtype: 'float32',
    shape: [senders.length, receivers.length],
    data: Float32Array.from(senders.flatMap((_, s) => receivers.map((__, r) => data[r * senders.length + s] as number))),
  })
  const edges = [...mask.keys()]
    .filter((i) => mask[i] === 1)
    .map((i) => ({
      sender: senders[i % senders.length] as string,
      receiver: receivers[Math.floor(i / senders.length)] as string,
      score: scores[i] as number,
    }))
    .sort((a, b) => Math.abs(b.score) - Math.abs(a.score))
  return { senders, receivers, scores: turned(scores), kept: turned(mask), edges }
}
