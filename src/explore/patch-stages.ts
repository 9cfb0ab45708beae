/** @file A model cut into its blocks, so that a row that is changed in one block is computed from there on, and not before. */
import { throwIfCancelled } from '../base/errors.ts'
import type { NDArray } from '../base/types.ts'
import { inputNames } from '../models/traced.ts'
import type { ModelCore } from '../run/core.ts'
import type { SiteInfo } from '../sites/address.ts'
import { edit } from '../sites/edits.ts'
import { input, type Program, Rewriter, type Tensor, topological, where } from '../tensor/index.ts'
import { type Cell, cellInputs, cellTensors, headAxis, maskOf } from './patch-cells.ts'
import { type EditedModel, inHead, placeholders, readLogits, rowFeeds } from './patch-graph.ts'
import type { PreparedMetric } from './patch-metric.ts'

/** What is computed of rows without changes: the stream into each stage, the values at the changed sites, logits and metric. */
export interface Recorded {
  /** By stage: the residual stream that it reads; undefined for the first, which reads tokens. */
  readonly streams: readonly (NDArray | undefined)[]
  /** By canonical site, [1, …]. */
  readonly sites: Readonly<Record<string, NDArray>>
  /** What the metric reads, [1, pos or 1, d_vocab]. */
  readonly logits: NDArray
}

const names = { stream: 'patch.stream', metric: 'metric', logits: 'logits', tap: (site: string) => `tap:${site}` }

interface Stage {
  readonly program: Program
  /** Sites that are changed in it. */
  readonly sites: readonly SiteInfo[]
  readonly last: boolean
}

/** The stages of a model with a mask at each of some sites: one per block, or a single one where blocks read more than the residual stream. */
export class Stages {
  readonly sites: readonly SiteInfo[]
  private readonly edited: EditedModel
  private readonly metric: PreparedMetric
  private readonly stages: readonly Stage[]

  private constructor(edited: EditedModel, metric: PreparedMetric, sites: readonly SiteInfo[], stages: readonly Stage[]) {
    this.edited = edited
    this.metric = metric
    this.sites = sites
    this.stages = stages
  }

  /** Number of stages. */
  get count(): number {
    return this.stages.length
  }

  /** Builds the programs; the same sites and metric give the same ones, whatever the texts. */
  static async of(edited: EditedModel, metric: PreparedMetric, sites: readonly SiteInfo[]): Promise<Stages> {
    const { core } = edited
    const key = JSON.stringify(['patch', edited.structure, sites.map((s) => s.site), metric.key])
    const known = plans.get(core) ?? new Map<string, readonly StageOutputs[]>()
    plans.set(core, known)
    const plan = known.get(key) ?? stageOutputs(edited, metric, sites)
    known.set(key, plan)
    const stages: Stage[] = []
    for (const [i, outputs] of plan.entries())
      stages.push({
        program: await core.compiled(`${key}:${i}`, () => outputs),
        last: i === plan.length - 1,
        sites: plan.length === 1 ? sites : sites.filter((s) => stageOf(s, core.spec.layers) === i),
      })
    return new Stages(edited, metric, sites, stages)
  }

  /** The stage in which a site lies. */
  stageOf(site: SiteInfo): number {
    return this.stages.findIndex((s) => s.sites.some((i) => i.site === site.site))
  }

  /** Runs one row without changes. */
  async record(tokens: readonly number[], signal?: AbortSignal): Promise<Recorded> {
    const streams: (NDArray | undefined)[] = [undefined]
    const values: Record<string, NDArray> = {}
    const feeds = rowFeeds(this.edited, [tokens], this.metric.position)
    let logits: NDArray | undefined
    for (const stage of this.stages) {
      throwIfCancelled(signal)
      const stream = streams.at(-1)
      const known = { ...feeds, ...(stream ? { [names.stream]: stream } : {}) }
      const taps = stage.sites.map((s) => names.tap(s.site))
      const out = await stage.program.run(
        { ...known, ...placeholders(stage.program, known, tokens.length) },
        { fetch: [...taps, stage.last ? names.logits : names.stream] },
      )
      for (const s of stage.sites) values[s.site] = out[names.tap(s.site)] as NDArray
      if (stage.last) logits = out[names.logits]
      else streams.push(out[names.stream])
    }
    return { streams, sites: values, logits: logits as NDArray }
  }

