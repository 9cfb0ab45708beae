import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { FormatError } from '../../base/errors.ts'
import { loadHfTokenizer, readHfTokenizer } from './folder.ts'
import { isJson, type Json } from './hf-repairs.ts'
import { createHfTokenizer } from './hf-tokenizer.ts'
import { recorded } from './test-files.ts'
import { createDecoder } from './tokenizer.ts'

interface Case {
  readonly text: string
  readonly ids: number[]
  readonly plain: number[]
  readonly offsets: [number, number][]
  readonly decoded: string
}
const { made } = recorded<{ made: Record<string, { tokenizer: Json; cases: Case[] }> }>('hf-reference.json')

describe.each(Object.entries(made))('%s: as the Rust library does', (name, { tokenizer: json, cases }) => {
  const tokenizer = createHfTokenizer({ tokenizer: json })

  test('ids', () => {
    for (const { text, ids, plain } of cases) {
      expect([text, tokenizer.encode(text)]).toEqual([text, ids])
      expect([text, tokenizer.encode(text, { addSpecial: false })]).toEqual([text, plain])
    }
  })

  test('text, at once and streamed', () => {
    for (const { ids, decoded } of cases) {
      expect(tokenizer.decode(ids, { skipSpecial: true })).toBe(decoded)
      const decoder = createDecoder(tokenizer, { skipSpecial: true })
      expect(ids.map((id) => decoder.push(id)).join('') + decoder.end()).toBe(decoded)
    }
  })

  test('offsets, but for what we define otherwise', () => {
    const [first] = cases as [Case]
    const begin = first.ids.findIndex((_, i) => first.plain.every((id, j) => id === first.ids[i + j]))
    for (const { text, ids, plain, offsets } of cases) {
      const found = tokenizer.offsets(text)
      expect(found.ids).toEqual(ids)
      found.offsets.forEach((range, i) => {
        const expected = offsets[i] as [number, number]
        // Tokens added behind lie at the end, not at 0; a space that was put in front is empty instead of reaching over the first letter.
        if (i >= begin + plain.length) expect(range).toEqual([text.length, text.length])
        else if (range[0] !== range[1] || range[0] !== expected[0]) {
          if (!deviations.has(`${name}: ${text}`)) expect([text, i, ...range]).toEqual([text, i, ...expected])
        }
      })
    }
  })
})

/** Texts where normalization joins characters (we give both, the reference one of them), or whose extent cannot be told from the tokens. */
const deviations = new Set([
  'unigram: e\u0301 vs é',
  'unigram: def f(x):\n    return x**2',
  'suffix: e\u0301 vs é',
  'suffix: a\u0085b\ufeffc\u00a0d\u3000e',
  'suffix: a\tb\r\nc',
])

const jsonOf = (name: string): Json => (made[name] as { tokenizer: Json }).tokenizer

describe('what the interface adds', () => {
  const config = { bos_token: '<s>', eos_token: { content: '</s>' }, unk_token: '<unk>' }
  const byteLevel = createHfTokenizer({ tokenizer: jsonOf('gpt2'), config })

  test('special tokens and where generation stops', () => {
    expect(byteLevel).toMatchObject({ bos: 1, eos: 2, eosIds: [2] })
    expect(byteLevel.pad).toBeUndefined()
    expect([...byteLevel.special]).toEqual([
      [0, '<unk>'],
      [1, '<s>'],
      [2, '</s>'],
    ])
    const stops = createHfTokenizer({
      tokenizer: jsonOf('gpt2'),
      config,
      generationConfig: { eos_token_id: [7, 2] },
      modelConfig: { eos_token_id: 9 },
    })
    expect(stops.eosIds).toEqual([2, 7, 9])
    const fromMap = createHfTokenizer({ tokenizer: jsonOf('gpt2'), specialTokensMap: { bos_token: { content: '<s>' }, pad_token: '</s>' } })
    expect([fromMap.bos, fromMap.pad, fromMap.eosIds]).toEqual([1, 2, []])
  })

  test('a named token that the vocabulary lacks is told', () => {
    expect(() => createHfTokenizer({ tokenizer: jsonOf('gpt2'), config: { eos_token: '<|end|>' } })).toThrow(
      /names '<\|end\|>' as eos_token, but the vocabulary has no such token: .* of different models/,
    )
  })

  test('a class that adds BOS by its configuration', () => {
    const llama = (more: Json) =>
      createHfTokenizer({ tokenizer: jsonOf('llama'), config: { ...config, tokenizer_class: 'LlamaTokenizer', ...more } })
    const ends = (more: Json) => [llama(more).encode('fox')[0] === 1, llama(more).encode('fox').at(-1) === 2]
    expect(ends({})).toEqual([true, false])
    expect(ends({ add_bos_token: false })).toEqual([false, false])
    expect(ends({ add_bos_token: true, add_eos_token: true })).toEqual([true, true])
  })

  test('pieces show text, special tokens and lone bytes', () => {
    const shown = (text: string) => byteLevel.encode(text).map((id) => byteLevel.piece(id))
    expect(shown('The fox').join('')).toBe('<s>The fox')
    expect(shown('日').join('')).toBe('<s><0xE6><0x97><0xA5>')
    expect(byteLevel.piece(100_000)).toBe('<id 100000>')
    const bert = createHfTokenizer({ tokenizer: jsonOf('bert') })
    expect(bert.encode('fox walked').map((id) => bert.piece(id))[0]).toBe('[CLS]')
    const spm = createHfTokenizer({ tokenizer: jsonOf('llama') })
    expect(spm.piece(spm.idOf('\n') as number)).toBe('\n')
  })

  test('the id of a single token by its text', () => {
    for (const name of ['gpt2', 'llama', 'unsplit', 'bert', 'suffix']) {
      const tokenizer = createHfTokenizer({ tokenizer: jsonOf(name) })
      for (const id of tokenizer.encode('<s>the fox, the owl!')) {
        const piece = tokenizer.piece(id)
        // A piece inside a word is shown as one that ends it where the vocabulary has both.
        if (name === 'suffix' || piece.startsWith('##')) expect(tokenizer.idOf(piece)).toBeDefined()
        else expect([name, piece, tokenizer.idOf(piece)]).toEqual([name, piece, id])
      }
    }
    expect([byteLevel.idOf('<s>'), byteLevel.idOf('Ġ'), byteLevel.idOf('no such token')]).toEqual([1, byteLevel.idOf(' '), undefined])
  })

  test('unknown ids give no text, impossible ones are refused', () => {
    expect(byteLevel.decode([100_000])).toBe('')
    expect(byteLevel.decode([])).toBe('')
    expect(() => byteLevel.decode([Number.NaN])).toThrow(/NaN is not a token id/)
    expect(byteLevel.decode(byteLevel.encode('a fox'))).toBe('<s>a fox')
  })
})

