/** @file Generation: a key-value cache, any number of rows, taps and edits at every step. */
import { CancelledError, throwIfCancelled, UsageError } from '../base/errors.ts'
import type { NDArray } from '../base/types.ts'
import type { TokenSequence } from '../models/architecture.ts'
import { checkSampling, Sampler, type SamplingOptions } from '../models/sampling.ts'
import { createDecoder } from '../models/text/tokenizer.ts'
import { cacheName } from '../models/traced.ts'
import type { SiteInfo } from '../sites/address.ts'
import type { FireCounts, PreparedEdit, StepPlaces } from '../sites/prepare.ts'
import { startName } from '../sites/rewrite.ts'
import { Activation, type Batch, batchOfRows, checkInput, layoutOf, passOf, stepFeeds, toCaller } from './batch.ts'
import { type ModelCore, outputNames } from './core.ts'
import { type ResolvedTap, resolveTaps, type TapSpec } from './taps.ts'

/** Options of a generation. */
export interface GenerateOptions extends SamplingOptions {
  /** Most tokens to write for each row (default 128, or what the context leaves). */
  readonly maxNewTokens?: number
  /** Texts that end a row as soon as they appear; they are not part of the result. */
  readonly stop?: readonly string[]
  /** Goes on after an end-of-text token. */
  readonly ignoreEos?: boolean
  /** Gives each step the logarithm of its token's probability. */
  readonly logProbabilities?: boolean
  /** Sites to read at every step. */
  readonly taps?: readonly TapSpec[]
  readonly signal?: AbortSignal
}

/** Why a row ended. */
export type FinishReason = 'stop' | 'length' | 'context' | 'cancelled'

/** One token of one row, as it comes. */
export interface GenerationStep {
  readonly row: number
  /** Token id. */
  readonly token: number
  /** Text that it completed; empty while a character is incomplete. */
  readonly text: string
  /** Logarithm of the token's probability under the model, before temperature and filters; where `logProbabilities` was asked for. */
  readonly logProbability?: number
  /** Values of the tapped sites in the pass that chose this token: the whole prompt at first, then one position. Shared by the rows of a step. */
  readonly taps: Readonly<Record<string, Activation>>
}

/** What was written for one prompt. */
export interface GenerationResult {
  readonly text: string
  readonly tokens: readonly number[]
  readonly promptTokens: number
  readonly finishReason: FinishReason
  /** Tokens of all rows by the seconds since the first pass began. */
  readonly tokensPerSecond: number
  /** Edits that held at no position, as sentences. */
  readonly unfired: readonly string[]
}

/** What the steps of a generation start from. */
interface FirstPass {
  readonly feeds: Readonly<Record<string, NDArray>>
  readonly places: StepPlaces
  readonly values: Readonly<Record<string, Activation>>
}

interface Row {
  readonly ids: number[]
  readonly prompt: number
  readonly decoder: ReturnType<typeof createDecoder> | undefined
  readonly sampler: Sampler
  text: string
  /** Length of the text that was handed out; the rest might be the start of a stop string. */
  emitted: number
  finish?: FinishReason
}

/** A generation that has not run yet; it runs once, however it is read. */
export class Generation implements AsyncIterable<string> {
  private readonly core: ModelCore
  private readonly edits: readonly PreparedEdit[]
  private readonly batch: Batch
  private readonly options: GenerateOptions
  private readonly rows: Row[]
  private readonly fired: FireCounts = new Map()
  private started = false
  private seconds = 0
  private written = 0

