/** @file Cholesky factors and triangular systems of thousands of rows: triangles of a few hundred in JavaScript, all products in programs. */
import { RuntimeFailure, ShapeError, throwIfCancelled } from '../../base/errors.ts'
import type { WorkOptions } from '../../base/progress.ts'
import type { TypedArray } from '../../base/types.ts'
import { input, matmul, sliceTo, sub } from '../ops/index.ts'
import { choleskyInPlace, invertLower } from './block.ts'
import { programOf, type RealMatrix, rowsOf, sideOf, sizesOf } from './matrix.ts'

/** Rows of a block: large enough for products to dominate, small enough for its triangle to cost little. */
const block = 192

type RealType = 'float32' | 'float64'

const make = (type: RealType, length: number) => (type === 'float32' ? new Float32Array(length) : new Float64Array(length))
const matrix = (type: RealType, data: TypedArray, rows: number, columns: number) =>
  ({ dtype: type, shape: [rows, columns], data }) as RealMatrix
const scalarOf = (value: number) => ({ dtype: 'int64' as const, shape: [], data: BigInt64Array.of(BigInt(value)) })

/** `c − l[:, :width] · m[:, :width]ᵀ`. */
const trailing = (type: RealType) =>
  programOf(`cholesky/trailing/${type}`, () => {
    const width = input('width', 'int64', [])
    const [l, m] = [input('l', type, ['rows', 'n']), input('m', type, ['block', 'n'])]
    return {
      out: sub(input('c', type, ['rows', 'block']), matmul(sliceTo(l, 1, width, 'width'), sliceTo(m, 1, width, 'width'), { transB: true })),
    }
  })

const timesTransposed = (type: RealType) =>
  programOf(`cholesky/panel/${type}`, () => ({
    out: matmul(input('c', type, ['rows', 'block']), input('inverse', type, ['block', 'block']), { transB: true }),
  }))

/**
 * The lower Cholesky factor of a symmetric positive definite matrix [n, n] in the precision of the matrix (pivots in double
 * precision), left-looking by blocks; only the lower triangle is read. ‖a − l·lᵀ‖ is about n·ε·‖a‖.
 * @throws RuntimeFailure where a pivot is not positive beyond rounding: the matrix is not positive definite.
 */
export async function choleskyFactor<T extends RealMatrix>(a: T, work: WorkOptions = {}): Promise<T> {
  const n = sideOf(a)
  const type = a.dtype as RealType
  const out = matrix(type, make(type, n * n), n, n)
  const [update, panel] = [await trailing(type), await timesTransposed(type)]
  let largest = 0
  for (let i = 0; i < n; i++) largest = Math.max(largest, Math.abs(a.data[i * n + i] as number))
  const floor = largest * n * (type === 'float32' ? 2 ** -24 : 2 ** -53)
  for (let at = 0; at < n; at += block) {
    throwIfCancelled(work.signal)
    work.onProgress?.({ task: 'factorising', done: at, total: n, unit: 'rows' })
    const size = Math.min(block, n - at)
    const rows = n - at
    const own = make(type, rows * size)
    for (let i = 0; i < rows; i++) {
      const from = (at + i) * n + at
      own.set(a.data.subarray(from, from + size) as never, i * size)
    }
    let c = matrix(type, own, rows, size)
    if (at > 0) c = (await update.run({ c, l: rowsOf(out, at, n), m: rowsOf(out, at, at + size), width: scalarOf(at) })).out as RealMatrix
    const triangle = Float64Array.from(c.data.subarray(0, size * size))
    const bad = choleskyInPlace(triangle, size, floor)
    if (bad >= 0)
      throw new RuntimeFailure(
        `The matrix is not positive definite in ${type}: the pivot of row ${at + bad} of ${n} is not above rounding. Add to its diagonal (a larger ridge or damping), or give float64.`,
      )
    for (let i = 0; i < size; i++) out.data.set(triangle.subarray(i * size, i * size + i + 1), (at + i) * n + at)
    if (rows === size) break
    const inverse = make(type, size * size)
    inverse.set(invertLower(triangle, size))
    const below = await panel.run({
      c: matrix(type, c.data.subarray(size * size), rows - size, size),
      inverse: matrix(type, inverse, size, size),
    })
    for (let i = 0; i < rows - size; i++) out.data.set(below.out.data.subarray(i * size, (i + 1) * size) as never, (at + size + i) * n + at)
  }
  return out as T
}

