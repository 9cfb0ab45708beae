/** @file Leading singular triplets and eigenpairs of matrices of thousands of rows, by random projections; equal seeds give equal results. */
import { RuntimeFailure, throwIfCancelled, UsageError } from '../../base/errors.ts'
import type { WorkOptions } from '../../base/progress.ts'
import { input, randomNormal } from '../ops/index.ts'
import {
  asDouble,
  besides,
  columnsOf,
  type DoubleMatrix,
  doubleMatrix,
  lessProduct,
  programOf,
  type RealMatrix,
  sideOf,
  sizesOf,
  squaredNorm,
  times,
} from './matrix.ts'
import { tallQr } from './qr.ts'
import { type Eigen, type Svd, smallEigen, smallSvd } from './small.ts'

/** Options of {@link randomisedSvd}. */
export interface RandomisedSvdOptions extends WorkOptions {
  /** Triplets that are wanted. */
  readonly rank: number
  /** Directions beyond the rank that the search keeps (default 10). */
  readonly oversampling?: number
  /** Power iterations q (default 4): two products with the matrix each. Slowly falling singular values need more. */
  readonly iterations?: number
  readonly seed: number
}

/** Leading singular triplets, and how much they leave out. */
export interface RandomisedSvd extends Svd {
  /** Frobenius norm of `a − u·diag(s)·vᵀ`, from the norms of both; below 10⁻⁸ of the norm of `a` it is rounding. */
  readonly residual: number
}

/**
 * Leading singular triplets of a [rows, columns] by a randomised range finder with power iterations (Halko, Martinsson & Tropp 2011,
 * algorithms 4.4 and 5.1). With k = rank, p = oversampling, q = iterations, its corollary 10.10 bounds the expected spectral error
 * ‖a − q·qᵀ·a‖ by (1 + √(k/(p−1)) + e·√(k+p)/p · √(min(rows, columns) − k))^(1/(2q+1)) · σ₍k+1₎, see {@link rangeErrorFactor}.
 * Products with `a` run in its precision, all else in double precision. The largest number of each column of `u` is positive.
 * @throws UsageError where the matrix has fewer triplets than are wanted.
 */
export async function randomisedSvd(a: RealMatrix, options: RandomisedSvdOptions): Promise<RandomisedSvd> {
  const { rank, oversampling = 10, iterations = 4, seed, signal, onProgress } = options
  const [rows, columns] = sizesOf(a)
  const most = Math.min(rows, columns)
  checkCount('rank', rank, most)
  if (!(Number.isInteger(iterations) && iterations >= 0 && Number.isInteger(oversampling) && oversampling >= 0))
    throw new UsageError(`iterations and oversampling must be whole numbers from 0, not ${iterations} and ${oversampling}.`)
  const width = Math.min(most, rank + oversampling)
  const total = 2 * iterations + 2
  const step = (done: number) => {
    throwIfCancelled(signal)
    onProgress?.({ task: 'decomposing', done, total, unit: 'products' })
  }
  step(0)
  let { q } = await tallQr(await times(a, await gaussian(columns, width, seed)))
  for (let i = 0; i < iterations; i++) {
    step(2 * i + 1)
    const { q: other } = await tallQr(await times(a, q, { transA: true }))
    step(2 * i + 2)
    q = (await tallQr(await times(a, other))).q
  }
  step(total - 1)
  const { q: right, r } = await tallQr(await times(a, q, { transA: true }))
  // qᵀ·a = rᵀ·rightᵀ, so its singular values are those of a small triangle, without squaring them.
  const small = smallSvd(transposed(r))
  const u = await times(q, columnsOf(small.u, 0, rank))
  const v = await times(right, columnsOf(small.v, 0, rank))
  const s = small.s.slice(0, rank)
  turnPositive(u, v)
  const kept = s.reduce((sum, x) => sum + x * x, 0)
  return { u, s, v, residual: Math.sqrt(Math.max(0, (await squaredNorm(a)) - kept)) }
}

