/** @file How many dimensions points really use: intrinsic dimension, effective rank, participation ratio, anisotropy. */
import { UsageError } from '../../base/errors.ts'
import type { WorkOptions } from '../../base/progress.ts'
import { smallEigen, times } from '../../tensor/index.ts'
import { centredPoints, innerProduct, type Points, pointsMatrix } from './features.ts'
import { nearestPoints } from './nearest.ts'

/** An estimate of the intrinsic dimension. */
export interface IntrinsicDimension {
  readonly dimension: number
  /** Points that were used; those with an equal twin say nothing and are left out. */
  readonly used: number
}

/** Distances from each point to its `k` nearest others, [rows, k]; points with an equal twin are left out. */
async function neighbourDistances(x: Points, k: number, work: WorkOptions): Promise<Float64Array[]> {
  const points = await floatCentred(x, k + 2)
  const { values } = await nearestPoints(points, points, { k: k + 1, nearness: 'euclidean', ...work })
  // Twins differ by rounding only; distances below it are none.
  let scale = 0
  for (const v of values) scale = Math.max(scale, v)
  const floor = 1e-6 * scale
  const out: Float64Array[] = []
  for (let i = 0; i < (points.shape[0] as number); i++) {
    const row = values.slice(i * (k + 1) + 1, (i + 1) * (k + 1))
    if ((row[0] as number) > floor) out.push(row)
  }
  if (out.length < 3)
    throw new UsageError(
      `Only ${out.length} of ${points.shape[0]} points are apart from all others, too few for a dimension; give other points.`,
    )
  return out
}

/** Points about their mean as float32: distances lose less of themselves there. */
async function floatCentred(x: Points, least: number): Promise<Points> {
  pointsMatrix(x, least)
  const c = await centredPoints(x)
  return { dtype: 'float32', shape: c.shape, data: Float32Array.from(c.data) }
}

/** Options of {@link twoNearestDimension}. */
export interface TwoNearestOptions extends WorkOptions {
  /** Share of the largest ratios that is left out of the fit (default 0.1), as in the paper. */
  readonly discard?: number
}

/** The two-nearest-neighbours estimate: the slope through zero of −log(1 − F) against log(r₂/r₁) (Facco, d'Errico, Rodriguez & Laio 2017). */
export async function twoNearestDimension(x: Points, { discard = 0.1, ...work }: TwoNearestOptions = {}): Promise<IntrinsicDimension> {
  if (!(discard >= 0 && discard < 1)) throw new UsageError(`The share that is left out must be from 0 to below 1, not ${discard}.`)
  const found = await neighbourDistances(x, 2, work)
  const ratios = Float64Array.from(found, (r) => Math.log((r[1] as number) / (r[0] as number))).sort()
  const n = ratios.length
  const used = Math.floor(n * (1 - discard))
  let [xy, xx] = [0, 0]
  for (let i = 0; i < used; i++) {
    // F of the i-th of n ratios, so that the last one is not infinitely far.
    const y = -Math.log(1 - (i + 1) / (n + 1))
    xy += (ratios[i] as number) * y
    xx += (ratios[i] as number) ** 2
  }
  return { dimension: xy / xx, used }
}

/** The maximum-likelihood estimate from `k` neighbours (Levina & Bickel 2004), its inverses averaged over points (MacKay & Ghahramani 2005). */
export async function likelihoodDimension(
  x: Points,
  { k = 20, ...work }: { readonly k?: number } & WorkOptions = {},
): Promise<IntrinsicDimension> {
  if (!(Number.isInteger(k) && k >= 2)) throw new UsageError(`k must be a whole number from 2, not ${k}.`)
  const found = await neighbourDistances(x, k, work)
  let inverse = 0
  for (const r of found) {
    let sum = 0
    for (let j = 0; j < k - 1; j++) sum += Math.log((r[k - 1] as number) / (r[j] as number))
    inverse += sum / (k - 1)
  }
  return { dimension: found.length / inverse, used: found.length }
}

/** Smaller side up to which all singular values are found. */
const spectrumSide = 1024

/** Variances of points along their principal axes, largest first, divided by the number of points; the smaller side must have at most 1,024 numbers. */
export async function spectrumOf(x: Points): Promise<Float64Array> {
  const c = await centredPoints(x)
  const [rows, width] = c.shape as [number, number]
  if (Math.min(rows, width) > spectrumSide)
    throw new UsageError(
      `The spectrum of ${rows} points of ${width} numbers is that of a matrix of ${Math.min(rows, width)} rows; give at most ${spectrumSide} points.`,
    )
  const { values } = smallEigen(await times(c, c, rows < width ? { transB: true } : { transA: true }))
  return values.map((v) => Math.max(0, v) / rows)
}

/** exp of the entropy of the singular values as shares (Roy & Vetterli 2007): k where k directions are used alike. */
export function effectiveRank(variances: Float64Array): number {
  const values = variances.map(Math.sqrt)
  const all = values.reduce((sum, v) => sum + v, 0)
  return Math.exp(values.reduce((sum, v) => (v > 0 ? sum - (v / all) * Math.log(v / all) : sum), 0))
}

/** (Σλ)² / Σλ² of the variances λ: k where k directions vary alike. No decomposition is needed. */
export async function participationRatio(x: Points): Promise<number> {
  const c = await centredPoints(x)
  const [rows, width] = c.shape as [number, number]
  const gram = await times(c, c, rows < width ? { transB: true } : { transA: true })
  const trace = await innerProduct(c, c)
  return trace ** 2 / (await innerProduct(gram, gram))
}

/** Mean cosine of all pairs of points (Ethayarajh 2019): near 0 where directions are spread out, 1 where all point the same way. */
export async function meanCosine(x: Points): Promise<number> {
  const { shape, data } = pointsMatrix(x)
  const [rows, width] = shape
  const sum = new Float64Array(width)
  let used = 0
  for (let i = 0; i < rows; i++) {
    let square = 0
    for (let j = 0; j < width; j++) square += (data[i * width + j] as number) ** 2
    if (square === 0) continue
    used++
    const factor = 1 / Math.sqrt(square)
    for (let j = 0; j < width; j++) sum[j] = (sum[j] as number) + factor * (data[i * width + j] as number)
  }
  return (sum.reduce((p, v) => p + v * v, 0) - used) / (used * (used - 1))
}

/** What is known of the shape of a cloud of points. */
export interface Geometry {
  readonly points: number
  readonly width: number
  readonly participationRatio: number
  /** Absent where the smaller side is above 1,024. */
  readonly effectiveRank?: number
  readonly twoNearest: number
  readonly likelihood: number
  readonly meanCosine: number
}

/** All measures of this file at once. */
export async function geometryOf(x: Points, work: WorkOptions = {}): Promise<Geometry> {
  const { shape } = pointsMatrix(x, 5)
  const [points, width] = shape
  const small = Math.min(points, width) <= spectrumSide
  return {
    points,
    width,
    participationRatio: await participationRatio(x),
    ...(small ? { effectiveRank: effectiveRank(await spectrumOf(x)) } : {}),
    twoNearest: (await twoNearestDimension(x, work)).dimension,
    likelihood: (await likelihoodDimension(x, { k: Math.min(20, points - 2), ...work })).dimension,
    meanCosine: await meanCosine(x),
  }
}
