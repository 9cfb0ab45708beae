/** @file Speculative decoding: a draft model guesses some tokens, the model reads them all at once and keeps those that it might have drawn itself (arXiv 2211.17192). */
import { UsageError } from '../base/errors.ts'
import type { Candidate, Sampler } from '../models/sampling.ts'
import type { Batch } from './batch.ts'
import { Decoding, type DecodingStep } from './decoding.ts'
import { applyRules, type LogitsRules, type RowState, scoresOf } from './generate-logits.ts'
import type { GenerateOptions, GenerationStep } from './generate-options.ts'
import type { RowLimits, WrittenRow } from './generate-row.ts'
import type { CacheOwner } from './key-value-cache.ts'

/** What speculative decoding works with. */
export interface SpeculationSettings {
  readonly owner: CacheOwner
  readonly options: GenerateOptions
  readonly rules: LogitsRules
  readonly batch: Batch
  readonly rows: readonly WrittenRow[]
  readonly samplers: readonly Sampler[]
  readonly limits: RowLimits
  readonly decoding: Decoding
}

/** A guess, and the distribution that it was drawn from. */
interface Guess {
  readonly token: number
  readonly from: readonly Candidate[]
}

/** Rows that are written with the help of a draft model. */
export class Speculation {
  /** Guesses of each row, and how many held. */
  readonly counts: { proposed: number; accepted: number }[]
  private readonly of: SpeculationSettings
  private readonly draft: Decoding

  private constructor(of: SpeculationSettings, draft: Decoding) {
    this.of = of
    this.draft = draft
    this.counts = of.rows.map(() => ({ proposed: 0, accepted: 0 }))
  }

  /** Begins; refuses a draft model that does not speak the same tokens. */
  static async begin(of: SpeculationSettings): Promise<Speculation> {
    const { model, tokens = 4 } = of.options.draft as NonNullable<GenerateOptions['draft']>
    const { core, edits } = model.owner
    checkVocabularies(of.owner, core)
    const { batch, limits } = of
    if (of.owner.core.architecture.once.length > 0 || core.architecture.once.length > 0)
      throw new UsageError('Speculative decoding works on decoder-only models; leave the draft model out.')
    const needed = Math.min(limits.context, Math.max(...batch.rows.map((r) => r.length)) + limits.limit)
    if (core.options.contextLength < needed)
      throw new UsageError(
        `Prompt and answer may need ${needed} positions, but the draft model's context holds ${core.options.contextLength}; load it with a larger contextLength, or write fewer tokens.`,
      )
    const capacity = needed + tokens + 1
    const draft = await Decoding.begin({
      core,
      edits,
      batch,
      taps: [],
      capacity,
      logits: 'last',
      fired: new Map(),
      signal: of.options.signal,
    })
    return new Speculation(of, draft)
  }

  /** A round of guesses: the tokens that came of it, row by row. */
  async step(): Promise<GenerationStep[]> {
    const { rows, decoding, limits } = this.of
    const guesses = await this.guess()
    for (const [b, row] of rows.entries()) if (!row.finish) decoding.rows[b]?.push(...(guesses[b] as Guess[]).map((g) => g.token))
    const pass = await decoding.step()
    const steps: GenerationStep[] = []
    for (const [b, row] of rows.entries()) {
      if (row.finish) continue
      for (const token of this.judge(b, row, guesses[b] as Guess[], pass)) {
        if (row.finish) break
        const scores = scoresOf(pass.logits(b, row.ids.length - 1), token, this.of.options)
        steps.push({ ...row.push({ token, ...scores }, limits), row: b, taps: {} })
      }
      // What was guessed wrongly is forgotten; the last token has not been read by anybody.
      this.agree(decoding, b, row)
      this.agree(this.draft, b, row)
    }
    return steps
  }

  /** Makes a decoding hold what was written. */
  private agree(decoding: Decoding, b: number, row: WrittenRow): void {
    const ids = decoding.rows[b] as number[]
    let same = 0
    while (same < ids.length && ids[same] === row.ids[same]) same++
    decoding.truncate(b, same)
    // A row that has ended is not read on.
    if (!row.finish) ids.push(...row.ids.slice(same))
  }

