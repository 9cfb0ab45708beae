/** @file What all values of one loaded model share: its record, weights, traced graphs, programs and sessions. */
import { ModelError } from '../base/errors.ts'
import type { NDArray } from '../base/types.ts'
import { type Architecture, architectureOf, type ModelRecord, type StackView } from '../models/architecture.ts'
import type { Config } from '../models/config.ts'
import type { DecoderSpec, Rotary } from '../models/spec.ts'
import type { Tokenizer } from '../models/text/tokenizer.ts'
import { slotName, slotSites, type TracedModel, type TraceOptions } from '../models/traced.ts'
import { type Convert, type ModelWeights, parametersOf } from '../models/weights.ts'
import { SiteResolver } from '../sites/address.ts'
import {
  type FireCounts,
  feedsOf,
  neverFires,
  type PreparedEdit,
  type StepPlace,
  type StepPlaces,
  slotFeeds,
  splitSlots,
} from '../sites/prepare.ts'
import { rewriteModel } from '../sites/rewrite.ts'
import { type Device, Program, SessionCache, type Tensor } from '../tensor/index.ts'
import type { LoadOptions, OpenedModel } from './load.ts'
import { type StreamRoom, streamRoom } from './stream.ts'

/** How programs of a model are compiled: one session, one session for each block, or what suits its size and use. */
export type CompileMode = 'auto' | 'fused' | 'segmented'

/** Settings under which a model runs. */
export interface CoreOptions {
  readonly device: Device
  readonly threads?: number
  readonly contextLength: number
  /** What the model's processor file says of images. */
  readonly images?: Config
  readonly compile: CompileMode
  /** Bytes of compiled weights that may stay in memory; of a streamed model, as many as three blocks take by default. */
  readonly memory: number | undefined
  /** The weights do not stay in memory: blocks are mapped when their turn comes, within `memory`. */
  readonly stream: boolean
}

/** A model of this size compiles faster than one notices: it is compiled as a whole. */
const smallBytes = 128e6
/** Bytes of weights to a session when a model is compiled in segments: few enough to recompile within a tenth of a second. */
const segmentBytes = 48e6

/** Which program is wanted. */
export interface ProgramRequest {
  readonly edits: readonly PreparedEdit[]
  /** Canonical sites to read. */
  readonly taps: readonly string[]
  readonly logits: 'all' | 'last' | 'none'
  readonly cache: boolean
  readonly explicitPositions: boolean
  /** Attention is written out, as it must be where several rows read several tokens after what the cache holds. */
  readonly writtenOut?: boolean
  /** Canonical sites at which the run begins. */
  readonly start?: readonly string[] | undefined
}

/** What a program is for. */
export interface ProgramUse {
  /** It writes text, token by token. */
  readonly generating?: boolean
  /** It is wanted in segments at any size, since what lies between them is looked after. */
  readonly segments?: boolean
}

/** A program, with what must be fed to it and fetched from it for one request. */
export interface PreparedProgram {
  /** Inputs of the program: name → type. */
  readonly inputs: ReadonlyMap<string, Tensor>
  /** Values of the edits' inputs for one step; counts where they fire. */
  feeds(places: StepPlaces, fired: FireCounts): Record<string, NDArray>
  run(
    feeds: Readonly<Record<string, NDArray>>,
    options?: { into?: Readonly<Record<string, NDArray>>; signal?: AbortSignal | undefined },
  ): Promise<Record<string, NDArray>>
}

/** Names of a program's outputs. */
export const outputNames = {
  logits: 'logits',
  tap: (site: string) => `tap:${site}`,
  fired: (edit: string) => `fired:${edit}`,
  cache: (part: 'keys' | 'values', layer: number) => `${part}:${layer}`,
}

/** What a model was made of: its files, opened, and how they were read. */
export interface ModelSourceParts {
  readonly opened: OpenedModel
  readonly options: LoadOptions & { readonly convert?: Convert }
}

