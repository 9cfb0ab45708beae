/** @file Running a model with some edges of its residual stream cut: every reader gets its own sum of writes, live ones and replaced ones. */

import { ModelError, throwIfCancelled } from '../base/errors.ts'
import { range } from '../base/numbers.ts'
import { type NDArray, sizeOf } from '../base/types.ts'
import { type DecoderSpec, hasMlp } from '../models/spec.ts'
import type { Model } from '../run/index.ts'
import { add, einsum, input, mean, Rewriter, sub, sum, type Tensor, transpose } from '../tensor/index.ts'
import { headWrite } from './logit-attribution.ts'
import { type EditedModel, editedModel, rowFeeds } from './patch-graph.ts'
import { metricOf, type PreparedMetric } from './patch-metric.ts'

type Floats = NDArray<Float32Array>

/** A write to the residual stream, or several of one layer. Seen by readings of a higher order. */
export interface Sender {
  readonly label: string
  /** Twice the layer, plus one for an MLP; −1 for the embeddings. */
  readonly order: number
}

/** A reading of the residual stream. */
export interface Receiver {
  readonly label: string
  readonly order: number
}

/** The writes and readings of a model, in the order of the forward pass. */
export interface EdgeGraph {
  readonly senders: readonly Sender[]
  readonly receivers: readonly Receiver[]
}

/** The edges of a model: embeddings, heads and MLPs write; queries, keys and values of heads, MLPs and the logits read. */
export function edgeGraph(spec: DecoderSpec): EdgeGraph {
  const layers = range(spec.layers)
  const each = (name: string, l: number, count: number) => range(count).map((h) => ({ label: `${name} ${l}.${h}`, order: 2 * l }))
  return {
    senders: [
      { label: 'embeddings', order: -1 },
      ...layers.flatMap((l) => [...each('head', l, spec.heads), ...(hasMlp(spec, l) ? [{ label: `mlp ${l}`, order: 2 * l + 1 }] : [])]),
    ],
    receivers: [
      ...layers.flatMap((l) => [
        ...each('q', l, spec.heads),
        ...each('k', l, spec.kvHeads),
        ...each('v', l, spec.kvHeads),
        ...(hasMlp(spec, l) ? [{ label: `mlp ${l}`, order: spec.block(l).residual === 'parallel' ? 2 * l : 2 * l + 1 }] : []),
      ]),
      { label: 'logits', order: 2 * spec.layers },
    ],
  }
}

/** What stands in for a write whose edge is cut: its value on another text, its mean over texts, or nothing. */
export type Replacement = 'resample' | 'mean' | 'zero'

/** Which edges are kept, 1 or 0, [receiver · sender] as the graph orders them. */
export type EdgeMask = Float32Array

/** What of one pair of texts a run with cut edges needs. */
export interface CutRun {
  readonly tokens: readonly number[]
  /** What the text itself writes first, [sender, 1, pos, d_model]; only the embeddings are looked at. */
  readonly own: Floats
  /** What takes the place of each write, [sender, 1, pos, d_model]. */
  readonly replacement: Floats
  /** What of each reading's stream no sender wrote (biases of output projections), [1, pos, d_model], by site. */
  readonly rest: ReadonlyMap<string, Floats>
}

/** A model whose edges can be cut. */
export class CutModel {
  readonly graph: EdgeGraph
  private readonly edited: EditedModel

  private constructor(edited: EditedModel) {
    this.edited = edited
    this.graph = edgeGraph(edited.core.spec)
  }

  /** Refuses families in which writes do not add up along the stream. */
  static of(model: Model): CutModel {
    const { spec } = model
    for (const l of range(spec.layers)) {
      const b = spec.block(l)
      if (b.attnSumNorm || b.mlpSumNorm || b.attnPostNorm)
        throw new ModelError(
          `The family '${spec.family}' normalises what attention writes, or the stream after it, so heads do not add up along it; edges cannot be cut there.`,
        )
    }
    return new CutModel(editedModel(model))
  }

  private get spec(): DecoderSpec {
    return this.edited.core.spec
  }

