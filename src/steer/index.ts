/** @file Steering vectors: extraction, algebra, application, files. */
export { type CaaOptions, type ChoiceQuestion, caa, choiceExamples } from './caa.ts'
export { decodeEasySteer, type EasySteerWriteOptions, encodeEasySteer } from './easysteer-vector.ts'
export {
  choiceOf,
  type EntropicDirection,
  type EntropicOptions,
  type EntropicRun,
  type EntropicStep,
  entropicDirection,
  sampledEntropy,
  shuffledEntries,
} from './entropic.ts'
export type { ContrastExamples, Example } from './examples.ts'
export type { Contrast, Extract, ExtractOptions, Fit, MethodFacts } from './extract.ts'
export { fitMeans, fitSites } from './extract.ts'
export { type LoadVectorOptions, loadVector, type SaveVectorOptions, saveVector, type VectorFormat, vectorFormats } from './files.ts'
export { encodeGgufVector, type GgufProducer, type GgufReadOptions, type GgufWriteOptions, ggufProducers } from './gguf-vector.ts'
export * from './judges/index.ts'
export { type LatOptions, lat } from './lat.ts'
export { type LdaOptions, lda } from './lda.ts'
export { type LogisticOptions, logistic } from './logistic.ts'
export { type AffineMap, AffineMaps, type MapsRecord, type Support } from './maps/affine-maps.ts'
export { closedFormMaps, type MapFitOptions, siteFits } from './maps/closed-form.ts'
export { type FitMapsOptions, type LineasOptions, lineas } from './maps/lineas.ts'
export { meanDifference } from './mean-difference.ts'
export {
  type CandidateScores,
  candidateScores,
  type Divergence,
  distinct,
  divergence,
  longestRun,
  type MeasureOptions,
  perplexity,
  repetition,
  tokenLosses,
} from './measures.ts'
export {
  type ExtractVectorOptions,
  extractVector,
  type SteeringMethod,
  type SteeringMethodName,
  steeringMethod,
  steeringMethods,
} from './methods.ts'
export { decodeNeuronpedia, encodeNeuronpedia, type NeuronpediaWriteOptions } from './neuronpedia-vector.ts'
export { type OptimisedOptions, optimisedVector } from './optimised.ts'
export { pcaCentred, pcaDifference } from './pca.ts'
export { reading } from './reading.ts'
export { canonicalJson, type FitFacts, type Position, type RecordedModel, type VectorRecord } from './record.ts'
export * from './resistance/index.ts'
export type { Rows } from './rows.ts'
export { decay, forTokens, ramp } from './schedules.ts'
export { type SteerSweep, type SteerSweepOptions, steerSweep } from './sweep.ts'
export { frontier, recommend, type SweepCell, type SweepChoice, type SweepLimits } from './sweep-choice.ts'
export {
  type AnsweredTurn,
  type AnswerPool,
  answerLosses,
  type PooledAnswers,
  type PooledOptions,
  pooledAnswers,
  type TeacherStudentContrast,
  type TeacherStudentOptions,
  type TeacherStudentPair,
  type Tuned,
  type TunedPoint,
  type TuneOptions,
  type Turn,
  teacherStudent,
  tuneStrength,
  turnsInput,
} from './teacher-student.ts'
export { type ContrastTemplate, politeReviews, templatePairs } from './templates.ts'
export { type CheckOptions, SteeringVector, type SteerOptions, steer } from './vector.ts'