/** The factor on σ₍rank+1₎ in the bound of {@link randomisedSvd}; oversampling must be at least 2. */
export function rangeErrorFactor(sizes: { rank: number; oversampling: number; iterations: number; rows: number; columns: number }): number {
  const { rank: k, oversampling: p, iterations: q, rows, columns } = sizes
  if (p < 2) throw new UsageError(`The bound holds from an oversampling of 2 on, not for ${p}; ask for more.`)
  const plain = 1 + Math.sqrt(k / (p - 1)) + ((Math.E * Math.sqrt(k + p)) / p) * Math.sqrt(Math.min(rows, columns) - k)
  return plain ** (1 / (2 * q + 1))
}

/** Which eigenvalues are wanted. */
export type EigenEnd = 'largest' | 'smallest' | 'magnitude'

/** Options of {@link leadingEigen}. */
export interface LeadingEigenOptions extends WorkOptions {
  readonly count: number
  /** Default `largest`. */
  readonly which?: EigenEnd
  /** ‖a·v − λ·v‖ that is small enough, relative to the largest |λ| found (default 1e-5 for float32, 1e-10 for float64). */
  readonly tolerance?: number
  /** Rounds after which it gives up (default 100); each costs three products of the matrix with the block. */
  readonly maxRounds?: number
  readonly seed: number
}

/** Eigenpairs with what is left of them. */
export interface LeadingEigen extends Eigen {
  /** ‖a·v − λ·v‖ of each pair: an eigenvalue of `a` lies within it of λ. */
  readonly residuals: Float64Array
  readonly rounds: number
}

const orders: Readonly<Record<EigenEnd, (value: number) => number>> = {
  largest: (v) => -v,
  smallest: (v) => v,
  magnitude: (v) => -Math.abs(v),
}

/** Blocks of a Krylov space in one round. */
const depth = 4

/**
 * Eigenpairs at one end of the spectrum of a symmetric matrix [n, n]: randomised block Krylov with restarts (Musco & Musco 2015; Rayleigh–Ritz on
 * the blocks), until residuals are small. Products with `a` run in its precision, all else in double precision.
 * @throws RuntimeFailure where it does not settle; ask for a few pairs more or a larger tolerance then.
 */
export async function leadingEigen(a: RealMatrix, options: LeadingEigenOptions): Promise<LeadingEigen> {
  const n = sideOf(a)
  const { count, which = 'largest', seed, maxRounds = 100, signal, onProgress } = options
  checkCount('count', count, n)
  const tolerance = options.tolerance ?? (a.dtype === 'float32' ? 1e-5 : 1e-10)
  const block = Math.min(n, count + 8)
  if (depth * block >= n) return wholeEigen(asDouble(a), count, which)
  let x = (await tallQr(await gaussian(n, block, seed))).q
  let ax = await times(a, x)
  let worst = Number.POSITIVE_INFINITY
  for (let round = 1; round <= maxRounds; round++) {
    throwIfCancelled(signal)
    onProgress?.({ task: 'finding eigenvectors', done: round - 1, total: maxRounds, unit: 'rounds' })
    const [basis, image] = [[x], [ax]]
    for (let d = 1; d < depth; d++) {
      const next = await orthogonal(image.at(-1) as DoubleMatrix, besides(basis))
      basis.push(next)
      image.push(await times(a, next))
    }
    const [q, aq] = [besides(basis), besides(image)]
    const ritz = smallEigen(await times(q, aq, { transA: true }))
    const order = Array.from(ritz.values.keys()).sort(
      (i, j) => orders[which](ritz.values[i] as number) - orders[which](ritz.values[j] as number),
    )
    const turn = chosenColumns(ritz.vectors, order.slice(0, block))
    const values = Float64Array.from(order.slice(0, block), (i) => ritz.values[i] as number)
    ;[x, ax] = [await times(q, turn), await times(aq, turn)]
    const residuals = lengths(x, ax, values)
    const scale = Math.max(...ritz.values.map(Math.abs))
    worst = Math.max(...residuals.subarray(0, count)) / scale
    if (worst <= tolerance)
      return { values: values.slice(0, count), vectors: columnsOf(x, 0, count), residuals: residuals.slice(0, count), rounds: round }
  }
  throw new RuntimeFailure(
    `${count} eigenpairs did not settle in ${maxRounds} rounds (residual ${worst.toExponential(1)} instead of ${tolerance}): raise maxRounds or the tolerance, or ask for another number of pairs.`,
  )
}

