/** @file The normal of Fisher's linear discriminant, its covariance shrunk towards a sphere. */
import { UsageError } from '../base/errors.ts'
import type { Model } from '../run/model.ts'
import { type ExtractOptions, type Fit, fitSites } from './extract.ts'
import { cholesky, dot, gram, less, meanRow, plusTimes, type Rows, rowAt, solve, stacked, timesColumn, timesRow, unit } from './rows.ts'
import type { SteeringVector } from './vector.ts'

/** Options of {@link lda}. */
export interface LdaOptions extends ExtractOptions {
  /** Weight of the sphere, from 0 (the covariance as it is) to 1 (the mean difference); `auto` (default) estimates the best one. */
  readonly shrinkage?: 'auto' | number
}

/**
 * Σ⁻¹ (μ₊ − μ₋), unit length, with Σ = (1 − γ) S + γ · tr(S)/width · I and S the pooled covariance within the sides, divided by the
 * number of examples (Fisher 1936; γ by Ledoit & Wolf 2004). It goes where the sides differ beyond what varies within them.
 */
export function lda(model: Model, options: LdaOptions): Promise<SteeringVector> {
  const { shrinkage = 'auto' } = options
  if (shrinkage !== 'auto' && !(shrinkage >= 0 && shrinkage <= 1))
    throw new UsageError(`shrinkage must be 'auto' or a number from 0 to 1, not ${shrinkage}.`)
  return fitSites(model, options, { name: 'lda', paired: false, options: { shrinkage } }, ({ positive, negative }) =>
    discriminant(positive, negative, shrinkage),
  )
}

async function discriminant(positive: Rows, negative: Rows, shrinkage: 'auto' | number): Promise<Fit> {
  const [up, down] = [meanRow(positive), meanRow(negative)]
  const difference = plusTimes(up, -1, down)
  const rows = stacked(less(positive, up), less(negative, down))
  const trace = dot(rows.data, rows.data) / rows.count
  // Without any variance within the sides every direction is as good, and the difference itself is meant.
  if (trace === 0) return { direction: unit(difference), facts: { shrinkage: 1 } }
  const g = await gram(rows)
  const gamma = shrinkage === 'auto' ? ledoitWolf(rows, g.data, trace) : shrinkage
  const sphere = (gamma * trace) / rows.width
  const facts = { shrinkage: gamma }
  if (gamma === 1) return { direction: unit(difference), facts }
  if (gamma === 0 && g.dual)
    throw new UsageError(
      `With shrinkage 0, ${rows.count} examples cannot determine a covariance of ${rows.width} coordinates; give more examples, or raise shrinkage.`,
    )
  const weight = (1 - gamma) / rows.count
  // Woodbury's identity, where there are fewer examples than coordinates: the system is as large as the smaller number.
  const factor = cholesky({ size: g.size, data: g.data.map((x, i) => weight * x + (i % (g.size + 1) === 0 ? sphere : 0)) })
  if (!g.dual) return { direction: unit(solve(factor, difference)), facts }
  const inner = solve(factor, timesColumn(rows, difference))
  return { direction: unit(plusTimes(difference, -weight, timesRow(rows, inner))), facts }
}

/** The shrinkage of least expected squared error, from the Gram matrix of either side, whose squares sum to the same. */
function ledoitWolf(rows: Rows, gramOfRows: Float64Array, trace: number): number {
  const { count, width } = rows
  const squares = dot(gramOfRows, gramOfRows) / count ** 2
  const spread = squares - trace ** 2 / width
  let fourth = 0
  for (let i = 0; i < count; i++) fourth += dot(rowAt(rows, i), rowAt(rows, i)) ** 2
  const noise = (fourth / count - squares) / count
  return spread <= 0 ? 1 : Math.min(1, Math.max(0, noise / spread))
}
