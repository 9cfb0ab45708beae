/** @file actlens: named activations that can be read, written and differentiated. */
export * from './base/errors.ts'
export type { OnProgress, Progress, WorkOptions } from './base/progress.ts'
export type { DType, NDArray, TypedArray } from './base/types.ts'
export * from './explore/index.ts'
export * from './run/index.ts'
export * from './sites/index.ts'
export * from './steer/index.ts'
