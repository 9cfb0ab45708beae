/** @file Representational similarity analysis (Kriegeskorte, Mur & Bandettini 2008): do two sides find the same pairs of places alike? */
import { UsageError } from '../../base/errors.ts'
import { add, cast, div, input, matmul, maximum, mean, scalar, sqrt, sub, sumSquares, transpose } from '../../tensor/index.ts'
import { type Points, pointsMatrix, runNamed, sameRows } from './features.ts'

/** How unlike two places are: 1 − their correlation, 1 − their cosine, or their distance. */
export type Dissimilarity = 'correlation' | 'cosine' | 'euclidean'

/** How two lists of dissimilarities are compared: by ranks, or as they are. */
export type RsaComparison = 'spearman' | 'pearson'

/** Options of {@link representationalSimilarity}. */
export interface RsaOptions {
  /** Default `correlation`. */
  readonly dissimilarity?: Dissimilarity
  /** Default `spearman`. */
  readonly comparison?: RsaComparison
}

const kinds: readonly Dissimilarity[] = ['correlation', 'cosine', 'euclidean']

/** Dissimilarities of all pairs of places i < j, row by row, [rows · (rows − 1) / 2]. */
export async function dissimilarities(x: Points, kind: Dissimilarity = 'correlation'): Promise<Float64Array> {
  if (!kinds.includes(kind)) throw new UsageError(`There is no dissimilarity '${kind}'; choose one of ${kinds.join(', ')}.`)
  const points = pointsMatrix(x, 3)
  const n = points.shape[0]
  const { data } = await runNamed(
    `dissimilarity/${kind}`,
    () => {
      const d = cast(input('x', 'float32', ['rows', 'width']), 'float64')
      if (kind === 'euclidean') {
        // From their mean, so that little is lost in the differences.
        const c = sub(d, mean(d, [0], true))
        const squares = sumSquares(c, [1], true)
        const apart = sub(add(squares, transpose(squares, [1, 0])), matmul(c, c, { transB: true, alpha: 2 }))
        return sqrt(maximum(apart, scalar(0, 'float64')))
      }
      const c = kind === 'correlation' ? sub(d, mean(d, [1], true)) : d
      const unit = div(c, sqrt(maximum(sumSquares(c, [1], true), scalar(1e-300, 'float64'))))
      return sub(scalar(1, 'float64'), matmul(unit, unit, { transB: true }))
    },
    { x: points },
  )
  const out = new Float64Array((n * (n - 1)) / 2)
  for (let i = 0, at = 0; i < n; i++) for (let j = i + 1; j < n; j++) out[at++] = data[i * n + j] as number
  return out
}

/** Ranks from 0, equal values sharing the mean of theirs. */
export function ranksOf(values: Float64Array): Float64Array {
  const order = Uint32Array.from(values.keys()).sort((i, j) => (values[i] as number) - (values[j] as number))
  const out = new Float64Array(values.length)
  for (let from = 0; from < order.length; ) {
    let to = from + 1
    while (to < order.length && values[order[to] as number] === values[order[from] as number]) to++
    for (let i = from; i < to; i++) out[order[i] as number] = (from + to - 1) / 2
    from = to
  }
  return out
}

/** A side, prepared to be compared with many: its dissimilarities (or their ranks) less their mean and of length one. */
export async function rsaSide(x: Points, { dissimilarity, comparison = 'spearman' }: RsaOptions = {}): Promise<Float64Array> {
  const found = await dissimilarities(x, dissimilarity)
  const values = comparison === 'spearman' ? ranksOf(found) : found
  const middle = values.reduce((sum, v) => sum + v, 0) / values.length
  const moved = values.map((v) => v - middle)
  const length = Math.sqrt(moved.reduce((sum, v) => sum + v * v, 0))
  return moved.map((v) => v / length)
}

/** Correlation of the dissimilarities of two sides whose points stand for the same places. */
export async function representationalSimilarity(x: Points, y: Points, options: RsaOptions = {}): Promise<number> {
  sameRows(x.shape[0] as number, y.shape[0] as number)
  return correlateRsa(await rsaSide(x, options), await rsaSide(y, options))
}

/** Compares two prepared sides. */
export function correlateRsa(a: Float64Array, b: Float64Array): number {
  sameRows(a.length, b.length)
  return a.reduce((sum, v, i) => sum + v * (b[i] as number), 0)
}
