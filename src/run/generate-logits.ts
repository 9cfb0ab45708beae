/** @file From the logits of a row to the token: processors, penalties, bans, what must come, and the draw. */
import { UsageError } from '../base/errors.ts'
import { likeliest, logSumExp, penalise, type Sampler } from '../models/sampling.ts'
import type { ConstraintMatcher } from '../models/text/constraint.ts'
import type { Tokenizer } from '../models/text/tokenizer.ts'
import type { Alternative, GenerateOptions, TokenSequenceSpec } from './generate-options.ts'

const forbidden = Number.NEGATIVE_INFINITY

/** What is forbidden or forced, with texts turned into tokens. */
export interface LogitsRules {
  readonly options: GenerateOptions
  /** Ids that the answer begins with. */
  readonly begin: readonly number[]
  /** Sequences that must not be completed. */
  readonly bans: readonly (readonly number[])[]
  /** Tokens at which a row ends. */
  readonly ends: readonly number[]
}

/** Turns the texts of the options into tokens; refuses those that no token of the model can make. */
export function logitsRules(options: GenerateOptions, tokenizer: Tokenizer | undefined, vocab: number): LogitsRules {
  const text = (t: string, what: string): number[] => {
    if (!tokenizer) throw new UsageError(`${what} as text needs a tokenizer, which this model does not have; give token ids.`)
    if (t === '') throw new UsageError(`${what} holds an empty text.`)
    return tokenizer.encode(t, { addSpecial: false })
  }
  const known = (ids: readonly number[], what: string) => {
    const bad = ids.find((id) => !Number.isInteger(id) || id < 0 || id >= vocab)
    if (bad !== undefined) throw new UsageError(`${what} names the token ${bad}, but the vocabulary has ids 0 to ${vocab - 1}.`)
    return ids
  }
  const sequences = (ban: TokenSequenceSpec): readonly (readonly number[])[] => {
    if (typeof ban === 'number') return [[ban]]
    return typeof ban === 'string' ? [text(ban, "'ban'"), text(` ${ban.trimStart()}`, "'ban'")] : [ban]
  }
  const { begin = [] } = options
  return {
    options,
    begin: typeof begin === 'string' ? known(text(begin, "'begin'"), "'begin'") : known(begin, "'begin'"),
    bans: (options.ban ?? []).flatMap(sequences).map((ids) => {
      if (ids.length === 0) throw new UsageError("'ban' holds an empty list of tokens.")
      return known(ids, "'ban'")
    }),
    ends: options.ignoreEos ? [] : known(options.endTokens ?? tokenizer?.eosIds ?? [], "'endTokens'"),
  }
}

/** Where a row stands. */
export interface RowState {
  readonly row: number
  readonly tokens: readonly number[]
  readonly prompt: number
}

/** Changes logits in place to what the rules leave. */
export function applyRules(logits: Float32Array, { options, begin, bans, ends }: LogitsRules, state: RowState): void {
  const { row, tokens, prompt } = state
  for (const process of options.processors ?? []) process(logits, { row, tokens, promptTokens: prompt })
  penalise(logits, options, tokens, prompt)
  for (const ban of bans) {
    const before = ban.slice(0, -1)
    const from = tokens.length - before.length
    if (from >= 0 && before.every((id, i) => tokens[from + i] === id)) logits[ban.at(-1) as number] = forbidden
  }
  const written = tokens.length - prompt
  if (written < (options.minNewTokens ?? 0)) for (const id of ends) if (id < logits.length) logits[id] = forbidden
  if (written < begin.length) {
    const id = begin[written] as number
    const own = logits[id] as number
    logits.fill(forbidden)
    // What is asked for first of all is not forbidden by the rest.
    logits[id] = own > forbidden ? own : 0
  }
}

/** Whether rules change anything, so that a copy of the logits is needed. */
const changes = ({ options: o, begin, bans }: LogitsRules, matcher: ConstraintMatcher | undefined) =>
  Boolean(
    o.processors?.length ||
      o.repetitionPenalty !== undefined ||
      o.presencePenalty ||
      o.frequencyPenalty ||
      begin.length ||
      bans.length ||
      o.minNewTokens ||
      matcher,
  )

/** What was chosen, and how likely it was. */
export interface Choice {
  readonly token: number
  readonly logProbability?: number
  readonly alternatives?: readonly Alternative[]
}

/** Chooses the next token of a row. @param room tokens that may still be written, this one among them */
export async function chooseToken(
  logits: Float32Array,
  rules: LogitsRules,
  state: RowState,
  tools: { readonly sampler: Sampler; readonly matcher?: ConstraintMatcher | undefined; readonly room: number },
): Promise<Choice> {
  const { sampler, matcher, room } = tools
  const changed = changes(rules, matcher) ? logits.slice() : logits
  if (changed !== logits) {
    applyRules(changed, rules, state)
    await matcher?.mask(changed, room)
    if (!changed.some((v) => v > forbidden))
      throw new UsageError(
        `No token is left for row ${state.row} after ${state.tokens.length - state.prompt} written ones: bans, processors and the constraint forbid all of them.`,
      )
  }
  const token = sampler.choose(changed)
  matcher?.accept(token)
  return { token, ...scoresOf(logits, token, rules.options) }
}

/** Log-probabilities of a step, as far as they were asked for. */
export function scoresOf(logits: Float32Array, token: number, options: GenerateOptions): Omit<Choice, 'token'> {
  const { logProbabilities, alternatives } = options
  if (!logProbabilities && !alternatives) return {}
  const total = logSumExp(logits)
  return {
    ...(logProbabilities ? { logProbability: (logits[token] as number) - total } : {}),
    ...(alternatives
      ? { alternatives: likeliest(logits, alternatives).map((id) => ({ token: id, logProbability: (logits[id] as number) - total })) }
      : {}),
  }
}
