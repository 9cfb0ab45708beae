/** @file Activations of whole texts, one vector for each: a model with trainable affine maps at some sites, as a program that pools over tokens. */
import { throwIfCancelled, UsageError } from '../../base/errors.ts'
import type { WorkOptions } from '../../base/progress.ts'
import type { NDArray } from '../../base/types.ts'
import { editedModel, rowFeeds } from '../../explore/patch-graph.ts'
import { inputNames } from '../../models/traced.ts'
import type { Model } from '../../run/model.ts'
import { edit } from '../../sites/index.ts'
import {
  add,
  cast,
  div,
  gatherRows,
  input,
  lessEqual,
  mean,
  mul,
  Program,
  SessionCache,
  type Shape,
  sort,
  sub,
  sum,
  type Tensor,
  unsqueeze,
} from '../../tensor/index.ts'
import { noDirection, widthOf } from '../vector.ts'
import type { AffineMap } from './affine-maps.ts'

/** What stands for a text at a site: the mean over its tokens, or its last token. */
export type Pool = 'mean' | 'last'

/** One pooled activation for each text at one site, [texts, width]. */
export interface PooledRows {
  readonly count: number
  readonly width: number
  readonly data: Float64Array
}

/** A frozen network whose activations at its sites pass through affine maps that are inputs of the program. */
export interface MappedNetwork {
  /** Canonical sites, in the order in which the network computes them. */
  readonly sites: readonly string[]
  readonly widths: readonly number[]
  readonly dtype: 'float32' | 'float64'
  /** Pooled activations [texts, width] by site, each after its map: traced, for programs that fit maps. */
  graph(): ReadonlyMap<string, Tensor>
  /** The inputs of the graph that hold the maps, [width] each, by site. */
  readonly inputs: ReadonlyMap<string, MapInputs>
  /** Feeds of some texts. */
  feeds(texts: readonly number[]): Record<string, NDArray>
  /** Number of texts. */
  readonly count: number
  /** A program made once for a key. */
  compiled(key: string, outputs: () => Record<string, Tensor>): Promise<Program>
}

/** The inputs that hold the map of one site. */
export interface MapInputs {
  readonly scale: Tensor
  readonly shift: Tensor
}

const names = { scale: (site: string) => `scale:${site}`, shift: (site: string) => `shift:${site}` }

const inputsOf = (sites: readonly string[], widths: readonly number[], dtype: 'float32' | 'float64'): Map<string, MapInputs> =>
  new Map(
    sites.map((s, i) => {
      const shape = [widths[i] as number]
      return [s, { scale: input(names.scale(s), dtype, shape), shift: input(names.shift(s), dtype, shape) }]
    }),
  )

const mapped = (x: Tensor, { scale, shift }: MapInputs): Tensor => add(mul(x, scale), shift)

/** Feeds of maps; sites without one get the identity. */
export function mapFeeds(network: MappedNetwork, maps: ReadonlyMap<string, AffineMap>): Record<string, NDArray> {
  const feeds: Record<string, NDArray> = {}
  for (const [i, site] of network.sites.entries()) {
    const width = network.widths[i] as number
    const map = maps.get(site)
    feeds[names.scale(site)] = vectorOf(network.dtype, map?.scale ?? new Float64Array(width).fill(1))
    feeds[names.shift(site)] = vectorOf(network.dtype, map?.shift ?? new Float64Array(width))
  }
  return feeds
}

const vectorOf = (dtype: 'float32' | 'float64', v: Float64Array): NDArray =>
  dtype === 'float64' ? { dtype, shape: [v.length], data: v } : { dtype, shape: [v.length], data: Float32Array.from(v) }

/** The canonical sites that patterns mean, in the order of the vocabulary; refuses those that cannot be mapped. */
export function mappableSites(model: Model, patterns: string | readonly string[]): string[] {
  const list = typeof patterns === 'string' ? [patterns] : patterns
  const infos = [...new Map(list.flatMap((p) => model.resolve(p)).map((i) => [i.site, i])).values()]
  if (infos.length === 0) throw new UsageError('No site is named; say where to map, for example mlp_in.*.')
  for (const { site, row } of infos) {
    const reason = noDirection(row.axes)
    if (reason) throw new UsageError(`'${site}' cannot be mapped coordinate by coordinate: ${reason}.`)
  }
  const order = new Map(model.sites().map((s, i) => [s.site, i]))
  return infos.sort((a, b) => (a.layer ?? -1) - (b.layer ?? -1) || (order.get(a.site) ?? 0) - (order.get(b.site) ?? 0)).map((i) => i.site)
}

