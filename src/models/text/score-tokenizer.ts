/** @file Tokenizers of SentencePiece's kind, given as pieces with scores: llama2.c's file and the 'llama' kind of GGUF. */

import { UsageError } from '../../base/errors.ts'
import { alignTokens, mapText, type TokenSurface } from './alignment.ts'
import { joinBytes, shownBytes, textOfBytes, validText } from './bytes.ts'
import { mergeByScore } from './score-merge.ts'
import { checkIds, type DecodeOptions, type EncodeOptions, type Tokenizer, type TokenOffsets } from './tokenizer.ts'

/** What makes up a {@link ScoreTokenizer}. */
export interface ScoreTokenizerParts {
  /** Bytes of each piece, spaces as spaces. */
  readonly pieces: readonly Uint8Array[]
  /** Score of each piece: higher ones are merged first. */
  readonly scores: readonly number[]
  /** Tokens that stand for one byte each, and the byte; no text is merged into them. */
  readonly byteOf: ReadonlyMap<number, number>
  /** Special tokens and how they are written. */
  readonly special: ReadonlyMap<number, string>
  /** Tokens that are cut out of a text before anything else, by their text. */
  readonly cutOut?: ReadonlyMap<string, number>
  /** Pieces that no text is merged into. */
  readonly unmergeable?: ReadonlySet<number>
  readonly bos?: number
  readonly eos?: number
  readonly eosIds: readonly number[]
  readonly pad?: number
  /** Token for a character without piece or byte pieces; without it such a character is an error. */
  readonly unknown?: number
  readonly addBos: boolean
  readonly addEos: boolean
  /** A space is put in front of a text, and taken away again by decoding. */
  readonly addSpace: boolean
  /** Where decoding takes the space away: behind BOS only, or also at the start of what is decoded. */
  readonly stripSpace: 'after-bos' | 'start'
  readonly chat?: Tokenizer['chat']
}

/** A tokenizer that merges characters into pieces by their scores, with bytes for characters that have no piece. */
export class ScoreTokenizer implements Tokenizer {
  readonly vocabSize: number
  readonly bos?: number
  readonly eos?: number
  readonly eosIds: readonly number[]
  readonly pad?: number
  readonly special: ReadonlyMap<number, string>
  readonly chat?: NonNullable<Tokenizer['chat']>
  readonly #parts: ScoreTokenizerParts
  readonly #idOf = new Map<string, number>()
  readonly #idOfByte: (number | undefined)[] = []
  readonly #cutOut: RegExp | undefined

  constructor(parts: ScoreTokenizerParts) {
    this.#parts = parts
    this.vocabSize = parts.pieces.length
    this.eosIds = parts.eosIds
    this.special = parts.special
    if (parts.bos !== undefined) this.bos = parts.bos
    if (parts.eos !== undefined) this.eos = parts.eos
    if (parts.pad !== undefined) this.pad = parts.pad
    if (parts.chat) this.chat = parts.chat
    parts.pieces.forEach((bytes, id) => {
      const text = parts.unmergeable?.has(id) || parts.byteOf.has(id) ? undefined : validText(bytes)
      if (text !== undefined) this.#idOf.set(text, id)
    })
    for (const [id, byte] of parts.byteOf) this.#idOfByte[byte] = id
    const words = [...(parts.cutOut?.keys() ?? [])].filter((word) => word !== '')
    // The longest first, so that one that begins another does not hide it.
    words.sort((a, b) => b.length - a.length)
    if (words.length > 0) this.#cutOut = new RegExp(`(${words.map((word) => word.replace(/[.*+?^${}()|[\]\\]/g, '\\$&')).join('|')})`, 'u')
  }

  encode(text: string, options: EncodeOptions = {}): number[] {
    return this.#tokens(text, options).map((token) => token.id)
  }

