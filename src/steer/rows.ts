/** @file Rows of activations and the linear algebra that the methods need of them. */
import { EigenvalueDecomposition, Matrix } from 'ml-matrix'
import { RuntimeFailure } from '../base/errors.ts'
import type { NDArray } from '../base/types.ts'
import { randomStream } from '../models/sampling.ts'
import { evaluate, input, matmul, SessionCache, transpose } from '../tensor/index.ts'

/** A matrix [count, width], row by row: one activation of a site for each example. */
export interface Rows {
  readonly count: number
  readonly width: number
  readonly data: Float64Array
}

/** A symmetric matrix [size, size]. */
export interface Symmetric {
  readonly size: number
  readonly data: Float64Array
}

/** Multiplications above which a product goes through a program; below, JavaScript has done it before a program starts. */
const heavy = 4e6
const sessions = new SessionCache(0)

/** The mean row, [width]. */
export function meanRow({ count, width, data }: Rows): Float64Array {
  const mean = new Float64Array(width)
  for (let i = 0, at = 0; i < count; i++) for (let j = 0; j < width; j++) mean[j] = (mean[j] as number) + (data[at++] as number)
  return mean.map((x) => x / count)
}

/** Rows less one row. */
export function less({ count, width, data }: Rows, row: Float64Array): Rows {
  const out = new Float64Array(count * width)
  for (let i = 0; i < out.length; i++) out[i] = (data[i] as number) - (row[i % width] as number)
  return { count, width, data: out }
}

/** `factor · (a - b)`, row by row. */
export function differences(a: Rows, b: Rows, factor = 1): Rows {
  const out = new Float64Array(a.data.length)
  for (let i = 0; i < out.length; i++) out[i] = factor * ((a.data[i] as number) - (b.data[i] as number))
  return { count: a.count, width: a.width, data: out }
}

/** The rows of both, one after the other. */
export function stacked(a: Rows, b: Rows): Rows {
  const data = new Float64Array(a.data.length + b.data.length)
  data.set(a.data)
  data.set(b.data, a.data.length)
  return { count: a.count + b.count, width: a.width, data }
}

/** Row `i`, without a copy. */
export const rowAt = ({ width, data }: Rows, i: number) => data.subarray(i * width, (i + 1) * width)

/** `rows · v`, [count]. */
export function timesColumn(rows: Rows, v: Float64Array): Float64Array {
  return Float64Array.from({ length: rows.count }, (_, i) => dotOf(rows.data, i * rows.width, v, 0, rows.width))
}

/** `rowsᵀ · v`, [width]. */
export function timesRow({ count, width, data }: Rows, v: Float64Array): Float64Array {
  const out = new Float64Array(width)
  for (let i = 0, at = 0; i < count; i++) {
    const factor = v[i] as number
    for (let j = 0; j < width; j++) out[j] = (out[j] as number) + factor * (data[at++] as number)
  }
  return out
}

/** Sum of products. */
export const dot = (a: Float64Array, b: Float64Array) => dotOf(a, 0, b, 0, a.length)

/** Sum of products of `count` numbers of each, from a place on: views of rows would cost more than their products. */
function dotOf(a: Float64Array, atA: number, b: Float64Array, atB: number, count: number): number {
  // Four sums, because one would wait for each addition before the next.
  let [s, t, u, v] = [0, 0, 0, 0]
  let [i, j] = [atA, atB]
  for (const end = atA + count - 3; i < end; i += 4, j += 4) {
    s += (a[i] as number) * (b[j] as number)
    t += (a[i + 1] as number) * (b[j + 1] as number)
    u += (a[i + 2] as number) * (b[j + 2] as number)
    v += (a[i + 3] as number) * (b[j + 3] as number)
  }
  for (; i < atA + count; i++, j++) s += (a[i] as number) * (b[j] as number)
  return s + t + (u + v)
}

/** A vector of length one; a zero vector stays zero. */
export function unit(v: Float64Array): Float64Array {
  const length = Math.sqrt(dot(v, v))
  return length === 0 ? v : v.map((x) => x / length)
}

/** The Gram matrix of the smaller side: `rows · rowsᵀ` (`dual`) where there are no more rows than columns, else `rowsᵀ · rows`. */
export async function gram({ count, width, data }: Rows): Promise<Symmetric & { readonly dual: boolean }> {
  const dual = count <= width
  const size = dual ? count : width
  const x: NDArray<Float64Array> = { dtype: 'float64', shape: [count, width], data }
  if (size * count * width > heavy) return { size, dual, data: await productWithItself(x, dual) }
  const out = new Float64Array(size * size)
  const side = dual ? { count, width, data } : transposed({ count, width, data })
  for (let i = 0; i < size; i++)
    for (let j = 0; j <= i; j++) {
      const value = dotOf(side.data, i * side.width, side.data, j * side.width, side.width)
      out[i * size + j] = value
      out[j * size + i] = value
    }
  return { size, dual, data: out }
}

/** `x · xᵀ`, or `xᵀ · x`. In float64, since fits square the range of their numbers. */
async function productWithItself(x: NDArray<Float64Array>, dual: boolean): Promise<Float64Array> {
  const rows = input('x', 'float64', ['rows', 'columns'])
  const turned = transpose(rows, [1, 0])
  const product = dual ? matmul(rows, turned) : matmul(turned, rows)
  const out = await evaluate({ product }, { x }, { device: 'cpu', cache: sessions })
  return out.product.data as Float64Array
}