  /** The site that a reading of this order reads, before its norm. */
  private siteOf(kind: 'attention' | 'mlp' | 'logits', l: number): string {
    if (kind === 'logits') return `resid_post.${this.spec.layers - 1}`
    return kind === 'attention' || this.spec.block(l).residual === 'parallel' ? `resid_pre.${l}` : `resid_mid.${l}`
  }

  private readings() {
    return [
      ...range(this.spec.layers).flatMap((l) => [
        { site: this.siteOf('attention', l), order: 2 * l },
        ...(hasMlp(this.spec, l)
          ? [{ site: this.siteOf('mlp', l), order: this.spec.block(l).residual === 'parallel' ? 2 * l : 2 * l + 1 }]
          : []),
      ]),
      { site: this.siteOf('logits', 0), order: 2 * this.spec.layers },
    ]
  }

  /** All writes of a text, [sender, 1, pos, d_model], and what its readings see beyond them. */
  async writesOf(tokens: readonly number[]): Promise<{ writes: Floats; rest: ReadonlyMap<string, Floats> }> {
    const { core } = this.edited
    const layers = range(this.spec.layers)
    const mlpOf = (l: number) => (hasMlp(this.spec, l) ? [`mlp_out_post.${l}`] : [])
    const readings = this.readings()
    const program = await core.compiled(JSON.stringify(['writes', this.edited.structure]), () => {
      const taps = ['resid_pre.0', ...layers.flatMap((l) => [`z.${l}`, ...mlpOf(l)]), ...readings.map((r) => r.site)]
      const graph = this.edited.graph({ taps, lastOnly: false })
      const tap = (site: string) => graph.taps.get(site) as Tensor
      const heads = layers.map((l) => transpose(headWrite(core, l, tap(`z.${l}`), tap), [1, 0, 2, 3]))
      const outputs: Record<string, Tensor> = { embeddings: tap('resid_pre.0') }
      for (const l of layers) {
        outputs[`heads ${l}`] = heads[l] as Tensor
        for (const site of mlpOf(l)) outputs[`mlp ${l}`] = tap(site)
      }
      for (const { site, order } of readings) {
        const seen = [
          tap('resid_pre.0'),
          ...layers.flatMap((l) => [
            ...(2 * l < order ? [sum(heads[l] as Tensor, [0])] : []),
            ...(2 * l + 1 < order ? mlpOf(l).map(tap) : []),
          ]),
        ]
        outputs[`rest ${site}`] = sub(
          tap(site),
          seen.reduce((a, b) => add(a, b)),
        )
      }
      return outputs
    })
    const out = (await program.run(rowFeeds(this.edited, [tokens]))) as Record<string, Floats>
    const parts = [
      out.embeddings as Floats,
      ...layers.flatMap((l) => [out[`heads ${l}`] as Floats, ...mlpOf(l).map(() => out[`mlp ${l}`] as Floats)]),
    ]
    const rest = new Map(readings.map(({ site }) => [site, out[`rest ${site}`] as Floats]))
    return { writes: joined(parts, [this.graph.senders.length, 1, tokens.length, this.spec.dModel]), rest }
  }

  /** Means of all writes over the positions of some texts, at every position of a text of `length` tokens. */
  async meanWrites(rows: readonly (readonly number[])[], length: number): Promise<Floats> {
    const { core } = this.edited
    const width = this.spec.dModel
    const program = await core.compiled('mean writes', () => {
      const writes = input('writes', 'float32', ['sender', 1, 'pos', width])
      return { mean: mean(writes, [1, 2]) }
    })
    const count = this.graph.senders.length
    const total = new Float32Array(count * width)
    const places = rows.reduce((n, r) => n + r.length, 0)
    for (const row of rows) {
      const { writes } = await this.writesOf(row)
      const own = (await program.run({ writes })).mean?.data as Float32Array
      for (let i = 0; i < total.length; i++) total[i] = (total[i] as number) + ((own[i] as number) * row.length) / places
    }
    const data = new Float32Array(count * length * width)
    for (let s = 0; s < count; s++)
      for (let p = 0; p < length; p++) data.set(total.subarray(s * width, (s + 1) * width), (s * length + p) * width)
    return { dtype: 'float32', shape: [count, 1, length, width], data }
  }

