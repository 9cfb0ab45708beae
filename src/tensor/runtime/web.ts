/** @file ONNX Runtime in a browser. */
import * as ort from 'onnxruntime-web'
import { messageOf, RuntimeFailure } from '../../base/errors.ts'
import type { DType, TypedArray } from '../../base/types.ts'
import type { CompiledModel, CompileOptions, Runtime, RuntimeTensor } from './runtime.ts'

/** ONNX Runtime in a browser: WASM for `cpu`, WebGPU for `webgpu`. */
export const runtime: Runtime = {
  version: `onnxruntime-web ${ort.env.versions.web ?? ''}`.trim(),

  async compile(model: Uint8Array, options: CompileOptions): Promise<CompiledModel> {
    try {
      const session = await ort.InferenceSession.create(model, {
        executionProviders: [options.device === 'webgpu' ? 'webgpu' : 'wasm'],
        graphOptimizationLevel: options.optimize === false ? 'disabled' : 'all',
        logSeverityLevel: 3,
        externalData: [...options.memory].map(([path, data]) => ({ path, data })),
      })
      return session as unknown as CompiledModel
    } catch (error) {
      throw new RuntimeFailure(`ONNX Runtime could not compile the program on ${options.device}: ${messageOf(error)}`, { cause: error })
    }
  },

  tensor(dtype: DType, shape: readonly number[], data: TypedArray): RuntimeTensor {
    return new ort.Tensor(dtype as 'float32', data as Float32Array, shape as number[])
  },
}
