/** Texts held to JSON schemas, grammars and expressions: a random model with real kinds of tokenisers, greedy and drawn; what is written always parses. */
import { describe, expect, it } from 'vitest'
import { encodeSafetensors, fromBytes, openSafetensors } from '../models/formats/index.ts'
import { charOfByte } from '../models/text/bytes.ts'
import { createHfTokenizer, parseLlama2cTokenizer } from '../models/text/index.ts'
import { checkSchema } from '../models/text/json-schema.ts'
import { stories15mTokenizer } from '../models/text/test-files.ts'
import type { Tokenizer } from '../models/text/tokenizer.ts'
import { assemble } from './load.ts'
import { tinyLlama, tinyModel, tinyTensors } from './testing.ts'

const special = (content: string, id: number) => ({
  id,
  content,
  special: true,
  single_word: false,
  lstrip: false,
  rstrip: false,
  normalized: false,
})

/** A byte-level BPE of all bytes and some merges, as GPT-2's kind has them; one token is half a character with a space. */
function byteLevel(): Tokenizer {
  const merges = ['{ "', '" :', '" ,', 't r', 'tr u', 'tru e', 'Ġ "', '1 2', '" }', 'Ġ Ã', '} ]']
  const tokens = ['<|end|>', ...charOfByte, ...merges.map((m) => m.replace(' ', ''))]
  return createHfTokenizer({
    tokenizer: {
      version: '1.0',
      added_tokens: [special('<|end|>', 0)],
      normalizer: null,
      pre_tokenizer: { type: 'ByteLevel', add_prefix_space: false, trim_offsets: true, use_regex: true },
      post_processor: null,
      decoder: { type: 'ByteLevel', add_prefix_space: true, trim_offsets: true, use_regex: true },
      model: { type: 'BPE', vocab: Object.fromEntries(tokens.map((t, id) => [t, id])), merges },
    },
    config: { eos_token: '<|end|>' },
  } as Parameters<typeof createHfTokenizer>[0])
}

/** SentencePiece's kind in a tokenizer.json: pieces with ▁ for spaces, bytes for the rest. */
function bytePieces(): Tokenizer {
  const bytes = Array.from({ length: 256 }, (_, b) => `<0x${b.toString(16).toUpperCase().padStart(2, '0')}>`)
  const letters = Array.from({ length: 94 }, (_, i) => String.fromCharCode(33 + i))
  const tokens = ['<unk>', '<s>', '</s>', ...bytes, '▁', ...letters, '▁{', '▁"', '":', 'true', 'é']
  return createHfTokenizer({
    tokenizer: {
      version: '1.0',
      added_tokens: [special('<unk>', 0), special('<s>', 1), special('</s>', 2)],
      normalizer: {
        type: 'Sequence',
        normalizers: [
          { type: 'Prepend', prepend: '▁' },
          { type: 'Replace', pattern: { String: ' ' }, content: '▁' },
        ],
      },
      pre_tokenizer: null,
      post_processor: null,
      decoder: {
        type: 'Sequence',
        decoders: [
          { type: 'Replace', pattern: { String: '▁' }, content: ' ' },
          { type: 'ByteFallback' },
          { type: 'Fuse' },
          { type: 'Strip', content: ' ', start: 1, stop: 0 },
        ],
      },
      model: {
        type: 'BPE',
        vocab: Object.fromEntries(tokens.map((t, id) => [t, id])),
        merges: [],
        byte_fallback: true,
        unk_token: '<unk>',
        fuse_unk: true,
      },
    },
    config: { bos_token: '<s>', eos_token: '</s>' },
  } as Parameters<typeof createHfTokenizer>[0])
}

const stories = stories15mTokenizer()

const kinds: readonly (readonly [string, () => Tokenizer])[] = [
  ['byte-level BPE', byteLevel],
  ['pieces with bytes', bytePieces],
  ...(stories ? [["llama2.c's pieces", () => parseLlama2cTokenizer(stories)] as const] : []),
]

async function randomModel(tokenizer: Tokenizer) {
  const config = { ...tinyLlama, num_hidden_layers: 1, vocab_size: tokenizer.vocabSize + 3, max_position_embeddings: 256 }
  const store = await openSafetensors(fromBytes(encodeSafetensors(tinyTensors(config))))
  return assemble({ id: 'random', hash: async () => 'random', store, config, tokenizer }, { threads: 1 })
}