  /** The metric of each mask: a forward pass in which every reader sees live writes along kept edges and replaced ones along cut edges. */
  async run(
    run: CutRun,
    masks: readonly EdgeMask[],
    metric: PreparedMetric,
    feeds: Record<string, NDArray>,
    signal?: AbortSignal,
  ): Promise<Float32Array> {
    const { spec } = this
    const { senders, receivers } = this.graph
    const [length, width, b] = [run.tokens.length, spec.dModel, masks.length]
    const live = new Float32Array(senders.length * b * length * width)
    const place = (sender: number) => sender * b * length * width
    for (let m = 0; m < b; m++) live.set(run.own.data.subarray(0, length * width), place(0) + m * length * width)
    // What a group of readers of one order sees, [reader · mask, pos, d_model].
    const seen = async (first: number, count: number, site: string): Promise<Floats> => {
      const { order } = receivers[first] as Receiver
      const known = senders.filter((s) => s.order < order).length
      const kept = new Float32Array(count * b * known)
      for (let r = 0; r < count; r++)
        for (let m = 0; m < b; m++) {
          const row = (first + r) * senders.length
          kept.set((masks[m] as EdgeMask).subarray(row, row + known), (r * b + m) * known)
        }
      const program = await this.mixing()
      const out = await program.run({
        live: { dtype: 'float32', shape: [known, b, length, width], data: live.subarray(0, known * b * length * width) },
        replacement: { dtype: 'float32', shape: [known, 1, length, width], data: run.replacement.data.subarray(0, known * length * width) },
        kept: { dtype: 'float32', shape: [count, b, known], data: kept },
        rest: run.rest.get(site) as Floats,
      })
      return { dtype: 'float32', shape: [count * b, length, width], data: out.seen?.data as Float32Array }
    }
    const rowsOf = (count: number) => new Array<readonly number[]>(count).fill(run.tokens)
    let receiver = 0
    for (const l of range(spec.layers)) {
      throwIfCancelled(signal)
      const counts = { q: spec.heads, k: spec.kvHeads, v: spec.kvHeads }
      const readers = spec.heads + 2 * spec.kvHeads
      const site = this.siteOf('attention', l)
      const stream = await seen(receiver, readers, site)
      const names = Object.keys(counts) as (keyof typeof counts)[]
      const projected = await this.piece(
        [site],
        names.map((n) => `${n}.${l}`),
        { [site]: stream },
        rowsOf(readers * b),
      )
      let first = 0
      const own: Record<string, Floats> = {}
      for (const n of names) {
        own[`${n}.${l}`] = ownHeads(projected[`${n}.${l}`] as Floats, first, counts[n], b)
        first += counts[n]
      }
      const heads = await this.headsOf(l, own, rowsOf(b))
      const sender = senders.findIndex((s) => s.label === `head ${l}.0`)
      live.set(heads.data, place(sender))
      receiver += readers
      if (!hasMlp(spec, l)) continue
      const mlpSite = this.siteOf('mlp', l)
      const mlp = await this.piece([mlpSite], [`mlp_out_post.${l}`], { [mlpSite]: await seen(receiver, 1, mlpSite) }, rowsOf(b))
      live.set((mlp[`mlp_out_post.${l}`] as Floats).data, place(sender + spec.heads))
      receiver++
    }
    const end = this.siteOf('logits', 0)
    const logits = await this.piece([end], ['logits'], { [end]: await seen(receiver, 1, end) }, rowsOf(b))
    return metricOf(
      this.edited.core,
      metric,
      metric.everywhere ? (logits.logits as Floats) : chosen(logits.logits as Floats, metric),
      feeds,
    )
  }

  /** Each reader's sum of live and replaced writes. */
  private mixing() {
    const width = this.spec.dModel
    return this.edited.core.compiled('mix of writes', () => {
      const live = input('live', 'float32', ['sender', 'mask', 'pos', width])
      const replacement = input('replacement', 'float32', ['sender', 1, 'pos', width])
      const kept = input('kept', 'float32', ['reader', 'mask', 'sender'])
      const rest = input('rest', 'float32', [1, 'pos', width])
      const moved = einsum('rms,smpd->rmpd', kept, sub(live, replacement))
      return { seen: add(moved, add(sum(replacement, [0]), rest)) }
    })
  }

