/** @file Generation: any number of rows, taps and edits at every step; plain, with beams, or with a draft model. */
import { CancelledError, ModelError, throwIfCancelled, UsageError } from '../base/errors.ts'
import { randomStreams, Sampler } from '../models/sampling.ts'
import type { ConstraintMatcher } from '../models/text/constraint.ts'
import type { FireCounts, PreparedEdit } from '../sites/prepare.ts'
import { type Batch, batchOfRows, checkInput, layoutOf } from './batch.ts'
import { Decoding } from './decoding.ts'
import { searchBeams } from './generate-beams.ts'
import { Speculation } from './generate-draft.ts'
import { chooseToken, type LogitsRules, logitsRules } from './generate-logits.ts'
import { type BeamSequence, checkOptions, type GenerateOptions, type GenerationResult, type GenerationStep } from './generate-options.ts'
import { type RowLimits, WrittenRow } from './generate-row.ts'
import { type CacheOwner, KeyValueCache } from './key-value-cache.ts'
import type { FoundPrefix } from './prefix-cache.ts'
import { resolveTaps } from './taps.ts'

export type {
  Alternative,
  BeamOptions,
  BeamSequence,
  DraftOptions,
  FinishReason,
  GenerateOptions,
  GenerationResult,
  GenerationStep,
  LogitsProcessor,
  ProcessorContext,
  TracedLogits,
} from './generate-options.ts'

/** A generation that has not run yet; it runs once, however it is read. */
export class Generation implements AsyncIterable<string> {
  private readonly owner: CacheOwner
  private readonly batch: Batch
  private readonly options: GenerateOptions
  private readonly rules: LogitsRules
  private readonly rows: WrittenRow[]
  private readonly samplers: Sampler[]
  private readonly limits: RowLimits
  private readonly fired: FireCounts = new Map()
  private readonly cachedTokens: number[]
  private sequences: readonly (readonly BeamSequence[])[] | undefined
  private decoding: Decoding | undefined
  private speculation: Speculation | undefined
  private started = false
  private seconds = 0
  private written = 0

  constructor(init: { owner: CacheOwner; batch: Batch; options: GenerateOptions }) {
    const { owner, options } = init
    const { core } = owner
    this.owner = owner
    this.options = options
    // Rows go on at their end, so padding has no place here.
    this.batch = { ...init.batch, ...batchOfRows(init.batch.rows) }
    checkOptions(options)
    const { writer, tokenizer } = core
    const context = core.options.contextLength
    checkInput(this.batch, core.architecture, context)
    if (init.batch.positions) throw new UsageError('Generation counts positions itself; leave position_ids out.')
    if (options.stop?.length && !tokenizer) throw new UsageError('Stop strings need a tokenizer, which this model does not have.')
    if (options.constraint && !tokenizer)
      throw new UsageError('A constraint on the text needs a tokenizer, which this model does not have.')
    if ((options.cache || options.prefixes) && !leavesCache(core))
      throw new ModelError(
        `'${core.architecture.family}' keeps more than keys and values of what it has read, so it cannot go on from a cache; leave it out.`,
      )
    this.rules = logitsRules(options, tokenizer, writer.vocab as number)
    this.rows = this.batch.rows.map((ids) => new WrittenRow(ids, core, this.rules))
    this.samplers = randomStreams(options, this.rows.length).map((random) => new Sampler(options, random))
    this.cachedTokens = this.rows.map(() => 0)
    const shortest = Math.min(...this.rows.map((r) => r.prompt))
    this.limits = { limit: Math.min(options.maxNewTokens ?? 128, context - shortest + 1), context }
    if (this.rules.begin.length > this.limits.limit)
      throw new UsageError(`The answer begins with ${this.rules.begin.length} tokens, but only ${this.limits.limit} may be written.`)
  }

  private get edits(): readonly PreparedEdit[] {
    return this.owner.edits
  }

  /** The text of a single prompt, piece by piece. */
  async *[Symbol.asyncIterator](): AsyncGenerator<string, void, undefined> {
    if (this.rows.length !== 1)
      throw new UsageError('Several prompts are written at once: iterate over steps() and look at the row of each.')
    if (!this.owner.core.tokenizer) throw new UsageError('This model has no tokenizer, so there is no text: iterate over steps().')
    for await (const step of this.steps()) if (step.text !== '') yield step.text
  }

