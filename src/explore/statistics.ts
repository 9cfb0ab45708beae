/** @file Statistics of activations while they stream by: moments, norms, quantiles, the contexts that activate a direction most. Nothing is stored. */
import { ShapeError, UsageError } from '../base/errors.ts'
import type { OnProgress } from '../base/progress.ts'
import { type NDArray, sizeOf } from '../base/types.ts'
import type { Model } from '../run/index.ts'
import { input, matmul, mean, mul, Program, SessionCache, sub, sumSquares } from '../tensor/index.ts'
import { type PassRow, type PassSettings, type PassWindow, passOver, planPass } from './capture-pass.ts'
import { type CorpusInput, openCorpus } from './corpus.ts'
import { QuantileSketch } from './statistics-sketch.ts'

const sessions = new SessionCache(0)
let compiled: ReturnType<typeof compile> | undefined

async function compile() {
  const options = { device: 'cpu' as const, cache: sessions }
  const x = input('x', 'float32', ['rows', 'width'])
  const d = input('d', 'float32', ['width', 'directions'])
  const middle = mean(x, [0], true)
  const moved = sub(x, middle)
  const [variances, products, norms, along] = await Promise.all([
    Program.of({ mean: middle, spread: mean(mul(moved, moved), [0], true) }, options),
    Program.of({ mean: middle, products: matmul(moved, moved, { transA: true }) }, options),
    Program.of({ squares: sumSquares(x, [1]) }, options),
    Program.of({ values: matmul(x, d) }, options),
  ])
  return { variances, products, norms, along }
}

function programs() {
  compiled ??= compile()
  return compiled
}

const matrixOf = (values: NDArray<Float32Array>, width: number): NDArray<Float32Array> => {
  if (values.data.length % width !== 0) throw new ShapeError(`Rows of ${width} numbers cannot make ${values.data.length} numbers.`)
  return { dtype: 'float32', shape: [values.data.length / width, width], data: values.data }
}

/** Mean and variance or covariance of rows that come in parts, merged in float64 without loss (Chan, Golub & LeVeque 1983). */
export class Moments {
  readonly width: number
  count = 0
  /** Mean row, [width]. */
  readonly mean: Float64Array
  /** Whether products of all pairs are kept, or squares only. */
  readonly pairs: boolean
  private readonly squares: Float64Array

  constructor(width: number, options: { readonly covariance?: boolean } = {}) {
    this.width = width
    this.pairs = options.covariance ?? false
    this.mean = new Float64Array(width)
    this.squares = new Float64Array(this.pairs ? width * width : width)
  }

  /** Adds rows, [rows, width]. */
  async add(values: NDArray<Float32Array>): Promise<void> {
    const x = matrixOf(values, this.width)
    const rows = x.shape[0] as number
    if (rows === 0) return
    const { variances, products } = await programs()
    if (this.pairs) {
      const out = await products.run({ x })
      this.take(rows, out.mean.data as Float32Array, out.products.data as Float32Array, 1)
    } else {
      const out = await variances.run({ x })
      this.take(rows, out.mean.data as Float32Array, out.spread.data as Float32Array, rows)
    }
  }

  /** Adds what another has seen. */
  merge(other: Moments): void {
    if (other.width !== this.width || other.pairs !== this.pairs)
      throw new ShapeError('Moments of different widths or kinds cannot be merged.')
    this.take(other.count, other.mean, other.squares, 1)
  }

  private take(rows: number, mean: ArrayLike<number>, squares: ArrayLike<number>, times: number): void {
    if (rows === 0) return
    const { width, count } = this
    const share = rows / (count + rows)
    const off = Float64Array.from({ length: width }, (_, j) => (mean[j] as number) - (this.mean[j] as number))
    const between = count * share
    for (let i = 0, at = 0; i < width; i++) {
      if (!this.pairs) {
        this.squares[i] = (this.squares[i] as number) + times * (squares[i] as number) + between * (off[i] as number) ** 2
        continue
      }
      const factor = between * (off[i] as number)
      for (let j = 0; j < width; j++, at++)
        this.squares[at] = (this.squares[at] as number) + (squares[at] as number) + factor * (off[j] as number)
    }
    for (let j = 0; j < width; j++) this.mean[j] = (this.mean[j] as number) + share * (off[j] as number)
    this.count = count + rows
  }