describe('a WordLevel model', () => {
  // The order of the vocabulary must not matter: 0 is an id like any other.
  const ids = { first: { '[UNK]': 0, a: 1, b: 2 }, last: { a: 0, b: 1, '[UNK]': 2 } }
  test.each(Object.entries(ids))('with its unknown token %s gives it for unknown words, as the Rust library does', (_, vocab) => {
    const tokenizer = createHfTokenizer({
      tokenizer: { model: { type: 'WordLevel', vocab, unk_token: '[UNK]' }, pre_tokenizer: { type: 'WhitespaceSplit' } },
    })
    expect(tokenizer.encode('a zz b')).toEqual([vocab.a, vocab['[UNK]'], vocab.b])
    expect(tokenizer.offsets('a zz b').offsets[1]).toEqual([2, 4])
  })
})

describe('a damaged tokenizer.json', () => {
  const good = jsonOf('gpt2')
  test.each([
    [null, /is not an object/],
    [[], /is not an object/],
    [{}, /has no model with a vocabulary/],
    [{ ...good, model: { type: 'Neural', vocab: {} } }, /a model of the kind 'Neural', which is not known here/],
    [{ ...good, added_tokens: [{ id: 1 }] }, /an added token without content or id/],
    [{ ...good, pre_tokenizer: { type: 'UnicodeScripts' } }, /tokenizer\.json cannot be used: Unknown PreTokenizer type: UnicodeScripts/],
    [{ ...good, model: { type: 'BPE', vocab: {}, merges: 7 } }, /tokenizer\.json cannot be used/],
  ])('%#', (tokenizer, sentence) => {
    expect(() => createHfTokenizer({ tokenizer })).toThrow(sentence)
    expect(() => createHfTokenizer({ tokenizer })).toThrow(FormatError)
  })
})

describe('a folder', () => {
  let folder: string
  beforeAll(async () => {
    folder = await mkdtemp(join(tmpdir(), 'actlens-text-'))
  })
  afterAll(() => rm(folder, { recursive: true, force: true }))

  test('is read with all its files', async () => {
    await expect(loadHfTokenizer(folder)).rejects.toThrow(/has no tokenizer\.json\. Write one with Python/)
    await writeFile(join(folder, 'tokenizer.json'), '{"model":')
    await expect(loadHfTokenizer(folder)).rejects.toThrow(/tokenizer\.json of .* is not valid JSON/)
    await writeFile(join(folder, 'tokenizer.json'), '{}')
    await expect(loadHfTokenizer(folder)).rejects.toThrow(new RegExp(`${folder}: tokenizer\\.json has no model`))
    await writeFile(join(folder, 'tokenizer.json'), JSON.stringify(jsonOf('gpt2')))
    await writeFile(join(folder, 'tokenizer_config.json'), JSON.stringify({ eos_token: '</s>', chat_template: 'from configuration' }))
    await writeFile(join(folder, 'generation_config.json'), JSON.stringify({ eos_token_id: 5 }))
    const tokenizer = await loadHfTokenizer(folder)
    expect(tokenizer.eosIds).toEqual([2, 5])
    expect(tokenizer.chat?.([{ role: 'user', content: 'x' }])).toBe('from configuration')
    await writeFile(join(folder, 'chat_template.jinja'), 'from its own file')
    expect((await loadHfTokenizer(folder)).chat?.([{ role: 'user', content: 'x' }])).toBe('from its own file')
  })

  test('may lie anywhere, as in a browser', async () => {
    const files: Record<string, string> = {
      'tokenizer.json': JSON.stringify(jsonOf('gpt2')),
      'chat_template.json': JSON.stringify({ chat_template: 'older form' }),
    }
    const tokenizer = await readHfTokenizer(async (name) => files[name], 'the page')
    expect(tokenizer.chat?.([{ role: 'user', content: 'x' }])).toBe('older form')
    await expect(readHfTokenizer(async () => undefined, 'the page')).rejects.toThrow(/the page has no tokenizer\.json/)
  })
})

test('objects are told from other values', () => {
  expect([isJson({}), isJson([]), isJson(null), isJson('x')]).toEqual([true, false, false, false])
})
