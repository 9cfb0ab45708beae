/** @file The engine: traced tensors, ops, programs. Knows nothing of models. */
export * from './graph.ts'
export * from './ops/index.ts'
export * from './program.ts'
export { getRuntime } from './runtime/index.ts'
export type { Device, Runtime } from './runtime/runtime.ts'
export * from './session-cache.ts'
export * from './shape.ts'
export * from './tensor.ts'
