/** @file The value of an ONNX file: every tensor of its graph a site that can be read and edited, all else as it is in the file. */
import { EditError, ModelError, SiteError, UsageError } from '../../base/errors.ts'
import type { NDArray } from '../../base/types.ts'
import type { Tokenizer } from '../../models/text/tokenizer.ts'
import type { Edit } from '../../sites/edits.ts'
import type { AxisName } from '../../sites/vocabulary.ts'
import type { OnnxTensor, Splice } from '../../tensor/index.ts'
import type { ModelOrigin } from '../model.ts'
import type { OnnxCore, OnnxValue } from './core.ts'
import { editFeeds, type Fired, firedName, type OnnxEdit, type OnnxStep, prepareOnnxEdits, splicesOf, tracedSites } from './edits.ts'
import { type ExportedOnnx, exportOnnx } from './export.ts'
import { generateOnnx, type OnnxGenerateOptions, type OnnxGenerationResult, type OnnxGenerationStep } from './generate.ts'
import { type OnnxGradientRequest, type OnnxGradientResult, onnxGradient } from './gradient.ts'
import { completeInputs, type OnnxInputs, stepOf } from './inputs.ts'
import type { OnnxSite, OnnxSites } from './sites.ts'

/** Options of a run of an ONNX model. */
export interface OnnxRunOptions {
  /** Sites to read: canonical names, `path:NAME`, or patterns (`path:*MatMul*`). */
  readonly taps?: readonly string[]
  /** Outputs of the file to compute (all by default); an empty list computes the taps alone. */
  readonly outputs?: readonly string[]
  /** Length of the prompt in each row, for edits with a `phase`; the whole row by default. */
  readonly promptLength?: number
  readonly signal?: AbortSignal | undefined
}

/** A value that was read, with the names of its axes where they are known. */
export interface OnnxActivation {
  readonly site: string
  readonly dtype: OnnxValue['dtype']
  readonly shape: readonly number[]
  readonly data: OnnxValue['data']
  readonly axes?: readonly AxisName[]
}

/** What a run of an ONNX model returns. */
export interface OnnxRunResult {
  /** By the names of the file's outputs. */
  readonly outputs: Readonly<Record<string, OnnxValue>>
  /** By the names asked for. */
  readonly taps: Readonly<Record<string, OnnxActivation>>
  /** Edits whose `where` held nowhere in this input, as sentences. */
  readonly unfired: readonly string[]
}

/** The parts that all values of one loaded file share. */
export interface OnnxParts {
  readonly core: OnnxCore
  readonly sites: OnnxSites
  readonly tokenizer?: Tokenizer
  /** Layers of the recognised family; 0 where none is. */
  readonly layers: number
  readonly origin: ModelOrigin
  /** The family that the names in the file show, if any. */
  readonly family?: string
}

/** An ONNX file with a list of edits: an immutable value. `with` makes another one that shares the sessions. */
export class OnnxModel {
  readonly kind = 'onnx'
  readonly edits: readonly Edit[]
  /** For the other files of this folder. */
  readonly parts: OnnxParts
  /** For the other files of this folder. */
  readonly prepared: readonly OnnxEdit[]
  private readonly shapes = new Map<string, readonly number[]>()

  constructor(parts: OnnxParts, edits: readonly Edit[] = []) {
    this.parts = parts
    this.edits = edits
    this.prepared = prepareOnnxEdits(edits, parts.sites, parts.layers)
  }

  /** Where the model came from. */
  get origin(): ModelOrigin {
    return this.parts.origin
  }

  /** The family that the names in the file show; undefined where it is not recognised. */
  get family(): string | undefined {
    return this.parts.family
  }

  /** Inputs that must be fed, with type and shape. */
  get inputs(): readonly OnnxTensor[] {
    return this.parts.core.inputs
  }

  /** Names of the file's outputs. */
  get outputs(): readonly string[] {
    return this.parts.core.outputs
  }

  /** Counts of compiled sessions, for tests. */
  get statistics() {
    return this.parts.core.sessions.statistics
  }

  /** The tokenizer that lies beside the file; refuses where there is none. */
  get tokenizer(): Tokenizer {
    if (!this.parts.tokenizer) throw new ModelError(`${this.origin.id} has no tokenizer.json beside it; give token ids.`)
    return this.parts.tokenizer
  }

  /** Whether a tokenizer lies beside the file. */
  get hasTokenizer(): boolean {
    return this.parts.tokenizer !== undefined
  }