const person = {
  type: 'object',
  properties: {
    name: { type: 'string', minLength: 1, maxLength: 6 },
    age: { type: 'integer', minimum: -3, maximum: 120 },
    tags: { type: 'array', items: { enum: ['a', 'bé', null] }, maxItems: 3 },
    free: { type: 'string' },
  },
  required: ['name', 'age', 'free'],
  additionalProperties: false,
}

function checkPerson(text: string): void {
  const value = JSON.parse(text) as { name: string; age: number; tags?: unknown[]; free: string }
  expect(Object.keys(value).every((k) => k in person.properties)).toBe(true)
  expect([...value.name].length).toBeGreaterThanOrEqual(1)
  expect([...value.name].length).toBeLessThanOrEqual(6)
  expect(Number.isInteger(value.age) && value.age >= -3 && value.age <= 120).toBe(true)
  expect(typeof value.free).toBe('string')
  for (const t of value.tags ?? []) expect(['a', 'bé', null]).toContain(t)
}

describe.each(kinds)('%s', (_, make) => {
  it('writes JSON that the schema describes, greedily and drawn, within the tokens that it has', async () => {
    const tokenizer = make()
    await using model = await randomModel(tokenizer)
    // A large vocabulary takes its time.
    const rows = (tokenizer.vocabSize > 1000 ? [5] : [5, 6]).map((id) => [id, id + 20])
    for (const own of [{}, { temperature: 2, seed: 1, topP: 0.95 }]) {
      const results = await model.generate({ rows }, { maxNewTokens: 48, constraint: { jsonSchema: person }, ...own }).results()
      for (const r of results) {
        expect(r.finishReason).toBe('stop')
        checkPerson(r.text)
      }
    }
  })

  it('matches grammars and regular expressions', async () => {
    await using model = await randomModel(make())
    const of = async (constraint: { grammar: string } | { regex: string }) => {
      const results = await model.generate({ rows: [[5], [6]] }, { maxNewTokens: 40, temperature: 2, constraint }).results()
      expect(results.every((r) => r.finishReason === 'stop')).toBe(true)
      return results.map((r) => r.text)
    }
    for (const text of await of({ regex: '([a-c]|é|日本)+-\\d{2,3}' })) expect(text).toMatch(/^([a-c]|é|日本)+-\d{2,3}$/)
    for (const text of await of({ grammar: 'root ::= "yes" | "no, " root' })) expect(text).toMatch(/^(no, )*yes$/)
  })
})

describe('refusals', () => {
  it.each([
    [{ type: 'string', format: 'date' }, "keyword 'format'"],
    [{ type: 'array', items: { multipleOf: 3 } }, "The JSON schema, items has the keyword 'multipleOf'"],
    [{ type: 'number', minimum: 0 }, 'honoured for the type "integer" alone'],
    [{ allOf: [{}, {}] }, "'allOf' of several"],
    [{ oneOf: [{ type: 'integer' }, { type: 'number' }] }, 'might fulfil together'],
    [{ type: 'string', pattern: 'a' }, "keyword 'pattern'"],
    [{ type: 'thing' }, 'has the type "thing"'],
    [{ anyOf: [{ type: 'string' }], minLength: 2 }, 'of which a grammar honours only one'],
    [false, 'no value fulfils'],
    [[], 'must be an object'],
  ])('of schemas that would be honoured in part: %j', (schema, words) => {
    expect(() => checkSchema(schema)).toThrow(words)
  })

  it('of what is malformed, cannot be written in time, or has no tokens to be written with', async () => {
    await using model = await randomModel(byteLevel())
    const refused = (constraint: object, words: string) =>
      expect(model.generate({ ids: [5] }, { maxNewTokens: 10, constraint: constraint as { regex: string } }).result()).rejects.toThrow(
        words,
      )
    await refused({ regex: '[a-cé]+' }, 'with characters beyond ASCII')
    await refused({ regex: '[a-' }, 'The regular expression is not one that can be used')
    await refused({ grammar: 'root ::= "a' }, 'The grammar is not one that can be used')
    await refused({ grammar: 'rot ::= "a"' }, '"root" is not found')
    await refused({ regex: 'a{100}' }, 'within 10 tokens')
    await refused({ regex: 'a', grammar: 'root ::= "a"' }, 'one of jsonSchema, grammar and regex')
    await using bare = await tinyModel()
    expect(() => bare.generate({ ids: [5] }, { constraint: { regex: 'a' } })).toThrow('needs a tokenizer')
  })
})
