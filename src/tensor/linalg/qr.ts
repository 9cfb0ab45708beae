/** @file Orthonormal bases of tall matrices by shifted Cholesky QR (Fukaya, Kannan, Nakatsukasa, Yamamoto & Yanagisawa 2020). */
import { RuntimeFailure } from '../../base/errors.ts'
import { choleskyInPlace, invertLower } from './block.ts'
import { asDouble, crossProduct, type DoubleMatrix, doubleMatrix, type RealMatrix, sizesOf, times } from './matrix.ts'

/** y = q · r with orthonormal columns in q [rows, columns] and an upper triangle r [columns, columns]. */
export interface TallQr {
  readonly q: DoubleMatrix
  readonly r: DoubleMatrix
}

/** Passes after which the columns are orthonormal to rounding whatever their condition up to 1/ε: the first makes it about 10⁸, the next two finish. */
const passes = 3

/**
 * QR of a tall matrix [rows, columns] with up to a few hundred columns; Gram matrices and products run in programs in double
 * precision. Columns that depend on others up to rounding get some direction orthogonal to the rest; a column of zeros stays zero.
 */
export async function tallQr(y: RealMatrix): Promise<TallQr> {
  const [rows, k] = sizesOf(y)
  let q = asDouble(y)
  let r = identity(k)
  for (let pass = 0; pass < passes; pass++) {
    const gram = await crossProduct(q)
    // Columns are brought to length one first, so that a small one does not drown in the shift.
    const scale = Float64Array.from({ length: k }, (_, j) => {
      const square = gram.data[j * k + j] as number
      return square > 0 ? 1 / Math.sqrt(square) : 1
    })
    const l = gram.data.map((v, at) => v * (scale[Math.floor(at / k)] as number) * (scale[at % k] as number))
    const shift = 11 * (rows * k + k * (k + 1)) * 2 ** -53 * (pass === 0 ? 1 : 2 ** -20) + k * 2 ** -52
    for (let j = 0; j < k; j++) l[j * k + j] = (l[j * k + j] as number) + shift
    // The shift keeps every pivot positive, unless there is none.
    if (choleskyInPlace(l, k) >= 0) throw new RuntimeFailure('The matrix holds a number that is infinite or none; clean it first.')
    const inverse = invertLower(l, k)
    // q ← q · D · L⁻ᵀ, r ← Lᵀ · D⁻¹ · r
    const turn = new Float64Array(k * k)
    for (let i = 0; i < k; i++) for (let j = i; j < k; j++) turn[i * k + j] = (scale[i] as number) * (inverse[j * k + i] as number)
    const back = new Float64Array(k * k)
    for (let i = 0; i < k; i++) for (let j = i; j < k; j++) back[i * k + j] = (l[j * k + i] as number) / (scale[j] as number)
    q = await times(q, doubleMatrix(turn, k, k))
    r = await times(doubleMatrix(back, k, k), r)
  }
  return { q, r }
}

function identity(k: number): DoubleMatrix {
  const data = new Float64Array(k * k)
  for (let j = 0; j < k; j++) data[j * k + j] = 1
  return doubleMatrix(data, k, k)
}
