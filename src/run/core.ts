/** @file What all values of one loaded model share: its record, weights, traced graphs, programs and sessions. */
import type { NDArray } from '../base/types.ts'
import type { DecoderSpec } from '../models/spec.ts'
import type { Tokenizer } from '../models/text/tokenizer.ts'
import type { TracedModel, TraceOptions } from '../models/traced.ts'
import { traceDecoder } from '../models/trunks/decoder.ts'
import { type ModelWeights, parametersOf } from '../models/weights.ts'
import { SiteResolver } from '../sites/address.ts'
import type { PreparedEdit } from '../sites/prepare.ts'
import { type EditedGraph, rewriteModel } from '../sites/rewrite.ts'
import { type Device, Program, SessionCache, type Tensor } from '../tensor/index.ts'

/** How programs of a model are compiled: one session, one session for each block, or what suits its size and use. */
export type CompileMode = 'auto' | 'fused' | 'segmented'

/** Settings under which a model runs. */
export interface CoreOptions {
  readonly device: Device
  readonly threads?: number
  readonly contextLength: number
  readonly compile: CompileMode
  /** Bytes of compiled weights that may stay in memory. */
  readonly memory: number
}

/** A model of this size compiles faster than one notices: it is always compiled as a whole. */
const smallBytes = 128e6
/** Runs of one structure after which it is worth compiling a large model as a whole. */
const hotRuns = 3

/** Which program is wanted. */
export interface ProgramRequest {
  readonly edits: readonly PreparedEdit[]
  readonly taps: readonly string[]
  readonly logits: 'all' | 'last' | 'none'
  readonly cache: boolean
  readonly explicitPositions: boolean
}

interface ProgramEntry {
  readonly graph: EditedGraph
  readonly outputs: Record<string, Tensor>
  fused?: Promise<Program>
  segmented?: Promise<Program>
  runs: number
}

/** The shared part of a loaded model. */
export class ModelCore {
  readonly spec: DecoderSpec
  readonly weights: ModelWeights
  readonly tokenizer: Tokenizer | undefined
  readonly options: CoreOptions
  readonly resolver: SiteResolver
  readonly sessions: SessionCache
  private readonly parameters: ReturnType<typeof parametersOf>
  private readonly traced = new Map<string, TracedModel>()
  private readonly programs = new Map<string, ProgramEntry>()

  constructor(spec: DecoderSpec, weights: ModelWeights, tokenizer: Tokenizer | undefined, options: CoreOptions) {
    this.spec = spec
    this.weights = weights
    this.tokenizer = tokenizer
    this.options = options
    this.resolver = new SiteResolver(spec)
    this.sessions = new SessionCache(options.memory)
    this.parameters = parametersOf(spec, weights, options.contextLength)
  }

  /** Values of inputs that are the same in every run. */
  get constantFeeds(): Readonly<Record<string, NDArray>> {
    return this.parameters.feeds
  }

  /** The traced graph of a kind of run. */
  trace(options: TraceOptions): TracedModel {
    const key = JSON.stringify(options)
    let traced = this.traced.get(key)
    if (!traced) {
      traced = traceDecoder(this.spec, this.parameters, options)
      this.traced.set(key, traced)
    }
    return traced
  }

  /** The program for a request; the same structure gives the same program, whatever the numbers. */
  async program(request: ProgramRequest): Promise<{ program: Program; graph: EditedGraph }> {
    const key = JSON.stringify([
      request.edits.map((e) => [e.key, e.structure]),
      request.taps,
      request.logits,
      request.cache,
      request.explicitPositions,
    ])
    let entry = this.programs.get(key)
    if (!entry) {
      entry = this.build(request)
      this.programs.set(key, entry)
    }
    const compile = (segmented: boolean) =>
      Program.of(entry.outputs, {
        cache: this.sessions,
        device: this.options.device,
        ...(this.options.threads ? { threads: this.options.threads } : {}),
        segmented,
      })
    entry.runs++
    if (this.fuses(entry, request)) {
      entry.fused ??= compile(false)
      return { program: await entry.fused, graph: entry.graph }
    }
    entry.segmented ??= compile(true)
    return { program: await entry.segmented, graph: entry.graph }
  }

  private fuses(entry: ProgramEntry, request: ProgramRequest): boolean {
    const { compile } = this.options
    if (compile !== 'auto') return compile === 'fused'
    return request.cache || this.weights.bytes <= smallBytes || entry.runs > hotRuns
  }

  private build(request: ProgramRequest): ProgramEntry {
    const readsEnd = [...request.taps, ...request.edits.map((e) => e.info.site)].some((s) => s === 'logits' || s.startsWith('final_norm'))
    const lastOnly = request.logits === 'last' && !readsEnd
    const traced = this.trace({ cache: request.cache, explicitPositions: request.explicitPositions, lastOnly })
    const graph = rewriteModel(traced, {
      edits: request.edits,
      taps: request.taps,
      expandAttention: request.explicitPositions && this.spec.positions.kind === 'rotary',
      uses: { logits: request.logits !== 'none', caches: request.cache },
    })
    const outputs: Record<string, Tensor> = {}
    if (request.logits !== 'none') outputs.logits = graph.logits
    for (const [site, t] of graph.taps) outputs[`tap:${site}`] = t
    for (const [key, t] of graph.fired) outputs[`fired:${key}`] = t
    for (const [layer, c] of graph.caches.entries()) {
      outputs[`keys:${layer}`] = c.keys
      outputs[`values:${layer}`] = c.values
    }
    return { graph, outputs, runs: 0 }
  }

  /** Frees all sessions; a later run compiles anew. */
  async dispose(): Promise<void> {
    this.programs.clear()
    this.traced.clear()
    await this.sessions.clear()
  }
}
