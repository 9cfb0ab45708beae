/** @file Beam search: the sequences of the highest score, a sum of log-probabilities divided by a power of the length. As in transformers, without sampling. */
import { throwIfCancelled } from '../base/errors.ts'
import { likeliest, logSumExp } from '../models/sampling.ts'
import type { Decoding } from './decoding.ts'
import { applyRules, type Choice, type LogitsRules, scoresOf } from './generate-logits.ts'
import type { BeamOptions } from './generate-options.ts'
import type { RowLimits } from './generate-row.ts'

/** What a beam search works with. The decoding holds `count` copies of each prompt, side by side. */
export interface BeamSearch {
  readonly decoding: Decoding
  readonly beams: BeamOptions
  readonly rules: LogitsRules
  readonly limits: RowLimits
  readonly prompts: readonly (readonly number[])[]
  readonly signal: AbortSignal | undefined
}

/** A sequence that was found. */
export interface FoundSequence {
  readonly tokens: readonly number[]
  readonly score: number
  /** Its tokens with what was asked to be known of them. */
  readonly choices: readonly Choice[]
}

/** A sequence that is still open. */
interface Open {
  readonly choices: readonly Choice[]
  /** Sum of log-probabilities. */
  readonly sum: number
  /** Row, among those of its prompt, whose keys and values it goes on from. */
  readonly parent: number
}

/** The search for one prompt. */
class Search {
  open: Open[] = [{ choices: [], sum: 0, parent: 0 }]
  done = false
  private finished: FoundSequence[] = []
  private readonly of: BeamSearch
  private readonly prompt: readonly number[]
  private readonly number: number
  /** Tokens that may be written. */
  private readonly limit: number

  constructor(of: BeamSearch, number: number) {
    this.of = of
    this.number = number
    this.prompt = of.prompts[number] as readonly number[]
    this.limit = Math.min(of.limits.limit, Math.max(1, of.limits.context - this.prompt.length))
  }

  /** Goes on by a token. @param logits those behind each open sequence */
  step(logits: readonly Float32Array[]): void {
    const { beams, rules } = this.of
    const { count, lengthPenalty = 1, earlyStopping = false } = beams
    const keep = Math.max(2, 1 + rules.ends.length) * count
    const candidates = this.open.flatMap((beam, row) => this.candidates(beam, row, logits[row] as Float32Array, keep))
    candidates.sort((a, b) => b.sum - a.sum || a.parent - b.parent || a.token - b.token)
    const best = candidates.slice(0, keep)
    const length = (this.open[0]?.choices.length ?? 0) + 1
    const ends = (token: number) => rules.ends.includes(token) || length >= this.limit
    const made = (c: (typeof best)[number]): Open => {
      const choice = { token: c.token, ...scoresOf(logits[c.parent] as Float32Array, c.token, rules.options) }
      return { sum: c.sum, parent: c.parent, choices: [...(this.open[c.parent] as Open).choices, choice] }
    }
    const full = earlyStopping === true && this.finished.length >= count
    if (!full)
      for (const c of best.slice(0, count))
        if (ends(c.token)) {
          const { choices } = made(c)
          this.finished.push({ choices, tokens: choices.map((x) => x.token), score: c.sum / length ** lengthPenalty })
        }
    this.finished.sort((a, b) => b.score - a.score)
    this.finished.length = Math.min(this.finished.length, count)
    const open = best.filter((c) => !ends(c.token)).slice(0, count)
    this.open = open.map(made)
    this.done = open.length === 0 || this.settled(length)
  }

  /** Whether no open sequence is expected to beat those that have ended. */
  private settled(length: number): boolean {
    const { count, lengthPenalty = 1, earlyStopping = false } = this.of.beams
    if (this.finished.length < count) return false
    if (earlyStopping === true) return true
    const hoped = earlyStopping === 'never' && lengthPenalty > 0 ? this.limit : length
    return (this.open[0] as Open).sum / hoped ** lengthPenalty <= (this.finished.at(-1) as FoundSequence).score
  }

  private candidates(beam: Open, parent: number, logits: Float32Array, keep: number): { token: number; sum: number; parent: number }[] {
    const total = logSumExp(logits)
    const scores = logits.map((v) => v - total)
    const written = beam.choices.map((c) => c.token)
    applyRules(scores, this.of.rules, { row: this.number, tokens: [...this.prompt, ...written], prompt: this.prompt.length })
    return likeliest(scores, keep)
      .filter((token) => (scores[token] as number) > Number.NEGATIVE_INFINITY)
      .map((token) => ({ token, sum: beam.sum + (scores[token] as number), parent }))
  }

  /** The best sequences, best first. */
  get results(): readonly FoundSequence[] {
    return this.finished.slice(0, this.of.beams.returned ?? 1)
  }
}

/** The best sequences for each prompt, best first. */
export async function searchBeams(of: BeamSearch): Promise<(readonly FoundSequence[])[]> {
  const { decoding, beams, prompts, signal } = of
  const { count } = beams
  const searches = prompts.map((_, number) => new Search(of, number))
  while (searches.some((s) => !s.done)) {
    throwIfCancelled(signal)
    const pass = await decoding.step()
    const parents = decoding.rows.map((_, b) => b)
    for (const [n, search] of searches.entries()) {
      if (search.done) continue
      search.step(search.open.map((_, i) => pass.logits(n * count + i)))
      for (const [i, beam] of search.open.entries()) parents[n * count + i] = n * count + beam.parent
    }
    decoding.reorder(parents)
    for (const [n, search] of searches.entries()) {
      if (search.done) continue
      for (let i = 0; i < count; i++) {
        const last = search.open[i]?.choices.at(-1)
        // A row without a sequence keeps pace, so that its slots stay within the cache.
        decoding.rows[n * count + i]?.push(last?.token ?? 0)
      }
    }
  }
  return searches.map((s) => s.results)
}
