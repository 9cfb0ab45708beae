/** @file Tokenizers that GGUF files carry in their metadata, built from it without any other file. */

import { FormatError, ModelError } from '../../base/errors.ts'
import { byteOfPiece } from './bytes.ts'
import { type ChatTemplates, chatRenderer } from './chat.ts'
import { preTokenizerOf } from './gguf-pre-tokenizers.ts'
import { aroundText, type Json } from './hf-repairs.ts'
import { HfTokenizer, openLibrary } from './hf-tokenizer.ts'
import { ScoreTokenizer } from './score-tokenizer.ts'
import type { Tokenizer } from './tokenizer.ts'

/** Metadata of a GGUF file: a map or a plain object from key to value; integers may be bigints. */
export type GgufMetadata = ReadonlyMap<string, unknown> | Readonly<Record<string, unknown>>

/** Token types as llama.cpp numbers them. */
const tokenType = { unknown: 2, control: 3, userDefined: 4, byte: 6 } as const

/** Tokens that end a turn or a text in models that name only one of theirs as EOS. */
const endings = new Set(
  '</s> <|endoftext|> <|end_of_text|> <|eot_id|> <|eom_id|> <|im_end|> <|end|> <|return|> <|call|> <end_of_turn> <end_of_utterance> <EOT> [EOT] [EOS]'.split(
    ' ',
  ),
)

/** Builds the tokenizer of a GGUF file from its metadata; a {@link ModelError} names a kind that is not known. */
export function ggufTokenizer(metadata: GgufMetadata): Tokenizer {
  const read = new Reader(metadata)
  const kind = read.text('tokenizer.ggml.model')
  const build = kind === undefined ? undefined : kinds[kind]
  if (kind === undefined)
    throw new ModelError(
      'The GGUF file carries no tokenizer (tokenizer.ggml.model): give token ids, or use the model’s Hugging Face folder.',
    )
  if (!build) {
    throw new ModelError(
      `The GGUF file's tokenizer is of the kind '${kind}', which is not known here (known: ${Object.keys(kinds).join(', ')}): use the model's Hugging Face folder instead.`,
    )
  }
  return build(read, readVocabulary(read))
}

const kinds: Readonly<Record<string, (read: Reader, vocabulary: Vocabulary) => Tokenizer>> = { gpt2: byteLevel, llama: scored }

interface Vocabulary {
  readonly tokens: readonly string[]
  readonly types: readonly number[]
  readonly bos: number | undefined
  readonly eos: number | undefined
  readonly eosIds: readonly number[]
  readonly pad: number | undefined
  readonly unknown: number | undefined
  readonly templates: ChatTemplates | undefined
}

function readVocabulary(read: Reader): Vocabulary {
  const tokens = read.texts('tokenizer.ggml.tokens')
  if (!tokens || tokens.length === 0)
    throw new FormatError('The GGUF file has a tokenizer without tokens (tokenizer.ggml.tokens): it is damaged, fetch it again.')
  const types = read.numbers('tokenizer.ggml.token_type') ?? tokens.map(() => 1)
  if (types.length !== tokens.length) {
    throw new FormatError(`The GGUF file has ${tokens.length} tokens but ${types.length} token types: it is damaged, fetch it again.`)
  }
  const id = (key: string): number | undefined => {
    const value = read.number(`tokenizer.ggml.${key}`)
    // llama.cpp writes the largest number where a model has no such token.
    if (value === undefined || value === 0xffffffff || value < 0) return undefined
    if (value >= tokens.length)
      throw new FormatError(`The GGUF file names ${value} as ${key}, but has only ${tokens.length} tokens: it is damaged.`)
    return value
  }
  const eos = id('eos_token_id')
  const named = [eos, id('eot_token_id'), id('eom_token_id')].filter((one) => one !== undefined)
  const known = tokens.flatMap((token, i) => (types[i] === tokenType.control && endings.has(token) ? [i] : []))
  return {
    tokens,
    types,
    bos: id('bos_token_id'),
    eos,
    eosIds: [...new Set([...named, ...known])],
    pad: id('padding_token_id'),
    unknown: id('unknown_token_id'),
    templates: readTemplates(read),
  }
}

/** The template, and further ones under `tokenizer.chat_template.NAME`. */
function readTemplates(read: Reader): ChatTemplates | undefined {
  const main = read.text('tokenizer.chat_template')
  const names = read.texts('tokenizer.chat_templates') ?? []
  const others = names.map((name) => [name, read.text(`tokenizer.chat_template.${name}`)] as const)
  const found = [['default', main] as const, ...others].filter((entry): entry is readonly [string, string] => entry[1] !== undefined)
  return found.length > 0 ? new Map(found) : undefined
}