function transposed({ count, width, data }: Rows): Rows {
  const out = new Float64Array(data.length)
  for (let i = 0; i < count; i++) for (let j = 0; j < width; j++) out[j * count + i] = data[i * width + j] as number
  return { count: width, width: count, data: out }
}

/** `matrix · v`. */
export function timesSymmetric({ size, data }: Symmetric, v: Float64Array): Float64Array {
  return timesColumn({ count: size, width: size, data }, v)
}

/**
 * The direction of largest variance about zero, of length one and with its largest coordinate positive, and the share of the sum of
 * squares that it explains. Centre the rows before, where the variance about their mean is meant. Zero where all rows are zero.
 */
export async function topComponent(rows: Rows): Promise<{ direction: Float64Array; explained: number }> {
  const g = await gram(rows)
  const { value, vector } = topEigenpair(g)
  let trace = 0
  for (let i = 0; i < g.size; i++) trace += g.data[i * g.size + i] as number
  if (!(value > 0)) return { direction: new Float64Array(rows.width), explained: 0 }
  const direction = unit(g.dual ? timesRow(rows, vector) : vector)
  const largest = direction.reduce((best, x) => (Math.abs(x) > Math.abs(best) ? x : best), 0)
  return { direction: largest < 0 ? direction.map((x) => -x) : direction, explained: value / trace }
}

/** Lanczos steps after which two leading eigenvalues count as equal, so that any mixture of their vectors is right. */
const mostSteps = 384

/** Largest eigenvalue of a positive semidefinite matrix and its vector: Lanczos with full reorthogonalisation, from a fixed start. */
export function topEigenpair(matrix: Symmetric): { value: number; vector: Float64Array } {
  const { size } = matrix
  const random = randomStream(1)
  const basis: Float64Array[] = [unit(Float64Array.from({ length: size }, () => random() - 0.5))]
  const diagonal: number[] = []
  const beside: number[] = []
  const last = Math.min(size, mostSteps)
  for (let k = 1; ; k++) {
    const q = basis[k - 1] as Float64Array
    let r = timesSymmetric(matrix, q)
    diagonal.push(dot(q, r))
    // Twice, because once leaves rounding errors that bring converged directions back.
    for (let pass = 0; pass < 2; pass++) for (const b of basis) r = plusTimes(r, -dot(b, r), b)
    const rest = Math.sqrt(dot(r, r))
    const scale = Math.max(...diagonal.map(Math.abs), ...beside)
    const exhausted = k === last || rest <= 1e-14 * scale
    if (exhausted || Number.isInteger(Math.log2(k)) || k % 64 === 0) {
      const { value, weights } = topOfTridiagonal(diagonal, beside)
      if (exhausted || rest * Math.abs(weights[k - 1] as number) <= 1e-12 * value) {
        let vector = new Float64Array(size)
        for (const [i, b] of basis.entries()) vector = plusTimes(vector, weights[i] as number, b)
        return { value, vector: unit(vector) }
      }
    }
    beside.push(rest)
    basis.push(r.map((x) => x / rest))
  }
}

function topOfTridiagonal(diagonal: readonly number[], beside: readonly number[]): { value: number; weights: number[] } {
  const n = diagonal.length
  const t = Matrix.zeros(n, n)
  for (let i = 0; i < n; i++) {
    t.set(i, i, diagonal[i] as number)
    if (i + 1 < n) t.set(i, i + 1, beside[i] as number).set(i + 1, i, beside[i] as number)
  }
  const { realEigenvalues, eigenvectorMatrix } = new EigenvalueDecomposition(t, { assumeSymmetric: true })
  const top = realEigenvalues.indexOf(Math.max(...realEigenvalues))
  return { value: realEigenvalues[top] as number, weights: eigenvectorMatrix.getColumn(top) }
}

/** `a + factor · b`. */
export function plusTimes(a: Float64Array, factor: number, b: Float64Array): Float64Array<ArrayBuffer> {
  const out = new Float64Array(a.length)
  for (let i = 0; i < out.length; i++) out[i] = (a[i] as number) + factor * (b[i] as number)
  return out
}

/**
 * Cholesky factor of a symmetric positive definite matrix, lower triangle row by row.
 * @throws RuntimeFailure where rounding leaves the matrix indefinite.
 */
export function cholesky({ size, data }: Symmetric): Symmetric {
  const l = new Float64Array(size * size)
  for (let i = 0; i < size; i++)
    for (let j = 0; j <= i; j++) {
      const rest = (data[i * size + j] as number) - dotOf(l, i * size, l, j * size, j)
      if (i !== j) l[i * size + j] = rest / (l[j * size + j] as number)
      else if (rest > 0) l[i * size + i] = Math.sqrt(rest)
      else throw new RuntimeFailure('The activations are too ill-conditioned for this fit; raise the regularisation.')
    }
  return { size, data: l }
}

/** Solves `A x = b` by the Cholesky factor of `A`. */
export function solve({ size, data }: Symmetric, b: Float64Array): Float64Array {
  const x = Float64Array.from(b)
  for (let i = 0; i < size; i++) x[i] = ((x[i] as number) - dotOf(data, i * size, x, 0, i)) / (data[i * size + i] as number)
  for (let i = size - 1; i >= 0; i--) {
    const value = (x[i] as number) / (data[i * size + i] as number)
    x[i] = value
    for (let j = 0; j < i; j++) x[j] = (x[j] as number) - value * (data[i * size + j] as number)
  }
  return x
}
