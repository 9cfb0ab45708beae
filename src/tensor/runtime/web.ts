/** @file ONNX Runtime in a browser: WebAssembly for `cpu`, the WebGPU provider for `webgpu`. Each device has a build of the runtime of its own, loaded when first used. */
import type * as Ort from 'onnxruntime-web'
import { messageOf, RuntimeFailure, UsageError } from '../../base/errors.ts'
import { bytesOf, type DType, sizeOf, type TypedArray } from '../../base/types.ts'
import type { CompiledModel, CompileOptions, Device, Runtime, RuntimeTensor } from './runtime.ts'
import { hasAdapter, runtimeFolder } from './web-files.ts'

let threads: number | undefined
let version: string | undefined
const started = new Map<Device, Promise<typeof Ort>>()

const builds: Readonly<Partial<Record<Device, () => Promise<unknown>>>> = {
  cpu: () => import('onnxruntime-web/wasm'),
  webgpu: () => import('onnxruntime-web/webgpu'),
}

/** Threads that a page may use: one where it is not isolated from other origins, since threads share memory. */
const threadsAtMost = () => (globalThis.crossOriginIsolated ? Math.max(1, Math.min(8, navigator.hardwareConcurrency || 1)) : 1)

const notIsolated =
  'This page is not isolated from other origins, so that programs run on one thread: serve it with the headers ' +
  "'Cross-Origin-Opener-Policy: same-origin' and 'Cross-Origin-Embedder-Policy: require-corp'."

/** The build for a device. Settings of WebAssembly hold for a page, not for a session. */
async function ortFor(device: Device, wanted: number | undefined): Promise<typeof Ort> {
  const build = builds[device]
  if (!build) throw new RuntimeFailure(`A browser has no device '${device}'; the devices here are cpu and webgpu.`)
  if (wanted !== undefined && wanted > threadsAtMost())
    throw new UsageError(
      globalThis.crossOriginIsolated
        ? `This page can use ${threadsAtMost()} threads at most, not ${wanted}; ask for fewer.`
        : `${wanted} threads were asked for. ${notIsolated}`,
    )
  if (wanted !== undefined && threads !== undefined && wanted !== threads)
    throw new UsageError(
      `The runtime of this page has ${threads} threads already, and keeps them; leave 'threads' out, or reload the page.`,
    )
  let ort = started.get(device)
  if (!ort) {
    threads ??= wanted ?? threadsAtMost()
    ort = build().then((m) => {
      const { env } = m as typeof Ort
      version = env.versions.web
      env.logLevel = 'fatal'
      env.wasm.numThreads = threads as number
      const folder = runtimeFolder()
      if (folder !== undefined) env.wasm.wasmPaths = folder
      return m as typeof Ort
    })
    ort.catch(() => started.delete(device))
    started.set(device, ort)
  }
  return ort
}

let turn: Promise<unknown> = Promise.resolve()

/** Does one thing after the other: the WebGPU provider keeps what belongs to a run in one place. */
function inTurn<T>(work: () => Promise<T>): Promise<T> {
  const done = turn.then(work, work)
  turn = done.catch(() => undefined)
  return done
}

/** A value in this page's memory. */
class WebTensor implements RuntimeTensor {
  readonly location = 'cpu'
  readonly type: DType
  readonly dims: readonly number[]
  readonly data: TypedArray

  constructor(type: DType, dims: readonly number[], data: TypedArray) {
    this.type = type
    this.dims = dims
    this.data = data
  }

  dispose(): void {}
}

/** An output with its values in the array type of our own: new browsers have float16 arrays, which nothing here expects. */
function own(made: Ort.Tensor): WebTensor {
  const type = made.type as DType
  let data = made.data as TypedArray
  if (type === 'float16' && !(data instanceof Uint16Array)) {
    const { buffer, byteOffset, length } = data as Uint8Array
    data = new Uint16Array(buffer, byteOffset, length)
  }
  return new WebTensor(type, made.dims, data)
}

class WebSession implements CompiledModel {
  readonly outputMetadata: CompiledModel['outputMetadata']
  private readonly session: Ort.InferenceSession

  constructor(session: Ort.InferenceSession) {
    this.session = session
    this.outputMetadata = session.outputMetadata as CompiledModel['outputMetadata']
  }

  async run(
    feeds: Readonly<Record<string, RuntimeTensor>>,
    fetches: Readonly<Record<string, RuntimeTensor | null>>,
  ): Promise<Record<string, RuntimeTensor>> {
    // The runtime of the web writes into arrays on a device only, so what was asked for in place is copied there.
    const names = Object.keys(fetches)
    const made = await inTurn(() => this.session.run(feeds as unknown as Ort.InferenceSession.FeedsType, names))
    const out: Record<string, RuntimeTensor> = {}
    for (const name of names) {
      const [value, into] = [own(made[name] as Ort.Tensor), fetches[name]]
      if (into) {
        const target = into.data as TypedArray
        if (target.length !== value.data.length)
          throw new RuntimeFailure(`The output '${name}' has the shape [${value.dims.join(', ')}], which does not fit the array for it.`)
        target.set(value.data as never)
        out[name] = into
      } else out[name] = value
    }
    return out
  }

  release(): Promise<void> {
    return inTurn(() => this.session.release())
  }
}

/** ONNX Runtime in a browser. */
export const runtime: Runtime = {
  get version() {
    return ['onnxruntime-web', version].filter((part) => part !== undefined).join(' ')
  },

  async compile(model: Uint8Array, options: CompileOptions): Promise<CompiledModel> {
    const ort = await ortFor(options.device, options.threads)
    try {
      const session = await inTurn(() =>
        ort.InferenceSession.create(model, {
          executionProviders: [options.device === 'webgpu' ? 'webgpu' : 'wasm'],
          executionMode: 'sequential',
          graphOptimizationLevel: options.optimize === false ? 'disabled' : 'all',
          logSeverityLevel: 4,
          externalData: [...options.memory].map(([path, data]) => ({ path, data })),
          extra: {
            session: { ...(options.prepack === false ? { disable_prepacking: '1' } : {}) },
            ...(options.foldConstants === false ? { optimization: { disable_specified_optimizers: 'ConstantFolding' } } : {}),
          },
        }),
      )
      return new WebSession(session)
    } catch (error) {
      throw new RuntimeFailure(`ONNX Runtime could not compile the program on ${options.device}: ${messageOf(error)}`, { cause: error })
    }
  },

  async prepare({ device, threads: wanted }) {
    await ortFor(device, wanted)
    if (device === 'webgpu' && !(await hasAdapter()))
      throw new RuntimeFailure(
        "The device 'webgpu' cannot be used, since this browser finds no WebGPU adapter: leave 'device' out to run on the CPU, or switch hardware acceleration on.",
      )
  },

  tensor(dtype: DType, shape: readonly number[], data: TypedArray): RuntimeTensor {
    if (data.byteLength !== bytesOf(dtype, sizeOf(shape)))
      throw new RuntimeFailure(`A ${dtype} tensor of the shape [${shape.join(', ')}] has another number of bytes than ${data.byteLength}.`)
    return new WebTensor(dtype, shape, data)
  },

  notes: () => [
    ...(globalThis.crossOriginIsolated ? [] : [notIsolated]),
    ...(globalThis.isSecureContext
      ? []
      : ['This page is not in a secure context, so that models are fetched at every visit: serve it over https, or from localhost.']),
    ...('gpu' in navigator ? [] : ['This browser has no WebGPU, so that the device is cpu.']),
  ],
}
