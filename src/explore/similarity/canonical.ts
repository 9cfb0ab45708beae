/** @file Canonical correlations: SVCCA (Raghu, Gilmer, Yosinski & Sohl-Dickstein 2017) and PWCCA (Morcos, Raghu & Bengio 2018). */
import { UsageError } from '../../base/errors.ts'
import { type DoubleMatrix, smallSvd, times } from '../../tensor/index.ts'
import { firstColumns, type Points, type PrincipalComponents, principalComponentsOf, sameRows, scaledColumns } from './features.ts'

/** Options of {@link canonicalCorrelations}. */
export interface CanonicalOptions {
  /** Share of the variance of each side that is kept before the correlations are found (default 0.99). */
  readonly variance?: number
  /** Components that are kept of each side at most (default 256). */
  readonly most?: number
}

/** Canonical correlations of two sides. */
export interface CanonicalResult {
  /** Falling, as many as the smaller side has components. */
  readonly correlations: Float64Array
  /** Their mean: the similarity of SVCCA. */
  readonly svcca: number
  /** Their mean weighted by what each direction accounts for of the first side: the similarity of PWCCA, which is not symmetric. */
  readonly pwcca: number
  /** Components that were kept of each side, and the share of variance in them. */
  readonly kept: readonly [number, number]
  readonly explained: readonly [number, number]
}

/** One side, reduced to the components that hold the wanted share of its variance. */
export interface CanonicalSide {
  readonly components: PrincipalComponents
  readonly explained: number
}

/** Prepares a side, so that it can be compared with many. */
export async function canonicalSide(x: Points, { variance = 0.99, most = 256 }: CanonicalOptions = {}): Promise<CanonicalSide> {
  if (!(variance > 0 && variance <= 1)) throw new UsageError(`The share of variance must be above 0 and at most 1, not ${variance}.`)
  const { u, s, v, total } = await principalComponentsOf(x, most)
  let [count, held] = [0, 0]
  while (count < s.length && held < variance * total * (1 - 1e-12)) held += (s[count++] as number) ** 2
  return { components: { u: firstColumns(u, count), s: s.slice(0, count), v: firstColumns(v, count), total }, explained: held / total }
}

/** Compares two prepared sides. */
export async function correlateSides(a: CanonicalSide, b: CanonicalSide): Promise<CanonicalResult> {
  const [x, y] = [a.components, b.components]
  sameRows(x.u.shape[0] as number, y.u.shape[0] as number)
  const { u, s } = smallSvd(await times(x.u, y.u, { transA: true }))
  const correlations = s.map((r) => Math.min(1, r))
  const weights = await directionWeights(x, u)
  const all = weights.reduce((p, q) => p + q, 0)
  return {
    correlations,
    svcca: correlations.reduce((p, q) => p + q, 0) / correlations.length,
    pwcca: correlations.reduce((p, r, i) => p + (r * (weights[i] as number)) / all, 0),
    kept: [x.s.length, y.s.length],
    explained: [a.explained, b.explained],
  }
}

/** Σ over neurons of |⟨canonical direction, neuron⟩|: the neurons are u·s·vᵀ, the directions u·turn, so u drops out. */
async function directionWeights({ s, v }: PrincipalComponents, turn: DoubleMatrix): Promise<Float64Array> {
  const neurons = await times(scaledColumns(v, s), turn)
  const k = turn.shape[1] as number
  const out = new Float64Array(k)
  for (const [at, value] of neurons.data.entries()) out[at % k] = (out[at % k] as number) + Math.abs(value)
  return out
}

/** Canonical correlations between points that stand for the same places; there should be several times more places than components. */
export async function canonicalCorrelations(x: Points, y: Points, options: CanonicalOptions = {}): Promise<CanonicalResult> {
  sameRows(x.shape[0] as number, y.shape[0] as number)
  return correlateSides(await canonicalSide(x, options), await canonicalSide(y, options))
}