  /**
   * The metric of each cell: rows of `tokens`, each changed in one cell to what `sources` holds. Rows join at the stage of
   * their cell, with the stream of `base`, so that no block computes a row that it does not change.
   * @param cells in the order of their stages.
   */
  async sweep(request: {
    readonly tokens: readonly number[]
    readonly cells: readonly Cell[]
    readonly sources: Readonly<Record<string, NDArray>>
    readonly base: Recorded
    readonly metricFeeds: Record<string, NDArray>
    readonly signal?: AbortSignal | undefined
  }): Promise<Float32Array> {
    const { tokens, cells, base } = request
    const stageOfCell = cells.map((c) => this.stageOf(c.site))
    let stream: NDArray | undefined
    let live = 0
    for (const [i, stage] of this.stages.entries()) {
      const joined = stageOfCell.filter((s) => s <= i).length
      if (joined === 0) continue
      throwIfCancelled(request.signal)
      if (i > 0) stream = withRows(stream, base.streams[i] as NDArray, joined - live)
      live = joined
      const rows = new Array<readonly number[]>(live).fill(tokens)
      const sources = Object.fromEntries(stage.sites.map((s) => [cellInputs.source(s.site), request.sources[s.site] as NDArray]))
      const feeds = {
        ...rowFeeds(this.edited, rows, this.metric.position),
        ...this.maskFeeds(stage, cells.slice(0, live), tokens.length),
        ...sources,
        ...(stream ? { [names.stream]: stream } : {}),
        ...(stage.last ? request.metricFeeds : {}),
      }
      const out = await stage.program.run(feeds, { fetch: [stage.last ? names.metric : names.stream] })
      if (stage.last) return (out[names.metric] as NDArray<Float32Array>).data
      stream = out[names.stream]
    }
    return new Float32Array(0)
  }

  private maskFeeds(stage: Stage, cells: readonly (Cell | undefined)[], length: number): Record<string, NDArray> {
    return Object.fromEntries(
      stage.sites.map((s) => {
        const shape = stage.program.inputs.get(cellInputs.mask(s.site))?.shape ?? []
        const heads = headAxis(s.row.axes)
        return [cellInputs.mask(s.site), maskOf(s, cells, length, heads ? (shape[s.row.axes.indexOf(heads)] as number) : 1)]
      }),
    )
  }
}

/** The stage of a site among `layers` blocks; the head is the last. */
function stageOf(site: SiteInfo, layers: number): number {
  return site.layer ?? (inHead(site) ? layers : 0)
}

/** What a stage computes, by name. */
type StageOutputs = Record<string, Tensor>

const plans = new WeakMap<ModelCore, Map<string, readonly StageOutputs[]>>()

/** The graph of each stage. */
function stageOutputs(edited: EditedModel, metric: PreparedMetric, sites: readonly SiteInfo[]): StageOutputs[] {
  const { layers } = edited.core.spec
  const borders = Array.from({ length: layers }, (_, l) => `resid_post.${l}`)
  // Where the head itself is changed it computes all positions, and one is chosen at its end.
  const lastOnly = !metric.everywhere && !sites.some(inHead)
  const graph = edited.graph({
    edits: sites.map((s) =>
      edit(s.site, (value) => {
        const { mask, source } = cellTensors(s, value)
        return where(mask, source, value)
      }),
    ),
    taps: [...sites.map((s) => s.site), ...borders],
    lastOnly,
  })
  const logits = readLogits(graph.logits, { lastOnly, everywhere: metric.everywhere })
  const ends: Record<string, Tensor>[] = Array.from({ length: layers + 1 }, (_, i) => ({
    ...(i < layers
      ? { [names.stream]: graph.taps.get(borders[i] as string) as Tensor }
      : { [names.metric]: metric.build(logits), [names.logits]: logits }),
    ...Object.fromEntries(sites.filter((s) => stageOf(s, layers) === i).map((s) => [names.tap(s.site), graph.taps.get(s.site) as Tensor])),
  }))
  const stages = ends.map((outputs, i): StageOutputs => {
    if (i === 0) return outputs
    const border = graph.taps.get(borders[i - 1] as string) as Tensor
    const stream = input(names.stream, border.dtype, border.shape)
    const rewriter = new Rewriter({ tensors: new Map([[border, [{ label: 'at the border of a block', apply: () => stream }]]]) })
    return Object.fromEntries(Object.entries(outputs).map(([n, t]) => [n, rewriter.map(t)]))
  })
  const readsTokens = (outputs: StageOutputs) =>
    topological(Object.values(outputs)).some((n) => n.op.name === 'input' && n.attrs.name === inputNames.ids)
  if (!stages.slice(1).some(readsTokens)) return stages
  // A block reads something besides the stream (an edit that looks at another layer): then the model stays whole.
  const { [names.stream]: _, ...rest } = Object.assign({}, ...ends) as Record<string, Tensor>
  return [rest]
}

/** A stream with `count` more rows, each as the one row of `base`. */
function withRows(stream: NDArray | undefined, base: NDArray, count: number): NDArray {
  if (stream && count === 0) return stream
  const one = base.data as Float32Array
  const before = (stream?.data as Float32Array | undefined) ?? new Float32Array(0)
  const data = new Float32Array(before.length + count * one.length)
  data.set(before)
  for (let i = 0; i < count; i++) data.set(one, before.length + i * one.length)
  return { dtype: base.dtype, shape: [data.length / one.length, ...base.shape.slice(1)], data }
}