  /** All sites: canonical ones where the family is recognised, then every tensor as `path:NAME`. */
  sites(): OnnxSite[] {
    return this.parts.sites.all()
  }

  /** Canonical sites that this file lacks, with the reason. */
  absentSites(): ReadonlyMap<string, string> {
    return this.parts.sites.absent()
  }

  /** The sites that a name or pattern means. */
  resolve(pattern: string): OnnxSite[] {
    return this.parts.sites.many(pattern)
  }

  /**
   * The same file with more edits.
   * @throws EditError, SiteError for edits that are malformed, do not fit, or can never fire.
   */
  with(...edits: readonly (Edit | readonly Edit[])[]): OnnxModel {
    return new OnnxModel(this.parts, [...this.edits, ...(edits.flat() as Edit[])])
  }

  /** The same file without any edit. */
  get plain(): OnnxModel {
    return this.edits.length === 0 ? this : new OnnxModel(this.parts)
  }

  /** Inputs of rows of token ids: padded on the right, with a mask where the file takes one. */
  tokenInputs(rows: readonly (readonly number[])[]): OnnxInputs {
    const width = Math.max(...rows.map((r) => r.length))
    const matrix = (value: (row: readonly number[], c: number) => number): NDArray => ({
      dtype: 'int64',
      shape: [rows.length, width],
      data: BigInt64Array.from(rows.flatMap((r) => Array.from({ length: width }, (_, c) => BigInt(value(r, c))))),
    })
    if (rows.length === 0 || width === 0) throw new UsageError('There is no token to run on; give at least one.')
    if (!this.inputs.some((t) => t.name === 'input_ids'))
      throw new UsageError(`This file takes no tokens; give its inputs by name: ${this.inputs.map((t) => t.name).join(', ')}.`)
    const masked = this.inputs.some((t) => t.name === 'attention_mask')
    if (!masked && rows.some((r) => r.length !== width))
      throw new UsageError('The rows differ in length, and this file takes no attention_mask that could tell so; run them one by one.')
    return {
      input_ids: matrix((r, c) => r[c] ?? 0),
      ...(masked ? { attention_mask: matrix((r, c) => (c < r.length ? 1 : 0)) } : {}),
    }
  }

  /** One pass. Inputs go by their names in the file, or are a text where a tokenizer lies beside it; taps see values after the edits at their tensor. */
  async run(input: OnnxInputs | string | readonly string[], options: OnnxRunOptions = {}): Promise<OnnxRunResult> {
    const texts = typeof input === 'string' ? [input] : Array.isArray(input) ? (input as readonly string[]) : undefined
    const given = texts ? this.tokenInputs(texts.map((t) => this.tokenizer.encode(t))) : (input as OnnxInputs)
    const feeds = this.complete(given)
    return this.pass(feeds, stepOf(feeds, options.promptLength), options)
  }

  /** All inputs, from those that were given. */
  complete(given: OnnxInputs): Record<string, OnnxValue> {
    const { core } = this.parts
    const optional = new Set(core.file.graph.input.map((i) => i.name))
    return completeInputs(given, core.inputs, optional)
  }

  /** A pass over complete inputs. */
  async pass(feeds: Readonly<Record<string, OnnxValue>>, step: OnnxStep | undefined, options: OnnxRunOptions): Promise<OnnxRunResult> {
    const { core } = this.parts
    const taps = (options.taps ?? []).flatMap((name) => {
      const found = this.resolve(name)
      for (const s of found)
        if (s.tensor.other === 'no tensor')
          throw new SiteError(`'${s.site}' is a list or an optional value, not a tensor, and cannot be read.`)
      return found.map((site) => ({ name: found.length === 1 ? name : site.site, site }))
    })
    const outputs = options.outputs ?? core.outputs
    for (const name of outputs)
      if (!core.outputs.includes(name))
        throw new UsageError(`The file has no output '${name}'; its outputs are ${core.outputs.join(', ')}.`)
    if (outputs.length === 0 && taps.length === 0) throw new UsageError('Nothing is asked for: name taps or outputs.')
    const splices = await this.splices(feeds, options.signal)
    const fired: Fired = new Map()
    const counted = this.prepared.filter((e) => e.when)
    const fetch = [...new Set([...outputs, ...taps.map((t) => t.site.tensor.name), ...counted.map(firedName)])]
    const request = { fetch, splices, key: structureOf(this.prepared) }
    this.checkReach(request)
    const all: Record<string, OnnxValue> = { ...feeds }
    for (const e of this.prepared) Object.assign(all, editFeeds(e, step, this.shapes.get(e.at.tensor.name), fired))
    const out = await core.run(request, all, options.signal)
    for (const e of counted) fired.set(e.key, Number((out[firedName(e)] as NDArray).data[0]))
    const values: Record<string, OnnxActivation> = {}
    for (const { name, site } of taps) {
      const value = out[site.tensor.name] as OnnxValue
      const activation = {
        site: site.site,
        dtype: value.dtype,
        shape: value.shape,
        data: value.data,
        ...(site.axes ? { axes: site.axes } : {}),
      }
      values[site.site] = activation
      values[name] = activation
    }
    return {
      outputs: Object.fromEntries(outputs.map((name) => [name, out[name] as OnnxValue])),
      taps: values,
      unfired: this.prepared.filter((e) => !fired.get(e.key)).map((e) => `The edit ${e.label} held nowhere in this input.`),
    }
  }

