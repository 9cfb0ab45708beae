/** @file Activations as points: rows of a matrix, centred, and their principal components; everything heavy runs in compiled programs in float64. */
import { ShapeError, UsageError } from '../../base/errors.ts'
import { type NDArray, sizeOf } from '../../base/types.ts'
import {
  cast,
  type DoubleMatrix,
  doubleMatrix,
  input,
  mean,
  mul,
  Program,
  randomisedSvd,
  SessionCache,
  smallEigen,
  sub,
  sum,
  type Tensor,
  times,
} from '../../tensor/index.ts'

/** Activations of one site: [rows, …axes of the site], one row for each place; axes after the first count as one. */
export type Points = NDArray<Float32Array>

const options = { device: 'cpu' as const, cache: new SessionCache(0) }
const compiled = new Map<string, Promise<Program<'out'>>>()

/** Runs a program that is compiled when it is first asked for by its name. */
export async function runNamed(name: string, make: () => Tensor, feeds: Readonly<Record<string, NDArray>>): Promise<DoubleMatrix> {
  let found = compiled.get(name)
  if (!found) {
    found = Program.of({ out: make() }, options)
    compiled.set(name, found)
    found.catch(() => compiled.delete(name))
  }
  return (await (await found).run(feeds)).out as DoubleMatrix
}

/** Points as a matrix [rows, width]; refuses too few of them. */
export function pointsMatrix(x: Points, least = 2): NDArray<Float32Array> & { readonly shape: readonly [number, number] } {
  const rows = x.shape[0] ?? 0
  const width = sizeOf(x.shape.slice(1))
  if (x.dtype !== 'float32' || x.shape.length < 2 || rows * width !== x.data.length)
    throw new ShapeError(`Points must be float32 of shape [rows, …], not ${x.dtype} [${x.shape.join(', ')}] with ${x.data.length} numbers.`)
  if (rows < least) throw new UsageError(`${rows} points are too few; this needs at least ${least}.`)
  return { dtype: 'float32', shape: [rows, width], data: x.data }
}

/** Refuses points that do not stand for the same places. */
export function sameRows(a: number, b: number): void {
  if (a !== b)
    throw new ShapeError(
      `There are ${a} points on one side and ${b} on the other; points are compared place by place, so give as many of each.`,
    )
}

/** The points less their mean, in double precision. */
export function centredPoints(x: Points): Promise<DoubleMatrix> {
  return runNamed(
    'centred',
    () => {
      const d = cast(input('x', 'float32', ['rows', 'width']), 'float64')
      return sub(d, mean(d, [0], true))
    },
    { x: pointsMatrix(x) },
  )
}

/** Sum of the products of all numbers of two matrices of one shape. */
export async function innerProduct(a: DoubleMatrix, b: DoubleMatrix): Promise<number> {
  const make = () => sum(mul(input('a', 'float64', ['rows', 'columns']), input('b', 'float64', ['rows', 'columns'])), [0, 1])
  return (await runNamed('inner', make, { a, b })).data[0] as number
}

/** Principal components of points. */
export interface PrincipalComponents {
  /** Left singular vectors of the centred points, [rows, count], orthonormal. */
  readonly u: DoubleMatrix
  /** Singular values, falling, [count]. */
  readonly s: Float64Array
  /** Directions, [width, count], orthonormal. */
  readonly v: DoubleMatrix
  /** Sum of the squares of all singular values, those that were left out included. */
  readonly total: number
}

/** Smaller side up to which all components are found exactly. */
const exactSide = 512

/**
 * Leading principal components of points, at most `most` (default 256), without those that are rounding. All that there are where
 * the smaller side has up to 512 numbers; else by the randomised SVD with four power iterations and a fixed seed.
 */
export async function principalComponentsOf(x: Points, most = 256): Promise<PrincipalComponents> {
  const c = await centredPoints(x)
  const [rows, width] = c.shape as [number, number]
  const total = await innerProduct(c, c)
  const side = Math.min(rows, width)
  if (!(total > 0)) throw new UsageError('All points are the same, so they have no principal components; give others.')
  const wide = rows < width
  const found = side > exactSide ? await randomisedSvd(c, { rank: Math.min(most, side), seed: 0 }) : await exactComponents(c, wide)
  let count = 0
  // Gram matrices hold what is above √ε of the largest.
  while (count < Math.min(most, found.s.length) && (found.s[count] as number) > 1e-7 * (found.s[0] as number)) count++
  return { u: firstColumns(found.u, count), s: found.s.slice(0, count), v: firstColumns(found.v, count), total }
}

async function exactComponents(c: DoubleMatrix, wide: boolean): Promise<{ u: DoubleMatrix; s: Float64Array; v: DoubleMatrix }> {
  const { values, vectors } = smallEigen(await times(c, c, wide ? { transB: true } : { transA: true }))
  const s = values.map((l) => Math.sqrt(Math.max(0, l)))
  const other = await times(c, vectors, { transA: wide })
  const k = s.length
  const scaled = doubleMatrix(
    other.data.map((x, at) => ((s[at % k] as number) > 0 ? x / (s[at % k] as number) : 0)),
    other.shape[0] as number,
    k,
  )
  return wide ? { u: vectors, s, v: scaled } : { u: scaled, s, v: vectors }
}

/** The first columns of a matrix. */
export function firstColumns(a: DoubleMatrix, count: number): DoubleMatrix {
  const [rows, width] = a.shape as [number, number]
  const out = new Float64Array(rows * count)
  for (let i = 0; i < rows; i++) out.set(a.data.subarray(i * width, i * width + count), i * count)
  return doubleMatrix(out, rows, count)
}

/** Columns times factors. */
export function scaledColumns(a: DoubleMatrix, factors: ArrayLike<number>): DoubleMatrix {
  const width = a.shape[1] as number
  return { ...a, data: a.data.map((x, at) => x * (factors[at % width] as number)) }
}