  /** Variance of each coordinate, divided by the number of rows, [width]. */
  get variance(): Float64Array {
    const step = this.pairs ? this.width + 1 : 1
    return Float64Array.from({ length: this.width }, (_, j) => (this.squares[j * step] as number) / this.count)
  }

  /** Covariance, divided by the number of rows, [width, width]. */
  get covariance(): Float64Array {
    if (!this.pairs) throw new UsageError('Only variances were kept; ask for the covariance from the start.')
    return this.squares.map((v) => v / this.count)
  }
}

/** A direction whose strongest contexts are wanted: a vector [width], or one coordinate of the site. */
export type Probing = { readonly name: string } & ({ readonly vector: ArrayLike<number> } | { readonly neuron: number })

/** A place where a direction was strongly active. */
export interface TopContext {
  readonly value: number
  readonly document: number
  /** Position in the document. */
  readonly position: number
  /** Token ids around it, and which of them it is. */
  readonly tokens: readonly number[]
  readonly at: number
}

/** The contexts in which directions are most active, one for each row of the corpus. */
export class TopContexts {
  private readonly names: readonly string[]
  private readonly directions: NDArray<Float32Array>
  private readonly keep: number
  private readonly around: number
  private readonly best: TopContext[][]

  /** @param options.keep contexts for each direction (default 10); `around` tokens on each side (default 16). */
  constructor(width: number, probings: readonly Probing[], options: { readonly keep?: number; readonly around?: number } = {}) {
    this.names = probings.map((p) => p.name)
    this.keep = options.keep ?? 10
    this.around = options.around ?? 16
    const data = new Float32Array(width * probings.length)
    for (const [k, p] of probings.entries()) {
      if ('vector' in p && p.vector.length !== width)
        throw new ShapeError(`The direction '${p.name}' has ${p.vector.length} numbers, but the site has ${width}.`)
      if ('neuron' in p && !(Number.isInteger(p.neuron) && p.neuron >= 0 && p.neuron < width))
        throw new UsageError(`The site has coordinates 0 to ${width - 1}, not ${p.neuron}.`)
      for (let j = 0; j < width; j++) data[j * probings.length + k] = 'vector' in p ? (p.vector[j] as number) : Number(j === p.neuron)
    }
    this.directions = { dtype: 'float32', shape: [width, probings.length], data }
    this.best = probings.map(() => [])
  }

  /** Adds rows of activations, [count, width], with the tokens around them. */
  async add(values: NDArray<Float32Array>, origin: Pick<PassWindow, 'row' | 'rows' | 'column'>): Promise<void> {
    const x = matrixOf(values, this.directions.shape[0] as number)
    const count = x.shape[0] as number
    if (count === 0) return
    const { along } = await programs()
    const out = (await along.run({ x, d: this.directions })).values.data as Float32Array
    const n = this.names.length
    for (let k = 0; k < n; k++)
      for (let at = 0; at < count; ) {
        const row = origin.row[at]
        let top = at
        for (; at < count && origin.row[at] === row; at++) if ((out[at * n + k] as number) > (out[top * n + k] as number)) top = at
        this.offer(k, out[top * n + k] as number, origin.rows[row as number] as PassRow, origin.column[top] as number)
      }
  }

