import { readFileSync } from 'node:fs'
import { gguf } from '@huggingface/gguf'
import { beforeAll, describe, expect, test } from 'vitest'
import { FormatError, ModelError } from '../../base/errors.ts'
import { charOfByte } from './bytes.ts'
import { type ChatMessage, renderChat } from './chat.ts'
import { preTokenizerOf } from './gguf-pre-tokenizers.ts'
import { type GgufMetadata, ggufTokenizer } from './gguf-tokenizer.ts'
import { fetchedFile, recorded, sharedFile } from './test-files.ts'
import { createDecoder, type Tokenizer } from './tokenizer.ts'

const smollm = fetchedFile('smollm2-135m', 'SmolLM2-135M-Instruct.Q4_1.gguf')
const golden = sharedFile('goldens', 'smollm2-135m', 'golden.json')

describe.skipIf(!smollm || !golden)("SmolLM2-135M-Instruct's tokenizer", () => {
  interface Golden {
    special_tokens: Record<string, number>
    tokenisation: { cases: { text: string; ids: number[]; decoded: string }[] }
    chat_template: { cases: { messages: ChatMessage[]; add_generation_prompt: boolean; text: string; ids: number[] }[] }
    wikitext2: { first_ids: number[]; file_token_count: number }
  }
  let tokenizer: Tokenizer
  let values: Golden
  beforeAll(async () => {
    const { metadata } = await gguf(smollm as string, { allowLocalFile: true })
    tokenizer = ggufTokenizer(metadata as unknown as Record<string, unknown>)
    values = JSON.parse(readFileSync(golden as string, 'utf8')) as Golden
  })

  test('its facts', () => {
    expect(tokenizer).toMatchObject({ vocabSize: 49152, bos: 1, eos: 2, pad: 2, eosIds: [2, 0] })
    expect(new Map([...tokenizer.special].map(([id, text]) => [text, id]))).toEqual(new Map(Object.entries(values.special_tokens)))
  })

  test('all recorded cases: ids, text, stream', () => {
    expect(values.tokenisation.cases.length).toBe(32)
    for (const { text, ids, decoded } of values.tokenisation.cases) {
      expect([text, tokenizer.encode(text)]).toEqual([text, ids])
      expect(tokenizer.decode(ids)).toBe(decoded)
      const decoder = createDecoder(tokenizer)
      expect(ids.map((id) => decoder.push(id)).join('') + decoder.end()).toBe(decoded)
    }
  })

  test('offsets cover the text', () => {
    for (const { text } of values.tokenisation.cases) {
      // A byte without a token leaves a gap.
      if (text.includes('\u0004')) continue
      let at = 0
      for (const [from, to] of tokenizer.offsets(text).offsets) {
        expect(from).toBeLessThanOrEqual(at)
        at = Math.max(at, to)
      }
      expect(at).toBe(text.length)
    }
    expect(tokenizer.offsets('a\u0004b').offsets).toEqual([
      [0, 1],
      [2, 3],
    ])
  })

  test('the chat template', () => {
    for (const { messages, add_generation_prompt, text, ids } of values.chat_template.cases) {
      const rendered = renderChat(tokenizer, messages, { addGenerationPrompt: add_generation_prompt })
      expect(rendered).toBe(text)
      expect(tokenizer.encode(rendered)).toEqual(ids)
    }
  })

  const wikitext = sharedFile('data', 'wikitext2', 'test.txt')
  test.skipIf(!wikitext)('a whole file', () => {
    const text = readFileSync(wikitext as string, 'utf8')
    const ids = tokenizer.encode(text)
    expect(ids.length).toBe(values.wikitext2.file_token_count)
    expect(ids.slice(0, 16)).toEqual(values.wikitext2.first_ids)
    expect(tokenizer.decode(ids)).toBe(text)
  })
})

interface Sentencepiece {
  readonly tokens: string[]
  readonly scores: number[]
  readonly types: number[]
  readonly bos: number
  readonly eos: number
  readonly unk: number
  readonly cases: { text: string; ids: number[]; decoded: string }[]
}
const { sentencepiece } = recorded<{ sentencepiece: Sentencepiece }>('score-reference.json')
const scored = {
  'tokenizer.ggml.model': 'llama',
  'tokenizer.ggml.tokens': sentencepiece.tokens,
  'tokenizer.ggml.scores': new Float32Array(sentencepiece.scores),
  'tokenizer.ggml.token_type': sentencepiece.types,
  'tokenizer.ggml.bos_token_id': BigInt(sentencepiece.bos),
  'tokenizer.ggml.eos_token_id': sentencepiece.eos,
  'tokenizer.ggml.unknown_token_id': sentencepiece.unk,
}

