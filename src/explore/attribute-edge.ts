/** @file Edge attribution patching: what each write to the residual stream changes through each reading of it, estimated from gradients. */

import { ModelError, throwIfCancelled } from '../base/errors.ts'
import { range } from '../base/numbers.ts'
import type { WorkOptions } from '../base/progress.ts'
import { type NDArray, sizeOf } from '../base/types.ts'
import { type DecoderSpec, hasMlp } from '../models/spec.ts'
import type { Model } from '../run/index.ts'
import { add, differentiate, input, jvp, matmul, mul, Rewriter, sum, type Tensor } from '../tensor/index.ts'
import { directionOf, type PairOptions, pairsOf } from './patch.ts'
import { type EditedModel, editedModel, readLogits, rowFeeds } from './patch-graph.ts'
import { type Metric, type MetricFunction, type PreparedMetric, prepareMetric } from './patch-metric.ts'

/** Options of {@link attributeEdges}. */
export interface EdgeOptions extends PairOptions, WorkOptions {
  readonly metric: Metric | MetricFunction
}

/** The edges between writes and readings of the residual stream. */
export interface EdgeResult {
  /** What writes: `embeddings`, `head 0.3`, `mlp 0`. */
  readonly senders: readonly string[]
  /** What reads: `q 1.3`, `k 1.0`, `v 1.0`, `mlp 1`, `logits`. */
  readonly receivers: readonly string[]
  /** Estimated change of the metric, [sender, receiver]; 0 where the sender writes after the receiver reads. Means over the pairs. */
  readonly scores: NDArray<Float32Array>
  readonly metric: { readonly clean: number; readonly corrupt: number }
}

/** A run's values and gradients, by canonical site. */
interface Values {
  readonly taps: Readonly<Record<string, NDArray<Float32Array>>>
  readonly grads: Readonly<Record<string, NDArray<Float32Array>>>
  readonly metric: number
}

/** Writes of one kind, [row, pos, d_model], and from which reading on they are seen. */
interface Writes {
  readonly labels: readonly string[]
  readonly data: NDArray<Float32Array>
  /** Twice the layer, plus one for an MLP. */
  readonly order: number
}

/** Readings of one block's attention or MLP, or of the logits. */
interface Reading {
  readonly labels: readonly string[]
  /** Writes of a lower order are seen. */
  readonly order: number
  readonly scores: (senders: NDArray) => Promise<Float32Array>
}

/**
 * Edge attribution patching: (other run's write − own write) · gradient of the metric with respect to what one reader reads.
 * The scores of a sender add up, over receivers, to its own attribution.
 */
export async function attributeEdges(model: Model, options: EdgeOptions): Promise<EdgeResult> {
  const { spec } = model
  for (let l = 0; l < spec.layers; l++)
    if (spec.block(l).attnSumNorm || spec.block(l).mlpSumNorm)
      throw new ModelError(
        `The family '${spec.family}' normalises the residual stream itself after each sum, so writes do not add up along it; edges are not defined.`,
      )
  const noise = directionOf(options.direction) === 'noise'
  const pairs = pairsOf(model, options)
  const metric = prepareMetric(options.metric, pairs.length, spec.vocab)
  const edited = editedModel(model)
  let result: { senders: string[]; receivers: string[]; data: Float32Array } | undefined
  const total = { clean: 0, corrupt: 0 }
  for (const [index, pair] of pairs.entries()) {
    const [own, other] = noise ? [pair.clean, pair.corrupt] : [pair.corrupt, pair.clean]
    const feeds = await metricFeeds(edited, metric, index, pair.clean)
    const [a, b] = [await valuesOf(edited, metric, other, feeds), await valuesOf(edited, metric, own, feeds)]
    total.clean += (noise ? b : a).metric / pairs.length
    total.corrupt += (noise ? a : b).metric / pairs.length
    const writes = await writesOf(edited, a, b, own)
    const readings = readingsOf(edited, b, own)
    const senders = writes.flatMap((w) => w.labels)
    const receivers = readings.flatMap((r) => r.labels)
    result ??= { senders, receivers, data: new Float32Array(senders.length * receivers.length) }
    let column = 0
    for (const reading of readings) {
      throwIfCancelled(options.signal)
      const seen = writes.filter((w) => w.order < reading.order)
      const scores = await reading.scores(stacked(seen.map((w) => w.data)))
      const width = reading.labels.length
      for (let s = 0; s < scores.length / width; s++)
        for (let r = 0; r < width; r++) {
          const at = s * receivers.length + column + r
          result.data[at] = (result.data[at] as number) + (scores[s * width + r] as number) / pairs.length
        }
      column += width
      options.onProgress?.({
        task: 'attributing edges',
        done: index * receivers.length + column,
        total: pairs.length * receivers.length,
        unit: 'receivers',
      })
    }
  }
  const { senders, receivers, data } = result as NonNullable<typeof result>
  return { senders, receivers, scores: { dtype: 'float32', shape: [senders.length, receivers.length], data }, metric: total }
}