/** The shared part of a loaded model. */
export class ModelCore {
  readonly record: ModelRecord
  /** What running the model needs to know of it. */
  readonly architecture: Architecture
  readonly weights: ModelWeights
  readonly tokenizer: Tokenizer | undefined
  readonly options: CoreOptions
  readonly source: ModelSourceParts
  readonly resolver: SiteResolver
  readonly sessions: SessionCache
  /** Room for the weights of a streamed model. */
  private readonly room: StreamRoom | undefined
  private readonly parameters: ReturnType<typeof parametersOf>
  private readonly traced = new Map<string, TracedModel>()
  private readonly programs = new Map<string, Promise<Program>>()

  constructor(record: ModelRecord, weights: ModelWeights, options: CoreOptions, source: ModelSourceParts) {
    this.record = record
    this.source = source
    this.architecture = architectureOf(record)
    this.weights = weights
    this.tokenizer = source.opened.tokenizer
    this.options = options
    this.resolver = new SiteResolver(this.architecture.stacks)
    this.sessions = new SessionCache(options.memory ?? 0, options.stream ? 'just before' : 'longest ago')
    this.parameters = parametersOf(this.architecture.read, weights, options.contextLength)
    if (!options.stream) return
    const traced = this.trace({ cache: false, explicitPositions: false, slots: false, lastOnly: false })
    this.room = streamRoom(traced, options.memory)
    this.sessions.limit = this.room.bytes
  }

  /** The record of a decoder-only language model; refuses other kinds. */
  get spec(): DecoderSpec {
    if (this.record.kind !== 'decoder')
      throw new ModelError(
        `This works on decoder-only language models; '${this.architecture.family}' is of another kind (${this.record.kind}).`,
      )
    return this.record.spec
  }

  /** The stack that writes text; refuses a model that has none. */
  get writer(): StackView {
    const { writer, family, outputs } = this.architecture
    if (!writer) throw new ModelError(`'${family}' writes no text: it gives out ${outputs.join(', ')}.`)
    return writer
  }

  /** The traced graph of a kind of run. */
  trace(options: TraceOptions): TracedModel {
    const key = JSON.stringify(options)
    let traced = this.traced.get(key)
    if (!traced) {
      traced = this.architecture.trace(this.parameters, options)
      this.traced.set(key, traced)
    }
    return traced
  }

  /** The program for a request; the same structure gives the same program, whatever the numbers. */
  async program(request: ProgramRequest): Promise<PreparedProgram> {
    const { architecture } = this
    const slots = request.cache && this.keepsSlots
    const { slotted, compiled } = splitSlots(request.edits, (site) => slots && slotSites.includes(site.row.name))
    const readsEnd = [...request.taps, ...compiled.map((e) => e.info.site)].some(
      (s) => s.startsWith('logits') || s.startsWith('final_norm'),
    )
    const traceOptions = {
      cache: request.cache,
      explicitPositions: request.explicitPositions,
      slots,
      lastOnly: request.logits === 'last' && !readsEnd,
    }
    const whole = request.logits !== 'none'
    // In segments, reading one more residual site would compile the session of its block: they are outputs at hand.
    const ready = whole && this.segmented(request.cache) && !this.options.stream && request.start === undefined ? this.residualSites() : []
    const taps = [...new Set([...ready, ...request.taps])]
    const key = JSON.stringify([
      compiled.map((e) => [e.key, e.structure]),
      taps,
      request.logits,
      traceOptions,
      request.start,
      request.writtenOut,
    ])
    const built = await this.compiled(key, () => this.outputsOf(compiled, taps, request, traceOptions), { generating: request.cache })
    const slotNames = slots
      ? [...built.inputs.keys()].filter((n) => n.startsWith(slotName(''))).map((n) => n.slice(slotName('').length))
      : []
    for (const e of slotted) if (!slotNames.includes(e.info.site)) throw neverFires(e)
    const names = [
      ...(whole ? [outputNames.logits] : []),
      ...request.taps.map(outputNames.tap),
      ...compiled.filter((e) => e.when).map((e) => outputNames.fired(e.key)),
      ...(request.cache
        ? [...Array(this.writer.layers).keys()].flatMap((l) => [outputNames.cache('keys', l), outputNames.cache('values', l)])
        : []),
    ]
    return {
      inputs: built.inputs,
      feeds: (places, fired) => {
        const { step } = places[architecture.sequences[0].name] as StepPlace
        const { dModel } = architecture.stacks[0]
        const feeds: Record<string, NDArray> = { ...this.parameters.feeds, ...slotFeeds(slotNames, slotted, step, dModel, fired) }
        for (const e of compiled) Object.assign(feeds, feedsOf(e, places, fired))
        return feeds
      },
      run: (feeds, options) => built.run(feeds, { ...options, fetch: names }),
    }
  }