describe("the 'llama' kind", () => {
  const tokenizer = ggufTokenizer(scored)

  test('as SentencePiece does', () => {
    for (const { text, ids, decoded } of sentencepiece.cases) {
      expect([text, tokenizer.encode(text, { addSpecial: false })]).toEqual([text, ids])
      expect(tokenizer.decode(ids)).toBe(decoded)
      expect(tokenizer.encode(text)).toEqual([sentencepiece.bos, ...ids])
    }
  })

  test('special tokens are cut out, user-defined ones, too', () => {
    const shown = (text: string) => tokenizer.encode(text, { addSpecial: false }).map((id) => tokenizer.piece(id))
    const user = sentencepiece.tokens.indexOf('<|user|>')
    expect(tokenizer.encode('<|user|>', { addSpecial: false })).toEqual([user])
    expect(shown('the</s>fox')).toEqual([...shown('the'), '</s>', ...shown('fox')])
    const text = 'the</s>fox <|user|>'
    expect(
      tokenizer
        .offsets(text)
        .offsets.map(([from, to]) => text.slice(from, to))
        .join(''),
    ).toBe(text)
  })

  test('as the file says: no BOS, EOS, no space in front', () => {
    const other = ggufTokenizer(
      new Map<string, unknown>([
        ...Object.entries(scored),
        ['tokenizer.ggml.add_bos_token', false],
        ['tokenizer.ggml.add_eos_token', true],
        ['tokenizer.ggml.add_space_prefix', false],
      ]),
    )
    const ids = other.encode('fox')
    expect([ids[0] === sentencepiece.bos, ids.at(-1)]).toEqual([false, sentencepiece.eos])
    expect(other.piece(ids[0] as number).startsWith(' ')).toBe(false)
    expect(other.decode(ids, { skipSpecial: true })).toBe('fox')
  })
})

/** A byte-level vocabulary: all bytes, a few merges, a control and a user-defined token. */
const tokens = [...charOfByte, 'Ġf', 'ox', 'Ġfox', '12', '123', '<|im_end|>', '<mark>']
const byteLevel = {
  'general.architecture': 'llama',
  'tokenizer.ggml.model': 'gpt2',
  'tokenizer.ggml.pre': 'gpt-2',
  'tokenizer.ggml.tokens': tokens,
  'tokenizer.ggml.token_type': tokens.map((token) => (token === '<|im_end|>' ? 3 : token === '<mark>' ? 4 : 1)),
  'tokenizer.ggml.merges': ['Ġ f', 'o x', 'Ġf ox', '1 2', '12 3'],
  'tokenizer.ggml.bos_token_id': 261,
  'tokenizer.ggml.eos_token_id': 261,
  'tokenizer.chat_template': '{{ messages[0].content }}{{ eos_token }}',
  'tokenizer.chat_templates': ['tool_use'],
  'tokenizer.chat_template.tool_use': '{{ tools[0].name }}',
}
const shownWith = (more: Record<string, unknown>, text: string) => {
  const tokenizer = ggufTokenizer({ ...byteLevel, ...more })
  return tokenizer.encode(text).map((id) => tokenizer.piece(id))
}

