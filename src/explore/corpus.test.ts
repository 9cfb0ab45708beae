import { writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { gzipSync } from 'node:zlib'
import { expect, it } from 'vitest'
import { writeSafetensors } from '../models/formats/index.ts'
import { temporaryFolder } from '../models/formats/testing.ts'
import { type CorpusFile, type CorpusInput, type CorpusPart, openCorpus } from './corpus.ts'

/** Files that pyarrow has written. */
const fixture = (name: string) => new URL(`fixtures/${name}`, import.meta.url).pathname

async function file(name: string, content: string | Uint8Array): Promise<string> {
  const path = join(temporaryFolder(), name)
  await writeFile(path, content)
  return path
}

async function read(input: CorpusInput, from = 0) {
  const corpus = await openCorpus(input)
  const parts: CorpusPart[] = []
  for await (const part of corpus.parts(from)) parts.push(part)
  return { facts: corpus.facts, characters: corpus.characters, parts, contents: parts.map((p) => p.content) }
}

const refused = async (name: string, content: string | Uint8Array, message: RegExp, options: Partial<CorpusFile> = {}) => {
  const path = await file(name, content)
  await expect(openCorpus({ path, ...options })).rejects.toThrow(message)
  await expect(openCorpus({ path, ...options })).rejects.toThrow(/[.?]$/)
}

it('reads a text a line; empty lines are skipped and counted, and documents keep the numbers of their lines', async () => {
  const path = await file('a.txt', '\uFEFFone\r\n\r\n  \ntwo three\nids:5,6\nlast')
  const { facts, parts } = await read({ path })
  expect(facts).toMatchObject({ source: 'text', documents: 4, skipped: 2, replaced: 0 })
  expect(parts.map((p) => [p.document, p.content])).toEqual([
    [0, 'one'],
    [3, 'two three'],
    [4, [5, 6]],
    [5, 'last'],
  ])
  expect((await read({ path }, 4)).contents).toEqual([[5, 6], 'last'])
})

it('reads JSONL: strings, texts and ids, a field by name, and compressed', async () => {
  const lines = '"plain"\n{"text":"a"}\n{"text":""}\n{"input_ids":[1,2]}\n{"text":"ids:7"}\n'
  const { facts, contents } = await read({ path: await file('a.jsonl', lines) })
  expect(facts).toMatchObject({ source: 'jsonl', documents: 4, skipped: 1 })
  expect(contents).toEqual(['plain', 'a', [1, 2], [7]])
  const zipped = await read({ path: await file('a.txt.gz', gzipSync('{"story":"once"}\n{"story":"twice"}')), field: 'story' })
  expect(zipped.contents).toEqual(['once', 'twice'])
  // Without a name that says so, the first line tells.
  expect((await read({ path: await file('b.txt', '\n{"text":"x"}\n') })).contents).toEqual(['x'])
})

it('reads rows of token ids from safetensors, without what the mask hides', async () => {
  const path = join(temporaryFolder(), 'tokens.safetensors')
  const int = (data: number[]) => ({ dtype: 'int64' as const, shape: [2, 3], data: BigInt64Array.from(data, BigInt) })
  await writeSafetensors(path, { input_ids: int([1, 2, 3, 0, 4, 5]), attention_mask: int([1, 1, 1, 0, 1, 1]) })
  const { facts, parts } = await read({ path })
  expect(facts).toMatchObject({ source: 'tokens', documents: 2 })
  expect(parts).toEqual([
    { document: 0, first: true, content: [1, 2, 3] },
    { document: 1, first: true, content: [4, 5] },
  ])
  const long = join(temporaryFolder(), 'long.safetensors')
  await writeSafetensors(long, { input_ids: { dtype: 'uint16', shape: [150_000], data: new Uint16Array(150_000).fill(7) } })
  const { parts: pieces } = await read({ path: long })
  expect(pieces.map((p) => [p.document, p.first])).toEqual([
    [0, true],
    [0, false],
    [0, false],
  ])
  expect(pieces.reduce((n, p) => n + p.content.length, 0)).toBe(150_000)
})

it('hands out a line of 10 MB in parts that join to it', async () => {
  const words = `${'word and another one '.repeat(500_000)}😀`
  const { parts, facts, characters } = await read({ path: await file('long.txt', `short\n${words}\nend\n`) })
  expect(facts.documents).toBe(3)
  const long = parts.filter((p) => p.document === 1)
  expect(long.length).toBeGreaterThan(50)
  expect(long.map((p) => p.content).join('')).toBe(words)
  expect(long.map((p) => p.first)).toEqual([true, ...new Array(long.length - 1).fill(false)])
  expect(long.slice(1).every((p) => /^\S/.test(p.content as string))).toBe(true)
  expect(characters).toBe(words.length + 8)
  // Without white space it is cut anywhere but inside a character.
  const dense = await read({ path: await file('dense.txt', '😀'.repeat(200_000)) })
  expect(dense.contents.every((c) => (c as string).isWellFormed())).toBe(true)
})

it('refuses what is no text, or replaces it and counts, as it is told', async () => {
  const bad = Buffer.concat([Buffer.from('good\nb'), Buffer.from([0xff, 0xfe]), Buffer.from('d\nnul\0here\n')])
  await refused('bad.txt', bad, /bad\.txt, line 2 holds bytes that are no UTF-8/)
  await refused('nul.txt', 'a\0b\n', /line 1 holds the character NUL/)
  await refused('nul.jsonl', '{"text":"a\\u0000b"}\n', /line 1 holds the character NUL/)
  await refused('half.jsonl', '{"text":"a\\ud800"}\n', /half of a surrogate pair/)
  const { facts, contents } = await read({ path: await file('bad.txt', bad), invalid: 'replace' })
  expect(facts).toMatchObject({ documents: 3, replaced: 2, invalid: 'replace' })
  expect(contents).toEqual(['good', 'b\uFFFD\uFFFDd', 'nul\uFFFDhere'])
  await expect(openCorpus(['fine', 'a\0'])).rejects.toThrow(/Text 1 holds the character NUL/)
})

it('reads a column of CSV and TSV, with line breaks in quotes', async () => {
  const table = 'label,text\r\n1,"one, ""two""\r\nthree"\n\n0,\n1,plain\n0,"ids:5,6"\n'
  const path = await file('a.csv', table)
  const { facts, parts } = await read({ path })
  expect(facts).toMatchObject({ source: 'csv', documents: 3, skipped: 1 })
  expect(parts.map((p) => [p.document, p.content])).toEqual([
    [0, 'one, "two"\nthree'],
    [2, 'plain'],
    [3, [5, 6]],
  ])
  expect((await read({ path }, 2)).contents).toEqual(['plain', [5, 6]])
  const tabs = await read({ path: await file('a.tsv.gz', gzipSync('n\tstory\n1\ta "b" c\n2\td\n')), field: 'story' })
  expect(tabs.contents).toEqual(['a "b" c', 'd'])
  const bad = Buffer.concat([Buffer.from('text\nfine\nb'), Buffer.from([0xff]), Buffer.from('\n')])
  await refused('bad.csv', bad, /bad\.csv, line 3 holds bytes that are no UTF-8/)
  const replaced = await read({ path: await file('bad.csv', bad), invalid: 'replace' })
  expect([replaced.facts.replaced, replaced.contents]).toEqual([1, ['fine', 'b\uFFFD']])
})

it('reads columns of Parquet files that pyarrow has written: texts, lists of ids, in several row groups', async () => {
  for (const name of ['texts.parquet', 'texts.gzip.parquet']) {
    const { facts, parts } = await read({ path: fixture(name) })
    expect(facts).toMatchObject({ source: 'parquet', documents: 4, skipped: 2 })
    expect(parts.map((p) => [p.document, p.content])).toEqual([
      [0, 'one'],
      [3, 'zwei é'],
      [4, [5, 6]],
      [5, 'last 😀'],
    ])
    expect((await read({ path: fixture(name) }, 4)).contents).toEqual([[5, 6], 'last 😀'])
    expect((await read({ path: fixture(name), field: 'story' })).contents).toEqual(['a', 'b', 'c', 'd', 'e', 'f'])
    expect((await read({ path: fixture(name), field: 'input_ids' })).contents).toEqual([[1, 2], [3], [4, 5, 6], [7]])
    await expect(openCorpus({ path: fixture(name), field: 'n' })).rejects.toThrow(/row 1 has no text/)
    await expect(openCorpus({ path: fixture(name), field: 'lost' })).rejects.toThrow(
      /no column 'lost'.*Its columns are text, story, input_ids, n/,
    )
  }
  await expect(openCorpus({ path: fixture('bytes.parquet') })).rejects.toThrow(/row 2 holds bytes that are no UTF-8/)
  const { facts, contents } = await read({ path: fixture('bytes.parquet'), invalid: 'replace' })
  expect([facts.replaced, contents]).toEqual([2, ['fine', 'b\uFFFD\uFFFDd', 'nul\uFFFDhere']])
})

it('refuses the rest with sentences before any work', async () => {
  await refused('a.jsonl', '{"text":"x"}\n{"txt":"y"}\n', /line 2 has no text.*'text' or 'input_ids'.*Its fields are txt/)
  await refused('a.jsonl', '{"text":"x"}\nnot json\n', /line 2 is not JSON/)
  await refused('a.jsonl', '{"text":"x"}\n', /in 'story'/, { field: 'story' })
  await refused('blank.txt', '\n \n', /holds no texts/)
  await refused('a.parquet', 'PAR1', /cannot be read as Parquet/)
  await refused('a.parquet.gz', gzipSync('PAR1'), /cannot be read from a compressed file/)
  await refused('a.csv', 'story,label\nonce,1\n', /no column 'text' or 'input_ids'\. Its columns are story, label/)
  await refused('a.csv', 'story,label\nonce,1\n', /no column 'storys'; did you mean 'story'/, { field: 'storys' })
  await refused('a.csv', 'text,label\nonce,1\ntwice\n', /in line 3 has 1 fields, but the header names 2/)
  await refused('a.csv', 'text\n"once\n\n', /line 2: a quote is opened and never closed/)
  await refused('a.txt', 'once\n', /there is no field 'x'/, { format: 'text', field: 'x' })
  await refused('a.json', '[]', /one JSON value a line/)
  await refused('a.txt.gz', 'no gzip', /cannot be unpacked/)
  await expect(openCorpus({ path: temporaryFolder() })).rejects.toThrow(/holds no texts or images/)
  await expect(openCorpus({ path: temporaryFolder(), format: 'csv' })).rejects.toThrow(/is a folder; give a file for the format 'csv'/)
  await expect(openCorpus({ path: '/nowhere/x.txt' })).rejects.toThrow(/does not exist/)
  await expect(openCorpus([])).rejects.toThrow(/holds no texts/)
})
