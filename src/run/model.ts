/** @file The model value: read it, edit it, run it, let it write. */
import { ModelError, UsageError } from '../base/errors.ts'
import type { NDArray } from '../base/types.ts'
import type { Architecture } from '../models/architecture.ts'
import { decodeImage, type Picture, pixelValues, readProcessor } from '../models/image/index.ts'
import type { Precision } from '../models/quantised.ts'
import type { DecoderSpec } from '../models/spec.ts'
import type { Tokenizer } from '../models/text/tokenizer.ts'
import type { Transform } from '../models/transforms/index.ts'
import { type SiteInfo, sequenceOf } from '../sites/address.ts'
import { type Edit, edit } from '../sites/edits.ts'
import { axisSize, type FireCounts, type PreparedEdit, prepareEdits, type StepPlace, type StepPlaces } from '../sites/prepare.ts'
import type { AxisName } from '../sites/vocabulary.ts'
import type { WeightRef } from '../tensor/index.ts'
import { type Activation, type Batch, checkInput, type ModelInput, passOf, toCaller } from './batch.ts'
import { type ModelCore, outputNames } from './core.ts'
import { type HessianRequest, type HessianResult, hessianOf, type JvpRequest, type JvpResult, jvpOf } from './derivatives.ts'
import { type GenerateOptions, Generation, type TracedLogits } from './generate.ts'
import { type GradientOptions, type GradientRequest, type GradientResult, gradientOf } from './gradient.ts'
import { batchOf, needLogits } from './inputs.ts'
import { type CacheOwner, KeyValueCache } from './key-value-cache.ts'
import type { ExportedModel, ExportOptions } from './onnx/export-model.ts'
import type { SavedModel, SaveOptions } from './save.ts'
import {
  batchOfLayout,
  checkTokensKnown,
  isLayout,
  type PreparedStart,
  resolveStart,
  type Start,
  type StartInput,
  startFeeds,
} from './start.ts'
import { type ResolvedTap, resolveTaps, type Selection, selectPlaces, type TapSpec } from './taps.ts'

/** Facts about where a model came from, kept with everything that is saved from it. */
export interface ModelOrigin {
  /** As the user would write it: `embedded`, a path, a hub id. */
  readonly id: string
  /** SHA-256 of its files. */
  readonly hash: () => Promise<string>
  /** What was checked at load, as sentences. */
  readonly checks: readonly string[]
  /** What was done to its weights, first to last; `inverse` undoes the last. */
  readonly transforms: readonly Transform[]
}

/** Options of a run. */
export interface RunOptions<Taps extends readonly TapSpec[] = readonly TapSpec[]> {
  /** What to read: sites, aliases, patterns, or `{ site, where }`. */
  readonly taps?: Taps
  /** Logits of all positions (default), or none: then the run stops at the last site that is read. */
  readonly logits?: boolean
  /** Begins with an activation at a site instead of with the tokens: only what follows is compiled and run. */
  readonly from?: Start
  /** Length of the prompt in each row, for edits with a `phase`; the whole row by default. */
  readonly promptLength?: number
  /** Stops the run between segments with a `CancelledError`. */
  readonly signal?: AbortSignal | undefined
}

type NameOf<T> = T extends string ? T : T extends { readonly site: infer S extends string } ? S : never
type IsPattern<S extends string> = S extends `${string}*${string}` | `${string}{${string}` ? true : false
type LiteralNames<Taps extends readonly TapSpec[]> = {
  [K in keyof Taps]: IsPattern<NameOf<Taps[K]>> extends true ? never : NameOf<Taps[K]>
}[number]

/** Values of the tapped sites: under the names asked for, and under the canonical ones. */
export type TapResults<Taps extends readonly TapSpec[]> = { readonly [Name in LiteralNames<Taps>]: Activation } & {
  readonly [site: string]: Activation
}

/** What a run returns. */
export interface RunResult<Taps extends readonly TapSpec[] = readonly TapSpec[], Logits extends boolean = true> {
  /** [batch, pos, d_vocab] */
  readonly logits: Logits extends false ? undefined : Activation
  readonly taps: TapResults<Taps>
  /** Token ids of each row, without padding; empty where a run from a start was not given any. */
  readonly tokens: readonly (readonly number[])[]
  /** Edits and taps with a `where` that held nowhere in this input, as sentences. */
  readonly unfired: readonly string[]
  /** Places that the `where` of a tap chose, by canonical site; its value then has one item for each place instead of batch and pos. */
  readonly selected: Readonly<Record<string, Selection>>
}

