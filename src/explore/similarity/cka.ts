/** @file Centred kernel alignment with linear kernels (Kornblith, Norouzi, Lee & Hinton 2019), its unbiased form, and its sums over minibatches. */
import { UsageError } from '../../base/errors.ts'
import {
  cast,
  type DoubleMatrix,
  equal,
  input,
  iota,
  matmul,
  mean,
  mul,
  add as plus,
  sub,
  sum,
  transpose,
  unsqueeze,
} from '../../tensor/index.ts'
import { innerProduct, type Points, pointsMatrix, runNamed, sameRows } from './features.ts'

/** Options of {@link linearCka}. */
export interface CkaOptions {
  /** The unbiased estimate of HSIC (Song et al. 2012), which does not grow with the width of few points; may be below zero. */
  readonly unbiased?: boolean
}

/** Points' products with each other, [rows, rows], centred so that the sum of products of two such matrices is HSIC up to a factor. */
export async function centredGram(x: Points, { unbiased = false }: CkaOptions = {}): Promise<DoubleMatrix> {
  const points = pointsMatrix(x, unbiased ? 4 : 2)
  const moved = () => {
    const d = cast(input('x', 'float32', ['rows', 'width']), 'float64')
    return sub(d, mean(d, [0], true))
  }
  if (!unbiased)
    return runNamed(
      'gram',
      () => {
        const c = moved()
        return matmul(c, c, { transB: true })
      },
      { x: points },
    )
  const n = points.shape[0]
  const scalarOf = (value: number) => ({ dtype: 'float64' as const, shape: [], data: Float64Array.of(value) })
  return runNamed(
    'gram/unbiased',
    () => {
      const c = moved()
      const index = iota(c, 0)
      const off = sub(input('one', 'float64', []), cast(equal(unsqueeze(index, 1), unsqueeze(index, 0)), 'float64'))
      const k = mul(matmul(c, c, { transB: true }), off)
      const byRow = mul(sum(k, [1], true), input('rowShare', 'float64', []))
      const all = mul(sum(k, [0, 1], true), input('allShare', 'float64', []))
      // U-centring: the sum of products of two such matrices is n(n − 3) times the unbiased HSIC.
      return mul(plus(sub(sub(k, byRow), transpose(byRow, [1, 0])), all), off)
    },
    { x: points, one: scalarOf(1), rowShare: scalarOf(1 / (n - 2)), allShare: scalarOf(1 / ((n - 1) * (n - 2))) },
  )
}

/** Linear CKA of points that stand for the same places: 1 where one side is a rotation and scaling of the other. Memory: rows² numbers. */
export async function linearCka(x: Points, y: Points, options: CkaOptions = {}): Promise<number> {
  sameRows(x.shape[0] as number, y.shape[0] as number)
  const [a, b] = [await centredGram(x, options), await centredGram(y, options)]
  const [ab, aa, bb] = [await innerProduct(a, b), await innerProduct(a, a), await innerProduct(b, b)]
  return aa > 0 && bb > 0 ? ab / Math.sqrt(aa * bb) : Number.NaN
}

/** CKA of many sites over any number of minibatches: unbiased HSIC is averaged, as in Nguyen, Raghu & Kornblith 2021, equation 3. */
export class MinibatchCka {
  private readonly counts: readonly [number, number]
  private readonly cross: Float64Array
  private readonly own: readonly [Float64Array, Float64Array]
  /** Batches that were added. */
  batches = 0

  /** @param sites number of sites on the first and on the second side. */
  constructor(sites: readonly [first: number, second: number]) {
    this.counts = sites
    this.cross = new Float64Array(sites[0] * sites[1])
    this.own = [new Float64Array(sites[0]), new Float64Array(sites[1])]
  }

  /** Adds a batch of at least four places; all batches should be of one size. */
  async add(first: readonly Points[], second: readonly Points[]): Promise<void> {
    if (first.length !== this.counts[0] || second.length !== this.counts[1])
      throw new UsageError(`A batch must hold ${this.counts.join(' and ')} sites, not ${first.length} and ${second.length}.`)
    const sides = [[], []] as [DoubleMatrix[], DoubleMatrix[]]
    const n = (first[0] as Points).shape[0] as number
    for (const [side, points] of [first, second].entries())
      for (const [i, x] of points.entries()) {
        sameRows(n, x.shape[0] as number)
        const gram = await centredGram(x, { unbiased: true })
        const sums = this.own[side] as Float64Array
        sums[i] = (sums[i] as number) + (await innerProduct(gram, gram)) / (n * (n - 3))
        ;(sides[side] as DoubleMatrix[]).push(gram)
      }
    for (const [i, a] of sides[0].entries())
      for (const [j, b] of sides[1].entries()) {
        const at = i * this.counts[1] + j
        this.cross[at] = (this.cross[at] as number) + (await innerProduct(a, b)) / (n * (n - 3))
      }
    this.batches++
  }

  /** CKA, [first sites, second sites]. */
  get values(): Float64Array {
    const [, columns] = this.counts
    return this.cross.map((v, at) => {
      const scale = (this.own[0][Math.floor(at / columns)] as number) * (this.own[1][at % columns] as number)
      return scale > 0 ? v / Math.sqrt(scale) : Number.NaN
    })
  }
}
