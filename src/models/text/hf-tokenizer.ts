/** @file Hugging Face tokenizers (`tokenizer.json` and the files beside it) through `@huggingface/tokenizers`. */

import { Tokenizer as Library } from '@huggingface/tokenizers'
import { FormatError, messageOf } from '../../base/errors.ts'
import { alignTokens, mapText, type TokenSurface } from './alignment.ts'
import { byteOfPiece, bytesOfLevelToken, pieceOfByte, shownBytes, spellInBytes } from './bytes.ts'
import { type ChatTemplates, chatRenderer } from './chat.ts'
import { contentOf, isJson, type Json, repaired } from './hf-repairs.ts'
import { checkIds, type DecodeOptions, type EncodeOptions, type Tokenizer, type TokenOffsets } from './tokenizer.ts'

/** The parsed files of a Hugging Face folder that say how a model reads text; only the first is needed. */
export interface HfTokenizerFiles {
  /** `tokenizer.json`. */
  readonly tokenizer: unknown
  /** `tokenizer_config.json`. */
  readonly config?: unknown
  /** `special_tokens_map.json`. */
  readonly specialTokensMap?: unknown
  /** `generation_config.json`, for where generation stops. */
  readonly generationConfig?: unknown
  /** `config.json` of the model, for the same. */
  readonly modelConfig?: unknown
  /** Text of `chat_template.jinja`, which goes before a template in the configuration. */
  readonly chatTemplate?: string | undefined
}

/** What is known beside a tokenizer.json. */
export interface HfFacts {
  readonly bos?: number | undefined
  readonly eos?: number | undefined
  readonly eosIds: readonly number[]
  readonly pad?: number | undefined
  readonly templates?: ChatTemplates | undefined
}

/** Builds the tokenizer of a Hugging Face folder from its parsed files. */
export function createHfTokenizer(files: HfTokenizerFiles): Tokenizer {
  const config = isJson(files.config) ? files.config : {}
  const json = checkTokenizerJson(files.tokenizer)
  const library = openLibrary(repaired(json, config), config)
  const idOf = (key: string): number | undefined => {
    const content = contentOf(config[key]) ?? contentOf(isJson(files.specialTokensMap) ? files.specialTokensMap[key] : undefined)
    if (content === undefined) return undefined
    const id = library.token_to_id(content)
    if (id === undefined && key !== 'pad_token') {
      throw new FormatError(
        `The configuration names '${content}' as ${key}, but the vocabulary has no such token: tokenizer.json and tokenizer_config.json are of different models.`,
      )
    }
    return id
  }
  const eos = idOf('eos_token')
  const stops = [files.generationConfig, files.modelConfig].flatMap((file) => idsIn(isJson(file) ? file.eos_token_id : undefined))
  return new HfTokenizer(library, json, {
    bos: idOf('bos_token'),
    eos,
    eosIds: [...new Set(eos === undefined ? stops : [eos, ...stops])],
    pad: idOf('pad_token'),
    templates: files.chatTemplate ?? templatesIn(config.chat_template),
  })
}

const idsIn = (value: unknown): number[] => [value].flat().filter((id): id is number => Number.isInteger(id))

/** One template, or several as `[{ name, template }]`. */
function templatesIn(value: unknown): ChatTemplates | undefined {
  if (typeof value === 'string') return value
  if (!Array.isArray(value)) return undefined
  const named = value.filter(isJson).map(({ name, template }): [string, string] => [String(name), String(template)])
  return named.length > 0 ? new Map(named) : undefined
}

const modelKinds = ['BPE', 'WordPiece', 'Unigram', 'WordLevel']

/** Names the part that is missing, before the library stumbles over it. */
function checkTokenizerJson(value: unknown): Json {
  if (!isJson(value)) throw new FormatError('tokenizer.json is not an object: it is damaged, fetch it again.')
  const { model } = value
  if (!isJson(model) || model.vocab === undefined)
    throw new FormatError('tokenizer.json has no model with a vocabulary: it is damaged, fetch it again.')
  if (model.type !== undefined && !modelKinds.includes(String(model.type))) {
    throw new FormatError(
      `tokenizer.json has a model of the kind '${String(model.type)}', which is not known here (known: ${modelKinds.join(', ')}).`,
    )
  }
  const added = value.added_tokens ?? []
  const sound =
    Array.isArray(added) && added.every((token) => isJson(token) && typeof token.content === 'string' && Number.isInteger(token.id))
  if (!sound) throw new FormatError('tokenizer.json has an added token without content or id: it is damaged, fetch it again.')
  return value
}

/** Opens a tokenizer.json with the library; what it does not know is told with its reason. */
export function openLibrary(json: Json, config: Json): Library {
  try {
    const library = new Library(json, withUnknown(json, config))
    keepByteOrderMarks(library.decoder)
    return library
  } catch (error) {
    throw new FormatError(`tokenizer.json cannot be used: ${messageOf(error)}.`, { cause: error })
  }
}

