/** @file LinEAS: affine maps at many sites fitted together, so that steered source activations are distributed as target activations are, everywhere (Rodríguez et al. 2025, arXiv:2503.10679). */
import { ActlensError, throwIfCancelled, UsageError } from '../../base/errors.ts'
import { sha256 } from '../../base/hash.ts'
import type { WorkOptions } from '../../base/progress.ts'
import type { NDArray } from '../../base/types.ts'
import { constantRate, cosineRate, RandomStream } from '../../nn/index.ts'
import type { Model } from '../../run/model.ts'
import { versions } from '../../run/versions.ts'
import { add, differentiate, input, type Tensor } from '../../tensor/index.ts'
import { type ContrastExamples, tokenised } from '../examples.ts'
import { canonicalJson } from '../record.ts'
import { type AffineMap, AffineMaps, identityMap, type MapsRecord } from './affine-maps.ts'
import {
  type MapInputs,
  type MappedNetwork,
  mapFeeds,
  mappableSites,
  modelNetwork,
  type Pool,
  type PooledRows,
  pooledRows,
  wasserstein,
} from './pooled.ts'

/** Settings of the fit. */
export interface FitMapsOptions extends WorkOptions {
  /** Default 1000. */
  readonly steps?: number
  /** Learning rate (default 0.1 for SGD, 0.01 for Adam). */
  readonly rate?: number
  readonly schedule?: 'cosine' | 'constant'
  readonly optimizer?: 'sgd' | 'adam'
  /**
   * Divides each coordinate's step by one plus the second moment of the source there, which makes one rate safe for all: a coordinate
   * of plain SGD is stable only where rate ≤ 1 / (1 + E[z²]).
   */
  readonly precondition?: boolean
  /** Weight of the penalty, which makes maps sparse (default 0). */
  readonly gamma?: number
  /** Weight of the L1 part within the penalty (default 1). */
  readonly lambda1?: number
  /** Weight of the group part, which drops whole sites (default 1). */
  readonly lambdaGroup?: number
  /** Texts in a step (default: all, at most 32). */
  readonly batch?: number
  /** Limits of the scales (default 0 to 10): a negative scale would reverse the order on which the loss rests. */
  readonly scales?: readonly [number, number]
  readonly seed?: number
  /** Called after every step with its loss, the penalty left out. */
  readonly onStep?: (step: number, loss: number) => void
}

/** What a fit gives beside the maps. */
export interface MapsFit {
  readonly maps: ReadonlyMap<string, AffineMap>
  /** Distance of each step, in squared units of the activations, summed over sites. */
  readonly losses: readonly number[]
  /** Times that the rate was halved because a step overflowed. */
  readonly halvings: number
}

/** Options of {@link lineas}. */
export interface LineasOptions extends FitMapsOptions {
  /** Texts or token ids whose activations are moved. */
  readonly source: ContrastExamples['negative']
  /** Texts or token ids where they are moved to; unpaired, as many or not. */
  readonly target: ContrastExamples['positive']
  /** Sites, aliases or patterns; `mlp_in.*` in the paper. */
  readonly sites: string | readonly string[]
  /** Default `mean`: over the tokens of a text. */
  readonly pool?: Pool
}

/** Fits maps on a model: `model.with(maps.strength(0.7).edits())`. */
export async function lineas(model: Model, options: LineasOptions): Promise<AffineMaps> {
  const { network, target, record } = await mapTask(model, options, 'lineas')
  const { maps } = await fitMaps(network, target, options)
  const { gamma = 0, steps = 1000, optimizer = 'sgd', seed = 0 } = options
  return new AffineMaps(maps, { ...record, options: { ...record.options, gamma, steps, optimizer, seed } })
}