async function metricFeeds(edited: EditedModel, metric: PreparedMetric, index: number, clean: readonly number[]) {
  if (!metric.needsReference) return metric.feeds(index, 1, clean, undefined)
  const program = await edited.core.compiled(JSON.stringify(['edge reference', edited.structure]), () => ({
    logits: edited.graph({ taps: [], lastOnly: true }).logits,
  }))
  const logits = (await program.run(rowFeeds(edited, [clean], metric.position))).logits as NDArray
  return metric.feeds(index, 1, clean, { ...logits, shape: [1, logits.shape.at(-1) as number] })
}

/** Sites of a block that are read or differentiated. */
const writers = (spec: DecoderSpec) => (l: number) => [`z.${l}`, ...(hasMlp(spec, l) ? [`mlp_out_post.${l}`] : [])]
const readers = (spec: DecoderSpec) => (l: number) => [`q.${l}`, `k.${l}`, `v.${l}`, ...(hasMlp(spec, l) ? [`mlp_in.${l}`] : [])]

/** What the MLP of a block reads, before its norm. */
const mlpReads = (edited: EditedModel, l: number) =>
  edited.core.spec.block(l).residual === 'parallel' ? `resid_pre.${l}` : `resid_mid.${l}`

async function valuesOf(
  edited: EditedModel,
  metric: PreparedMetric,
  tokens: readonly number[],
  feeds: Record<string, NDArray>,
): Promise<Values> {
  const layers = range(edited.core.spec.layers)
  const end = `resid_post.${layers.length - 1}`
  const { spec } = edited.core
  const at = [...layers.flatMap(readers(spec)), end]
  const taps = [
    ...new Set(layers.flatMap((l) => [`resid_pre.${l}`, ...writers(spec)(l), ...(hasMlp(spec, l) ? [mlpReads(edited, l)] : [])])),
  ]
  const program = await edited.core.compiled(JSON.stringify(['edges', edited.structure, metric.key]), () => {
    const graph = edited.graph({ taps: [...taps, ...at], lastOnly: !metric.everywhere })
    const value = sum(metric.build(readLogits(graph.logits, { lastOnly: !metric.everywhere, everywhere: metric.everywhere })))
    const tensorOf = (site: string) => graph.taps.get(site) as Tensor
    const d = differentiate({ of: value, at: at.map(tensorOf), cut: true })
    return {
      metric: d.of,
      ...Object.fromEntries(taps.map((s) => [`tap:${s}`, d.map(tensorOf(s))])),
      ...Object.fromEntries(at.map((s, i) => [`grad:${s}`, d.grads[i] as Tensor])),
    }
  })
  const out = (await program.run({ ...rowFeeds(edited, [tokens], metric.position), ...feeds })) as Record<string, NDArray<Float32Array>>
  const named = (prefix: string, sites: readonly string[]) =>
    Object.fromEntries(sites.map((s) => [s, out[prefix + s] as NDArray<Float32Array>]))
  return { metric: out.metric?.data[0] as number, taps: named('tap:', taps), grads: named('grad:', at) }
}

function difference(a: NDArray<Float32Array>, b: NDArray<Float32Array>): NDArray<Float32Array> {
  return { ...a, data: a.data.map((v, i) => v - (b.data[i] as number)) }
}

