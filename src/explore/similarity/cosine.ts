/** @file Cosines between named vectors: steering vectors, decoder rows, probes. */
import { ShapeError, UsageError } from '../../base/errors.ts'
import { cast, div, input, matmul, maximum, scalar, sqrt, sumSquares } from '../../tensor/index.ts'
import { runNamed } from './features.ts'

/** Cosines with the names of their rows and columns. */
export interface CosineTable {
  readonly rows: readonly string[]
  readonly columns: readonly string[]
  /** [rows, columns] */
  readonly values: Float64Array
}

/** Cosines of each vector of `a` with each of `b` (default: `a` itself), all of one width; zero vectors are refused. */
export async function cosineTable(
  a: Readonly<Record<string, ArrayLike<number>>>,
  b: Readonly<Record<string, ArrayLike<number>>> = a,
): Promise<CosineTable> {
  const width = Object.values(a)[0]?.length
  if (width === undefined || Object.keys(b).length === 0) throw new UsageError('There are no vectors; give at least one on each side.')
  const unit = () => {
    const side = (name: string, axis: string) => {
      const d = cast(input(name, 'float32', [axis, 'width']), 'float64')
      return div(d, sqrt(maximum(sumSquares(d, [1], true), scalar(1e-300, 'float64'))))
    }
    return matmul(side('a', 'first'), side('b', 'second'), { transB: true })
  }
  const { data } = await runNamed('cosines', unit, { a: stacked(a, width), b: stacked(b, width) })
  return { rows: Object.keys(a), columns: Object.keys(b), values: data }
}

function stacked(vectors: Readonly<Record<string, ArrayLike<number>>>, width: number) {
  const entries = Object.entries(vectors)
  const data = new Float32Array(entries.length * width)
  for (const [i, [name, vector]] of entries.entries()) {
    if (vector.length !== width) throw new ShapeError(`'${name}' has ${vector.length} numbers and others ${width}; cosines need one width.`)
    data.set(vector, i * width)
    if (data.subarray(i * width, (i + 1) * width).every((v) => v === 0))
      throw new UsageError(`'${name}' is zero, so it has no direction and no cosine; leave it out.`)
  }
  return { dtype: 'float32' as const, shape: [entries.length, width], data }
}
