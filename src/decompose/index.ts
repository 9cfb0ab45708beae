/** @file Decomposing activations: sparse autoencoders. */
export { foldDecoderNorms, foldScale, type SaeKind, type SaeNormalize, type SaeWeights, saeWeights } from '../models/sae/weights.ts'
export { type SaeMetrics, type SaeMetricsOptions, type SpliceOptions, type SpliceScores, saeMetrics, spliceScores } from './sae/evaluate.ts'
export {
  encodeAt,
  type LatentContext,
  type LatentLogits,
  type LatentOptions,
  type LatentSummary,
  latentLogits,
  latentSummaries,
  steeringVectorOf,
} from './sae/latents.ts'
export { type LiveOptions, liveRows } from './sae/live-rows.ts'
export { type LoadSaeOptions, loadSae, loadSaeWeights, saveSae } from './sae/load.ts'
export {
  encodeNeuronpediaFeatures,
  type NeuronpediaFeature,
  type NeuronpediaFeatureOptions,
  saveNeuronpediaFeatures,
} from './sae/neuronpedia.ts'
export {
  type Resampling,
  recipeOf,
  type SaeOptions,
  type SaeRecipe,
  type TrainingKind,
  type TrainingScale,
  trainingKinds,
} from './sae/recipe.ts'
export { memoryRows, type RowStream, storedRows } from './sae/rows.ts'
export { Sae, type SaeCallOptions, type SaeRuntime, type SparseActs } from './sae/sae.ts'
export { type SampleOptions, sampleCorpus } from './sae/sample.ts'
export { type SaeProgress, type TrainedSae, type TrainSaeOptions, trainSae } from './sae/train.ts'
