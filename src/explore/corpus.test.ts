import { writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { gzipSync } from 'node:zlib'
import { expect, it } from 'vitest'
import { writeSafetensors } from '../models/formats/index.ts'
import { temporaryFolder } from '../models/formats/testing.ts'
import { type CorpusFile, type CorpusInput, type CorpusPart, openCorpus } from './corpus.ts'

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

it('refuses the rest with sentences before any work', async () => {
  await refused('a.jsonl', '{"text":"x"}\n{"txt":"y"}\n', /line 2 has no text.*'text' or 'input_ids'.*Its fields are txt/)
  await refused('a.jsonl', '{"text":"x"}\nnot json\n', /line 2 is not JSON/)
  await refused('a.jsonl', '{"text":"x"}\n', /in 'story'/, { field: 'story' })
  await refused('blank.txt', '\n \n', /holds no texts/)
  await refused('a.parquet', 'PAR1', /Parquet is not read here; write it as JSONL/)
  await refused('a.json', '[]', /one JSON value a line/)
  await refused('a.txt.gz', 'no gzip', /cannot be unpacked/)
  await expect(openCorpus({ path: temporaryFolder() })).rejects.toThrow(/is a folder; give a file/)
  await expect(openCorpus({ path: '/nowhere/x.txt' })).rejects.toThrow(/does not exist/)
  await expect(openCorpus([])).rejects.toThrow(/holds no texts/)
})
