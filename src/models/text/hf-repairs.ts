/**
 * @file Rewrites a `tokenizer.json` where `@huggingface/tokenizers` 0.2 departs from the reference (the Rust `tokenizers`), so that
 * both give the same ids: each repair says the same thing in parts that the library does as the reference does.
 */

/** A part of a tokenizer.json. */
export type Json = { readonly [key: string]: unknown }

/** Whether a value is a JSON object. */
export function isJson(value: unknown): value is Json {
  return typeof value === 'object' && value !== null && !Array.isArray(value)
}

const splitAt = (regex: string, more: Json = {}): Json => ({
  type: 'Split',
  pattern: { Regex: regex },
  behavior: 'Isolated',
  invert: false,
  ...more,
})

/** GPT-2's pattern for words. */
export const gpt2Pattern = "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+"

const punctuation = '[\\p{P}!-/:-@\\[-`{-~]'

/** For each kind of pre-tokenizer, what it is replaced by; undefined leaves it as it is. */
const repairs: Readonly<Record<string, (part: Json) => Json | undefined>> = {
  // The library knows ASCII digits only; the reference means every Unicode number.
  Digits: (part) => splitAt(part.individual_digits === true ? '\\p{N}' : '\\p{N}+'),
  // The library's \w is ASCII.
  Whitespace: () => splitAt('\\w+|[^\\w\\s]+', { behavior: 'Removed', invert: true }),
  // The library joins runs of punctuation whatever the behaviour is.
  Punctuation: (part) => {
    const behavior = part.behavior ?? 'Isolated'
    if (behavior === 'Contiguous') return splitAt(`${punctuation}+`)
    return behavior === 'Isolated' || behavior === 'Removed' ? splitAt(punctuation, { behavior }) : undefined
  },
  // The library never splits at spaces, which decides where merges end, and does not know the older form of the setting.
  Metaspace: (part) => {
    const mark = typeof part.replacement === 'string' ? part.replacement : '▁'
    const scheme = part.prepend_scheme ?? (part.add_prefix_space === false ? 'never' : 'always')
    const metaspace = { ...part, prepend_scheme: scheme, split: false }
    if (part.split === false) return metaspace
    return sequence([metaspace, splitAt(`${mark}[^${mark}]*|[^${mark}]+`, { behavior: 'Removed', invert: true })])
  },
  // JavaScript's \s has U+FEFF and lacks U+0085; the library translates patterns in Split, but not its own copy of this one.
  ByteLevel: (part) => {
    if (part.use_regex === false) return undefined
    const space = { type: 'Replace', pattern: { Regex: '\\A[^ ]' }, content: ' $&' }
    const split = [splitAt(gpt2Pattern), { ...part, use_regex: false, add_prefix_space: false }]
    return sequence(part.add_prefix_space === true ? [space, ...split] : split)
  },
}

const sequence = (pretokenizers: readonly Json[]): Json => ({ type: 'Sequence', pretokenizers })

function repairPreTokenizer(part: unknown): unknown {
  if (!isJson(part)) return part ?? null
  if (part.type === 'Sequence' && Array.isArray(part.pretokenizers))
    return { ...part, pretokenizers: part.pretokenizers.map(repairPreTokenizer) }
  return repairs[String(part.type)]?.(part) ?? part
}

/** Classes of transformers that put BOS and EOS around a text as their configuration says, whatever the tokenizer.json does. */
const configured = /^(Llama|CodeLlama|Gemma|Cohere|GPTNeoX)Tokenizer(Fast)?$/

function repairPostProcessor(part: unknown, config: Json): unknown {
  const { add_bos_token: addBos, add_eos_token: addEos } = config
  const told = typeof addBos === 'boolean' || addEos === true
  if (!told || !configured.test(String(config.tokenizer_class))) return part ?? null
  const bos = addBos !== false ? contentOf(config.bos_token) : undefined
  const eos = addEos === true ? contentOf(config.eos_token) : undefined
  return aroundText(bos, eos)
}

/** A post-processor that puts these tokens around a text, and between a pair. */
export function aroundText(bos: string | undefined, eos: string | undefined): Json {
  const special = (content: string | undefined): Json[] => (content === undefined ? [] : [{ SpecialToken: { id: content, type_id: 0 } }])
  const text = (id: string): Json[] => [...special(bos), { Sequence: { id, type_id: 0 } }, ...special(eos)]
  return { type: 'TemplateProcessing', single: text('A'), pair: [...text('A'), ...text('B')], special_tokens: {} }
}

/** The text of a token that a configuration names, plain or as `{ content }`. */
export function contentOf(value: unknown): string | undefined {
  if (typeof value === 'string') return value
  return isJson(value) && typeof value.content === 'string' ? value.content : undefined
}

/** The tokenizer.json with the repairs, and with the parts that the library insists on. */
export function repaired(tokenizer: Json, config: Json): Json {
  return {
    ...tokenizer,
    added_tokens: tokenizer.added_tokens ?? [],
    normalizer: tokenizer.normalizer ?? null,
    pre_tokenizer: repairPreTokenizer(tokenizer.pre_tokenizer),
    post_processor: repairPostProcessor(tokenizer.post_processor, config),
    decoder: tokenizer.decoder ?? null,
  }
}
