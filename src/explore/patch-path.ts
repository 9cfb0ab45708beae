/** @file Path patching: what a head changes along the direct way to chosen readers, everything between held fast. */
import { ModelError, throwIfCancelled, UsageError } from '../base/errors.ts'
import type { WorkOptions } from '../base/progress.ts'
import type { NDArray } from '../base/types.ts'
import { hasMlp } from '../models/spec.ts'
import type { Model } from '../run/index.ts'
import type { SiteInfo } from '../sites/address.ts'
import { type DataEdit, replace } from '../sites/edits.ts'
import { directionOf, type PairOptions, pairsOf } from './patch.ts'
import { headAxis, type SweepTable } from './patch-cells.ts'
import { sitesOf } from './patch-graph.ts'
import { type Metric, type MetricFunction, metricOf, prepareMetric } from './patch-metric.ts'

/** Where the paths end: a site that reads the residual stream, whole or one of its heads. */
export interface PathReceiver {
  /** `q.5`, `k.5`, `v.5`, `mlp_in.5`, or the last `resid_post`. */
  readonly site: string
  readonly head?: number
}

/** Options of {@link patchPaths}. */
export interface PathOptions extends PairOptions, WorkOptions {
  readonly metric: Metric | MetricFunction
  /** Sites of heads that send, `z.*` by default. */
  readonly senders?: string
  readonly receivers: PathReceiver | readonly PathReceiver[]
  /** Also hold the MLPs between fast; by default only heads are, so that paths may run through MLPs. */
  readonly freezeMlps?: boolean
}

/** What path patching gives. */
export interface PathResult {
  /** The metric when only the paths from this head to the receivers carry the other run's value, [layer, head]; mean over the pairs. */
  readonly table: SweepTable
  readonly metric: { readonly clean: number; readonly corrupt: number }
}

type Values = Readonly<Record<string, NDArray<Float32Array>>>

/**
 * Path patching in two runs of stacked rows, one for each sending head: first the sender takes the other run's value while all
 * other heads keep their own, and the receivers are recorded; then the receivers alone take what was recorded.
 */
export async function patchPaths(model: Model, options: PathOptions): Promise<PathResult> {
  const noise = directionOf(options.direction) === 'noise'
  const pairs = pairsOf(model, options)
  const pattern = options.senders ?? 'z.*'
  const senders = sitesOf(model, pattern)
  if (senders[0].row.name !== 'z') throw new UsageError(`Senders must be the heads' outputs 'z', not '${senders[0].site}'.`)
  const list = 'site' in options.receivers ? [options.receivers] : options.receivers
  const receivers = list.map((r) => ({ info: checkReceiver(model, r), ...r }))
  const metric = prepareMetric(options.metric, pairs.length, model.spec.vocab)
  if (metric.needsReference || metric.everywhere)
    throw new ModelError('Path patching measures the last position; use a metric of logits or probabilities.')
  const { heads, layers } = model.spec
  const data = new Float32Array(senders.length * heads)
  const total = { clean: 0, corrupt: 0 }
  const held = Array.from({ length: layers }, (_, l) => [
    `z.${l}`,
    ...(options.freezeMlps && hasMlp(model.spec, l) ? [`mlp_out_post.${l}`] : []),
  ]).flat()
  for (const [index, pair] of pairs.entries()) {
    const [own, other] = noise ? [pair.clean, pair.corrupt] : [pair.corrupt, pair.clean]
    const measure = async (logits: NDArray<Float32Array>, rows: number) =>
      metricOf(model.internals, metric, positionOf(logits, metric.position), metric.feeds(index, rows, pair.clean, undefined))
    const base = await model.run({ ids: own }, { taps: [...held, ...receivers.map((r) => r.info.site)] })
    const source = await model.run({ ids: other }, { taps: senders.map((s) => s.site) })
    const ends = { own: (await measure(base.logits, 1))[0] as number, other: (await measure(source.logits, 1))[0] as number }
    total.clean += (noise ? ends.own : ends.other) / pairs.length
    total.corrupt += (noise ? ends.other : ends.own) / pairs.length
    // The heads of one layer are the rows of one batch.
    for (const [s, sender] of senders.entries()) {
      throwIfCancelled(options.signal)
      const rows = { rows: new Array<readonly number[]>(heads).fill(own) }
      const frozen = held.map((site): DataEdit => {
        const value = (base.taps as Values)[site] as NDArray<Float32Array>
        return replace(site, site === sender.site ? eachHead(value, (source.taps as Values)[site] as NDArray<Float32Array>) : value)
      })
      // The logits keep what is held behind the receivers from being refused as never firing.
      const sent = await model.with(frozen).run(rows, { taps: receivers.map((r) => r.info.site) })
      const received = new Map<string, NDArray<Float32Array>>()
      for (const { info, head } of receivers) {
        const before = received.get(info.site) ?? tiled((base.taps as Values)[info.site] as NDArray<Float32Array>, heads)
        received.set(info.site, merged(before, (sent.taps as Values)[info.site] as NDArray<Float32Array>, head))
      }
      const edits = [...received].map(([site, value]) => replace(site, value))
      const { logits } = await model.with(edits).run(rows)
      const values = await measure(logits, heads)
      for (let h = 0; h < heads; h++) data[s * heads + h] = (data[s * heads + h] as number) + (values[h] as number) / pairs.length
      options.onProgress?.({
        task: 'patching paths',
        done: index * senders.length + s + 1,
        total: pairs.length * senders.length,
        unit: 'layers',
      })
    }
  }
  const axes = [
    { name: 'layer' as const, labels: senders.map((s) => s.layer as number) },
    { name: 'head' as const, labels: Array.from({ length: heads }, (_, h) => h) },
  ]
  return { table: { name: pattern, sites: senders.map((s) => s.site), axes, shape: [senders.length, heads], data }, metric: total }
}

