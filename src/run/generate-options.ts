/** @file What a generation can be asked for, and what it gives back. */
import { UsageError } from '../base/errors.ts'
import { checkSampling, type SamplingOptions } from '../models/sampling.ts'
import type { Constraint } from '../models/text/constraint.ts'
import type { EditContext } from '../sites/edits.ts'
import type { Tensor } from '../tensor/index.ts'
import type { Activation } from './batch.ts'
import type { KeyValueCache } from './key-value-cache.ts'
import type { Model } from './model.ts'
import type { PrefixCache } from './prefix-cache.ts'
import type { TapSpec } from './taps.ts'

/** What a logits processor is told of the row that it is called for. */
export interface ProcessorContext {
  readonly row: number
  /** Ids of the row so far, the prompt first. */
  readonly tokens: readonly number[]
  readonly promptTokens: number
}

/** Changes the logits [d_vocab] of a row in place, before penalties, bans and the draw; −∞ forbids a token. */
export type LogitsProcessor = (logits: Float32Array, context: ProcessorContext) => void

/** A traced function of the logits [batch, pos, d_vocab]; `read` gives the sites that are named in `reads`. */
export type TracedLogits =
  | ((logits: Tensor, context: EditContext) => Tensor)
  | { readonly apply: (logits: Tensor, context: EditContext) => Tensor; readonly reads?: readonly string[] }

/** A token, or several in a row, by ids or by text. */
export type TokenSequenceSpec = number | readonly number[] | string

/** Beam search, as in transformers. */
export interface BeamOptions {
  /** Sequences that are followed at once. */
  readonly count: number
  /** The sum of log-probabilities is divided by length ** lengthPenalty; 1 (the default) makes it a mean, above it long answers win more often. */
  readonly lengthPenalty?: number
  /** Ends as soon as `count` sequences have ended (true), when no open one can do better by its score so far (false, the default), or by the best that it could get (`never`). */
  readonly earlyStopping?: boolean | 'never'
  /** Sequences to give back for each prompt, best first (default 1). */
  readonly returned?: number
}

/** Speculative decoding: a small model guesses, the model itself checks all guesses in one pass (arXiv 2211.17192). */
export interface DraftOptions {
  /** A model of the same vocabulary. */
  readonly model: Model
  /** Tokens that it guesses at a time (default 4). */
  readonly tokens?: number
}

/** Options of a generation. */
export interface GenerateOptions extends SamplingOptions {
  /** Most tokens to write for each row (default 128, or what the context leaves). */
  readonly maxNewTokens?: number
  /** Fewest tokens to write before an end-of-text token may come. */
  readonly minNewTokens?: number
  /** Texts that end a row as soon as they appear; they are not part of the result. */
  readonly stop?: readonly string[]
  /** Goes on after an end-of-text token. */
  readonly ignoreEos?: boolean
  /** Ids at which a row ends (default: those that the tokenizer knows). */
  readonly endTokens?: readonly number[]
  /** What the answer must begin with: a text, or ids. These tokens count as written. */
  readonly begin?: string | readonly number[]
  /** Tokens that must not come, and sequences that must not be completed; a text means its tokens, at the start of a word and within one. */
  readonly ban?: readonly TokenSequenceSpec[]
  /** A traced function of the logits, compiled into the program; the same function object compiles once. It acts behind all edits. */
  readonly logits?: TracedLogits
  /** Functions that change the logits of a row, in order. */
  readonly processors?: readonly LogitsProcessor[]
  /** What the text must be: a JSON schema, a grammar or a regular expression. Needs a tokenizer. */
  readonly constraint?: Constraint
  /** Gives each step the logarithm of its token's probability. */
  readonly logProbabilities?: boolean
  /** Gives each step the likeliest tokens and the logarithms of their probabilities. */
  readonly alternatives?: number
  /** Sites to read at every step. */
  readonly taps?: readonly TapSpec[]
  readonly beams?: BeamOptions
  readonly draft?: DraftOptions
  /** Goes on from keys and values that were computed before: those of a beginning of every prompt. */
  readonly cache?: KeyValueCache
  /** Takes beginnings of the prompts that were computed before under the same edits, and keeps those of this generation. */
  readonly prefixes?: PrefixCache
  readonly signal?: AbortSignal
}

/** Why a row ended. */
export type FinishReason = 'stop' | 'length' | 'context' | 'cancelled'

/** A token and the logarithm of its probability. */
export interface Alternative {
  readonly token: number
  readonly logProbability: number
}