/** The library takes the unknown token of a WordLevel model from the configuration; the reference from the model itself. */
function withUnknown(json: Json, config: Json): Json {
  const { type, unk_token } = isJson(json.model) ? json.model : {}
  return type === 'WordLevel' && typeof unk_token === 'string' ? { ...config, unk_token } : config
}

/** The library's decoder of byte pieces drops a U+FEFF at their start, which the reference keeps. */
function keepByteOrderMarks(decoder: unknown): void {
  const part = decoder as { decoders?: unknown[]; text_decoder?: TextDecoder } | null
  if (part?.text_decoder && !part.text_decoder.ignoreBOM) part.text_decoder = new TextDecoder('utf-8', { ignoreBOM: true })
  part?.decoders?.forEach(keepByteOrderMarks)
}

/** How tokens spell text. */
type Spelling = 'bytes' | 'metaspace' | 'wordpiece' | 'suffix' | 'plain'

/** A Hugging Face tokenizer behind our interface. */
export class HfTokenizer implements Tokenizer {
  readonly vocabSize: number
  readonly bos?: number
  readonly eos?: number
  readonly eosIds: readonly number[]
  readonly pad?: number
  readonly special: ReadonlyMap<number, string>
  readonly chat?: NonNullable<Tokenizer['chat']>
  readonly #library: Library
  readonly #spelling: Spelling
  readonly #mark: string
  readonly #unknown: number | undefined
  readonly #added: ReadonlyMap<number, string>
  readonly #normalize: ((part: string) => string) | undefined
  #around: readonly [number, number] | undefined

