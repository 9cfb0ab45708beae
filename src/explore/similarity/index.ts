/** @file Similarity and geometry of activations. */
export { type CanonicalOptions, type CanonicalResult, canonicalCorrelations } from './canonical.ts'
export { type CkaOptions, linearCka, MinibatchCka } from './cka.ts'
export {
  type CollectedPoints,
  type CompareOptions,
  collectPoints,
  compareCollected,
  compareSites,
  type PointsOptions,
  type SimilarityTable,
} from './compare.ts'
export { type CosineTable, cosineTable } from './cosine.ts'
export {
  effectiveRank,
  type Geometry,
  geometryOf,
  type IntrinsicDimension,
  likelihoodDimension,
  meanCosine,
  participationRatio,
  spectrumOf,
  type TwoNearestOptions,
  twoNearestDimension,
} from './dimension.ts'
export { type Points, type PrincipalComponents, principalComponentsOf } from './features.ts'
export { type PointMap, pcaMap, type UmapOptions, umapMap } from './map.ts'
export { type Measure, type MeasureName, measures } from './measures.ts'
export { type NearestOptions, type Nearness, type Neighbours, nearestPoints } from './nearest.ts'
export { type Alignment, alignPoints } from './procrustes.ts'
export { type Dissimilarity, dissimilarities, type RsaComparison, type RsaOptions, representationalSimilarity } from './rsa.ts'
