/** @file The files of ONNX Runtime that a page loads, as this package has them. For Node only. */
import { readdirSync } from 'node:fs'
import { createRequire } from 'node:module'
import { dirname, join } from 'node:path'

/** Paths of the files by their names: the WebAssembly of each build, and its loader. */
export function webRuntimeFiles(): ReadonlyMap<string, string> {
  const folder = dirname(createRequire(import.meta.url).resolve('onnxruntime-web/ort-wasm-simd-threaded.wasm'))
  const names = readdirSync(folder).filter((name) => /^ort-wasm-simd-threaded(\.\w+)?\.(wasm|mjs)$/.test(name))
  return new Map(names.map((name) => [name, join(folder, name)]))
}