/** What the fits of this folder share: the source as a network, the target's pooled activations, and the record. */
export async function mapTask(
  model: Model,
  options: Pick<LineasOptions, 'source' | 'target' | 'sites' | 'pool' | 'signal' | 'onProgress'>,
  method: string,
): Promise<{ network: MappedNetwork; target: Map<string, PooledRows>; record: MapsRecord }> {
  const { pool = 'mean' } = options
  const rows = tokenised(model, { positive: options.target, negative: options.source }, false)
  const sites = mappableSites(model, options.sites)
  const network = modelNetwork(model, rows.negative, sites, pool)
  const target = await pooledRows(modelNetwork(model, rows.positive, sites, pool), new Map(), options)
  const record: MapsRecord = {
    method,
    model: { id: model.origin.id, hash: await model.origin.hash(), family: model.spec.family, layers: model.spec.layers },
    options: { pool },
    examples: {
      hash: await sha256(canonicalJson({ source: options.source, target: options.target })),
      source: rows.negative.length,
      target: rows.positive.length,
    },
    precision: model.precision,
    versions: await versions(),
  }
  return { network, target, record }
}

/** Fits the maps of a network to target rows. @throws UsageError, ActlensError where the fit overflows at any rate. */
export async function fitMaps(
  network: MappedNetwork,
  target: ReadonlyMap<string, PooledRows>,
  options: FitMapsOptions = {},
): Promise<MapsFit> {
  const settings = checked(network, target, options)
  const program = await network.compiled('lineas', () => stepGraph(network))
  const states = new Map(network.sites.map((s, i) => [s, new SiteState(network.widths[i] as number)]))
  if (settings.precondition) await precondition(network, states, options)
  const random = RandomStream.named(settings.seed, 'lineas')
  const count = Math.min(...[...target.values()].map((t) => t.count))
  const losses: number[] = []
  let factor = 1
  let halvings = 0
  for (let step = 0; step < settings.steps; step++) {
    throwIfCancelled(options.signal)
    const texts = chosen(random, network.count, settings.batch)
    const wanted = chosen(random, count, settings.batch)
    const maps = new Map([...states].map(([s, state]) => [s, state.map]))
    const out = await program.run(
      { ...network.feeds(texts), ...mapFeeds(network, maps), ...targetFeeds(network, target, wanted) },
      { signal: options.signal },
    )
    const loss = Number(out.loss?.data[0])
    const gradients = network.sites.map((s) => [out[gradientOf.scale(s)], out[gradientOf.shift(s)]] as [NDArray, NDArray])
    if (!Number.isFinite(loss) || gradients.some(([a, b]) => !allFinite(a) || !allFinite(b))) {
      if (++halvings > 20)
        throw new ActlensError(
          `The fit overflows at step ${step} even with a rate of ${settings.rate(step) * factor}; use 'precondition', Adam, or sites behind a norm.`,
        )
      // The overflow came from the step before: take it back and go on with half the rate.
      factor /= 2
      for (const state of states.values()) state.back()
      step -= 1
      continue
    }
    losses.push(loss)
    const rate = settings.rate(step) * factor
    for (const [i, s] of network.sites.entries()) {
      const [scale, shift] = gradients[i] as [NDArray, NDArray]
      ;(states.get(s) as SiteState).step(scale.data as Float64Array, shift.data as Float64Array, { ...settings, rate, step })
    }
    options.onStep?.(step + 1, loss)
    options.onProgress?.({ task: `fitting maps (distance ${loss.toPrecision(4)})`, done: step + 1, total: settings.steps, unit: 'steps' })
  }
  return { maps: new Map([...states].map(([s, state]) => [s, state.map])), losses, halvings }
}

/** Distance between the mapped source and the target over all texts, by site and in all; sides of different size are compared on as many of each. */
export async function mapDistance(
  network: MappedNetwork,
  target: ReadonlyMap<string, PooledRows>,
  maps: ReadonlyMap<string, AffineMap> = new Map(),
): Promise<{ total: number; bySite: Map<string, number> }> {
  const program = await network.compiled('distance', () => distanceGraph(network))
  const n = Math.min(network.count, ...[...target.values()].map((t) => t.count))
  const texts = Array.from({ length: n }, (_, i) => i)
  const out = await program.run({ ...network.feeds(texts), ...mapFeeds(network, maps), ...targetFeeds(network, target, texts) })
  const bySite = new Map(network.sites.map((s) => [s, Number(out[s]?.data[0])]))
  return { total: [...bySite.values()].reduce((a, b) => a + b, 0), bySite }
}