/** A loaded model with a list of edits: an immutable value. `with` makes another one that shares the weights. */
export class Model {
  readonly origin: ModelOrigin
  /** Edits in force, in the order in which they were given; at one site they act in this order. */
  readonly edits: readonly Edit[]
  private readonly core: ModelCore
  private readonly prepared: readonly PreparedEdit[]

  constructor(core: ModelCore, origin: ModelOrigin, edits: readonly Edit[] = []) {
    this.core = core
    this.origin = origin
    this.edits = edits
    this.prepared = prepareEdits(edits, core.resolver)
  }

  /** The part that all values of one load share: traced graphs, weights and compiled programs. For methods that build programs of their own over a model. */
  get internals(): ModelCore {
    return this.core
  }

  /** What is common to all kinds of models: family, stacks, inputs, outputs. */
  get architecture(): Architecture {
    return this.core.architecture
  }

  /** The record of a decoder-only language model: sizes and settings. Refuses other kinds of models. */
  get spec(): DecoderSpec {
    return this.core.spec
  }

  /** Number of token ids that it reads; 0 where it reads none. */
  get vocab(): number {
    const tokens = this.architecture.sequences.find((s) => s.kind === 'tokens')
    return tokens?.vocab ?? 0
  }

  /** Longest context of this load. */
  get contextLength(): number {
    return this.core.options.contextLength
  }

  /** Number format of the matrices; activations are float32. */
  get precision(): Precision {
    return this.core.weights.precision
  }

  /** The weights that are not packed in blocks, by their names in the checkpoint: shape, type, and where their bytes lie. */
  get weights(): ReadonlyMap<string, WeightRef> {
    return this.core.weights.refs
  }

  /** Counts of compiled sessions, for tests and `doctor`. */
  get statistics() {
    return this.core.sessions.statistics
  }

  /** How the weights lie in memory: their bytes, how many of them may be there at once, and whether they come and go block by block. */
  get memory(): { readonly weights: number; readonly bytes: number; readonly streamed: boolean } {
    return { weights: this.core.weights.bytes, bytes: this.core.sessions.limit, streamed: this.core.options.stream }
  }

  /** The tokenizer; refuses where the model has none. */
  get tokenizer(): Tokenizer {
    if (!this.core.tokenizer) throw new ModelError(`${this.origin.id} has no tokenizer; give token ids (on the command line 'ids:5,6,7').`)
    return this.core.tokenizer
  }

  /** Whether the model has a tokenizer. */
  get hasTokenizer(): boolean {
    return this.core.tokenizer !== undefined
  }

  /** All sites of the vocabulary, with aliases, and the reason where the model lacks one. */
  sites(): SiteInfo[] {
    return this.core.resolver.all()
  }

  /** The one site that a name or alias means. */
  site(name: string): SiteInfo {
    return this.core.resolver.one(name)
  }

  /** The sites that a name, alias or pattern means. */
  resolve(pattern: string): SiteInfo[] {
    return this.core.resolver.many(pattern)
  }

  /** Sizes of a site's axes; names stand for those known only at run time. */
  shapeOf(site: SiteInfo): (number | AxisName)[] {
    return site.row.axes.map((a) => axisSize(a, site.stack) ?? a)
  }

  /**
   * The same weights with more edits; this value stays as it is.
   * @throws EditError, SiteError for edits that are malformed, do not fit, or can never fire.
   */
  with(...edits: readonly (Edit | readonly Edit[])[]): Model {
    return new Model(this.core, this.origin, [...this.edits, ...(edits.flat() as Edit[])])
  }

  /** The same weights without any edit. */
  get plain(): Model {
    return this.edits.length === 0 ? this : new Model(this.core, this.origin)
  }

  /**
   * A model with other weights, by transforms in order (`transformOf('fold_norms', {})`); this value stays as it is, and its edits are in force on the new one.
   * @throws ModelError where the family cannot have a transform.
   */
  async transformed(...transforms: readonly Transform[]): Promise<Model> {
    return (await import('./transform.ts')).transform(this, transforms)
  }

