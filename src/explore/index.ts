/** @file Looking into a model: patching, attribution, lenses, attention patterns. */

export {
  type ActivationChunk,
  ActivationStore,
  openActivations,
  type RowOrigins,
  type ShuffledBatch,
  type ShuffleOptions,
} from './activation-store.ts'
export {
  type AttributeOptions,
  type AttributionMethod,
  type AttributionResult,
  attribute,
  type Completeness,
  compareAttribution,
} from './attribute.ts'
export { attributeEdges, type EdgeOptions, type EdgeResult } from './attribute-edge.ts'
export { type CaptureOptions, type CaptureProgress, type CaptureResult, capture } from './capture.ts'
export type { CaptureDType } from './capture-encode.ts'
export { activationsFormat, type CaptureManifest, type ShardRecord, type SiteRecord } from './capture-manifest.ts'
export { type Cursor, type Packing, type PassPlan, type PassSettings, type PassWindow, passOver, planPass } from './capture-pass.ts'
export { type Circuit, type CircuitEdge, type CircuitOptions, type CircuitSearch, findCircuit } from './circuit.ts'
export { CutModel, type CutRun, type EdgeGraph, type EdgeMask, edgeGraph, type Replacement } from './circuit-run.ts'
export {
  type Corpus,
  type CorpusFacts,
  type CorpusFile,
  type CorpusFormat,
  type CorpusInput,
  type CorpusPart,
  openCorpus,
} from './corpus.ts'
export type { InvalidPolicy } from './corpus-text.ts'
export { type CachedLatents, openDelphiLatents } from './delphi-cache.ts'
export {
  type FeatureFrequency,
  type FeaturePlace,
  featureFrequencies,
  type QueryOptions,
  type QueryResult,
  type QueryRow,
  type QueryValue,
  queryFeatures,
  strongestPlaces,
} from './feature-query.ts'
export {
  captureFeatures,
  type FeatureEncoder,
  type FeatureOptions,
  type FeatureResult,
  type FeatureRows,
  featureColumns,
  writeFeatures,
} from './features.ts'
export { type HeadPattern, type HeadScoreOptions, type HeadScores, headPatterns, headScores } from './heads.ts'
export { type LensMaps, type LensOptions, type LensResult, lens, lensDivergence } from './lens.ts'
export { loadLens, loadTunedLens, saveLens, saveTunedLens } from './lens-file.ts'
export { fitJacobianLens, type JacobianLensOptions } from './lens-jacobian.ts'
export { type PathLensOptions, type PathLensResult, pathLens } from './lens-path.ts'
export { type TunedLens, type TunedLensOptions, trainTunedLens, tunedLensSteps } from './lens-tuned.ts'
export { readVectors, type VectorRead, type VectorReading } from './lens-vectors.ts'
export {
  attributeLogits,
  decomposeStream,
  type LogitAttribution,
  type LogitAttributionOptions,
  type StreamDecomposition,
  type StreamNorm,
  type StreamParts,
} from './logit-attribution.ts'
export {
  type AblateOptions,
  type Ablation,
  ablate,
  type PairOptions,
  type PatchOptions,
  patch,
  type SweepOptions,
  type SweepPart,
  type SweepResult,
} from './patch.ts'
export type { Positions, SweepTable, TableAxis } from './patch-cells.ts'
export { matchParameters } from './patch-graph.ts'
export { type Metric, type MetricFunction, type MetricKind, metricKinds, type TokenOf } from './patch-metric.ts'
export { type PathOptions, type PathReceiver, type PathResult, patchPaths } from './patch-path.ts'
export { type PatchedRun, type PatchedRunOptions, patchedRun } from './patch-run.ts'
export { type PatchscopeOptions, type PatchscopeResult, patchscope } from './patchscope.ts'
export { type CachedActivations, openSaelensActivations } from './saelens-cache.ts'
export * from './similarity/index.ts'
export {
  activationStatistics,
  Moments,
  normsOf,
  type Probing,
  type SiteStatistics,
  type StatisticsOptions,
  type TopContext,
  TopContexts,
} from './statistics.ts'
export { type Histogram, QuantileSketch } from './statistics-sketch.ts'
