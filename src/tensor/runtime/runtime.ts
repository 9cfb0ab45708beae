/** @file What the engine asks of a runtime. Only the files beside this one touch ONNX Runtime. */
import type { DType, TypedArray } from '../../base/types.ts'

/** A tensor of the runtime; its values may live on a device. */
export interface RuntimeTensor {
  readonly dims: readonly number[]
  readonly type: string
  readonly data: unknown
  readonly location: string
  dispose(): void
}

/** What the runtime knows of an output before it runs. */
export interface OutputMetadata {
  readonly name: string
  /** False for lists of tensors and other values that are none. */
  readonly isTensor: boolean
  readonly type?: string
  /** Lengths, or names of lengths; empty names where nothing is known. */
  readonly shape?: readonly (number | string)[]
}

/** A compiled model. */
export interface CompiledModel {
  readonly outputMetadata: readonly OutputMetadata[]
  /** Runs it; a fetch with a tensor is written in place, with null freshly made. */
  run(
    feeds: Readonly<Record<string, RuntimeTensor>>,
    fetches: Readonly<Record<string, RuntimeTensor | null>>,
  ): Promise<Record<string, RuntimeTensor>>
  release(): Promise<void>
}

/** Where programs run. */
export type Device = 'cpu' | 'webgpu' | 'cuda'

/** Settings of a compilation. */
export interface CompileOptions {
  readonly device: Device
  /** Threads for one operator; the runtime's choice when absent. */
  readonly threads?: number
  /** Whether what depends on weights alone is computed once (default). */
  readonly foldConstants?: boolean
  /** Weights in memory, by the name of their external data. */
  readonly memory: ReadonlyMap<string, Uint8Array>
  /** Whether matrices are laid out anew for speed, which takes time and memory (default true). */
  readonly prepack?: boolean
  /** Whether the runtime may fold and fuse nodes (default); without it nothing is computed at compilation. */
  readonly optimize?: boolean
}

/** Bytes of a file. */
export interface FileRange {
  readonly path: string
  readonly offset: number
  readonly bytes: number
}

/** A file for values that do not fit in memory; it goes with its `close`, or with the process. */
export interface Scratch {
  write(offset: number, bytes: Uint8Array): Promise<void>
  read(offset: number, into: Uint8Array): Promise<void>
  close(): Promise<void>
}

/** ONNX Runtime, in Node or in a browser. */
export interface Runtime {
  /** Name and version, for records. */
  readonly version: string
  compile(model: Uint8Array, options: CompileOptions): Promise<CompiledModel>
  /** Reads what a model is going to map, where it is not in memory yet. */
  readAhead?(ranges: readonly FileRange[]): Promise<void>
  /** Makes an empty scratch file; absent where there is no disk. */
  scratch?(): Promise<Scratch>
  tensor(dtype: DType, shape: readonly number[], data: TypedArray): RuntimeTensor
  /** Makes a device ready before anything runs on it, or refuses it with the reason; absent where nothing can be said before. */
  prepare?(options: Pick<CompileOptions, 'device' | 'threads'>): Promise<void>
  /** What this place lacks, and how to have it, in sentences; absent where there is nothing to say. */
  notes?(): readonly string[]
}
