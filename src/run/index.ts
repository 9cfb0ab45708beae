/** @file Loading and running models. */

export { type AdapterLayer, type PeftAdapter, peftAdapter, readPeftAdapter, writePeftAdapter } from '../models/peft.ts'
export { inverse, type SiteMap, type Transform, transformKinds, transformOf } from '../models/transforms/index.ts'
export { type AdapterEdits, adapterEdits, adapterOf } from './adapters.ts'
export { Activation, type Batch, type ModelInput, type ModelTensors } from './batch.ts'
export type { CompileMode } from './core.ts'
export type { Directions, HessianRequest, HessianResult, JvpRequest, JvpResult } from './derivatives.ts'
export {
  type Alternative,
  type BeamOptions,
  type BeamSequence,
  type DraftOptions,
  type FinishReason,
  type GenerateOptions,
  Generation,
  type GenerationResult,
  type GenerationStep,
  type LogitsProcessor,
  type ProcessorContext,
  type TracedLogits,
} from './generate.ts'
export type { EditGradient, GradientOptions, GradientRequest, GradientResult } from './gradient.ts'
export { type CachedRow, KeyValueCache } from './key-value-cache.ts'
export { assemble, type LoadOptions, type OpenedModel } from './load.ts'
export type { Loss, LossFunction, TracedRun } from './losses.ts'
export { Model, type ModelOrigin, type RunOptions, type RunResult } from './model.ts'
export { oneToken, tokenIn } from './one-token.ts'
export type { OnnxValue } from './onnx/core.ts'
export type { OnnxGradientRequest, OnnxGradientResult } from './onnx/gradient.ts'
export type { OnnxInputs } from './onnx/inputs.ts'
export { type OnnxActivation, OnnxModel, type OnnxRunOptions, type OnnxRunResult } from './onnx/model.ts'
export type { OnnxSite } from './onnx/sites.ts'
export { load, loadAny } from './open.ts'
export { PrefixCache } from './prefix-cache.ts'
export type { SavedModel, SaveOptions, SaveType } from './save.ts'
export type { Start, StartInput } from './start.ts'
export type { Selection, TapSpec } from './taps.ts'
export {
  type DecoderTraining,
  generatedRows,
  modelOf,
  saveDecoder,
  type TrainedDecoder,
  type TrainingRow,
  trainDecoder,
  trainDecoderSteps,
  trainingRows,
} from './train-decoder.ts'
export { foldEdits, type TransformRecord, transform, transformRecords, undo } from './transform.ts'