  /** All rows, once everything is written. A cancelled generation returns what it has, with the finish reason `cancelled`. */
  async results(): Promise<GenerationResult[]> {
    try {
      if (!this.started) for await (const _ of this.steps());
    } catch (error) {
      if (!(error instanceof CancelledError)) throw error
    }
    const { logProbabilities, alternatives, cache, prefixes } = this.options
    const unfired = this.edits.filter((e) => !this.fired.get(e.key)).map((e) => `The edit ${e.label} held nowhere in this generation.`)
    return this.rows.map((r, b) => ({
      text: r.written,
      tokens: r.tokens,
      promptTokens: layoutOf(this.batch, 'source').rows[b]?.length ?? r.prompt,
      finishReason: r.finish ?? 'cancelled',
      tokensPerSecond: this.seconds > 0 ? this.written / this.seconds : 0,
      unfired,
      ...(logProbabilities ? { logProbabilities: r.logProbabilities } : {}),
      ...(alternatives ? { alternatives: r.alternatives } : {}),
      ...(this.sequences ? { sequences: this.sequences[b] as BeamSequence[] } : {}),
      ...(this.speculation ? { draft: this.speculation.counts[b] as { proposed: number; accepted: number } } : {}),
      ...(cache || prefixes ? { cachedTokens: this.cachedTokens[b] as number } : {}),
    }))
  }

  /** The result of a single prompt. */
  async result(): Promise<GenerationResult> {
    const all = await this.results()
    if (all.length !== 1) throw new UsageError('Several prompts were written: use results().')
    return all[0] as GenerationResult
  }

  /** Keys and values of all rows, once everything is written: a later generation whose prompts begin with these tokens goes on from them. */
  async cache(): Promise<KeyValueCache> {
    if (!leavesCache(this.owner.core) || this.options.beams)
      throw new UsageError('Only generations of decoder-only models, and those without beams, leave a cache to go on from.')
    await this.results()
    if (!this.decoding) throw new UsageError('The generation was cancelled before it had read anything.')
    return this.kept(this.decoding)
  }

  private kept(decoding: Decoding): KeyValueCache {
    const rows = this.rows.map((_, b) => decoding.cached(b))
    return new KeyValueCache(this.owner, rows, decoding.cachedTotal)
  }

  /** Tokens as they come, rows of one step after another. Those of a beam search come all at its end. */
  async *steps(): AsyncGenerator<GenerationStep, void, undefined> {
    if (this.started) throw new UsageError('This generation has run already; call generate() again.')
    this.started = true
    const { options } = this
    const begun = performance.now()
    try {
      for await (const steps of options.beams ? this.beamSteps() : options.draft ? this.draftSteps() : this.plainSteps()) {
        this.seconds = (performance.now() - begun) / 1000
        this.written += steps.length
        yield* steps
      }
    } finally {
      if (options.prefixes && this.decoding?.past.some((p) => p > 0)) await options.prefixes.put(this.owner, this.kept(this.decoding))
    }
  }

  /** One token of each row that has not ended, at each step. */
  private async *plainSteps(): AsyncGenerator<GenerationStep[], void, undefined> {
    const matchers = await this.matchers()
    try {
      yield* this.plainRounds(matchers)
    } finally {
      for (const m of matchers ?? []) m.dispose()
    }
  }

  private async *plainRounds(matchers: readonly ConstraintMatcher[] | undefined): AsyncGenerator<GenerationStep[], void, undefined> {
    const { rows, options, rules, limits } = this
    const decoding = await this.begin('last')
    while (rows.some((r) => !r.finish)) {
      throwIfCancelled(options.signal)
      const pass = await decoding.step()
      const chosen: GenerationStep[] = []
      for (const [b, row] of rows.entries()) {
        if (row.finish) continue
        const [sampler, matcher] = [this.samplers[b] as Sampler, matchers?.[b]]
        const state = { row: b, tokens: row.ids, prompt: row.prompt }
        const choice = await chooseToken(pass.logits(b), rules, state, { sampler, matcher, room: row.room(limits) })
        chosen.push({ ...row.push(choice, limits, matcher?.ended), row: b, taps: pass.taps })
        if (!row.finish) decoding.rows[b]?.push(choice.token)
      }
      yield chosen
    }
  }

