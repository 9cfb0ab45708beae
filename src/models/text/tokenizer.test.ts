import { readdirSync, readFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { expect, test } from 'vitest'
import { alignTokens, mapText } from './alignment.ts'
import { createDecoder, type Tokenizer } from './tokenizer.ts'

/** A tokenizer whose tokens are bytes; the id 256 is special. */
const bytes: Tokenizer = {
  vocabSize: 257,
  eosIds: [],
  special: new Map([[256, '<s>']]),
  encode: (text) => [...new TextEncoder().encode(text)],
  decode: (ids, options) => {
    const shown = ids.flatMap((id) => (id < 256 ? [id] : options?.skipSpecial ? [] : [...new TextEncoder().encode('<s>')]))
    return new TextDecoder('utf-8', { ignoreBOM: true }).decode(Uint8Array.from(shown))
  },
  piece: (id) => String(id),
  offsets: () => ({ ids: [], offsets: [] }),
  idOf: () => undefined,
}

const stream = (ids: readonly number[], options = {}) => {
  const decoder = createDecoder(bytes, options)
  return [...ids.map((id) => decoder.push(id)), decoder.end()]
}

test('a character comes out with its last byte', () => {
  expect(stream(bytes.encode('aé👍b'))).toEqual(['a', '', 'é', '', '', '', '👍', 'b', ''])
})

test('what never becomes a character is replaced, no earlier than certain', () => {
  expect(stream([0x61, 0xf0, 0x9f])).toEqual(['a', '', '', '\uFFFD'])
  expect(stream([0xff, 0xff, 0x61])).toEqual(['', '\uFFFD', '\uFFFDa', ''])
  expect(stream([...bytes.encode('\uFFFD'), 0x61]).join('')).toBe('\uFFFDa')
})

test('pieces joined are the whole, for long streams of anything', () => {
  let state = 7
  const random = () => {
    state = (Math.imul(state, 1103515245) + 12345) >>> 0
    return state >>> 16
  }
  const words = ['hello ', '日本', '👨‍👩‍👧', '\n', 'é']
  for (let run = 0; run < 50; run++) {
    const ids = Array.from({ length: 60 }, () =>
      random() % 3 === 0 ? [random() % 257] : bytes.encode(words[random() % 5] as string),
    ).flat()
    expect(stream(ids).join('')).toBe(bytes.decode(ids))
    expect(stream(ids, { skipSpecial: true }).join('')).toBe(bytes.decode(ids, { skipSpecial: true }))
    const cut = random() % ids.length
    const before = bytes.decode(ids.slice(0, cut))
    if (!before.endsWith('\uFFFD')) expect(before + stream(ids.slice(cut), { after: ids.slice(0, cut) }).join('')).toBe(bytes.decode(ids))
  }
})

test('a character that the prompt began is finished', () => {
  const ids = bytes.encode('a👍b')
  expect(stream(ids.slice(3), { after: ids.slice(0, 3) }).join('')).toBe('👍b')
})

const encode = (text: string) => new TextEncoder().encode(text)
const ranges = (text: string, tokens: string[], normalize?: (part: string) => string) =>
  alignTokens(
    mapText(text, normalize),
    tokens.map((token) => (token === '?' ? 'unknown' : token === '[' ? 'before' : token === ']' ? 'after' : encode(token))),
  ).map(([from, to]) => text.slice(from, to))

test('alignment follows what a tokenizer adds, drops and changes', () => {
  expect(ranges('one two', ['[', ' one', ' two', ']'])).toEqual(['', 'one', ' two', ''])
  expect(ranges('one two', ['one', 'two'])).toEqual(['one', 'two'])
  expect(ranges('Héllo WORLD', ['hello', 'world'], (part) => part.normalize('NFD').replace(/\p{M}/gu, '').toLowerCase())).toEqual([
    'Héllo',
    'WORLD',
  ])
  expect(ranges('e\u0301x', ['é', 'x'], (part) => part.normalize('NFC'))).toEqual(['e\u0301', 'x'])
  expect(ranges('ﬁne', ['f', 'ine'], (part) => part.normalize('NFKC'))).toEqual(['ﬁ', 'ﬁne'])
  expect(ranges('a\u0004b', ['a', 'b'])).toEqual(['a', 'b'])
  expect(ranges('one', [' ', 'one'])).toEqual(['', 'one'])
  expect(ranges('one', ['two'])).toEqual([''])
  expect(ranges('', ['[', ']'])).toEqual(['', ''])
})

test('alignment gives tokens without text what is left', () => {
  expect(ranges('a £ b', ['a', '?', 'b'])).toEqual(['a', '£', 'b'])
  expect(ranges('日本 語 x', ['?', '?', 'x'])).toEqual(['日本', '語', 'x'])
  expect(ranges('日本x', ['?', '?', 'x'])).toEqual(['日', '本', 'x'])
  expect(ranges('日本語', ['?', '?'])).toEqual(['日本語', '日本語'])
  expect(ranges('a', ['a', '?', ']'])).toEqual(['a', '', ''])
})

test('nothing here needs Node before it is called', () => {
  const folder = dirname(fileURLToPath(import.meta.url))
  const sources = readdirSync(folder).filter((name) => name.endsWith('.ts') && !/test/.test(name))
  expect(sources.length).toBeGreaterThan(8)
  for (const name of sources) {
    expect(readFileSync(join(folder, name), 'utf8')).not.toMatch(/^import .*(from )?'(node:|\.\.\/\.\.\/base\/files)/m)
  }
})