  /** The edits as nodes of the file; where the file does not tell a rank, or noise needs a shape, it is learnt by running once. */
  async splices(feeds: Readonly<Record<string, OnnxValue>>, signal?: AbortSignal): Promise<Splice[]> {
    const { core } = this.parts
    const unknown = tracedSites(this.prepared).filter((s) => !s.tensor.shape && !s.axes && !this.shapes.has(s.tensor.name))
    const noisy = this.prepared.filter((e) => e.seed !== undefined).map((e) => e.at)
    const asked = [...new Set([...unknown, ...noisy].map((s) => s.tensor.name))]
    if (asked.length > 0) {
      const out = await core.run({ fetch: asked, splices: [], key: '' }, feeds, signal)
      for (const name of asked) this.shapes.set(name, (out[name] as OnnxValue).shape)
    }
    const ranks = new Map([...this.shapes].map(([name, shape]) => [name, shape.length]))
    return splicesOf(this.prepared, core.opset, ranks)
  }

  /** Refuses edits on which nothing that was asked for depends. */
  private checkReach(request: Parameters<OnnxCore['program']>[0]): void {
    const { composed } = this.parts.core.program(request)
    const read = new Set(composed.model.graph?.node.flatMap((n) => n.input))
    for (const s of request.splices)
      if (!read.has(s.result)) {
        const label = this.prepared.find((e) => e.at.tensor.name === s.tensor)?.label
        throw new EditError(`The edit ${label} can never fire: nothing that was asked for is computed from that tensor.`)
      }
  }

  /**
   * Gradients of a scalar of a run with respect to sites and weights.
   * @throws ModelError that names the operator where one on the way has no gradient rule.
   */
  async gradient(
    request: OnnxGradientRequest,
    input: OnnxInputs,
    options: { readonly signal?: AbortSignal | undefined } = {},
  ): Promise<OnnxGradientResult> {
    const core = await this.parts.core.writtenOut()
    const open = core === this.parts.core ? this : new OnnxModel({ ...this.parts, core }, this.edits)
    return onnxGradient(open, request, input, options)
  }

  /** Values of tensors of the file after the edits, by their names in it. */
  async plainValues(
    fetch: readonly string[],
    feeds: Readonly<Record<string, OnnxValue>>,
    step: OnnxStep | undefined,
    signal?: AbortSignal,
  ): Promise<Record<string, OnnxValue>> {
    if (fetch.length === 0) return {}
    const splices = await this.splices(feeds, signal)
    const all: Record<string, OnnxValue> = { ...feeds }
    for (const e of this.prepared) Object.assign(all, editFeeds(e, step, this.shapes.get(e.at.tensor.name), new Map()))
    return this.parts.core.run({ fetch, splices, key: structureOf(this.prepared) }, all, signal)
  }

  /**
   * Writes on from a prompt, one token after another, with the file's own key-value cache where it has one.
   * @throws ModelError for files that put out no logits over tokens.
   */
  generate(
    prompt: string | readonly number[],
    options: OnnxGenerateOptions = {},
  ): AsyncGenerator<OnnxGenerationStep, OnnxGenerationResult, undefined> {
    return generateOnnx(this, prompt, options)
  }

  /** Writes the file with its edits built in; see {@link exportOnnx}. */
  export(path: string): Promise<ExportedOnnx> {
    return exportOnnx(this, path)
  }

  /** Frees what was compiled; later runs compile anew. Values made by `with` share it. */
  async dispose(): Promise<void> {
    await this.parts.core.dispose()
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.dispose()
  }
}

/** What of a list of edits is part of a program. */
export const structureOf = (edits: readonly OnnxEdit[]) => JSON.stringify(edits.map((e) => [e.key, e.structure]))
