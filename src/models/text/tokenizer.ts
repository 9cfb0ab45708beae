/** @file What every tokenizer can do, whatever file it came from, and a decoder for text that is still being written. */

import { UsageError } from '../../base/errors.ts'
import type { ChatMessage, ChatOptions } from './chat.ts'

/** Options of {@link Tokenizer.encode}. */
export interface EncodeOptions {
  /** Add the special tokens that the model expects around a text (BOS, `[CLS]` …); default true. Not wanted for rendered chats, which bring their own. */
  readonly addSpecial?: boolean
}

/** Options of {@link Tokenizer.decode}. */
export interface DecodeOptions {
  /** Leave special tokens out instead of writing them as text; default false. */
  readonly skipSpecial?: boolean
}

/** Tokens of a text and where each lies in it. */
export interface TokenOffsets {
  readonly ids: number[]
  /** `[start, end)` in UTF-16 code units of the text, spaces included; added tokens are empty. Parts of one character share its range. */
  readonly offsets: (readonly [number, number])[]
}

/** Turns text into token ids and back. */
export interface Tokenizer {
  /** One more than the largest token id. */
  readonly vocabSize: number
  /** Id of the token that begins a text, if the model has one. */
  readonly bos?: number
  /** Id of the token that ends a text, if the model has one. */
  readonly eos?: number
  /** Ids of all tokens at which generation stops. */
  readonly eosIds: readonly number[]
  /** Id of the token that fills short rows of a batch, if the model names one. */
  readonly pad?: number
  /** Special tokens and how they are written. */
  readonly special: ReadonlyMap<number, string>
  /** Token ids of a text. */
  encode(text: string, options?: EncodeOptions): number[]
  /** Text of token ids; ids that the vocabulary has no token for give no text. */
  decode(ids: readonly number[], options?: DecodeOptions): string
  /** How one token is shown: its text with spaces, `<s>` for special ones, `<0xE2>` for bytes that are no text alone. */
  piece(id: number): string
  /** Tokens of a text and where each lies in it. */
  offsets(text: string, options?: EncodeOptions): TokenOffsets
  /** Id of the one token that is exactly this text (`' dog'`, `'<s>'`), or undefined. */
  idOf(text: string): number | undefined
  /** The text that a chat model expects for these messages; absent where the model has no chat template. Encode it without added tokens. */
  readonly chat?: (messages: readonly ChatMessage[], options?: ChatOptions) => string
}

/** Throws unless ids can be token ids at all; which ones exist, each tokenizer knows. */
export function checkIds(ids: readonly number[]): void {
  const bad = ids.find((id) => !Number.isInteger(id) || id < 0)
  if (bad !== undefined) throw new UsageError(`${bad} is not a token id: ids are whole numbers from 0 on.`)
}

/** Writes text as its tokens come in. */
export interface StreamDecoder {
  /** Adds a token; gives the text that is certain now and was not given before, often empty. */
  push(id: number): string
  /** Gives what was held back: an incomplete character is written as U+FFFD. */
  end(): string
}

/** Options of {@link createDecoder}. */
export interface StreamDecoderOptions extends DecodeOptions {
  /** Tokens before the first one, such as the prompt: the text continues theirs, so that spaces at the seam are right. */
  readonly after?: readonly number[]
}

/** Tokens that are decoded along with new ones, since a token's text may depend on its neighbours; and how many may gather. */
const context = 4
const longest = 16

/**
 * A decoder for streams: the pieces it gives, joined, are what `decode` gives for all the tokens together (behind the text of
 * `after`). A character whose bytes are spread over tokens comes out with its last one.
 */
export function createDecoder(tokenizer: Tokenizer, options: StreamDecoderOptions = {}): StreamDecoder {
  let window = [...(options.after ?? [])]
  // Characters of the window's text that were given already; those of `after` count as given.
  let given = certain(tokenizer.decode(window, options))
  const shorten = (): void => {
    const tail = window.slice(-context)
    const text = tokenizer.decode(tail, options)
    // A cut inside a character would change what follows, so then it is made later.
    if (text.includes('\uFFFD')) return
    window = tail
    given = text.length
  }
  return {
    push(id) {
      window.push(id)
      const text = tokenizer.decode(window, options)
      const upTo = Math.max(given, certain(text))
      const piece = text.slice(given, upTo)
      given = upTo
      if (window.length >= longest && upTo === text.length) shorten()
      return piece
    },
    end() {
      const text = tokenizer.decode(window, options)
      const piece = text.slice(given)
      given = text.length
      return piece
    },
  }
}

/** Length of the text without a last character that may still be completed: bytes of an unfinished one decode to one U+FFFD. */
function certain(text: string): number {
  return text.endsWith('\uFFFD') ? text.length - 1 : text.length
}