/** Byte-level merges, as an equivalent tokenizer.json for the library. */
function byteLevel(read: Reader, vocabulary: Vocabulary): Tokenizer {
  const { tokens, types, bos, eos } = vocabulary
  const merges = read.texts('tokenizer.ggml.merges')
  if (!merges)
    throw new FormatError('The GGUF file has a byte-level tokenizer without merges (tokenizer.ggml.merges): it is damaged, fetch it again.')
  const way = preTokenizerOf(read.text('tokenizer.ggml.pre'), read.text('general.architecture'))
  const addBos = read.flag('tokenizer.ggml.add_bos_token') ?? way.addBos ?? false
  const addEos = read.flag('tokenizer.ggml.add_eos_token') ?? false
  const added = tokens.flatMap((content, id): Json[] => {
    const special = types[id] === tokenType.control || types[id] === tokenType.unknown
    // A token without text would be found everywhere.
    if ((!special && types[id] !== tokenType.userDefined) || content === '') return []
    return [{ id, content, special, normalized: false, lstrip: false, rstrip: false, single_word: false }]
  })
  const split = (regex: string): Json => ({ type: 'Split', pattern: { Regex: regex }, behavior: 'Isolated', invert: false })
  const json: Json = {
    added_tokens: added,
    normalizer: way.nfc ? { type: 'NFC' } : null,
    pre_tokenizer: {
      type: 'Sequence',
      pretokenizers: [...way.patterns.map(split), { type: 'ByteLevel', add_prefix_space: false, trim_offsets: false, use_regex: false }],
    },
    post_processor: aroundText(
      addBos && bos !== undefined ? tokens[bos] : undefined,
      addEos && eos !== undefined ? tokens[eos] : undefined,
    ),
    decoder: { type: 'ByteLevel' },
    model: {
      type: 'BPE',
      vocab: Object.fromEntries(tokens.map((token, id) => [token, id])),
      merges: merges.map(splitMerge),
      ignore_merges: way.ignoreMerges ?? false,
    },
  }
  return new HfTokenizer(openLibrary(json, {}), json, vocabulary)
}

/** Two parts with a space between; a part itself may begin with one. */
function splitMerge(merge: string): [string, string] {
  const at = merge.indexOf(' ', 1)
  return [merge.slice(0, at), merge.slice(at + 1)]
}

/** SentencePiece's merges by score. */
function scored(read: Reader, vocabulary: Vocabulary): Tokenizer {
  const { tokens, types, bos, eos, pad, unknown } = vocabulary
  const scores = read.numbers('tokenizer.ggml.scores')
  if (scores?.length !== tokens.length) {
    throw new FormatError(`The GGUF file has ${tokens.length} tokens but ${scores?.length ?? 'no'} scores: it is damaged, fetch it again.`)
  }
  const idsOf = (...wanted: number[]): number[] => tokens.flatMap((_, id) => (wanted.includes(types[id] as number) ? [id] : []))
  const encoder = new TextEncoder()
  const written = (id: number): readonly [string, number] => [(tokens[id] as string).replaceAll('▁', ' '), id]
  const special = new Map(idsOf(tokenType.control, tokenType.unknown).map((id) => [id, tokens[id] as string]))
  const templateTokens = Object.entries({ bos_token: bos, eos_token: eos, unk_token: unknown }).flatMap(([name, id]) =>
    id === undefined ? [] : [[name, tokens[id] as string] as const],
  )
  const chat = chatRenderer(vocabulary.templates, Object.fromEntries(templateTokens))
  return new ScoreTokenizer({
    pieces: tokens.map((token) => encoder.encode(token.replaceAll('▁', ' '))),
    scores,
    byteOf: new Map(idsOf(tokenType.byte).flatMap((id) => bytePair(id, tokens[id] as string))),
    special,
    cutOut: new Map(idsOf(tokenType.control, tokenType.userDefined).map(written)),
    unmergeable: new Set(idsOf(tokenType.control, tokenType.unknown)),
    eosIds: vocabulary.eosIds,
    ...(bos === undefined ? {} : { bos }),
    ...(eos === undefined ? {} : { eos }),
    ...(pad === undefined ? {} : { pad }),
    ...(unknown === undefined ? {} : { unknown }),
    addBos: read.flag('tokenizer.ggml.add_bos_token') ?? true,
    addEos: read.flag('tokenizer.ggml.add_eos_token') ?? false,
    addSpace: read.flag('tokenizer.ggml.add_space_prefix') ?? true,
    stripSpace: 'start',
    chat,
  })
}

function bytePair(id: number, piece: string): [number, number][] {
  const byte = byteOfPiece(piece)
  return byte === undefined ? [] : [[id, byte]]
}

/** Reads metadata values and says which one is of the wrong type. */
class Reader {
  readonly #get: (key: string) => unknown

  constructor(metadata: GgufMetadata) {
    const isMap = (value: GgufMetadata): value is ReadonlyMap<string, unknown> =>
      typeof (value as ReadonlyMap<string, unknown>).get === 'function'
    this.#get = isMap(metadata) ? (key) => metadata.get(key) : (key) => metadata[key]
  }

  text(key: string): string | undefined {
    return this.#typed(key, 'a text', (value) => typeof value === 'string')
  }

  flag(key: string): boolean | undefined {
    return this.#typed(key, 'true or false', (value) => typeof value === 'boolean')
  }

  number(key: string): number | undefined {
    const value = this.#get(key)
    return typeof value === 'bigint' ? Number(value) : this.#typed(key, 'a number', (one) => typeof one === 'number')
  }

  texts(key: string): readonly string[] | undefined {
    return this.#typed(key, 'a list of texts', (value) => Array.isArray(value) && value.every((one) => typeof one === 'string'))
  }

  numbers(key: string): number[] | undefined {
    const value = this.#get(key)
    if (value === undefined) return undefined
    const list = Array.isArray(value) || ArrayBuffer.isView(value) ? Array.from(value as ArrayLike<unknown>, Number) : [Number.NaN]
    if (list.some(Number.isNaN)) throw new FormatError(`The GGUF file's ${key} is not a list of numbers: it is damaged, fetch it again.`)
    return list
  }

  #typed<T>(key: string, what: string, is: (value: unknown) => boolean): T | undefined {
    const value = this.#get(key)
    if (value === undefined) return undefined
    if (!is(value)) throw new FormatError(`The GGUF file's ${key} is not ${what}: it is damaged, fetch it again.`)
    return value as T
  }
}
