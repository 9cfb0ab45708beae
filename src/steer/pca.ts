/** @file Principal components of paired contrasts, with the conventions of repeng. */
import { type Contrast, type Extract, type Fit, fitSites } from './extract.ts'
import { differences, dot, less, meanRow, type Rows, rowAt, topComponent } from './rows.ts'

/**
 * First principal component of the differences of pairs, unit length. The PCA is centred, so the mean difference itself is removed:
 * it finds along what the pairs differ most from each other (repeng's `pca_diff`; Zou et al. 2023, arXiv:2310.01405).
 */
export const pcaDifference: Extract = (model, options) =>
  fitSites(model, options, { name: 'pca-diff', paired: true }, ({ positive, negative }) => {
    const d = differences(positive, negative)
    return component(less(d, meanRow(d)), { positive, negative })
  })

/**
 * First principal component of both sides, each pair centred on its own midpoint, unit length (repeng's `pca_center`; `pca` of
 * steering-vectors, whose rows are the differences and their negatives).
 */
export const pcaCentred: Extract = (model, options) =>
  fitSites(model, options, { name: 'pca-center', paired: true }, ({ positive, negative }) =>
    // The rows are ± half the differences: their mean is zero, and their components are those of the differences about zero.
    component(differences(positive, negative, 0.5), { positive, negative }),
  )

async function component(rows: Rows, sides: Pick<Contrast, 'positive' | 'negative'>): Promise<Fit> {
  const { direction, explained } = await topComponent(rows)
  const votes = agreement(direction, sides)
  return {
    direction: votes < 0 ? direction.map((x) => -x) : direction,
    facts: { explained, agreement: (1 + Math.abs(votes) / sides.positive.count) / 2 },
  }
}

/** Pairs whose positive example projects larger, less those whose negative one does. repeng turns a component where it is negative. */
function agreement(direction: Float64Array, { positive, negative }: Pick<Contrast, 'positive' | 'negative'>): number {
  let votes = 0
  for (let i = 0; i < positive.count; i++) votes += Math.sign(dot(rowAt(positive, i), direction) - dot(rowAt(negative, i), direction))
  return votes
}
