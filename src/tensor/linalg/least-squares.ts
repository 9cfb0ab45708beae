/** @file Least squares with many rows and thousands of columns: normal equations in double precision, refined. */
import { ShapeError } from '../../base/errors.ts'
import type { WorkOptions } from '../../base/progress.ts'
import { choleskyFactor, solveByCholesky } from './cholesky.ts'
import { asDouble, crossProduct, type DoubleMatrix, doubleMatrix, lessProduct, type RealMatrix, rowsOf, sizesOf } from './matrix.ts'

/** Options of {@link leastSquares}. */
export interface LeastSquaresOptions extends WorkOptions {
  /** λ of `‖a·x − b‖² + λ‖x‖²` (default 0). */
  readonly ridge?: number
  /** Rounds of refinement (default 2); each squares away about the error that the normal equations made. */
  readonly refinements?: number
}

/** A least-squares solution. */
export interface LeastSquares {
  /** [columns of a, columns of b] */
  readonly x: DoubleMatrix
  /** ‖a·x − b‖ of each column of b. */
  readonly residuals: Float64Array
}

/** Rows whose residual is computed at once. */
const rowsAtOnce = 8192

/**
 * Minimises ‖a·x − b‖² (+ ridge) for a [rows, n] and b [rows, k], rows ≥ n or ridge > 0. Corrected semi-normal equations
 * (Björck 1987): the Gram matrix with its columns brought to length one is factorised in double precision and the solution refined
 * by its residual, which is as accurate as QR while the condition of `a` is below about 10⁷.
 * @throws RuntimeFailure where columns of `a` depend on each other and there is no ridge.
 */
export async function leastSquares(a: RealMatrix, b: RealMatrix, options: LeastSquaresOptions = {}): Promise<LeastSquares> {
  const { ridge = 0, refinements = 2 } = options
  const [rows, n] = sizesOf(a)
  const [others, k] = sizesOf(b, 'The right side')
  if (rows !== others) throw new ShapeError(`The matrix has ${rows} rows and the right side ${others}; they must agree.`)
  const gram = await crossProduct(a)
  for (let j = 0; j < n; j++) gram.data[j * n + j] = (gram.data[j * n + j] as number) + ridge
  const scale = Float64Array.from({ length: n }, (_, j) => {
    const square = gram.data[j * n + j] as number
    return square > 0 ? 1 / Math.sqrt(square) : 1
  })
  for (let i = 0, at = 0; i < n; i++)
    for (let j = 0; j < n; j++, at++) gram.data[at] = (gram.data[at] as number) * (scale[i] as number) * (scale[j] as number)
  const l = await choleskyFactor(gram, options)
  const scaled = (m: DoubleMatrix) =>
    doubleMatrix(
      m.data.map((v, at) => v * (scale[Math.floor(at / k)] as number)),
      n,
      k,
    )
  const solve = async (side: DoubleMatrix) => scaled(await solveByCholesky(l, scaled(side)))
  let x = await solve(await crossProduct(a, b))
  let found = await residualOf(a, b, x)
  for (let round = 0; round < refinements; round++) {
    const step = await solve(
      doubleMatrix(
        found.gradient.data.map((v, i) => v - ridge * (x.data[i] as number)),
        n,
        k,
      ),
    )
    x = doubleMatrix(
      x.data.map((v, i) => v + (step.data[i] as number)),
      n,
      k,
    )
    found = await residualOf(a, b, x)
  }
  return { x, residuals: found.squares.map(Math.sqrt) }
}

/** aᵀ(b − a·x), and the squared length of each column of b − a·x. */
async function residualOf(a: RealMatrix, b: RealMatrix, x: DoubleMatrix): Promise<{ gradient: DoubleMatrix; squares: Float64Array }> {
  const [n, k] = sizesOf(x)
  const gradient = doubleMatrix(new Float64Array(n * k), n, k)
  const squares = new Float64Array(k)
  const rows = a.shape[0] as number
  for (let at = 0; at < rows; at += rowsAtOnce) {
    const to = Math.min(rows, at + rowsAtOnce)
    const part = asDouble(rowsOf(a, at, to))
    const rest = await lessProduct(asDouble(rowsOf(b, at, to)), part, x)
    for (const [i, v] of rest.data.entries()) squares[i % k] = (squares[i % k] as number) + v * v
    const more = await crossProduct(part, rest)
    for (const [i, v] of more.data.entries()) gradient.data[i] = (gradient.data[i] as number) + v
  }
  return { gradient, squares }
}
