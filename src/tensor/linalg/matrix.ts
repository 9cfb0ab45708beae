/** @file Dense matrices and the products that the linear algebra is built from; everything heavy runs in compiled programs. */
import { ShapeError } from '../../base/errors.ts'
import { type NDArray, sizeOf } from '../../base/types.ts'
import { add, cast, input, matmul, sub, sumSquares } from '../ops/index.ts'
import { Program } from '../program.ts'
import { SessionCache } from '../session-cache.ts'
import type { Tensor } from '../tensor.ts'

/** A real matrix [rows, columns], row by row, in single or double precision. */
export type RealMatrix = NDArray<Float32Array> | NDArray<Float64Array>

/** A real matrix [rows, columns] in double precision. */
export type DoubleMatrix = NDArray<Float64Array>

type RealType = 'float32' | 'float64'

const options = { device: 'cpu' as const, cache: new SessionCache(0) }
const compiled = new Map<string, Promise<Program<'out'>>>()

/** A program by its name, compiled when it is first asked for. */
export function programOf(name: string, make: () => { readonly out: Tensor }): Promise<Program<'out'>> {
  let found = compiled.get(name)
  if (!found) {
    found = Program.of(make(), options)
    compiled.set(name, found)
    found.catch(() => compiled.delete(name))
  }
  return found
}

/** Rows and columns; refuses what is no float matrix. */
export function sizesOf(a: RealMatrix, what = 'The matrix'): [rows: number, columns: number] {
  if (a.shape.length !== 2 || sizeOf(a.shape) !== a.data.length || (a.dtype !== 'float32' && a.dtype !== 'float64'))
    throw new ShapeError(
      `${what} must be float32 or float64 of shape [rows, columns], not ${a.dtype} [${a.shape.join(', ')}] with ${a.data.length} numbers.`,
    )
  return a.shape as unknown as [number, number]
}

/** Side of a square matrix; refuses others. */
export function sideOf(a: RealMatrix, what = 'The matrix'): number {
  const [rows, columns] = sizesOf(a, what)
  if (rows !== columns) throw new ShapeError(`${what} must be square, not [${rows}, ${columns}].`)
  return rows
}

/** A double matrix of numbers that are there already. */
export const doubleMatrix = (data: Float64Array, rows: number, columns: number): DoubleMatrix => ({
  dtype: 'float64',
  shape: [rows, columns],
  data,
})

/** The same matrix in double precision; itself where it is. */
export function asDouble(a: RealMatrix): DoubleMatrix {
  return a.dtype === 'float64' ? (a as DoubleMatrix) : { dtype: 'float64', shape: a.shape, data: Float64Array.from(a.data) }
}

/** Which sides of a product are taken transposed. */
export interface ProductOptions {
  readonly transA?: boolean
  readonly transB?: boolean
}

/**
 * `a · b` computed in the precision of `a` (so that a large float32 matrix is neither copied nor slowed down) and given in float64.
 * @throws ShapeError where the inner sizes differ.
 */
export async function times(a: RealMatrix, b: RealMatrix, { transA = false, transB = false }: ProductOptions = {}): Promise<DoubleMatrix> {
  const [ta, tb] = [a.dtype as RealType, b.dtype as RealType]
  const program = await programOf(`times/${ta}/${tb}/${transA}/${transB}`, () => {
    const x = input('a', ta, transA ? ['inner', 'rows'] : ['rows', 'inner'])
    const y = input('b', tb, transB ? ['columns', 'inner'] : ['inner', 'columns'])
    return { out: cast(matmul(x, cast(y, ta), { transA, transB }), 'float64') }
  })
  return (await program.run({ a, b })).out as DoubleMatrix
}

/** `a − b · c` in double precision. */
export async function lessProduct(a: DoubleMatrix, b: DoubleMatrix, c: DoubleMatrix): Promise<DoubleMatrix> {
  const program = await programOf('less-product', () => {
    const [x, y, z] = [
      input('a', 'float64', ['rows', 'columns']),
      input('b', 'float64', ['rows', 'inner']),
      input('c', 'float64', ['inner', 'columns']),
    ]
    return { out: sub(x, matmul(y, z)) }
  })
  return (await program.run({ a, b, c })).out as DoubleMatrix
}

/** Rows that a sum over rows takes at once. */
const rowsAtOnce = 8192

/** Neighbouring rows of a matrix, without a copy. */
export function rowsOf<T extends RealMatrix>(a: T, from: number, to: number): T {
  const columns = a.shape[1] as number
  return { dtype: a.dtype, shape: [to - from, columns], data: a.data.subarray(from * columns, to * columns) } as unknown as T
}

/** `aᵀ · b` summed in double precision over pieces of the rows, `b` being `a` where none is given: [columns of a, columns of b]. */
export async function crossProduct(a: RealMatrix, b: RealMatrix = a): Promise<DoubleMatrix> {
  const [rows, width] = sizesOf(a)
  const [others, columns] = sizesOf(b)
  if (rows !== others) throw new ShapeError(`The matrices have ${rows} and ${others} rows; a product over rows needs as many in both.`)
  const own = a === b
  const program = await programOf(`cross/${a.dtype}/${b.dtype}/${own}`, () => {
    const sum = input('sum', 'float64', ['p', own ? 'p' : 'q'])
    const x = cast(input('a', a.dtype as RealType, ['rows', 'p']), 'float64')
    const y = own ? x : cast(input('b', b.dtype as RealType, ['rows', 'q']), 'float64')
    return { out: add(sum, matmul(x, y, { transA: true })) }
  })
  let sum = doubleMatrix(new Float64Array(width * columns), width, columns)
  for (let at = 0; at < rows; at += rowsAtOnce) {
    const to = Math.min(rows, at + rowsAtOnce)
    const feeds = { sum, a: rowsOf(a, at, to), ...(own ? {} : { b: rowsOf(b, at, to) }) }
    sum = (await program.run(feeds)).out as DoubleMatrix
  }
  return sum
}

/** Square of the Frobenius norm, summed in double precision. */
export async function squaredNorm(a: RealMatrix): Promise<number> {
  const program = await programOf(`squares/${a.dtype}`, () => ({
    out: sumSquares(cast(input('a', a.dtype as RealType, ['rows', 'columns']), 'float64'), [0, 1]),
  }))
  const [rows] = sizesOf(a)
  let sum = 0
  for (let at = 0; at < rows; at += rowsAtOnce)
    sum += (await program.run({ a: rowsOf(a, at, Math.min(rows, at + rowsAtOnce)) })).out.data[0] as number
  return sum
}

/** Columns `from` (inclusive) to `to` (exclusive), copied. */
export function columnsOf(a: DoubleMatrix, from: number, to: number): DoubleMatrix {
  const [rows, width] = a.shape as [number, number]
  const out = new Float64Array(rows * (to - from))
  for (let i = 0; i < rows; i++) out.set(a.data.subarray(i * width + from, i * width + to), i * (to - from))
  return doubleMatrix(out, rows, to - from)
}

/** Matrices of equally many rows side by side. */
export function besides(parts: readonly DoubleMatrix[]): DoubleMatrix {
  const rows = (parts[0] as DoubleMatrix).shape[0] as number
  const width = parts.reduce((sum, p) => sum + (p.shape[1] as number), 0)
  const out = new Float64Array(rows * width)
  let left = 0
  for (const p of parts) {
    const w = p.shape[1] as number
    for (let i = 0; i < rows; i++) out.set(p.data.subarray(i * w, (i + 1) * w), i * width + left)
    left += w
  }
  return doubleMatrix(out, rows, width)
}