  /** Part of the graph between sites, on values of one's own. */
  private async piece(
    from: readonly string[],
    to: readonly string[],
    values: Readonly<Record<string, Floats>>,
    rows: readonly (readonly number[])[],
  ): Promise<Record<string, Floats>> {
    const { core } = this.edited
    const program = await core.compiled(JSON.stringify(['cut piece', this.edited.structure, from, to]), () => {
      const { tap, rewriter } = this.opened(from, to)
      return Object.fromEntries(to.map((s) => [s, rewriter.map(tap(s))]))
    })
    const feeds = { ...rowFeeds(this.edited, rows), ...Object.fromEntries(from.map((s) => [start(s), values[s] as NDArray])) }
    return (await program.run(feeds)) as Record<string, Floats>
  }

  /** What each head writes, given queries, keys and values, [head, mask, pos, d_model]. */
  private async headsOf(l: number, values: Readonly<Record<string, Floats>>, rows: readonly (readonly number[])[]): Promise<Floats> {
    const { core } = this.edited
    const from = Object.keys(values)
    const program = await core.compiled(JSON.stringify(['cut heads', this.edited.structure, l]), () => {
      const { tap, rewriter } = this.opened(from, [`z.${l}`])
      return { heads: transpose(headWrite(core, l, rewriter.map(tap(`z.${l}`)), tap), [1, 0, 2, 3]) }
    })
    const feeds = { ...rowFeeds(this.edited, rows), ...Object.fromEntries(from.map((s) => [start(s), values[s] as NDArray])) }
    return (await program.run(feeds)).heads as Floats
  }

  /** The graph with inputs in place of some sites. */
  private opened(from: readonly string[], to: readonly string[]) {
    const graph = this.edited.graph({ taps: [...from, ...to.filter((s) => s !== 'logits')], lastOnly: false })
    const tap = (site: string) => (site === 'logits' ? graph.logits : (graph.taps.get(site) as Tensor))
    const rewriter = new Rewriter({
      tensors: new Map(
        from.map((s) => {
          const place = tap(s)
          return [place, [{ label: `at ${s}`, apply: () => input(start(s), place.dtype, place.shape) }]]
        }),
      ),
    })
    return { tap, rewriter }
  }
}

const start = (site: string) => `cut.start:${site}`

/** Row h of `first + h` readers has the value of head h: [reader · mask, pos, head, d_head] to [mask, pos, head, d_head]. */
function ownHeads(value: Floats, first: number, heads: number, masks: number): Floats {
  const [, length, , width] = value.shape as [number, number, number, number]
  const size = length * heads * width
  const data = new Float32Array(masks * size)
  for (let h = 0; h < heads; h++)
    for (let m = 0; m < masks; m++)
      for (let p = 0; p < length; p++) {
        const at = (p * heads + h) * width
        const from = ((first + h) * masks + m) * size + at
        data.set(value.data.subarray(from, from + width), m * size + at)
      }
  return { dtype: 'float32', shape: [masks, length, heads, width], data }
}

/** The logits of the metric's position, [batch, 1, d_vocab]. */
function chosen({ shape, data }: Floats, { position = -1 }: PreparedMetric): Floats {
  const [rows, length, vocab] = shape as [number, number, number]
  const at = position < 0 ? position + length : position
  const out = new Float32Array(rows * vocab)
  for (let r = 0; r < rows; r++) out.set(data.subarray((r * length + at) * vocab, (r * length + at + 1) * vocab), r * vocab)
  return { dtype: 'float32', shape: [rows, 1, vocab], data: out }
}

function joined(parts: readonly Floats[], shape: readonly number[]): Floats {
  const data = new Float32Array(sizeOf(shape))
  let at = 0
  for (const p of parts) {
    data.set(p.data, at)
    at += p.data.length
  }
  return { dtype: 'float32', shape, data }
}