function checkReceiver(model: Model, { site, head }: PathReceiver): SiteInfo {
  const info = model.site(site)
  const heads = headAxis(info.row.axes)
  if (info.row.axes[1] !== 'pos')
    throw new UsageError(`'${site}' cannot receive: name a site that reads the stream, such as q.5, k.5, v.5 or mlp_in.5.`)
  const count = heads === 'head' ? model.spec.heads : heads ? model.spec.kvHeads : 0
  if (head !== undefined && (!Number.isInteger(head) || head < 0 || head >= count))
    throw new UsageError(
      count === 0 ? `'${site}' has no heads; leave 'head' out.` : `'${site}' has the heads 0 to ${count - 1}, not ${head}.`,
    )
  return info
}

/** The logits of one position, [batch, 1, d_vocab]. */
function positionOf({ shape, data }: NDArray<Float32Array>, position = -1): NDArray<Float32Array> {
  const [rows, length, vocab] = shape as [number, number, number]
  const at = position < 0 ? position + length : position
  if (!Number.isInteger(at) || at < 0 || at >= length)
    throw new UsageError(`The metric reads position ${position}, but the text has ${length} tokens.`)
  const out = new Float32Array(rows * vocab)
  for (let b = 0; b < rows; b++) out.set(data.subarray((b * length + at) * vocab, (b * length + at + 1) * vocab), b * vocab)
  return { dtype: 'float32', shape: [rows, 1, vocab], data: out }
}

function tiled({ shape, data }: NDArray<Float32Array>, rows: number): NDArray<Float32Array> {
  const out = new Float32Array(rows * data.length)
  for (let b = 0; b < rows; b++) out.set(data, b * data.length)
  return { dtype: 'float32', shape: [rows, ...shape.slice(1)], data: out }
}

/** Row h has the other value at head h, its own everywhere else; [1, pos, head, d_head] to [head, pos, head, d_head]. */
function eachHead(own: NDArray<Float32Array>, other: NDArray<Float32Array>): NDArray<Float32Array> {
  const [, length, heads, width] = own.shape as [number, number, number, number]
  const out = tiled(own, heads)
  for (let h = 0; h < heads; h++)
    for (let p = 0; p < length; p++) {
      const at = (p * heads + h) * width
      out.data.set(other.data.subarray(at, at + width), h * own.data.length + at)
    }
  return out
}

/** `from` in one head, or everywhere where none is named; `to` elsewhere. */
function merged(to: NDArray<Float32Array>, from: NDArray<Float32Array>, head: number | undefined): NDArray<Float32Array> {
  if (head === undefined) return from
  const [, , heads, width] = to.shape as [number, number, number, number]
  for (let at = head * width; at < to.data.length; at += heads * width) to.data.set(from.data.subarray(at, at + width), at)
  return to
}