  constructor(init: { core: ModelCore; edits: readonly PreparedEdit[]; batch: Batch; options: GenerateOptions }) {
    this.core = init.core
    this.edits = init.edits
    this.options = init.options
    // Rows go on at their end, so padding has no place here.
    this.batch = { ...init.batch, ...batchOfRows(init.batch.rows) }
    checkSampling(this.options)
    // Refuses a model that writes no text.
    void this.core.writer
    checkInput(this.batch, this.core.architecture, this.core.options.contextLength)
    const { maxNewTokens } = this.options
    if (maxNewTokens !== undefined && (!Number.isInteger(maxNewTokens) || maxNewTokens < 1))
      throw new UsageError(`maxNewTokens must be a positive integer, not ${maxNewTokens}.`)
    if (init.batch.positions) throw new UsageError('Generation counts positions itself; leave position_ids out.')
    const { tokenizer } = this.core
    if (this.options.stop?.length && !tokenizer) throw new UsageError('Stop strings need a tokenizer, which this model does not have.')
    this.rows = this.batch.rows.map((ids, b) => ({
      ids: [...ids],
      prompt: ids.length,
      decoder: tokenizer && createDecoder(tokenizer, { after: ids, skipSpecial: true }),
      sampler: new Sampler(this.options, b),
      text: '',
      emitted: 0,
    }))
  }

  /** The text of a single prompt, piece by piece. */
  async *[Symbol.asyncIterator](): AsyncGenerator<string, void, undefined> {
    if (this.rows.length !== 1)
      throw new UsageError('Several prompts are written at once: iterate over steps() and look at the row of each.')
    if (!this.core.tokenizer) throw new UsageError('This model has no tokenizer, so there is no text: iterate over steps().')
    for await (const step of this.steps()) if (step.text !== '') yield step.text
  }

  /** All rows, once everything is written. A cancelled generation returns what it has, with the finish reason `cancelled`. */
  async results(): Promise<GenerationResult[]> {
    try {
      if (!this.started) for await (const _ of this.steps());
    } catch (error) {
      if (!(error instanceof CancelledError)) throw error
    }
    const unfired = this.edits.filter((e) => !this.fired.get(e.key)).map((e) => `The edit ${e.label} held nowhere in this generation.`)
    return this.rows.map((r, b) => ({
      text: r.text.slice(0, r.emitted),
      tokens: r.ids.slice(r.prompt),
      promptTokens: layoutOf(this.batch, 'source').rows[b]?.length ?? r.prompt,
      finishReason: r.finish ?? 'cancelled',
      tokensPerSecond: this.seconds > 0 ? this.written / this.seconds : 0,
      unfired,
    }))
  }

  /** The result of a single prompt. */
  async result(): Promise<GenerationResult> {
    const all = await this.results()
    if (all.length !== 1) throw new UsageError('Several prompts were written: use results().')
    return all[0] as GenerationResult
  }