  /**
   * Whether generation has a place for additive edits at every residual site, so that turning to another layer compiles nothing.
   * The places keep the runtime from fusing sums with norms, which shows in a small model, and that one compiles at once.
   */
  private get keepsSlots(): boolean {
    const { compile, stream } = this.options
    if (stream || !this.architecture.slots) return false
    return compile === 'fused' || (compile === 'auto' && this.weights.bytes > smallBytes)
  }

  /** One token costs little, so that the borders between sessions would show: generation is compiled as a whole. */
  private segmented(generating: boolean): boolean {
    const { compile, stream } = this.options
    if (stream) return true
    return compile === 'auto' ? !generating && this.weights.bytes > smallBytes : compile === 'segmented'
  }

  /** Values of inputs that are the same in every run. */
  get constantFeeds(): Readonly<Record<string, NDArray>> {
    return this.parameters.feeds
  }

  /** Rotations of the stack that writes; cached keys hold as long as these turn them in the same way. */
  get rotations(): readonly Rotary[] {
    const { writer } = this
    if (this.architecture.recomputes) return []
    return Array.from({ length: writer.layers }, (_, layer) => writer.block(layer).attention.rotary ?? []).flat()
  }

  /** Whether positions enter by rotation, so that explicit ones need attention written out. */
  get rotates(): boolean {
    return this.architecture.rotates
  }

  /** The weight leaf of a parameter that the model reads, by its name in the checkpoint. */
  parameter(name: string): Tensor | undefined {
    this.trace({ cache: false, explicitPositions: false, slots: false, lastOnly: false })
    return this.parameters.byName(name)
  }

  /** A program made once for a key. */
  compiled(key: string, outputs: () => Record<string, Tensor>, use: ProgramUse = {}): Promise<Program> {
    let program = this.programs.get(key)
    if (!program) {
      program = (async () => this.compile(outputs(), use))()
      this.programs.set(key, program)
      // A graph that was refused must be refused again with its own sentence.
      program.catch(() => this.programs.delete(key))
    }
    return program
  }

  private compile(outputs: Record<string, Tensor>, { generating = false, segments = false }: ProgramUse): Promise<Program> {
    const { compile, device, threads, stream } = this.options
    return Program.of(outputs, {
      cache: this.sessions,
      device,
      ...(threads ? { threads } : {}),
      foldConstants: this.weights.precision !== 'f16',
      segmented: segments || this.segmented(generating),
      segmentBytes: compile === 'auto' && !stream && !segments ? segmentBytes : 0,
      ...(this.room ? { stream: this.room, prepack: false } : {}),
    })
  }

  private residualSites(): string[] {
    return this.architecture.stacks.flatMap(({ prefix = '', layers }) =>
      Array.from({ length: layers }, (_, l) => `${prefix}resid_post.${l}`),
    )
  }

  private outputsOf(
    edits: readonly PreparedEdit[],
    taps: readonly string[],
    request: ProgramRequest,
    traceOptions: TraceOptions,
  ): Record<string, Tensor> {
    const graph = rewriteModel(this.trace(traceOptions), {
      edits,
      taps,
      start: request.start,
      expandAttention: request.writtenOut || (request.explicitPositions && this.rotates),
      uses: { logits: request.logits !== 'none', caches: request.cache },
    })
    const outputs: Record<string, Tensor> = {}
    if (request.logits !== 'none') outputs[outputNames.logits] = graph.logits
    for (const [site, t] of graph.taps) outputs[outputNames.tap(site)] = t
    for (const [key, t] of graph.fired) outputs[outputNames.fired(key)] = t
    for (const [layer, c] of graph.caches.entries()) {
      outputs[outputNames.cache('keys', layer)] = c.keys
      outputs[outputNames.cache('values', layer)] = c.values
    }
    return outputs
  }

  /** Frees all sessions; a later run compiles anew. */
  async dispose(): Promise<void> {
    this.programs.clear()
    this.traced.clear()
    await this.sessions.clear()
  }
}
