/** @file What all values of one ONNX model share: the file, the types of its tensors, programs and sessions. */
import { messageOf, RuntimeFailure, SiteError, throwIfCancelled, UsageError } from '../../base/errors.ts'
import type { DType, NDArray, TypedArray } from '../../base/types.ts'
import {
  type Composed,
  compose,
  type Device,
  encode,
  fusedSites,
  getRuntime,
  inferTypes,
  innerName,
  isFused,
  type NodeProto,
  type OnnxFile,
  type OnnxTensor,
  type RuntimeTensor,
  SessionCache,
  type Splice,
  writeOut,
} from '../../tensor/index.ts'

/** A value of an ONNX model: an array of numbers, or of texts. */
export type OnnxValue = NDArray | { readonly dtype: 'string'; readonly shape: readonly number[]; readonly data: readonly string[] }

/** Settings under which an ONNX model runs. */
export interface OnnxCoreOptions {
  readonly device: Device
  readonly threads?: number
  /** Bytes of compiled weights that may stay in memory. */
  readonly memory: number
  /** The file keeps weights in files beside it. */
  readonly filesUsed: boolean
}

/** What one pass computes. */
export interface PassRequest {
  readonly fetch: readonly string[]
  readonly splices: readonly Splice[]
  /** Tells requests apart whose splices differ. */
  readonly key: string
}

interface Program {
  readonly composed: Composed
  readonly lowered: ReturnType<typeof encode>
}

let nextCore = 1

/** The shared part of a loaded ONNX model. */
export class OnnxCore {
  readonly file: OnnxFile
  readonly options: OnnxCoreOptions
  readonly sessions: SessionCache
  /** All tensors of the main graph, as the runtime types them. */
  readonly tensors: ReadonlyMap<string, OnnxTensor>
  private readonly programs = new Map<string, Program>()
  /** Fused nodes that can be written out, by the names of what is inside them. */
  private readonly insides = new Map<string, NodeProto>()
  private readonly files = new Map<string, OnnxFile>()
  private whole: Promise<OnnxCore> | undefined
  private readonly id = nextCore++

  private constructor(file: OnnxFile, options: OnnxCoreOptions, tensors: ReadonlyMap<string, OnnxTensor>) {
    this.file = file
    this.options = options
    this.tensors = tensors
    this.sessions = new SessionCache(options.memory)
    for (const node of file.graph.node)
      if (isFused(node, tensors)) for (const site of fusedSites) this.insides.set(innerName(node, site), node)
  }

  /** Types a file's tensors; refuses what the runtime cannot run. */
  static async of(file: OnnxFile, options: OnnxCoreOptions): Promise<OnnxCore> {
    return new OnnxCore(file, options, await inferTypes(file, options))
  }

  /** Version of the standard operators that the file imports. */
  get opset(): number {
    return this.file.opsets.get('') ?? 21
  }

  /** Inputs of the file that must be fed: those without a value of their own. */
  get inputs(): OnnxTensor[] {
    return [...this.tensors.values()].filter((t) => t.kind === 'input')
  }

  /** Names of the file's outputs. */
  get outputs(): string[] {
    return this.file.graph.output.map((o) => o.name)
  }

  /** The program for a request; the same structure gives the same session, whatever the numbers. */
  program(request: PassRequest): Program {
    const key = JSON.stringify([request.fetch, request.key])
    let program = this.programs.get(key)
    if (!program) {
      const composed = compose(this.fileFor(request), request)
      program = { composed, lowered: encode(composed.model, this.options.filesUsed) }
      this.programs.set(key, program)
    }
    return program
  }

  /** The file, with those fused nodes in simpler ops that a request looks into. */
  private fileFor({ fetch, splices }: PassRequest): OnnxFile {
    const read = [...fetch, ...splices.flatMap((s) => [s.tensor, ...s.nodes.flatMap((n) => n.input)])]
    const nodes = new Set(read.flatMap((name) => this.insides.get(name) ?? []))
    if (nodes.size === 0) return this.file
    const key = [...nodes].map((n) => n.output[0]).join()
    const file = this.files.get(key) ?? writeOut(this.file, nodes, this.tensors)
    this.files.set(key, file)
    return file
  }

  /** The same file with all fused attention in simpler ops, which have gradients; itself where it has none. */
  writtenOut(): Promise<OnnxCore> {
    if (this.insides.size === 0) return Promise.resolve(this)
    this.whole ??= OnnxCore.of(writeOut(this.file, new Set(this.insides.values()), this.tensors), this.options)
    return this.whole
  }

  /** Runs a program. `feeds` may hold more than it needs. */
  async run(request: PassRequest, feeds: Readonly<Record<string, OnnxValue>>, signal?: AbortSignal): Promise<Record<string, OnnxValue>> {
    throwIfCancelled(signal)
    for (const name of request.fetch) this.checkReadable(name)
    const { composed, lowered } = this.program(request)
    const runtime = await getRuntime()
    const given: Record<string, RuntimeTensor> = {}
    for (const name of composed.inputs) {
      const value = feeds[name]
      if (!value) throw new UsageError(`The model needs a value for its input '${name}'.`)
      given[name] = runtime.tensor(value.dtype as DType, value.shape, value.data as TypedArray)
    }
    const fetches = Object.fromEntries([...composed.outputs.values()].map((name) => [name, null]))
    const { device, threads } = this.options
    const key = `onnx ${this.id} ${JSON.stringify([request.fetch, request.key])}`
    const lease = await this.sessions.acquire(key, lowered, { device, ...(threads ? { threads } : {}) })
    let out: Record<string, RuntimeTensor>
    try {
      out = await lease.session.run(given, fetches)
    } catch (error) {
      throw new RuntimeFailure(`ONNX Runtime could not run the model: ${messageOf(error)}`, { cause: error })
    } finally {
      lease.release()
    }
    const values: Record<string, OnnxValue> = {}
    for (const [name, o] of composed.outputs) {
      const t = out[o]
      if (!t) throw new RuntimeFailure(`The program did not produce '${name}'.`)
      values[name] = { dtype: t.type, shape: t.dims, data: bitsOfHalf(t.data) } as OnnxValue
    }
    return values
  }

  /** Refuses values that the runtime cannot hand to JavaScript: it would end the process instead of saying so. */
  private checkReadable(name: string): void {
    const t = this.tensors.get(name)
    if (!t || (t.dtype && t.dtype !== 'int4' && t.dtype !== 'uint4') || t.other === 'string') return
    throw new SiteError(
      `'${name}' is ${t.dtype ? `of type ${t.dtype}` : t.other}, which the runtime cannot hand out; read a tensor that is computed from it.`,
    )
  }

  /** Frees all sessions; a later run compiles anew. */
  async dispose(): Promise<void> {
    this.programs.clear()
    await this.sessions.clear()
    await (await this.whole)?.dispose()
  }
}

/** Half precision as its bits, which is how arrays here hold it, also where the place has an array type for it. */
function bitsOfHalf(data: unknown): unknown {
  const view = data as { constructor: { name: string }; buffer: ArrayBuffer; byteOffset: number; length: number }
  return view?.constructor.name === 'Float16Array' ? new Uint16Array(view.buffer, view.byteOffset, view.length) : data
}