  /** Tokens as they come, rows of one step after another. */
  async *steps(): AsyncGenerator<GenerationStep, void, undefined> {
    if (this.started) throw new UsageError('This generation has run already; call generate() again.')
    this.started = true
    const { core, options, rows } = this
    const { once, sequences, recomputes = false } = core.architecture
    const context = core.options.contextLength
    const taps = resolveTaps(options.taps ?? [], core.resolver)
    if (taps.some((t) => t.restricted))
      throw new UsageError('Taps of a generation cannot have a where clause on positions; choose from the steps instead.')
    const early = (info: SiteInfo) => info.stack !== core.writer || once.includes(info.site)
    const laterTaps = taps.filter((t) => !early(t.info))
    const laterEdits = this.edits.filter((e) => !early(e.info))
    const foreign = laterEdits.find((e) => [...e.reads, ...(e.when ? [e.when.info] : [])].some(early))
    if (foreign) throw new UsageError(`The edit ${foreign.label} reads a site of another stack, which a generation computes only once.`)
    const sites = [...new Set(laterTaps.map((t) => t.info.site))]
    const longest = Math.max(...rows.map((r) => r.prompt))
    const limit = Math.min(options.maxNewTokens ?? 128, context - Math.min(...rows.map((r) => r.prompt)) + 1)
    const capacity = Math.min(context, longest + limit)
    const cache = recomputes ? { feeds: {}, into: {} } : this.cacheArrays(capacity)
    const begun = performance.now()
    const first = await this.firstPass(
      taps.filter((t) => early(t.info)),
      this.edits.filter((e) => early(e.info)),
    )
    const start = once.length > 0 ? once : undefined
    const program = await core.program({
      edits: laterEdits,
      taps: sites,
      logits: 'last',
      cache: !recomputes,
      explicitPositions: false,
      start,
    })
    const { inputs } = sequences[0] as TokenSequence
    const past = rows.map(() => 0)
    let fresh: (readonly number[])[] = rows.map((r) => r.ids)

    for (let n = 0; rows.some((r) => !r.finish); n++) {
      throwIfCancelled(options.signal)
      const step = stepFeeds(fresh, past, undefined, inputs)
      const layout = { rows: rows.map((r) => r.ids), start: [...past], width: step.width, prompt: rows.map((r) => r.prompt) }
      const places = { ...first.places, [sequences[0].name]: { step: layout, total: step.total } }
      const feeds = { ...first.feeds, ...step.feeds, ...cache.feeds, ...program.feeds(places, this.fired) }
      const out = await program.run(feeds, { into: cache.into, signal: options.signal })
      for (const e of laterEdits)
        if (e.when) this.fired.set(e.key, (this.fired.get(e.key) ?? 0) + Number(out[outputNames.fired(e.key)]?.data[0] ?? 0))
      const values = { ...first.values, ...this.tapValues(laterTaps, out, fresh) }
      const logits = out.logits as NDArray<Float32Array>
      const chosen: GenerationStep[] = []
      for (const [b, row] of rows.entries()) {
        past[b] = (past[b] as number) + (fresh[b] as readonly number[]).length
        if (row.finish) continue
        chosen.push({
          ...this.choose(row, lastLogits(logits, b, (fresh[b] as readonly number[]).length), n, limit, context),
          row: b,
          taps: values,
        })
      }
      // A row that has ended repeats its last token in its own slot, which nobody reads.
      for (const [b, row] of rows.entries()) if (row.finish) past[b] = Math.min(past[b] as number, capacity - 1)
      fresh = rows.map((r) => (recomputes ? [...r.ids] : [r.ids.at(-1) as number]))
      if (recomputes) past.fill(0)
      this.seconds = (performance.now() - begun) / 1000
      this.written += chosen.length
      yield* chosen
    }
  }

  /** What each step starts from: what an encoder makes of its input, computed once, with the edits and taps that come before it. */
  private async firstPass(taps: readonly ResolvedTap[], edits: readonly PreparedEdit[]): Promise<FirstPass> {
    const { core, batch } = this
    const { architecture } = core
    const { once } = architecture
    if (once.length === 0) return { feeds: {}, places: {}, values: {} }
    const pass = passOf(architecture, batch)
    const sites = [...new Set([...once, ...taps.map((t) => t.info.site)])]
    const program = await core.program({ edits, taps: sites, logits: 'none', cache: false, explicitPositions: false })
    const out = await program.run({ ...pass.feeds, ...program.feeds(pass.places, this.fired) }, { signal: this.options.signal })
    for (const e of edits) if (e.when) this.fired.set(e.key, Number(out[outputNames.fired(e.key)]?.data[0] ?? 0))
    const values: Record<string, Activation> = {}
    for (const t of taps) {
      values[t.info.site] = toCaller(t.info, out[outputNames.tap(t.info.site)] as NDArray, batch)
      values[t.name] = values[t.info.site] as Activation
    }
    const starts = Object.fromEntries(once.map((site) => [startName(site), out[outputNames.tap(site)] as NDArray]))
    return { feeds: { ...pass.feeds, ...starts }, places: pass.places, values }
  }

