/** @file What a page gives to ONNX Runtime: its files and a WebGPU adapter; apart from the runtime, which is loaded when it is first used. */
import { UsageError } from '../../base/errors.ts'

/** Where the page has the runtime's own files. */
export interface RuntimeFiles {
  /** Address of the folder that holds `ort-wasm-simd-threaded.*` of onnxruntime-web, with a slash at its end; beside the bundle by default. */
  readonly folder: string
}

let folder: string | undefined
let taken = false

/** Says where the page has the runtime's files; to be called before anything runs. */
export function useRuntimeFiles(files: RuntimeFiles): void {
  if (taken) throw new UsageError('The runtime is loaded already; say where its files are before the first model is loaded.')
  folder = new URL(files.folder, globalThis.document?.baseURI ?? globalThis.location?.href).href
}

/** The folder, where one was named; from now on it is used. */
export function runtimeFolder(): string | undefined {
  taken = true
  return folder
}

/** Whether a WebGPU adapter answers. */
export async function hasAdapter(): Promise<boolean> {
  const { gpu } = navigator as { gpu?: { requestAdapter(): Promise<unknown> } }
  return gpu !== undefined && (await gpu.requestAdapter().catch(() => null)) !== null
}