describe("the 'gpt2' kind", () => {
  test('special, user-defined and merged tokens', () => {
    expect(shownWith({}, 'a fox<mark><|im_end|>')).toEqual(['a', ' fox', '<mark>', '<|im_end|>'])
    const tokenizer = ggufTokenizer(byteLevel)
    expect([...tokenizer.special]).toEqual([[261, '<|im_end|>']])
    expect(tokenizer.eosIds).toEqual([261])
    expect(tokenizer.decode(tokenizer.encode('naïve 👍<mark>'))).toBe('naïve 👍<mark>')
    expect(renderChat(tokenizer, [{ role: 'user', content: 'Hi' }])).toBe('Hi<|im_end|>')
    expect(renderChat(tokenizer, [{ role: 'user', content: 'Hi' }], { tools: [{ name: 'f' }] })).toBe('f')
  })

  test('the way to split decides', () => {
    expect(shownWith({}, '123')).toEqual(['123'])
    expect(shownWith({ 'tokenizer.ggml.pre': 'smollm' }, '123')).toEqual(['1', '2', '3'])
    expect(shownWith({ 'tokenizer.ggml.pre': 'qwen2' }, '123')).toEqual(['1', '2', '3'])
    expect(shownWith({ 'tokenizer.ggml.pre': 'llama-bpe' }, '1234')).toEqual(['<|im_end|>', '123', '4'])
    expect(shownWith({ 'tokenizer.ggml.pre': 'llama-bpe', 'tokenizer.ggml.add_bos_token': false }, '1234')).toEqual(['123', '4'])
    expect(shownWith({ 'tokenizer.ggml.add_bos_token': true, 'tokenizer.ggml.add_eos_token': true }, '1')).toEqual([
      '<|im_end|>',
      '1',
      '<|im_end|>',
    ])
  })

  test('every known way can be used', () => {
    const names = /Known are (.*)\.$/.exec(messageOf(() => preTokenizerOf('?', undefined)))?.[1]?.split(/, | and /) ?? []
    expect(names.length).toBeGreaterThan(40)
    for (const name of names.filter((one) => !/more$/.test(one))) {
      const text = "I'm HelloWorld 12345 foo_bar\n\n  naïve, 日本語 👍 don't"
      const tokenizer = ggufTokenizer({ ...byteLevel, 'tokenizer.ggml.pre': name, 'tokenizer.ggml.add_bos_token': false })
      expect([name, tokenizer.decode(tokenizer.encode(text))]).toEqual([name, text])
    }
  })

  test('patterns split as their models do', () => {
    const split = (name: string, text: string) =>
      preTokenizerOf(name, undefined).patterns.reduce(
        (parts, pattern) => parts.flatMap((part) => part.split(new RegExp(`(${expand(pattern)})`, 'u')).filter((one) => one)),
        [text],
      )
    /** JavaScript before version 24 does not know (?i:…). */
    const expand = (pattern: string) =>
      pattern.replaceAll("(?i:'s|'t|'re|'ve|'m|'ll|'d)", "(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])")
    expect(split('llama-bpe', "It's 12345 OK!\n x")).toEqual(['It', "'s", ' ', '123', '45', ' OK', '!\n', ' x'])
    expect(split('qwen2', "We'LL 42")).toEqual(['We', "'LL", ' ', '4', '2'])
    expect(split('gpt-4o', "HelloWorld isn't")).toEqual(['Hello', 'World', " isn't"])
    expect(split('tekken', 'HelloWorld 42')).toEqual(['Hello', 'World', ' ', '4', '2'])
    expect(split('deepseek-v3', '12345日本x')).toEqual(['123', '45', '日本', 'x'])
    expect(split('smollm', 'a ² 12')).toEqual(['a', ' ', '²', ' ', '1', '2'])
  })
})

function messageOf(work: () => unknown): string {
  try {
    work()
  } catch (error) {
    return (error as Error).message
  }
  return ''
}

describe('what cannot be used', () => {
  const without = (key: string, base: Record<string, unknown> = byteLevel): GgufMetadata =>
    Object.fromEntries(Object.entries(base).filter(([name]) => name !== key))
  test.each<[string, GgufMetadata, RegExp, typeof FormatError | typeof ModelError]>([
    ['no tokenizer', {}, /carries no tokenizer/, ModelError],
    [
      'another kind',
      { ...byteLevel, 'tokenizer.ggml.model': 'rwkv' },
      /of the kind 'rwkv', which is not known here \(known: gpt2, llama\)/,
      ModelError,
    ],
    [
      'an unknown way to split',
      { ...byteLevel, 'tokenizer.ggml.pre': 'smolm' },
      /'smolm', is not known here \(nearest: 'smollm'\)/,
      ModelError,
    ],
    ['no way to split', without('tokenizer.ggml.pre'), /does not say how its tokenizer splits text .* architecture 'llama'/, ModelError],
    ['no tokens', without('tokenizer.ggml.tokens'), /a tokenizer without tokens/, FormatError],
    ['no merges', without('tokenizer.ggml.merges'), /without merges/, FormatError],
    ['no scores', without('tokenizer.ggml.scores', scored), /but no scores/, FormatError],
    ['too few types', { ...byteLevel, 'tokenizer.ggml.token_type': [1] }, /263 tokens but 1 token types/, FormatError],
    [
      'an id outside',
      { ...byteLevel, 'tokenizer.ggml.eos_token_id': 9999 },
      /names 9999 as eos_token_id, but has only 263 tokens/,
      FormatError,
    ],
    [
      'tokens that are no texts',
      { ...byteLevel, 'tokenizer.ggml.tokens': [1, 2] },
      /tokenizer\.ggml\.tokens is not a list of texts/,
      FormatError,
    ],
    ['a flag that is none', { ...byteLevel, 'tokenizer.ggml.add_bos_token': 'yes' }, /is not true or false/, FormatError],
    ['types that are no numbers', { ...byteLevel, 'tokenizer.ggml.token_type': 'x' }, /is not a list of numbers/, FormatError],
  ])('%s', (_, metadata, sentence, type) => {
    expect(() => ggufTokenizer(metadata)).toThrow(sentence)
    expect(() => ggufTokenizer(metadata)).toThrow(type)
  })

  test('an id that means none', () => {
    expect(ggufTokenizer({ ...byteLevel, 'tokenizer.ggml.padding_token_id': 0xffffffff }).pad).toBeUndefined()
  })

  test('files from before the name existed', () => {
    const old = without('tokenizer.ggml.pre') as Record<string, unknown>
    expect(ggufTokenizer({ ...old, 'general.architecture': 'gpt2' }).encode(' fox')).toEqual([258])
  })
})