  private choose(
    row: Row,
    logits: Float32Array,
    step: number,
    limit: number,
    context: number,
  ): Pick<GenerationStep, 'token' | 'text' | 'logProbability'> {
    const original = this.options.logProbabilities ? logits.slice() : undefined
    const token = row.sampler.choose(logits, row.ids)
    const scored = original ? { logProbability: (original[token] as number) - logSumExp(original) } : {}
    row.ids.push(token)
    const { tokenizer } = this.core
    const ended = !this.options.ignoreEos && tokenizer?.eosIds.includes(token) === true
    if (row.decoder && !ended) row.text += row.decoder.push(token)
    const last = ended || step + 1 >= limit || row.ids.length >= context
    if (last && row.decoder) row.text += row.decoder.end()
    const text = this.release(row, last)
    if (row.finish) return { token, text, ...scored }
    if (ended) row.finish = 'stop'
    else if (row.ids.length >= context && step + 1 < (this.options.maxNewTokens ?? Number.POSITIVE_INFINITY)) row.finish = 'context'
    else if (last) row.finish = 'length'
    return { token, text, ...scored }
  }

  /** Text that may be shown: everything up to a stop string, or to what may become one. */
  private release(row: Row, last: boolean): string {
    const stops = this.options.stop ?? []
    const found = stops.map((s) => row.text.indexOf(s)).filter((i) => i >= 0)
    let end = row.text.length
    if (found.length > 0) {
      end = Math.min(...found)
      row.finish = 'stop'
    } else if (!last) for (const s of stops) end = Math.min(end, row.text.length - overlap(row.text, s))
    const text = row.text.slice(row.emitted, Math.max(row.emitted, end))
    row.emitted += text.length
    return text
  }

  private cacheArrays(capacity: number): { feeds: Record<string, NDArray>; into: Record<string, NDArray> } {
    const { layers, kvHeads, headDim } = this.core.writer
    const shape = [this.rows.length, kvHeads, capacity, headDim]
    const size = shape.reduce((p, n) => p * n, 1)
    const feeds: Record<string, NDArray> = {}
    const into: Record<string, NDArray> = {}
    for (let layer = 0; layer < layers; layer++)
      for (const part of ['keys', 'values'] as const) {
        const array: NDArray = { dtype: 'float32', shape, data: new Float32Array(size) }
        // The runtime writes into the very array that it reads.
        feeds[cacheName(part, layer)] = array
        into[outputNames.cache(part, layer)] = array
      }
    return { feeds, into }
  }

  private tapValues(
    taps: readonly ResolvedTap[],
    out: Record<string, NDArray>,
    fresh: readonly (readonly number[])[],
  ): Record<string, Activation> {
    const batch: Batch = { ...batchOfRows(fresh), ...(this.batch.others ? { others: this.batch.others } : {}) }
    const values: Record<string, Activation> = {}
    for (const t of taps) {
      const value = out[outputNames.tap(t.info.site)] as NDArray<Float32Array>
      const keyed = t.info.row.axes.includes('key')
      const activation = keyed ? new Activation(t.info.site, t.info.row.axes, value, batch.columns) : toCaller(t.info, value, batch)
      values[t.info.site] = activation
      values[t.name] = activation
    }
    return values
  }
}

function lastLogits(logits: NDArray<Float32Array>, row: number, fresh: number): Float32Array {
  const [, positions, width] = logits.shape as [number, number, number]
  const at = row * positions + (positions === 1 ? 0 : fresh - 1)
  return logits.data.slice(at * width, (at + 1) * width)
}

function logSumExp(x: Float32Array): number {
  let top = Number.NEGATIVE_INFINITY
  for (const v of x) if (v > top) top = v
  let sum = 0
  for (const v of x) sum += Math.exp(v - top)
  return top + Math.log(sum)
}

/** Length of the longest end of `text` that is a beginning of `stop`. */
function overlap(text: string, stop: string): number {
  for (let n = Math.min(text.length, stop.length - 1); n > 0; n--) if (text.endsWith(stop.slice(0, n))) return n
  return 0
}