const gradientOf = { scale: (s: string) => `gradient of scale:${s}`, shift: (s: string) => `gradient of shift:${s}` }
const targetInput = (site: string) => `target:${site}`

function distances(network: MappedNetwork): Map<string, Tensor> {
  const pooled = network.graph()
  return new Map(
    network.sites.map((s, i) => [
      s,
      wasserstein(pooled.get(s) as Tensor, input(targetInput(s), network.dtype, ['batch', network.widths[i] as number])),
    ]),
  )
}

const distanceGraph = (network: MappedNetwork): Record<string, Tensor> => Object.fromEntries(distances(network))

function stepGraph(network: MappedNetwork): Record<string, Tensor> {
  const loss = [...distances(network).values()].reduce((a, b) => add(a, b))
  const inputs = network.sites.flatMap((s) => {
    const { scale, shift } = network.inputs.get(s) as MapInputs
    return [scale, shift]
  })
  const d = differentiate({ of: loss, at: inputs })
  const outputs: Record<string, Tensor> = { loss: d.of }
  for (const [i, s] of network.sites.entries()) {
    outputs[gradientOf.scale(s)] = d.grads[2 * i] as Tensor
    outputs[gradientOf.shift(s)] = d.grads[2 * i + 1] as Tensor
  }
  return outputs
}

function targetFeeds(network: MappedNetwork, target: ReadonlyMap<string, PooledRows>, rows: readonly number[]): Record<string, NDArray> {
  return Object.fromEntries(
    network.sites.map((s) => {
      const { width, data } = target.get(s) as PooledRows
      const out = network.dtype === 'float64' ? new Float64Array(rows.length * width) : new Float32Array(rows.length * width)
      for (const [i, r] of rows.entries()) out.set(data.subarray(r * width, (r + 1) * width), i * width)
      return [targetInput(s), { dtype: network.dtype, shape: [rows.length, width], data: out } as NDArray]
    }),
  )
}

/** Some of `count`, all in order where the batch holds them. */
function chosen(random: RandomStream, count: number, batch: number): number[] {
  const all = Array.from({ length: count }, (_, i) => i)
  return count <= batch ? all : [...random.permutation(count).slice(0, batch)]
}

async function precondition(network: MappedNetwork, states: ReadonlyMap<string, SiteState>, options: WorkOptions): Promise<void> {
  for (const [site, { count, width, data }] of await pooledRows(network, new Map(), options)) {
    const { steps } = states.get(site) as SiteState
    for (let j = 0; j < width; j++) {
      let square = 0
      for (let i = 0; i < count; i++) square += (data[i * width + j] as number) ** 2
      steps[j] = 1 / (1 + square / count)
    }
  }
}

type Settings = ReturnType<typeof checked>

function checked(network: MappedNetwork, target: ReadonlyMap<string, PooledRows>, o: FitMapsOptions) {
  const { steps = 1000, optimizer = 'sgd', schedule = 'cosine', gamma = 0, lambda1 = 1, lambdaGroup = 1, seed = 0, scales = [0, 10] } = o
  const rate = o.rate ?? (optimizer === 'adam' ? 0.01 : 0.1)
  const count = Math.min(network.count, ...[...target.values()].map((t) => t.count))
  const batch = Math.min(o.batch ?? 32, count)
  if (!Number.isInteger(steps) || steps < 0) throw new UsageError(`steps must be a whole number from 0, not ${steps}.`)
  if (!Number.isInteger(batch) || batch < 1) throw new UsageError(`batch must be a whole number from 1, not ${o.batch}.`)
  if (o.batch === undefined && network.count !== count)
    throw new UsageError(
      `There are ${network.count} source texts but ${count} target texts; the distance pairs ranks, so give as many of each or a 'batch' that is drawn from both.`,
    )
  for (const [name, v] of Object.entries({ rate, gamma, lambda1, lambdaGroup }))
    if (!(v >= 0 && Number.isFinite(v))) throw new UsageError(`${name} must be a number from 0, not ${v}.`)
  return {
    steps,
    optimizer,
    precondition: o.precondition ?? false,
    gamma,
    lambda1,
    lambdaGroup,
    seed,
    scales,
    batch,
    rate: schedule === 'cosine' ? cosineRate(rate, { steps }) : constantRate(rate),
  }
}