/** One token of one row, as it comes. */
export interface GenerationStep {
  readonly row: number
  /** Token id. */
  readonly token: number
  /** Text that it completed; empty while a character is incomplete. */
  readonly text: string
  /** Logarithm of the token's probability under the model, before penalties, temperature and filters; where `logProbabilities` was asked for. */
  readonly logProbability?: number
  /** The likeliest tokens under the model, best first; where `alternatives` was asked for. */
  readonly alternatives?: readonly Alternative[]
  /** Values of the tapped sites in the pass that chose this token: the whole prompt at first, then one position. Shared by the rows of a step. */
  readonly taps: Readonly<Record<string, Activation>>
}

/** One of the sequences that a beam search found. */
export interface BeamSequence {
  readonly text: string
  readonly tokens: readonly number[]
  /** Sum of log-probabilities, divided by length ** lengthPenalty. */
  readonly score: number
  readonly finishReason: FinishReason
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
  /** Logarithms of the tokens' probabilities, where asked for. */
  readonly logProbabilities?: readonly number[]
  /** The likeliest tokens at each place, where asked for. */
  readonly alternatives?: readonly (readonly Alternative[])[]
  /** What a beam search found, best first; its first one is the answer. */
  readonly sequences?: readonly BeamSequence[]
  /** Guesses of the draft model, and how many of them held. */
  readonly draft?: { readonly proposed: number; readonly accepted: number }
  /** Positions whose keys and values were taken from a cache. */
  readonly cachedTokens?: number
}

/** Refuses settings that are out of range or contradict each other. */
export function checkOptions(o: GenerateOptions): void {
  checkSampling(o)
  const whole = (name: string, value: number | undefined, low = 1) => {
    if (value !== undefined && (!Number.isInteger(value) || value < low))
      throw new UsageError(
        `${name} must be ${low === 1 ? 'a positive' : 'an'} integer${low > 1 ? ` of at least ${low}` : ''}, not ${value}.`,
      )
  }
  whole('maxNewTokens', o.maxNewTokens)
  whole('minNewTokens', o.minNewTokens)
  whole('alternatives', o.alternatives)
  if ((o.minNewTokens ?? 0) > (o.maxNewTokens ?? Number.POSITIVE_INFINITY))
    throw new UsageError(`minNewTokens is ${o.minNewTokens}, but maxNewTokens only ${o.maxNewTokens}.`)
  if (o.begin?.length === 0) throw new UsageError("'begin' is empty; leave it out, or name what the answer begins with.")
  whole('draft.tokens', o.draft?.tokens)
  const { beams } = o
  if (beams) {
    whole('beams.count', beams.count, 2)
    whole('beams.returned', beams.returned)
    if ((beams.returned ?? 1) > beams.count)
      throw new UsageError(`beams.returned is ${beams.returned}, but only ${beams.count} beams are followed.`)
    if (beams.lengthPenalty !== undefined && !Number.isFinite(beams.lengthPenalty))
      throw new UsageError(`beams.lengthPenalty must be a number, not ${beams.lengthPenalty}.`)
    if (beams.earlyStopping !== undefined && ![true, false, 'never'].includes(beams.earlyStopping))
      throw new UsageError(`beams.earlyStopping must be true, false or 'never', not ${JSON.stringify(beams.earlyStopping)}.`)
  }
  const contradictions: readonly (readonly [boolean, string])[] = [
    [Boolean(beams && o.draft), 'A beam search has no use for a draft model; leave one of the two out.'],
    [Boolean(beams && (o.temperature ?? 0) > 0), 'A beam search draws nothing; leave temperature at 0.'],
    [
      Boolean(beams && o.taps?.length),
      'Beams come and go, so that a step of a beam search has no taps; run the text that it found with the taps.',
    ],
    [Boolean(beams && o.stop?.length), 'A beam search knows no stop strings; it ends sequences at an end-of-text token.'],
    [Boolean(beams && o.constraint), 'A beam search cannot be held to a grammar; leave beams or the constraint out.'],
    [
      Boolean(o.draft && o.taps?.length),
      'A pass of speculative decoding holds guesses that are thrown away, so it has no taps; leave the draft model out.',
    ],
    [Boolean(o.draft && o.constraint), 'Speculative decoding cannot be held to a grammar; leave the draft model or the constraint out.'],
    [Boolean(o.ignoreEos && o.endTokens), "'endTokens' says where rows end, and 'ignoreEos' that they go on; give one of the two."],
    [Boolean(o.ignoreEos && o.constraint), 'A text that a constraint holds for whole must end; leave ignoreEos out.'],
    [Boolean(o.cache && o.prefixes), "Give either 'cache' or 'prefixes'."],
  ]
  const contradiction = contradictions.find(([holds]) => holds)
  if (contradiction) throw new UsageError(contradiction[1])
}