/** Differences of all writes; those of heads are their values through the output projection, linear at the own run. */
async function writesOf(edited: EditedModel, other: Values, own: Values, tokens: readonly number[]): Promise<Writes[]> {
  const { spec } = edited.core
  const change = (site: string) => difference(other.taps[site] as NDArray<Float32Array>, own.taps[site] as NDArray<Float32Array>)
  const out: Writes[] = [{ labels: ['embeddings'], data: change('resid_pre.0'), order: -1 }]
  for (const l of range(spec.layers)) {
    const data = await headWrites(edited, l, own.taps[`z.${l}`] as NDArray<Float32Array>, change(`z.${l}`), tokens)
    out.push({ labels: range(spec.heads).map((h) => `head ${l}.${h}`), data, order: 2 * l })
    if (hasMlp(spec, l)) out.push({ labels: [`mlp ${l}`], data: change(`mlp_out_post.${l}`), order: 2 * l + 1 })
  }
  return out
}

/** What each head's change of z [1, pos, head, d_head] changes in what attention adds to the stream, [head, pos, d_model]. */
export async function headWrites(
  edited: EditedModel,
  layer: number,
  z: NDArray<Float32Array>,
  change: NDArray<Float32Array>,
  tokens: readonly number[],
  site = 'attn_out_post',
): Promise<NDArray<Float32Array>> {
  const { heads } = edited.core.spec
  const program = await edited.core.compiled(JSON.stringify(['head writes', edited.structure, layer, site]), () => {
    const piece = pieceOf(edited, `z.${layer}`, [`${site}.${layer}`])
    const along = input('along', 'float32', piece.start.shape)
    return { change: jvp(piece.ends[0] as Tensor, [piece.start], [along]).change }
  })
  const rows = new Array<readonly number[]>(heads).fill(tokens)
  const feeds = { ...rowFeeds(edited, rows), [startName]: tiled(z, heads), along: oneHead(change, heads) }
  return (await program.run(feeds)).change as NDArray<Float32Array>
}

const startName = 'piece.start'

/** Part of the graph: from a new input at one site to others that are computed from it. */
function pieceOf(edited: EditedModel, from: string, to: readonly string[]): { start: Tensor; ends: Tensor[] } {
  const graph = edited.graph({ taps: [from, ...to], lastOnly: false })
  const place = graph.taps.get(from) as Tensor
  const start = input(startName, place.dtype, place.shape)
  const rewriter = new Rewriter({ tensors: new Map([[place, [{ label: `at ${from}`, apply: () => start }]]]) })
  return { start, ends: to.map((s) => rewriter.map(graph.taps.get(s) as Tensor)) }
}

function readingsOf(edited: EditedModel, own: Values, tokens: readonly number[]): Reading[] {
  const { spec } = edited.core
  const out: Reading[] = range(spec.layers).flatMap((l) => {
    const parallel = spec.block(l).residual === 'parallel'
    const mlp = hasMlp(spec, l) ? [mlpReading(edited, own, l, parallel ? 2 * l : 2 * l + 1, tokens)] : []
    return [attentionReading(edited, own, l, tokens), ...mlp]
  })
  const end = own.grads[`resid_post.${spec.layers - 1}`] as NDArray<Float32Array>
  out.push({ labels: ['logits'], order: 2 * spec.layers, scores: (senders) => dots(edited, senders, end) })
  return out
}

/** Queries, keys and values of each head of a block. A row for each: its gradient alone goes back through the projection and the norm. */
function attentionReading(edited: EditedModel, own: Values, l: number, tokens: readonly number[]): Reading {
  const { heads, kvHeads } = edited.core.spec
  const parts = [
    ['q', heads],
    ['k', kvHeads],
    ['v', kvHeads],
  ] as const
  const rows = heads + 2 * kvHeads
  const seeds: Record<string, NDArray> = {}
  let first = 0
  for (const [name, count] of parts) {
    seeds[`seed:${name}.${l}`] = oneHead(own.grads[`${name}.${l}`] as NDArray<Float32Array>, count, first, rows)
    first += count
  }
  return {
    labels: parts.flatMap(([name, count]) => range(count).map((h) => `${name} ${l}.${h}`)),
    order: 2 * l,
    scores: (senders) =>
      readingScores(
        edited,
        own,
        `resid_pre.${l}`,
        parts.map(([n]) => `${n}.${l}`),
        rows,
        tokens,
        senders,
        seeds,
      ),
  }
}