  private offer(k: number, value: number, row: PassRow, column: number): void {
    const list = this.best[k] as TopContext[]
    if (list.length === this.keep && value <= (list.at(-1) as TopContext).value) return
    const from = Math.max(0, column - this.around)
    const context: TopContext = {
      value,
      document: row.document[column] as number,
      position: row.position[column] as number,
      tokens: row.ids.slice(from, column + this.around + 1),
      at: column - from,
    }
    const place = list.findIndex((c) => c.value < value)
    list.splice(place < 0 ? list.length : place, 0, context)
    if (list.length > this.keep) list.pop()
  }

  /** Contexts by the name of the direction, strongest first. */
  get contexts(): ReadonlyMap<string, readonly TopContext[]> {
    return new Map(this.names.map((name, k) => [name, this.best[k] as TopContext[]]))
  }
}

/** What is known of a site after a corpus went by. */
export interface SiteStatistics {
  readonly site: string
  readonly count: number
  readonly moments: Moments
  /** All numbers of the site. */
  readonly values: QuantileSketch
  /** Euclidean lengths of the rows. */
  readonly norms: QuantileSketch
  readonly contexts: ReadonlyMap<string, readonly TopContext[]>
}

/** Options of {@link activationStatistics}. */
export interface StatisticsOptions extends PassSettings {
  readonly data: CorpusInput
  /** Keep the products of all pairs of coordinates, too. */
  readonly covariance?: boolean
  /** Directions whose strongest contexts are wanted, by site. */
  readonly contexts?: Readonly<Record<string, readonly Probing[]>>
  /** Contexts for each direction (default 10), and tokens on each side of them (default 16). */
  readonly keep?: number
  readonly around?: number
  readonly signal?: AbortSignal
  readonly onProgress?: OnProgress
  /** Is called after each window; the pass goes on when it returns. */
  readonly onWindow?: () => Promise<void>
}

/** Statistics of sites over a corpus, in the memory of the statistics themselves. */
export async function activationStatistics(model: Model, options: StatisticsOptions): Promise<ReadonlyMap<string, SiteStatistics>> {
  const plan = planPass(model, options)
  const signal = options.signal ? { signal: options.signal } : {}
  const asked = new Map(Object.entries(options.contexts ?? {}).map(([name, probings]) => [model.site(name).site, probings]))
  const strange = [...asked.keys()].find((site) => !plan.sites.some((s) => s.site === site))
  if (strange !== undefined) throw new UsageError(`Contexts are asked for at '${strange}', which is not among the sites; add it to them.`)
  const corpus = await openCorpus(options.data, signal)
  const collected = plan.sites.map(({ site, width }) => ({
    site,
    width,
    moments: new Moments(width, { covariance: options.covariance ?? false }),
    values: new QuantileSketch(),
    norms: new QuantileSketch(),
    top: new TopContexts(width, asked.get(site) ?? [], options),
  }))
  let done = 0
  for await (const window of passOver(model, corpus, plan, signal)) {
    for (const c of collected) {
      const values: NDArray<Float32Array> = {
        dtype: 'float32',
        shape: [window.count, c.width],
        data: window.values.get(c.site) as Float32Array,
      }
      await c.moments.add(values)
      c.values.add(values.data)
      c.norms.add(await normsOf(values))
      if (asked.has(c.site)) await c.top.add(values, window)
    }
    done += window.count
    await options.onWindow?.()
    options.onProgress?.({ task: 'measuring activations', done, ...(plan.maxTokens ? { total: plan.maxTokens } : {}), unit: 'tokens' })
  }
  return new Map(
    collected.map(({ site, moments, values, norms, top }) => [
      site,
      { site, count: moments.count, moments, values, norms, contexts: top.contexts },
    ]),
  )
}

/** Euclidean length of each row, [rows]. */
export async function normsOf(values: NDArray<Float32Array>): Promise<Float32Array> {
  const width = sizeOf(values.shape.slice(1))
  if (values.data.length === 0) return new Float32Array(0)
  const { norms } = await programs()
  return ((await norms.run({ x: matrixOf(values, width) })).squares.data as Float32Array).map(Math.sqrt)
}