  decode(ids: readonly number[], options: DecodeOptions = {}): string {
    checkIds(ids)
    const parts: Uint8Array[] = []
    let strip = this.#parts.addSpace && this.#parts.stripSpace === 'start'
    for (const id of ids) {
      if (this.special.has(id)) {
        if (!options.skipSpecial) parts.push(new TextEncoder().encode(this.special.get(id)))
        strip ||= this.#parts.addSpace && id === this.bos
        continue
      }
      const bytes = this.#bytesOf(id)
      parts.push(strip && bytes[0] === 0x20 ? bytes.subarray(1) : bytes)
      strip = false
    }
    return textOfBytes(joinBytes(parts))
  }

  piece(id: number): string {
    checkIds([id])
    return this.special.get(id) ?? (id < this.vocabSize ? shownBytes(this.#bytesOf(id)) : `<id ${id}>`)
  }

  offsets(text: string, options: EncodeOptions = {}): TokenOffsets {
    const tokens = this.#tokens(text, options)
    const surfaces = tokens.map(
      (token): TokenSurface => token.added ?? (token.id === this.#parts.unknown ? 'unknown' : this.#surface(token.id)),
    )
    return { ids: tokens.map((token) => token.id), offsets: alignTokens(mapText(text), surfaces) }
  }

  idOf(text: string): number | undefined {
    for (const [id, written] of this.special) if (written === text) return id
    return this.#idOf.get(text) ?? (text.length === 1 && text < '\x80' ? this.#idOfByte[text.charCodeAt(0)] : undefined)
  }

  #surface(id: number): Uint8Array {
    const written = this.special.get(id)
    return written === undefined ? this.#bytesOf(id) : new TextEncoder().encode(written)
  }

  #bytesOf(id: number): Uint8Array {
    const byte = this.#parts.byteOf.get(id)
    return byte === undefined ? (this.#parts.pieces[id] ?? new Uint8Array(0)) : Uint8Array.of(byte)
  }

  #tokens(text: string, { addSpecial = true }: EncodeOptions): { id: number; added?: 'before' | 'after' }[] {
    const { addBos, addEos } = this.#parts
    const tokens: { id: number; added?: 'before' | 'after' }[] = []
    if (addSpecial && addBos && this.bos !== undefined) tokens.push({ id: this.bos, added: 'before' })
    for (const part of this.#cutOut ? text.split(this.#cutOut) : [text]) {
      const cut = this.#parts.cutOut?.get(part)
      if (cut !== undefined) tokens.push({ id: cut })
      else if (part !== '') for (const id of this.#merge(part)) tokens.push({ id })
    }
    if (addSpecial && addEos && this.eos !== undefined) tokens.push({ id: this.eos, added: 'after' })
    return tokens
  }

  #merge(text: string): number[] {
    const symbols: string[] = []
    const encoder = new TextEncoder()
    for (const char of this.#parts.addSpace ? ` ${text}` : text) {
      const bytes = this.#idOf.has(char) ? undefined : encoder.encode(char)
      if (bytes?.every((byte) => this.#idOfByte[byte] !== undefined)) for (const byte of bytes) symbols.push(symbolOfByte(byte))
      else symbols.push(char)
    }
    const { scores, unknown } = this.#parts
    const merged = mergeByScore(symbols, (piece) => {
      const id = this.#idOf.get(piece)
      return id === undefined ? undefined : scores[id]
    })
    return merged.map((symbol) => {
      const id = this.#idOf.get(symbol) ?? this.#idOfByte[symbol.charCodeAt(0) - firstByteSymbol] ?? unknown
      if (id === undefined) throw new UsageError(`The vocabulary has neither a token nor bytes for '${symbol}': leave it out of the text.`)
      return id
    })
  }
}

/** Bytes among the symbols are half surrogates, which no piece contains, so that nothing merges with them. */
const firstByteSymbol = 0xdc00
const symbolOfByte = (byte: number): string => String.fromCharCode(firstByteSymbol + byte)
