/** @file Decompositions of matrices of up to a few hundred rows, by a library; larger ones are in the other files of this folder. */
import { EigenvalueDecomposition, Matrix, SingularValueDecomposition } from 'ml-matrix'
import { type DoubleMatrix, doubleMatrix, sideOf, sizesOf } from './matrix.ts'

/** Eigenvalues and, in the columns of `vectors` [n, count], their vectors of length one. */
export interface Eigen {
  readonly values: Float64Array
  readonly vectors: DoubleMatrix
}

/** A = u · diag(s) · vᵀ with u [rows, count], v [columns, count], s falling. */
export interface Svd {
  readonly u: DoubleMatrix
  readonly s: Float64Array
  readonly v: DoubleMatrix
}

const matrixOf = ({ shape, data }: DoubleMatrix) => Matrix.from1DArray(shape[0] as number, shape[1] as number, data)
const fromMatrix = (m: Matrix) => doubleMatrix(Float64Array.from(m.to1DArray()), m.rows, m.columns)

/** All eigenvalues, largest first, and vectors of a symmetric matrix; only symmetric up to rounding is enough. */
export function smallEigen(a: DoubleMatrix): Eigen {
  const n = sideOf(a)
  const m = matrixOf(a)
  const found = new EigenvalueDecomposition(m.add(m.transpose()).mul(0.5), { assumeSymmetric: true })
  const order = found.realEigenvalues
    .map((_, i) => i)
    .sort((i, j) => (found.realEigenvalues[j] as number) - (found.realEigenvalues[i] as number))
  const vectors = new Float64Array(n * n)
  for (const [c, from] of order.entries()) for (let i = 0; i < n; i++) vectors[i * n + c] = found.eigenvectorMatrix.get(i, from)
  return { values: Float64Array.from(order, (i) => found.realEigenvalues[i] as number), vectors: doubleMatrix(vectors, n, n) }
}

/** Singular values and vectors; as many as the smaller side has. */
export function smallSvd(a: DoubleMatrix): Svd {
  const count = Math.min(...sizesOf(a))
  const found = new SingularValueDecomposition(matrixOf(a), { autoTranspose: true })
  const columns = (m: Matrix) => fromMatrix(m.subMatrix(0, m.rows - 1, 0, count - 1))
  return {
    u: columns(found.leftSingularVectors),
    s: Float64Array.from(found.diagonal.slice(0, count)),
    v: columns(found.rightSingularVectors),
  }
}