  constructor(library: Library, json: Json, facts: HfFacts) {
    this.#library = library
    const added = [...library.get_added_tokens_decoder()]
    this.#added = new Map(added.map(([id, token]) => [id, token.content]))
    const named = [facts.bos, facts.eos, facts.pad, ...facts.eosIds].filter((id) => id !== undefined)
    const special = new Map(added.filter(([, token]) => token.special).map(([id, token]) => [id, token.content]))
    for (const id of named) {
      const content = library.id_to_token(id)
      if (content !== undefined) special.set(id, content)
    }
    this.special = new Map([...special].sort(([a], [b]) => a - b))
    this.vocabSize = (library.model?.vocab.length as number | undefined) ?? 0
    this.eosIds = facts.eosIds
    if (facts.bos !== undefined) this.bos = facts.bos
    if (facts.eos !== undefined) this.eos = facts.eos
    if (facts.pad !== undefined) this.pad = facts.pad
    ;[this.#spelling, this.#mark] = spellingOf(json)
    this.#unknown = library.model?.unk_token_id
    this.#normalize = normalizerOf(json, this.#spelling)
    const chat = chatRenderer(facts.templates, this.#templateTokens())
    if (chat) this.chat = chat
  }

  encode(text: string, options: EncodeOptions = {}): number[] {
    const { ids } = this.#library.encode(text, { add_special_tokens: options.addSpecial ?? true })
    if (ids.includes(undefined as unknown as number)) {
      throw new FormatError(
        'The tokenizer gives a token that its vocabulary does not have: tokenizer.json is damaged, or its special tokens are missing.',
      )
    }
    return ids
  }

  decode(ids: readonly number[], options: DecodeOptions = {}): string {
    checkIds(ids)
    const known = ids.filter((id) => this.#library.id_to_token(id) !== undefined && !(options.skipSpecial && this.special.has(id)))
    if (known.length === 0) return ''
    // Cleaning up takes away spaces that the model wrote, and the text of a token would depend on later ones.
    return this.#library.decode(known, { skip_special_tokens: false, clean_up_tokenization_spaces: false })
  }

  piece(id: number): string {
    checkIds([id])
    const token = this.#library.id_to_token(id)
    if (token === undefined) return `<id ${id}>`
    return this.special.get(id) ?? (this.#spelling === 'wordpiece' ? token : shownBytes(this.#bytesOf(id, token)))
  }

  offsets(text: string, options: EncodeOptions = {}): TokenOffsets {
    const ids = this.encode(text, options)
    const [before, after] = (options.addSpecial ?? true) ? this.#countAdded() : [0, 0]
    const surfaces = ids.map((id, i): TokenSurface => {
      if (i < before) return 'before'
      if (i >= ids.length - after) return 'after'
      const token = this.#library.id_to_token(id)
      return token === undefined || id === this.#unknown ? 'unknown' : this.#bytesOf(id, token)
    })
    return { ids, offsets: alignTokens(mapText(text, this.#normalize), surfaces) }
  }

  idOf(text: string): number | undefined {
    for (const [id, content] of this.#added) if (content === text) return id
    const spelled = {
      bytes: spellInBytes(text),
      metaspace: text.replaceAll(' ', this.#mark),
      suffix: text + this.#mark,
      wordpiece: text,
      plain: text,
    }[this.#spelling]
    const found = this.#library.token_to_id(spelled) ?? this.#library.token_to_id(text)
    if (found !== undefined || this.#spelling !== 'metaspace' || text.length !== 1 || text >= '\x80') return found
    return this.#library.token_to_id(pieceOfByte(text.charCodeAt(0)))
  }

  /** How many tokens are added before and after a text. */
  #countAdded(): readonly [number, number] {
    this.#around ??= (() => {
      // The vocabulary may lack some of these, so that they give no token and do not show where the text is.
      for (const probe of ['a', '1', '.', ' a']) {
        const plain = this.encode(probe, { addSpecial: false })
        const all = this.encode(probe)
        for (let at = 0; plain.length > 0 && at + plain.length <= all.length; at++) {
          if (plain.every((id, i) => id === all[at + i])) return [at, all.length - at - plain.length] as const
        }
      }
      return [this.encode('').length, 0] as const
    })()
    return this.#around
  }

  /** Bytes that a token stands for in a text. */
  #bytesOf(id: number, token: string): Uint8Array {
    const encoder = new TextEncoder()
    // Added tokens are spelled as they are written, but for the spaces that some of them stand for.
    if (this.#spelling !== 'metaspace' && (this.#added.has(id) || this.special.has(id))) return encoder.encode(token)
    switch (this.#spelling) {
      case 'bytes':
        return bytesOfLevelToken(token)
      case 'metaspace': {
        const byte = byteOfPiece(token)
        return byte === undefined ? encoder.encode(token.replaceAll(this.#mark, ' ')) : Uint8Array.of(byte)
      }
      case 'wordpiece':
        return encoder.encode(token.startsWith(this.#mark) ? token.slice(this.#mark.length) : token)
      case 'suffix':
        return encoder.encode(token.endsWith(this.#mark) ? token.slice(0, -this.#mark.length) : token)
      case 'plain':
        return encoder.encode(token)
    }
  }

  #templateTokens(): Record<string, string> {
    const named = { bos_token: this.bos, eos_token: this.eos, pad_token: this.pad, unk_token: this.#unknown }
    const written = Object.entries(named).map(([name, id]): [string, string] => [
      name,
      (id === undefined ? undefined : this.#library.id_to_token(id)) ?? '',
    ])
    return Object.fromEntries(written.filter(([, content]) => content !== ''))
  }
}

/** How a tokenizer spells text, as its decoder tells, and the mark it uses for it. */
function spellingOf(json: Json): [Spelling, string] {
  const decoders = flat(json.decoder, 'decoders')
  const of = (type: string): Json | undefined => decoders.find((part) => part.type === type)
  const text = (value: unknown, otherwise: string): string => (typeof value === 'string' ? value : otherwise)
  if (of('ByteLevel')) return ['bytes', '']
  const metaspace = of('Metaspace')
  if (metaspace) return ['metaspace', text(metaspace.replacement, '▁')]
  if (of('ByteFallback') || of('Replace')) return ['metaspace', '▁']
  const wordPiece = of('WordPiece')
  if (wordPiece) return ['wordpiece', text(wordPiece.prefix, '##')]
  const suffix = of('BPEDecoder')
  return suffix ? ['suffix', text(suffix.suffix, '</w>')] : ['plain', '']
}

/** A part and, where it is a sequence, its parts. */
function flat(part: unknown, key: string): Json[] {
  if (!isJson(part)) return []
  const inner = part[key]
  return part.type === 'Sequence' && Array.isArray(inner) ? inner.flatMap((one) => flat(one, key)) : [part]
}

/** The normalizer for single characters: without the steps that concern the whole text. */
function normalizerOf(json: Json, spelling: Spelling): ((part: string) => string) | undefined {
  const normalizers = flat(json.normalizer, 'normalizers').filter((part) => part.type !== 'Prepend' && part.type !== 'Strip')
  if (normalizers.length === 0) return undefined
  // The library builds normalizers only as part of a tokenizer.
  const empty = {
    model: { type: 'BPE', vocab: {}, merges: [] },
    added_tokens: [],
    pre_tokenizer: null,
    post_processor: null,
    decoder: null,
  }
  const { normalizer } = openLibrary({ ...empty, normalizer: { type: 'Sequence', normalizers } }, {})
  if (!normalizer) return undefined
  return (part) => {
    const changed = normalizer.normalize(part)
    return spelling === 'metaspace' ? changed.replaceAll('▁', ' ') : changed
  }
}
