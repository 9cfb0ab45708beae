/** @file One row of a generation: its text as it grows, and why it ends. */
import { createDecoder } from '../models/text/tokenizer.ts'
import type { ModelCore } from './core.ts'
import type { Choice, LogitsRules } from './generate-logits.ts'
import type { Alternative, FinishReason, GenerationStep } from './generate-options.ts'

/** Limits of a generation. */
export interface RowLimits {
  /** Most tokens to write. */
  readonly limit: number
  /** Positions of the context. */
  readonly context: number
}

/** A row that is being written. */
export class WrittenRow {
  readonly ids: number[]
  readonly prompt: number
  finish: FinishReason | undefined
  /** Logarithms of the probabilities of written tokens, and the likeliest tokens, where they were asked for. */
  readonly logProbabilities: number[] = []
  readonly alternatives: (readonly Alternative[])[] = []
  private readonly decoder: ReturnType<typeof createDecoder> | undefined
  private readonly rules: LogitsRules
  private text = ''
  /** Length of the text that was handed out; the rest might be the start of a stop string. */
  private emitted = 0

  constructor(ids: readonly number[], core: ModelCore, rules: LogitsRules) {
    this.ids = [...ids]
    this.prompt = ids.length
    this.rules = rules
    this.decoder = core.tokenizer && createDecoder(core.tokenizer, { after: ids, skipSpecial: true })
  }

  /** What was written. */
  get tokens(): number[] {
    return this.ids.slice(this.prompt)
  }

  /** Text that was handed out. */
  get written(): string {
    return this.text.slice(0, this.emitted)
  }

  /** Tokens that may still be written. */
  room({ limit, context }: RowLimits): number {
    return Math.min(limit - (this.ids.length - this.prompt), Math.max(1, context - this.ids.length))
  }

  /** Adds a token. @param whole the constraint holds the text for complete */
  push({ token, ...scores }: Choice, limits: RowLimits, whole = false): Omit<GenerationStep, 'row' | 'taps'> {
    const { options, ends } = this.rules
    this.ids.push(token)
    if (scores.logProbability !== undefined) this.logProbabilities.push(scores.logProbability)
    if (scores.alternatives) this.alternatives.push(scores.alternatives)
    const written = this.ids.length - this.prompt
    const ended = whole || ends.includes(token)
    if (this.decoder && !ends.includes(token)) this.text += this.decoder.push(token)
    const last = ended || written >= limits.limit || this.ids.length >= limits.context
    if (last && this.decoder) this.text += this.decoder.end()
    const text = this.release(last)
    if (!this.finish) {
      if (ended) this.finish = 'stop'
      else if (this.ids.length >= limits.context && written < (options.maxNewTokens ?? Number.POSITIVE_INFINITY)) this.finish = 'context'
      else if (last) this.finish = 'length'
    }
    return { token, text, ...scores }
  }

  /** Text that may be shown: everything up to a stop string, or to what may become one. */
  private release(last: boolean): string {
    const stops = this.rules.options.stop ?? []
    const found = stops.map((s) => this.text.indexOf(s)).filter((i) => i >= 0)
    let end = this.text.length
    if (found.length > 0) {
      end = Math.min(...found)
      this.finish = 'stop'
    } else if (!last) for (const s of stops) end = Math.min(end, this.text.length - overlap(this.text, s))
    const text = this.text.slice(this.emitted, Math.max(this.emitted, end))
    this.emitted += text.length
    return text
  }
}

/** Length of the longest end of `text` that is a beginning of `stop`. */
function overlap(text: string, stop: string): number {
  for (let n = Math.min(text.length, stop.length - 1); n > 0; n--) if (text.endsWith(stop.slice(0, n))) return n
  return 0
}