const allFinite = (a: NDArray) => (a.data as Float32Array).every((x) => Number.isFinite(x))

/** Map, momenta and step sizes of one site. */
class SiteState {
  /** Factor on the rate of each coordinate. */
  readonly steps: Float64Array
  private current: AffineMap
  private before: AffineMap
  private readonly moments: Record<'scale' | 'shift', { mean: Float64Array; square: Float64Array }>

  constructor(width: number) {
    this.steps = new Float64Array(width).fill(1)
    this.current = identityMap(width)
    this.before = this.current
    const moments = () => ({ mean: new Float64Array(width), square: new Float64Array(width) })
    this.moments = { scale: moments(), shift: moments() }
  }

  get map(): AffineMap {
    return this.current
  }

  back(): void {
    this.current = this.before
  }

  /** One gradient step and the proximal step of the sparse group lasso, on scale − 1 and on shift. */
  step(gradScale: ArrayLike<number>, gradShift: ArrayLike<number>, s: Omit<Settings, 'rate'> & { rate: number; step: number }): void {
    this.before = this.current
    const [low, high] = s.scales
    const excess = this.current.scale.map((w) => w - 1)
    this.descend('scale', excess, gradScale, s)
    const shift = this.current.shift.slice()
    this.descend('shift', shift, gradShift, s)
    this.shrink(excess, s)
    this.shrink(shift, s)
    this.current = { scale: excess.map((v) => Math.min(high, Math.max(low, 1 + v))), shift }
  }

  private descend(
    part: 'scale' | 'shift',
    v: Float64Array,
    g: ArrayLike<number>,
    s: { optimizer: string; rate: number; step: number },
  ): void {
    const { mean, square } = this.moments[part]
    const t = s.step + 1
    for (let j = 0; j < v.length; j++) {
      const gradient = g[j] as number
      let move = gradient
      if (s.optimizer === 'adam') {
        mean[j] = 0.9 * (mean[j] as number) + 0.1 * gradient
        square[j] = 0.999 * (square[j] as number) + 0.001 * gradient ** 2
        move = (mean[j] as number) / (1 - 0.9 ** t) / (Math.sqrt((square[j] as number) / (1 - 0.999 ** t)) + 1e-8)
      }
      v[j] = (v[j] as number) - s.rate * (this.steps[j] as number) * move
    }
  }

  /** Soft threshold at rate · γ · λ₁, then the group shortened by rate · γ · λ_G · √width. */
  private shrink(v: Float64Array, s: { gamma: number; lambda1: number; lambdaGroup: number; rate: number }): void {
    if (s.gamma === 0) return
    let [squares, meanStep] = [0, 0]
    for (let j = 0; j < v.length; j++) {
      const by = s.rate * (this.steps[j] as number) * s.gamma * s.lambda1
      const x = v[j] as number
      v[j] = Math.sign(x) * Math.max(Math.abs(x) - by, 0)
      squares += (v[j] as number) ** 2
      meanStep += (this.steps[j] as number) / v.length
    }
    const length = Math.sqrt(squares)
    const keep = length === 0 ? 0 : Math.max(0, 1 - (s.rate * meanStep * s.gamma * s.lambdaGroup * Math.sqrt(v.length)) / length)
    for (let j = 0; j < v.length; j++) v[j] = (v[j] as number) * keep
  }
}