  /** As many tokens of each row as the draft model has guessed rightly, and one more. */
  private async *draftSteps(): AsyncGenerator<GenerationStep[], void, undefined> {
    const { rows, options, rules, limits, samplers } = this
    const decoding = await this.begin('all', (options.draft?.tokens ?? 4) + 1)
    this.speculation = await Speculation.begin({ owner: this.owner, options, rules, batch: this.batch, rows, samplers, limits, decoding })
    while (rows.some((r) => !r.finish)) {
      throwIfCancelled(options.signal)
      yield await this.speculation.step()
    }
  }

  private async *beamSteps(): AsyncGenerator<GenerationStep[], void, undefined> {
    const { rows, options, rules, limits } = this
    const beams = options.beams as NonNullable<GenerateOptions['beams']>
    const decoding = await this.begin('last', 0, beams.count)
    const found = await searchBeams({ decoding, beams, rules, limits, prompts: this.batch.rows, signal: options.signal })
    const { core } = this.owner
    const sequences: BeamSequence[][] = []
    for (const [b, list] of found.entries()) {
      sequences.push(
        list.map(({ tokens, score }) => {
          const row = new WrittenRow(this.batch.rows[b] as readonly number[], core, rules)
          for (const token of tokens) row.push({ token }, limits)
          return { text: row.written, tokens: row.tokens, score, finishReason: row.finish ?? 'length' }
        }),
      )
      for (const choice of list[0]?.choices ?? []) yield [{ ...(rows[b] as WrittenRow).push(choice, limits), row: b, taps: {} }]
    }
    this.sequences = sequences
  }

  private async matchers(): Promise<ConstraintMatcher[] | undefined> {
    const { constraint } = this.options
    const { tokenizer, writer } = this.owner.core
    if (!constraint || !tokenizer) return undefined
    const { compileConstraint } = await import('../models/text/grammar.ts')
    const compiled = await compileConstraint(constraint, tokenizer, { vocab: writer.vocab as number, ends: this.rules.ends })
    const matchers = await Promise.all(this.rows.map((r) => compiled.matcher(r.room(this.limits))))
    compiled.dispose()
    return matchers
  }

  /** The rows before their first step, with what was read before. @param slack positions beyond the last token that a step may write */
  private async begin(logits: 'last' | 'all', slack = 0, copies = 1): Promise<Decoding> {
    const { options, limits, batch, fired } = this
    const { core, edits } = this.owner
    const taps = resolveTaps(options.taps ?? [], core.resolver)
    if (taps.some((t) => t.restricted))
      throw new UsageError('Taps of a generation cannot have a where clause on positions; choose from the steps instead.')
    const longest = Math.max(...this.rows.map((r) => r.prompt))
    const capacity = Math.min(limits.context, longest + limits.limit) + slack
    const decoding = await Decoding.begin({ core, edits, batch, copies, taps, capacity, logits, fired, signal: options.signal })
    this.decoding = decoding
    await options.cache?.check(this.owner)
    for (const [b, number] of decoding.origin.entries()) {
      const found = await this.before(number, longest)
      if (!found) continue
      decoding.adopt(b, found)
      this.cachedTokens[number] = found.length
    }
    return decoding
  }

  /** What was read before of a row. */
  private async before(number: number, total: number): Promise<FoundPrefix | undefined> {
    const { cache, prefixes } = this.options
    const tokens = this.batch.rows[number] as readonly number[]
    if (prefixes) return prefixes.find(this.owner, { tokens, prompt: tokens.length, number }, total)
    if (!cache) return undefined
    if (cache.rows.length !== 1 && cache.rows.length !== this.rows.length)
      throw new UsageError(
        `The cache holds ${cache.rows.length} rows, but there are ${this.rows.length} prompts; it must hold one, or as many.`,
      )
    const row = cache.rows[cache.rows.length === 1 ? 0 : number] as KeyValueCache['rows'][number]
    if (row.tokens.some((id, i) => tokens[i] !== id))
      throw new UsageError(
        `Prompt ${number} does not begin with the ${row.tokens.length} tokens of the cache; give a prompt that goes on from them.`,
      )
    const length = cache.usable(row, tokens, tokens.length, number, total)
    if (length < Math.min(row.tokens.length, tokens.length - 1))
      throw new UsageError(
        `The cache holds ${row.tokens.length} tokens, but only ${length} have the same keys in this run: an edit's 'where' or the rotation for this length differs. Prefill again with this prompt.`,
      )
    return { row, length, total: cache.total }
  }
}

/** Whether keys and values are all that a model keeps of what it has read. */
const leavesCache = ({ architecture }: CacheOwner['core']) => architecture.once.length === 0 && !architecture.recomputes