  /**
   * Writes the model as a Hugging Face folder: config.json, safetensors (several, with an index, where they are large), tokenizer files, and a record of what was
   * done to the weights. Edits are no weights: a model with edits is refused; fold them first (`foldEdits`). Node only.
   */
  async save(folder: string, options: SaveOptions = {}): Promise<SavedModel> {
    return (await import('./save.ts')).saveModel(this, folder, options)
  }

  /** The batch of anything that can be run: rows of token ids, or images. Texts get the model's special tokens; an encoder–decoder's decoder then begins with its start token. */
  tokens(input: ModelInput): Batch {
    return batchOf(
      this.architecture,
      input,
      () => this.tokenizer,
      (images) => this.pixels(images),
    )
  }

  /**
   * Pixel values of pictures [image, channel, row, column], as the model's processor file says.
   * @throws ModelError where the model has no processor file, FormatError for files that are no images.
   */
  pixels(images: readonly (Uint8Array | Picture)[]): NDArray<Float32Array> {
    const config = this.core.options.images
    if (!config)
      throw new ModelError(`${this.origin.id} has no preprocessor_config.json that says how images become numbers; give pixel_values.`)
    const pictures = images.map((image, i) => (image instanceof Uint8Array ? decodeImage(image, `Image ${i}`) : image))
    return pixelValues(readProcessor(config), pictures)
  }

  /** One forward pass. Taps see values after the edits at their site. */
  async run<const Taps extends readonly TapSpec[] = readonly [], const Logits extends boolean = true>(
    input: StartInput,
    options: RunOptions<Taps> & { readonly logits?: Logits } = {},
  ): Promise<RunResult<Taps, Logits>> {
    const { architecture } = this
    if (options.logits) needLogits(architecture, "the option 'logits'")
    const start = options.from && resolveStart(options.from, this.core.resolver)
    const batch = this.batchFrom(input, start)
    checkInput(batch, architecture, this.contextLength)
    const wanted = options.logits ?? true
    // A model without logits gives out its last states instead.
    const logits = wanted && architecture.outputs.includes('logits')
    const others = wanted ? architecture.outputs.filter((o) => o !== 'logits') : []
    const taps = resolveTaps([...others, ...(options.taps ?? [])], this.core.resolver)
    if (!logits && taps.length === 0) throw new UsageError('Nothing is asked for: name taps, or leave logits on.')
    const explicitPositions = batch.positions !== undefined
    const program = await this.core.program({
      edits: this.prepared,
      taps: [...new Set(taps.flatMap((t) => [t.info.site, ...(t.when ? [t.when.info.site] : [])]))],
      logits: logits ? 'all' : 'none',
      cache: false,
      explicitPositions,
      start: start && [start.info.site],
    })
    checkTokensKnown(batch, start, program.inputs, this.prepared)
    const prompt = batch.rows.map((r) => Math.min(options.promptLength ?? r.length, r.length))
    const pass = passOf(architecture, batch, prompt)
    const fired: FireCounts = new Map()
    const feeds = { ...pass.feeds, ...program.feeds(pass.places, fired), ...startFeeds(start, batch) }
    const out = await program.run(feeds, { signal: options.signal })
    for (const e of this.prepared) if (e.when) fired.set(e.key, Number(out[outputNames.fired(e.key)]?.data[0] ?? 0))
    return this.results(out, batch, taps, pass.places, fired) as unknown as RunResult<Taps, Logits>
  }

  /** The batch of a run, which may begin with a value instead of with tokens. */
  private batchFrom(input: StartInput, start: PreparedStart | undefined): Batch {
    return start && isLayout(input) ? batchOfLayout(this.architecture, input, start) : this.tokens(input as ModelInput)
  }

  private results(out: Record<string, NDArray>, batch: Batch, taps: readonly ResolvedTap[], places: StepPlaces, fired: FireCounts) {
    const value = (site: SiteInfo) => toCaller(site, out[outputNames.tap(site.site)] as NDArray, batch)
    const results: Record<string, Activation> = {}
    const selected: Record<string, Selection> = {}
    const unfired = unfiredEdits(this.prepared, fired)
    for (const t of taps) {
      let activation = results[t.info.site] ?? value(t.info)
      if (t.restricted) {
        const selection = selectPlaces(
          t,
          (places[sequenceOf(t.info)] as StepPlace).step,
          t.when && (out[outputNames.tap(t.when.info.site)] as NDArray),
        )
        if (selection.places.length === 0) unfired.push(`The tap at ${t.info.site} held nowhere in this input.`)
        selected[t.info.site] = selection
        activation = selection.of(t.info, out[outputNames.tap(t.info.site)] as NDArray)
      }
      results[t.info.site] = activation
      results[t.name] = activation
    }
    const logits = out.logits ? toCaller(this.site('logits'), out.logits, batch) : undefined
    return { logits, taps: results, tokens: batch.anonymous ? [] : batch.rows, unfired, selected }
  }