  /** The draft model's guesses; none beyond what may still be written. */
  private async guess(): Promise<Guess[][]> {
    const { rows, samplers, rules, limits, options } = this.of
    const guesses: Guess[][] = rows.map(() => [])
    const most = options.draft?.tokens ?? 4
    // The model itself writes one token of every round.
    const wanted = rows.map((r) => (r.finish ? 0 : Math.min(most, r.room(limits) - 1)))
    for (let n = 0; n < Math.max(...wanted); n++) {
      const pass = await this.draft.step()
      for (const [b, row] of rows.entries()) {
        const own = guesses[b] as Guess[]
        if (own.length >= (wanted[b] as number)) continue
        const state = { row: b, tokens: [...row.ids, ...own.map((g) => g.token)], prompt: row.prompt }
        const sampler = samplers[b] as Sampler
        const from = distribution(pass.logits(b), rules, state, sampler)
        const token = sampler.isGreedy ? (from[0] as Candidate).id : sampler.draw(from)
        own.push({ token, from })
        this.draft.rows[b]?.push(token)
      }
    }
    return guesses
  }

  /** The guesses of a row that hold, and the token of the model itself behind them. */
  private judge(b: number, row: WrittenRow, guesses: readonly Guess[], pass: DecodingStep): number[] {
    const { samplers, rules } = this.of
    const sampler = samplers[b] as Sampler
    const counts = this.counts[b] as { proposed: number; accepted: number }
    counts.proposed += guesses.length
    const tokens: number[] = []
    for (let n = 0; ; n++) {
      const state = { row: b, tokens: [...row.ids, ...tokens], prompt: row.prompt }
      const own = distribution(pass.logits(b, row.ids.length - 1 + n), rules, state, sampler)
      const guess = guesses[n]
      if (!guess) return [...tokens, sampler.isGreedy ? (own[0] as Candidate).id : sampler.draw(own)]
      const [p, q] = [probability(own, guess.token), probability(guess.from, guess.token)]
      const holds = sampler.isGreedy ? p === 1 : sampler.next() * q < p
      if (!holds) return [...tokens, sampler.isGreedy ? (own[0] as Candidate).id : sampler.draw(rest(own, guess.from))]
      tokens.push(guess.token)
      counts.accepted++
    }
  }
}

const probability = (candidates: readonly Candidate[], token: number) => candidates.find((c) => c.id === token)?.probability ?? 0

/** What a model would draw from, after the rules. */
function distribution(logits: Float32Array, rules: LogitsRules, state: RowState, sampler: Sampler): Candidate[] {
  applyRules(logits, rules, state)
  return sampler.distribution(logits)
}

/** What is left of a distribution where another one has taken its share: max(0, p − q), not normalised. */
function rest(own: readonly Candidate[], taken: readonly Candidate[]): Candidate[] {
  const by = new Map(taken.map((c) => [c.id, c.probability]))
  const left = own.map(({ id, probability: p }) => ({ id, probability: Math.max(0, p - (by.get(id) ?? 0)) }))
  // Rounding may leave nothing of two equal distributions.
  return left.some((c) => c.probability > 0) ? left : [...own]
}

function checkVocabularies({ core }: CacheOwner, draft: CacheOwner['core']): void {
  const [own, other] = [core.writer.vocab, draft.writer.vocab]
  if (own !== other)
    throw new UsageError(`The draft model has ${other} token ids, but the model has ${own}; take one of the same vocabulary.`)
  const [mine, theirs] = [core.tokenizer, draft.tokenizer]
  if (!mine || !theirs || mine === theirs) return
  for (let id = 0; id < Math.max(mine.vocabSize, theirs.vocabSize); id++)
    if (mine.piece(id) !== theirs.piece(id))
      throw new UsageError(
        `The draft model's token ${id} is ${JSON.stringify(theirs.piece(id))}, but the model's is ${JSON.stringify(mine.piece(id))}; take one of the same vocabulary.`,
      )
}
