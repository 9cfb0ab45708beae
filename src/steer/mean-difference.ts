/** @file The difference of means: the plainest direction, and often the best one. */
import { type Extract, fitMeans } from './extract.ts'

/**
 * Mean activation of the positive side less that of the negative side, [width] for each site, not normalised.
 * The sides may differ in length (Marks & Tegmark 2023, arXiv:2310.06824; Panickssery et al. 2023, arXiv:2312.06681).
 */
export const meanDifference: Extract = (model, options) =>
  fitMeans(model, options, { name: 'mean-difference', paired: false }, (positive, negative) =>
    positive.map((x, i) => x - (negative[i] as number)),
  )
