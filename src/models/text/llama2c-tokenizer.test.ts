import { readFileSync } from 'node:fs'
import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import { FormatError, UsageError } from '../../base/errors.ts'
import { parseLlama2cTokenizer } from './llama2c-tokenizer.ts'
import { recorded, sharedFile, stories15mTokenizer } from './test-files.ts'
import { createDecoder, type Tokenizer } from './tokenizer.ts'

/** A llama2.c tokenizer file of these pieces. */
function pack(pieces: readonly (readonly [string | Uint8Array, number])[], longest = 64): Uint8Array {
  const encoded = pieces.map(([piece, score]) => ({ bytes: typeof piece === 'string' ? new TextEncoder().encode(piece) : piece, score }))
  const file = new Uint8Array(4 + encoded.reduce((sum, { bytes }) => sum + 8 + bytes.length, 0))
  const view = new DataView(file.buffer)
  view.setInt32(0, longest, true)
  let at = 4
  for (const { bytes, score } of encoded) {
    view.setFloat32(at, score, true)
    view.setInt32(at + 4, bytes.length, true)
    file.set(bytes, at + 8)
    at += 8 + bytes.length
  }
  return file
}

const bytePieces = Array.from({ length: 256 }, (_, byte) => [`<0x${byte.toString(16).toUpperCase().padStart(2, '0')}>`, 0] as const)
const small = [
  ['<unk>', 0],
  ['\n<s>\n', 0],
  ['\n</s>\n', 0],
  ...bytePieces,
  [' t', -1],
  ['he', -2],
  [' the', -3],
  ['t', -4],
  ['h', -5],
  ['e', -6],
  [' ', -7],
] as const
const file = pack(small)

describe('a small vocabulary', () => {
  const tokenizer = parseLlama2cTokenizer(file, small.length)

  test('its facts', () => {
    expect(tokenizer).toMatchObject({ vocabSize: small.length, bos: 1, eos: 2, eosIds: [2, 1] })
    expect([...tokenizer.special]).toEqual([
      [0, '<unk>'],
      [1, '<s>'],
      [2, '</s>'],
    ])
    expect(tokenizer.chat).toBeUndefined()
    expect(parseLlama2cTokenizer(file).vocabSize).toBe(small.length)
  })

  test('merges, byte tokens, and the space in front', () => {
    const shown = (text: string) => tokenizer.encode(text).map((id) => tokenizer.piece(id))
    expect(shown('the the')).toEqual(['<s>', ' the', ' the'])
    expect(shown('hé\n\u0000')).toEqual(['<s>', ' ', 'h', '<0xC3>', '<0xA9>', '\n', '\u0000'])
    expect(tokenizer.encode('')).toEqual([1])
    expect(tokenizer.encode('the', { addSpecial: false })).toEqual([261])
  })

  test('decoding takes the space away behind BOS only', () => {
    const ids = tokenizer.encode('the')
    expect(tokenizer.decode(ids, { skipSpecial: true })).toBe('the')
    expect(tokenizer.decode(ids)).toBe('<s>the')
    expect(tokenizer.decode(ids.slice(1))).toBe(' the')
    expect(tokenizer.decode([])).toBe('')
    expect(tokenizer.decode([9999])).toBe('')
    expect(() => tokenizer.decode([-1])).toThrow(UsageError)
    expect(() => tokenizer.decode([1.5])).toThrow(/1\.5 is not a token id/)
  })

  test('pieces and ids of single tokens', () => {
    expect([tokenizer.piece(0), tokenizer.piece(261), tokenizer.piece(3 + 0xe2), tokenizer.piece(9999)]).toEqual([
      '<unk>',
      ' the',
      '<0xE2>',
      '<id 9999>',
    ])
    expect([tokenizer.idOf(' the'), tokenizer.idOf('<s>'), tokenizer.idOf('\n'), tokenizer.idOf('xyz')]).toEqual([261, 1, 13, undefined])
  })

  test('offsets', () => {
    const text = 'the 👍 the'
    const { ids, offsets } = tokenizer.offsets(text)
    expect(ids).toEqual(tokenizer.encode(text))
    expect(offsets.map(([from, to]) => text.slice(from, to))).toEqual(['', 'the', ' ', '👍', '👍', '👍', '👍', ' the'])
  })
})

test('older files spell bytes as characters, and mean the bytes', () => {
  const older = Array.from({ length: 256 }, (_, byte) => [String.fromCharCode(byte), 0] as const)
  const tokenizer = parseLlama2cTokenizer(pack([...small.slice(0, 3), ...older, ['é', -1], [' ', -2], [' \u00e2', -3]]))
  expect(tokenizer.encode('éⅧ', { addSpecial: false })).toEqual([260, 259, 3 + 0xe2, 3 + 0x85, 3 + 0xa7])
  expect(tokenizer.decode(tokenizer.encode('éⅧ\u0085'), { skipSpecial: true })).toBe('éⅧ\u0085')
})

