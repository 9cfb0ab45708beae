/** @file The mean state: where a model is when it does what is wanted. */
import { type Extract, fitMeans } from './extract.ts'

/**
 * Mean activation of the positive side alone, [width] for each site; its length is that of the residual stream, so strengths are small.
 * The negative side is not read (Højer et al. 2025, arXiv:2504.19483, "reading").
 */
export const reading: Extract = (model, options) => fitMeans(model, options, { name: 'reading', paired: false }, (positive) => positive)