/** A model over some texts as a network with maps. The model's own edits stay in force, before the maps. */
export function modelNetwork(model: Model, rows: readonly (readonly number[])[], sites: readonly string[], pool: Pool): MappedNetwork {
  const edited = editedModel(model)
  const widths = sites.map((s) => widthOf(model, model.site(s)))
  const inputs = inputsOf(sites, widths, 'float32')
  const edits = sites.map((site) => edit(site, (x) => mapped(x, inputs.get(site) as MapInputs)))
  // One object for all programs of this network, since a function edit is recognised by its identity.
  const graph = () => {
    const { taps } = edited.graph({ edits, taps: sites, lastOnly: true })
    return new Map(sites.map((s) => [s, pooledOf(taps.get(s) as Tensor, pool)]))
  }
  return {
    sites,
    widths,
    inputs,
    dtype: 'float32',
    count: rows.length,
    graph,
    feeds: (texts) =>
      rowFeeds(
        edited,
        texts.map((t) => rows[t] as readonly number[]),
      ),
    compiled: (key, outputs) => edited.core.compiled(JSON.stringify(['maps', key, edited.structure, sites, pool]), outputs),
  }
}

/** [batch, pos, …] → [batch, width] */
function pooledOf(x: Tensor, pool: Pool): Tensor {
  const lastIndex = input(inputNames.lastIndex, 'int64', ['batch'])
  if (pool === 'last') return gatherRows(x, lastIndex)
  const slots = input(inputNames.slots, 'int64', ['batch', 'pos'])
  const counted = unsqueeze(cast(lessEqual(slots, unsqueeze(lastIndex, 1)), 'float32'), -1)
  return div(sum(mul(x, counted), [1]), sum(counted, [1]))
}

const plainSessions = new SessionCache(64e6)

/** Rows of numbers as a network of one site: the case in which the best maps are known in closed form. float64. */
export function plainNetwork(rows: PooledRows, site = 'x'): MappedNetwork {
  const shape: Shape = ['batch', rows.width]
  const inputs = inputsOf([site], [rows.width], 'float64')
  return {
    inputs,
    sites: [site],
    widths: [rows.width],
    dtype: 'float64',
    count: rows.count,
    graph: () => new Map([[site, mapped(input('rows', 'float64', shape), inputs.get(site) as MapInputs)]]),
    feeds: (texts) => {
      const data = new Float64Array(texts.length * rows.width)
      for (const [i, t] of texts.entries()) data.set(rows.data.subarray(t * rows.width, (t + 1) * rows.width), i * rows.width)
      return { rows: { dtype: 'float64', shape: [texts.length, rows.width], data } }
    },
    compiled: (_, outputs) => Program.of(outputs(), { cache: plainSessions, device: 'cpu' }),
  }
}

/** Pooled activations of all texts at all sites, with maps in force where they are given. */
export async function pooledRows(
  network: MappedNetwork,
  maps: ReadonlyMap<string, AffineMap> = new Map(),
  options: WorkOptions & { readonly batchSize?: number } = {},
): Promise<Map<string, PooledRows>> {
  const { sites, widths, count } = network
  const program = await network.compiled('pooled', () => Object.fromEntries(network.graph()))
  const out = new Map(
    sites.map((s, i) => [s, { count, width: widths[i] as number, data: new Float64Array(count * (widths[i] as number)) }]),
  )
  const size = options.batchSize ?? 32
  const fed = mapFeeds(network, maps)
  for (let from = 0; from < count; from += size) {
    throwIfCancelled(options.signal)
    const texts = Array.from({ length: Math.min(size, count - from) }, (_, i) => from + i)
    const values = await program.run({ ...network.feeds(texts), ...fed }, { signal: options.signal })
    for (const site of sites) {
      const rows = out.get(site) as { width: number; data: Float64Array }
      rows.data.set((values[site] as NDArray).data as Float64Array, from * rows.width)
    }
  }
  return out
}

/** Sum over coordinates of the squared one-dimensional Wasserstein distance between two batches [texts, width] of equal size (LinEAS, eq. of Δ). */
export function wasserstein(u: Tensor, v: Tensor): Tensor {
  const difference = sub(sort(u, 0).values, sort(v, 0).values)
  return sum(mean(mul(difference, difference), [0]))
}