function wholeEigen(a: DoubleMatrix, count: number, which: EigenEnd): LeadingEigen {
  const all = smallEigen(a)
  const order = Array.from(all.values.keys())
    .sort((i, j) => orders[which](all.values[i] as number) - orders[which](all.values[j] as number))
    .slice(0, count)
  const values = Float64Array.from(order, (i) => all.values[i] as number)
  return { values, vectors: chosenColumns(all.vectors, order), residuals: new Float64Array(count), rounds: 0 }
}

/** The part of a block that is orthogonal to a basis, orthonormal; twice, because once leaves rounding errors of the size of what was taken away. */
async function orthogonal(block: DoubleMatrix, basis: DoubleMatrix): Promise<DoubleMatrix> {
  let w = block
  for (let pass = 0; pass < 2; pass++) w = (await tallQr(await lessProduct(w, basis, await times(basis, w, { transA: true })))).q
  return w
}

function lengths(x: DoubleMatrix, ax: DoubleMatrix, values: Float64Array): Float64Array {
  const k = values.length
  const out = new Float64Array(k)
  for (let at = 0; at < x.data.length; at++) {
    const j = at % k
    out[j] = (out[j] as number) + ((ax.data[at] as number) - (values[j] as number) * (x.data[at] as number)) ** 2
  }
  return out.map(Math.sqrt)
}

function chosenColumns(a: DoubleMatrix, order: readonly number[]): DoubleMatrix {
  const [rows, width] = a.shape as [number, number]
  const out = new Float64Array(rows * order.length)
  for (let i = 0; i < rows; i++) for (const [c, from] of order.entries()) out[i * order.length + c] = a.data[i * width + from] as number
  return doubleMatrix(out, rows, order.length)
}

function transposed(a: DoubleMatrix): DoubleMatrix {
  const [rows, columns] = a.shape as [number, number]
  const out = new Float64Array(rows * columns)
  for (let i = 0; i < rows; i++) for (let j = 0; j < columns; j++) out[j * rows + i] = a.data[i * columns + j] as number
  return doubleMatrix(out, columns, rows)
}

/** Turns each pair of columns so that the largest number of the first is positive. */
function turnPositive(u: DoubleMatrix, v: DoubleMatrix): void {
  const k = u.shape[1] as number
  for (let c = 0; c < k; c++) {
    let largest = 0
    for (let at = c; at < u.data.length; at += k) if (Math.abs(u.data[at] as number) > Math.abs(largest)) largest = u.data[at] as number
    if (largest >= 0) continue
    for (const m of [u, v]) for (let at = c; at < m.data.length; at += k) m.data[at] = -(m.data[at] as number)
  }
}

async function gaussian(rows: number, columns: number, seed: number): Promise<DoubleMatrix> {
  if (!Number.isSafeInteger(seed)) throw new UsageError(`A seed must be an integer, not ${seed}.`)
  const program = await programOf('gaussian', () => {
    const like = input('like', 'uint8', ['rows', 'columns'])
    return { out: randomNormal(['rows', 'columns'], { seed: input('seed', 'int64', []) }, { dtype: 'float64', like: [like] }) }
  })
  const like = { dtype: 'uint8' as const, shape: [rows, columns], data: new Uint8Array(rows * columns) }
  return (await program.run({ like, seed: { dtype: 'int64', shape: [], data: BigInt64Array.of(BigInt(seed)) } })).out as DoubleMatrix
}

function checkCount(name: string, count: number, most: number): void {
  if (!(Number.isInteger(count) && count > 0 && count <= most))
    throw new UsageError(`${name} must be a whole number from 1 to ${most}, the smaller side of the matrix, not ${count}.`)
}