function mlpReading(edited: EditedModel, own: Values, l: number, order: number, tokens: readonly number[]): Reading {
  const seeds = { [`seed:mlp_in.${l}`]: own.grads[`mlp_in.${l}`] as NDArray }
  return {
    labels: [`mlp ${l}`],
    order,
    scores: (senders) => readingScores(edited, own, mlpReads(edited, l), [`mlp_in.${l}`], 1, tokens, senders, seeds),
  }
}

/** Products of all senders with the gradient at `from` of each row, [sender, row]. */
async function readingScores(
  edited: EditedModel,
  own: Values,
  from: string,
  to: readonly string[],
  rows: number,
  tokens: readonly number[],
  senders: NDArray,
  seeds: Record<string, NDArray>,
): Promise<Float32Array> {
  const program = await edited.core.compiled(JSON.stringify(['edge reading', edited.structure, from, to]), () => {
    const piece = pieceOf(edited, from, to)
    const of = to
      .map((s, i) => sum(mul(piece.ends[i] as Tensor, input(`seed:${s}`, 'float32', (piece.ends[i] as Tensor).shape))))
      .reduce((a, b) => add(a, b))
    const { grads } = differentiate({ of, at: [piece.start] })
    return { scores: product(edited, grads[0] as Tensor) }
  })
  const x = own.taps[from] as NDArray<Float32Array>
  const feeds = { ...rowFeeds(edited, new Array<readonly number[]>(rows).fill(tokens)), [startName]: tiled(x, rows), ...seeds, senders }
  return (await program.run(feeds)).scores?.data as Float32Array
}

async function dots(edited: EditedModel, senders: NDArray, gradient: NDArray): Promise<Float32Array> {
  const program = await edited.core.compiled('edge logits', () => ({
    scores: product(edited, input('gradient', 'float32', ['batch', 'pos', edited.core.spec.dModel])),
  }))
  return (await program.run({ senders, gradient })).scores?.data as Float32Array
}

/** senders [sender, pos, d_model] · gradient [batch, pos, d_model], [sender, batch]. */
function product(edited: EditedModel, gradient: Tensor): Tensor {
  const senders = input('senders', 'float32', ['sender', 'pos', edited.core.spec.dModel])
  return matmul(senders.reshape(['sender', -1]), gradient.reshape(['batch', -1]), { transB: true })
}

function tiled(x: NDArray<Float32Array>, rows: number): NDArray<Float32Array> {
  return stacked(new Array<NDArray<Float32Array>>(rows).fill(x))
}

function stacked(parts: readonly NDArray<Float32Array>[]): NDArray<Float32Array> {
  const data = new Float32Array(parts.reduce((n, p) => n + p.data.length, 0))
  let at = 0
  for (const p of parts) {
    data.set(p.data, at)
    at += p.data.length
  }
  const shape = (parts[0] as NDArray).shape.slice(1)
  return { dtype: 'float32', shape: [data.length / sizeOf(shape), ...shape], data }
}

/** Row `first + h` of `rows` holds head `h` of a value [1, pos, head, d_head] alone, zeros elsewhere. */
function oneHead(value: NDArray<Float32Array>, heads: number, first = 0, rows = heads): NDArray<Float32Array> {
  const [, length, , width] = value.shape as [number, number, number, number]
  const size = value.data.length
  const data = new Float32Array(rows * size)
  for (let h = 0; h < heads; h++)
    for (let p = 0; p < length; p++) {
      const at = (p * heads + h) * width
      data.set(value.data.subarray(at, at + width), (first + h) * size + at)
    }
  return { dtype: 'float32', shape: [rows, ...value.shape.slice(1)], data }
}