/** Which triangular system is meant. */
export interface TriangularOptions {
  /** Solve `lᵀ · x = b`. */
  readonly transposed?: boolean
}

/** Solves `l · x = b` for a lower triangle l [n, n] and b [n, columns], block by block, in the precision of `l`. */
export async function solveTriangular<T extends RealMatrix>(l: T, b: T, { transposed = false }: TriangularOptions = {}): Promise<T> {
  const n = sideOf(l, 'The triangle')
  const type = l.dtype as RealType
  const [rows, columns] = sizesOf(b, 'The right side')
  if (rows !== n || b.dtype !== type)
    throw new ShapeError(`The right side must be ${type} [${n}, columns] like the triangle, not ${b.dtype} [${rows}, ${columns}].`)
  const x = make(type, n * columns)
  x.set(b.data as never)
  const starts = Array.from({ length: Math.ceil(n / block) }, (_, i) => i * block)
  const apply = await programOf(`triangular/apply/${type}/${transposed}`, () => ({
    out: matmul(input('inverse', type, ['block', 'block']), input('x', type, ['block', 'columns']), { transA: transposed }),
  }))
  const forward = await programOf(`triangular/forward/${type}`, () => ({
    out: sub(
      input('x', type, ['block', 'columns']),
      matmul(
        sliceTo(input('l', type, ['block', 'n']), 1, input('width', 'int64', []), 'width'),
        input('before', type, ['width', 'columns']),
      ),
    ),
  }))
  const backward = await programOf(`triangular/backward/${type}`, () => ({
    out: sub(
      input('before', type, ['width', 'columns']),
      matmul(sliceTo(input('l', type, ['block', 'n']), 1, input('width', 'int64', []), 'width'), input('x', type, ['block', 'columns']), {
        transA: true,
      }),
    ),
  }))
  const part = (from: number, to: number) => matrix(type, x.subarray(from * columns, to * columns), to - from, columns)
  for (const at of transposed ? starts.reverse() : starts) {
    const end = Math.min(n, at + block)
    const size = end - at
    const width = scalarOf(at)
    if (!transposed && at > 0)
      x.set((await forward.run({ x: part(at, end), l: rowsOf(l, at, end), width, before: part(0, at) })).out.data as never, at * columns)
    const triangle = new Float64Array(size * size)
    for (let i = 0; i < size; i++) triangle.set(l.data.subarray((at + i) * n + at, (at + i) * n + at + i + 1), i * size)
    if (triangle.some((v, i) => i % (size + 1) === 0 && v === 0))
      throw new RuntimeFailure('The triangle has a zero on its diagonal, so the system has no unique solution; give another matrix.')
    const inverse = make(type, size * size)
    inverse.set(invertLower(triangle, size))
    x.set((await apply.run({ inverse: matrix(type, inverse, size, size), x: part(at, end) })).out.data as never, at * columns)
    if (transposed && at > 0)
      x.set((await backward.run({ x: part(at, end), l: rowsOf(l, at, end), width, before: part(0, at) })).out.data as never)
  }
  return matrix(type, x, n, columns) as T
}

/** Solves `l · lᵀ · x = b` by a Cholesky factor. */
export async function solveByCholesky<T extends RealMatrix>(l: T, b: T): Promise<T> {
  return solveTriangular(l, await solveTriangular(l, b), { transposed: true })
}
