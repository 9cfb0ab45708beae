/** @file Loading and running models. */
export { Activation, type Batch, type ModelInput } from './batch.ts'
export type { CompileMode } from './core.ts'
export { type FinishReason, type GenerateOptions, Generation, type GenerationResult, type GenerationStep } from './generate.ts'
export { assemble, type LoadOptions, type OpenedModel } from './load.ts'
export { Model, type ModelOrigin, type RunOptions, type RunResult, serialisable } from './model.ts'
export { load } from './open.ts'
export type { Selection, TapSpec } from './taps.ts'