describe('a damaged file', () => {
  test.each([
    ['empty', new Uint8Array(0), undefined, /ends after 0 pieces: it is truncated/],
    ['cut in a header', file.subarray(0, 9), small.length, /ends after 0 of 266 pieces: it is truncated, or of another model/],
    ['cut in a piece', file.subarray(0, file.length - 1), small.length, /ends after 265 of 266 pieces/],
    ['fewer pieces than the model has', file, 300, /ends after 266 of 300 pieces/],
    ['more pieces than the model has', file, 200, /bytes behind its 200 pieces: it belongs to a model with a larger vocabulary/],
    [
      'something else',
      new TextEncoder().encode('GGUF and more'),
      undefined,
      /is not a llama2\.c tokenizer: it begins with a piece length of/,
    ],
    ['an absurd length', pack([['a'.repeat(40), 0]], 20), 1, /damaged at piece 0: it has length 40 \(at most 20\)/],
    ['a score that is no number', pack([['a', Number.NaN]]), 1, /damaged at piece 0: .* score NaN/],
    ['hardly any pieces', pack([['a', 0]]), 1, /has only 1 pieces/],
  ])('%s', (_, bytes, vocabSize, sentence) => {
    expect(() => parseLlama2cTokenizer(bytes, vocabSize, 'tok.bin')).toThrow(sentence)
    expect(() => parseLlama2cTokenizer(bytes, vocabSize, 'tok.bin')).toThrow(FormatError)
  })
})

interface Case {
  readonly text: string
  readonly ids: number[]
}
const reference = recorded<{ stories15M: Case[]; stories260K: Case[] }>('score-reference.json')
const tok512 = sharedFile('models', 'stories260K', 'tok512.bin')
const tokenizer15m = stories15mTokenizer()

const real: [keyof typeof reference, Uint8Array | undefined, number][] = [
  ['stories15M', tokenizer15m, 32_000],
  ['stories260K', tok512 ? new Uint8Array(readFileSync(tok512)) : undefined, 512],
]
for (const [name, bytes, vocabSize] of real) {
  describe.skipIf(!bytes)(`${name}'s tokenizer`, () => {
    const open = (): Tokenizer => parseLlama2cTokenizer(bytes as Uint8Array, vocabSize)

    test("ids are llama2.c's, and decoding gives the text back", () => {
      const tokenizer = open()
      for (const { text, ids } of reference[name]) {
        expect(tokenizer.encode(text)).toEqual(ids)
        expect(tokenizer.decode(ids, { skipSpecial: true })).toBe(text)
      }
    })

    const golden = sharedFile('goldens', name, 'golden.json')
    test.skipIf(!golden)('ids of the recorded prompt', () => {
      const { prompt, prompt_ids } = JSON.parse(readFileSync(golden as string, 'utf8')) as { prompt: string; prompt_ids: number[] }
      expect(open().encode(prompt)).toEqual(prompt_ids)
    })

    test('any text comes back, streamed or at once, and its offsets follow it', () => {
      const tokenizer = open()
      fc.assert(
        fc.property(fc.string({ unit: 'grapheme', maxLength: 60 }), (text) => {
          const ids = tokenizer.encode(text)
          expect(tokenizer.decode(ids, { skipSpecial: true })).toBe(text)
          const decoder = createDecoder(tokenizer, { skipSpecial: true })
          expect(ids.map((id) => decoder.push(id)).join('') + decoder.end()).toBe(text)
          const { offsets } = tokenizer.offsets(text)
          // Tokens lie side by side and cover the text, the parts of one character together.
          expect(offsets.at(-1)?.[1]).toBe(text.length)
          offsets.forEach(([from, to], i) => {
            const [, before] = offsets[i - 1] ?? [0, 0]
            expect(from === before || from === offsets[i - 1]?.[0]).toBe(true)
            expect(to).toBeGreaterThanOrEqual(from)
          })
        }),
        { numRuns: 150, seed: 11 },
      )
    })

    test('a long text', () => {
      const tokenizer = open()
      const text = 'Once upon a time, there was a little girl named Lily. She said: "123 naïve 👍 cafés!"\n'.repeat(1200)
      const ids = tokenizer.encode(text)
      expect(tokenizer.decode(ids, { skipSpecial: true })).toBe(text)
    })
  })
}
