/** @file Linear algebra: a library for a few hundred rows, programs for thousands. */
export { choleskyFactor, solveByCholesky, solveTriangular, type TriangularOptions } from './cholesky.ts'
export { type LeastSquares, type LeastSquaresOptions, leastSquares } from './least-squares.ts'
export { asDouble, crossProduct, type DoubleMatrix, doubleMatrix, type RealMatrix, squaredNorm, times } from './matrix.ts'
export { type TallQr, tallQr } from './qr.ts'
export {
  type EigenEnd,
  type LeadingEigen,
  type LeadingEigenOptions,
  leadingEigen,
  type RandomisedSvd,
  type RandomisedSvdOptions,
  randomisedSvd,
  rangeErrorFactor,
} from './randomised.ts'
export { type Eigen, type Svd, smallEigen, smallSvd } from './small.ts'