  /**
   * Gradients of a scalar of a run with respect to sites and parameters at once.
   * @param input a batch; losses of its rows add up (next-token is the mean over all).
   */
  gradient(request: GradientRequest, input: StartInput, options: GradientOptions = {}): Promise<GradientResult> {
    const start = options.from && resolveStart(options.from, this.core.resolver)
    return gradientOf(this.core, this.prepared, this.batchFrom(input, start), request, { ...options, start })
  }

  /** Jacobian-vector product: how sites change, to first order, when others move along directions. Costs about two backward passes for each site of `of`. */
  jvp(request: JvpRequest, input: ModelInput, options: { readonly signal?: AbortSignal | undefined } = {}): Promise<JvpResult> {
    return jvpOf(this.core, this.prepared, this.tokens(input), request, options.signal)
  }

  /** Vector-Jacobian product: gradients of a site's values times a vector. */
  vjp(
    request: { readonly of: string; readonly vector: NDArray | Float32Array | readonly number[] } & Omit<GradientRequest, 'of'>,
    input: StartInput,
    options: GradientOptions = {},
  ): Promise<GradientResult> {
    const { of, vector, ...rest } = request
    return this.gradient({ ...rest, of: { kind: 'inner-product', site: of, vector } }, input, options)
  }

  /** Product of the Hessian of a scalar, with respect to sites, with directions at them. */
  hessianProduct(
    request: HessianRequest,
    input: ModelInput,
    options: { readonly signal?: AbortSignal | undefined } = {},
  ): Promise<HessianResult> {
    return hessianOf(this.core, this.prepared, this.tokens(input), request, options.signal)
  }

  /** Writes on from a prompt (or several). Iterate over it for the text as it comes, over `steps()` for tokens and taps, or await `result()`. */
  generate(prompt: ModelInput, options: GenerateOptions = {}): Generation {
    return new Generation({ owner: this.withLogits(options.logits).owner, batch: this.tokens(prompt), options })
  }

  /**
   * Reads prompts without writing anything: keys and values from which generations go on (`generate(longer, { cache })`), any number of times.
   * They hold for this model with these edits.
   */
  async prefill(prompt: ModelInput, options: Pick<GenerateOptions, 'cache' | 'prefixes' | 'signal'> = {}): Promise<KeyValueCache> {
    return this.generate(prompt, { ...options, maxNewTokens: 1, ignoreEos: true }).cache()
  }

  /** Keys and values that were saved for this model with these edits. @throws UsageError where they belong to others. */
  readCache(path: string): Promise<KeyValueCache> {
    return KeyValueCache.read(path, this.owner)
  }

  /** What keys and values that this model computes belong to. */
  get owner(): CacheOwner {
    return { core: this.core, origin: this.origin, edits: this.prepared }
  }

  /** The model with a traced function of the logits behind its edits. */
  private withLogits(logits: TracedLogits | undefined): Model {
    if (!logits) return this
    const { apply, reads = [] } = typeof logits === 'function' ? { apply: logits } : logits
    return this.with(edit('logits', apply, { reads }))
  }

  /**
   * Writes the model with its edits built in as an ONNX file that any ONNX Runtime runs; see {@link exportModel}. In Node only.
   * @throws EditError for edits whose numbers the file's inputs do not tell.
   */
  async export(path: string, options: ExportOptions = {}): Promise<ExportedModel> {
    const { exportModel } = await import('./onnx/export-model.ts')
    return exportModel({ core: this.core, edits: this.prepared, origin: this.origin }, path, options)
  }

  /** Frees what was compiled; later runs compile anew. Model values made by `with` share it. */
  async dispose(): Promise<void> {
    await this.core.dispose()
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.dispose()
  }
}

/** Sentences about edits that fired nowhere. */
export function unfiredEdits(edits: readonly PreparedEdit[], fired: FireCounts): string[] {
  return edits.filter((e) => (fired.get(e.key) ?? 0) === 0).map((e) => `The edit ${e.label} held nowhere in this input.`)
}
