/** @file ONNX Runtime in Node. */
import './no-telemetry.ts'
import { createRequire } from 'node:module'
import { parse } from 'node:path'
import * as ort from 'onnxruntime-node'
import { messageOf, RuntimeFailure } from '../../base/errors.ts'
import type { DType, TypedArray } from '../../base/types.ts'
import { makeScratch, readAhead } from './node-files.ts'
import type { CompiledModel, CompileOptions, Runtime, RuntimeTensor } from './runtime.ts'

const { version } = createRequire(import.meta.url)('onnxruntime-node/package.json') as { version: string }

// What goes wrong is thrown; the runtime would also print it.
ort.env.logLevel = 'fatal'

/** ONNX Runtime in Node. */
export const runtime: Runtime = {
  version: `onnxruntime-node ${version}`,

  async compile(model: Uint8Array, options: CompileOptions): Promise<CompiledModel> {
    try {
      const session = await ort.InferenceSession.create(model, {
        executionProviders: [options.device],
        ...(options.threads ? { intraOpNumThreads: options.threads } : {}),
        interOpNumThreads: 1,
        executionMode: 'sequential',
        graphOptimizationLevel: options.optimize === false ? 'disabled' : 'all',
        logSeverityLevel: 4,
        ...(options.memory.size > 0 ? { externalData: [...options.memory].map(([path, data]) => ({ path, data })) } : {}),
        extra: {
          session: {
            // Weights are named by their path from the root, so that one model may use files of several folders.
            model_external_initializers_file_folder_path: parse(process.cwd()).root,
            // Pools of several sessions would fight for the cores if each kept spinning after its run.
            force_spinning_stop: '1',
            ...(options.prepack === false ? { disable_prepacking: '1' } : {}),
          },
          ...(options.foldConstants === false ? { optimization: { disable_specified_optimizers: 'ConstantFolding' } } : {}),
        },
      })
      return session as unknown as CompiledModel
    } catch (error) {
      throw new RuntimeFailure(`ONNX Runtime could not compile the program on ${options.device}: ${messageOf(error)}`, { cause: error })
    }
  },

  readAhead,
  scratch: makeScratch,

  tensor(dtype: DType, shape: readonly number[], data: TypedArray): RuntimeTensor {
    return new ort.Tensor(dtype as 'float32', data as Float32Array, shape as number[])
  },
}
