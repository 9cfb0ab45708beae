/** @file Corpora: lists of texts, files of texts, JSONL and token ids, read as a stream of documents (Node). */
import { createHash } from 'node:crypto'
import { createReadStream } from 'node:fs'
import { extname } from 'node:path'
import { pipeline } from 'node:stream'
import { createGunzip } from 'node:zlib'
import { FormatError, messageOf, throwIfCancelled, UsageError } from '../base/errors.ts'
import { readFailure, sizeOrKind, systemCode } from '../base/files.ts'
import type { WorkOptions } from '../base/progress.ts'
import { tokenFileParts } from './corpus-tokens.ts'

/** What becomes of bytes that are no UTF-8, of NUL, and of halves of surrogate pairs: the corpus is refused, or U+FFFD stands for them and they are counted. */
export type InvalidPolicy = 'refuse' | 'replace'

/** Kinds of files that hold a corpus. */
export type CorpusFormat = 'text' | 'jsonl' | 'tokens'

/** A file of documents. */
export interface CorpusFile {
  readonly path: string
  /** Field of JSONL objects that holds the text, or token ids (default `text`, else `input_ids`). */
  readonly field?: string
  /** By default told by the extension (`.jsonl`, `.ndjson`: JSONL; `.safetensors`: token ids) or the first line; `.gz` may follow. */
  readonly format?: CorpusFormat
  /** Default `refuse`. */
  readonly invalid?: InvalidPolicy
}

/** Documents to run a model over: texts or rows of token ids in memory, or a file. */
export type CorpusInput = readonly (string | readonly number[])[] | CorpusFile

/** A document, or its next part where it is too long to be held at once. */
export interface CorpusPart {
  /** Place of the document: index of its line in the file, or of its item in the list, from 0; empty ones keep theirs. */
  readonly document: number
  /** Whether the document begins here. */
  readonly first: boolean
  readonly content: string | readonly number[]
}

/** What is known of a corpus after it was read once. */
export interface CorpusFacts {
  readonly source: 'list' | CorpusFormat
  readonly path?: string
  readonly field?: string
  /** SHA-256 of the file, or of the JSON of the list. */
  readonly sha256: string
  /** Documents that hold something. */
  readonly documents: number
  /** Empty lines and empty texts, which are skipped. */
  readonly skipped: number
  /** Documents in which something was replaced by U+FFFD. */
  readonly replaced: number
  readonly invalid: InvalidPolicy
}

/** A corpus that was read once and found sound. */
export interface Corpus {
  readonly facts: CorpusFacts
  /** Size of all documents: characters, and token ids counted as four each. */
  readonly characters: number
  /** The documents from one on, in order; those before it are passed over without being parsed. */
  parts(from?: number): AsyncIterable<CorpusPart>
}

/** Longest line that is read; a longer one would not fit into a JavaScript string with its copies. */
const longestLine = 2 ** 28
/** Characters that are tokenised at once: a document of a few hundred pages. */
const pieceLength = 2 ** 17

/**
 * Reads a corpus once: hashes it, counts its documents, and refuses what could stop the work halfway.
 * @throws FormatError, UsageError that name the line.
 */
export async function openCorpus(input: CorpusInput, options: WorkOptions = {}): Promise<Corpus> {
  const reader = 'path' in input ? await fileReader(input) : listReader(input)
  const hash = createHash('sha256')
  let [documents, characters, done] = [0, 0, 0]
  const total = reader.bytes
  const seen = (bytes: Uint8Array) => {
    throwIfCancelled(options.signal)
    hash.update(bytes)
    done += bytes.byteLength
    options.onProgress?.({ task: 'reading the corpus', done, ...(total === undefined ? {} : { total }), unit: 'bytes' })
  }
  const count = { skipped: 0, replaced: 0 }
  for await (const part of reader.parts({ from: 0, seen, count })) {
    if (part.first) documents++
    characters += part.content.length * (typeof part.content === 'string' ? 1 : 4)
  }
  if (documents === 0) throw new UsageError(`${reader.name} holds no texts; give at least one.`)
  return {
    facts: { ...reader.facts, sha256: hash.digest('hex'), documents, ...count },
    characters,
    parts: (from = 0) => reader.parts({ from }),
  }
}

/** How documents are read: from which one on, and who sees the bytes and counts on the way. */
interface Reading {
  readonly from: number
  readonly seen?: (bytes: Uint8Array) => void
  readonly count?: { skipped: number; replaced: number }
}

interface Reader {
  readonly name: string
  readonly bytes?: number
  readonly facts: Pick<CorpusFacts, 'source' | 'path' | 'field' | 'invalid'>
  parts(reading: Reading): AsyncGenerator<CorpusPart>
}

function listReader(items: readonly (string | readonly number[])[]): Reader {
  return {
    name: 'The list',
    facts: { source: 'list', invalid: 'refuse' },
    async *parts({ from, seen, count }) {
      seen?.(Buffer.from(JSON.stringify(items)))
      for (let index = from; index < items.length; index++) {
        const item = items[index] as string | readonly number[]
        const content = typeof item === 'string' ? sound(item, { invalid: 'refuse', place: `Text ${index}` }) : item
        if (isEmpty(content)) bump(count, 'skipped')
        else yield* cut(index, content)
      }
    },
  }
}

const refusedFormats: Readonly<Record<string, string>> = {
  '.parquet': "Parquet is not read here; write it as JSONL first, for example with DuckDB: COPY (FROM 'x.parquet') TO 'x.jsonl'",
  '.json': 'A JSON document is not read as a corpus; write one JSON value a line (.jsonl)',
  '.csv': 'A table is not read as a corpus; write one JSON value a line (.jsonl)',
}

async function fileReader({ path, field, format, invalid = 'refuse' }: CorpusFile): Promise<Reader> {
  const zipped = path.toLowerCase().endsWith('.gz')
  const extension = extname(zipped ? path.slice(0, -3) : path).toLowerCase()
  const size = await sizeOrKind(path)
  if (size === 'folder')
    throw new UsageError(`${path} is a folder; give a file of texts: a text a line, JSONL, or token ids in safetensors.`)
  if (size === undefined) throw new FormatError(`${path} does not exist or may not be read; check the path.`)
  if (format === undefined && refusedFormats[extension] !== undefined) throw new UsageError(`${path}: ${refusedFormats[extension]}.`)
  const known = format ?? (extension === '.safetensors' ? 'tokens' : undefined)
  if (known === 'tokens') {
    if (zipped) throw new UsageError(`${path}: token ids cannot be read from a compressed file; unpack it first.`)
    if (field !== undefined) throw new UsageError(`${path} holds token ids, so there is no field '${field}'; leave it out.`)
    return {
      name: path,
      bytes: size,
      facts: { source: 'tokens', path, invalid },
      parts: ({ from, seen }) => tokenFileParts(path, from, seen),
    }
  }
  const jsonl = known === 'jsonl' || field !== undefined || ['.jsonl', '.ndjson'].includes(extension)
  const source = jsonl || (known === undefined && (await looksLikeJsonl(path, zipped))) ? 'jsonl' : 'text'
  return {
    name: path,
    ...(zipped ? {} : { bytes: size }),
    facts: { source, path, ...(field === undefined ? {} : { field }), invalid },
    async *parts({ from, seen, count }) {
      let index = -1
      for await (const bytes of lines(path, zipped, seen)) {
        index++
        if (index < from) continue
        const care: Care = { invalid, place: `${path}, line ${index + 1}` }
        const text = sound(decode(bytes, care, index === 0), care)
        const content = text.trim() === '' ? '' : lineReaders[source](text, field, care)
        if (care.replaced) bump(count, 'replaced')
        if (isEmpty(content)) bump(count, 'skipped')
        else yield* cut(index, content)
      }
    },
  }
}

const isEmpty = (content: string | readonly number[]) => (typeof content === 'string' ? content.trim() === '' : content.length === 0)

function bump(count: Reading['count'], name: 'skipped' | 'replaced'): void {
  if (count) count[name]++
}

const idsPattern = /^ids:\s*\d+(\s*,\s*\d+)*\s*$/

/** Token ids where a text is a list of them. */
const textOrIds = (text: string) => (idsPattern.test(text) ? text.slice(4).split(',').map(Number) : text)

/** What is done about characters that should not be there, where they would be, and whether there were any. */
interface Care {
  readonly invalid: InvalidPolicy
  readonly place: string
  replaced?: boolean
}

type LineReader = (text: string, field: string | undefined, care: Care) => string | readonly number[]

const lineReaders: Readonly<Record<'text' | 'jsonl', LineReader>> = {
  text: textOrIds,
  jsonl(text, field, care) {
    const { place } = care
    let value: unknown
    try {
      value = JSON.parse(text)
    } catch (error) {
      throw new FormatError(`${place} is not JSON (${messageOf(error)}): each line must be one JSON value.`, { cause: error })
    }
    const names = field === undefined ? ['text', 'input_ids'] : [field]
    const isObject = typeof value === 'object' && value !== null && !Array.isArray(value)
    const found = isObject ? names.map((n) => (value as Record<string, unknown>)[n]).find((v) => v !== undefined) : value
    if (typeof found === 'string') return textOrIds(sound(found, care))
    if (Array.isArray(found) && found.every((id) => Number.isInteger(id) && id >= 0)) return found as number[]
    const fields = isObject ? ` Its fields are ${Object.keys(value as object).join(', ')}.` : ''
    throw new UsageError(
      `${place} has no text: it must be a JSON string, or an object with a text or a list of token ids in ${names.map((n) => `'${n}'`).join(' or ')}.${fields}`,
    )
  },
}

const strict = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true })
const lenient = new TextDecoder('utf-8', { ignoreBOM: true })

function decode(bytes: Uint8Array, care: Care, first: boolean): string {
  let text: string
  try {
    text = strict.decode(bytes)
  } catch (cause) {
    if (care.invalid === 'refuse')
      throw new FormatError(`${care.place} holds bytes that are no UTF-8; save the file as UTF-8, or let such bytes be replaced.`, {
        cause,
      })
    care.replaced = true
    text = lenient.decode(bytes)
  }
  return first && text.startsWith('\uFEFF') ? text.slice(1) : text
}

/** A text without NUL and halves of surrogate pairs, which tokenizers do not agree about. */
function sound(text: string, care: Care): string {
  if (!/\0|\p{Surrogate}/u.test(text)) return text
  if (care.invalid === 'refuse')
    throw new FormatError(
      `${care.place} holds ${text.includes('\0') ? 'the character NUL' : 'half of a surrogate pair'}; clean the text, or let such characters be replaced.`,
    )
  care.replaced = true
  return text.replace(/\0|\p{Surrogate}/gu, '\uFFFD')
}

/** Parts of a document that are tokenised one after the other; a text is cut behind white space where there is some near. */
function* cut(document: number, content: string | readonly number[]): Generator<CorpusPart> {
  for (let at = 0; at < content.length; ) {
    let end = Math.min(content.length, at + pieceLength)
    if (end < content.length && typeof content === 'string') {
      const space = /\s\S*$/.exec(content.slice(end - 1000, end))
      if (space) end += space.index - Math.min(1000, end) + 1
      // Never between the halves of a surrogate pair.
      else if (/[\uD800-\uDBFF]/.test(content[end - 1] as string)) end--
    }
    yield { document, first: at === 0, content: content.slice(at, end) }
    at = end
  }
}

async function looksLikeJsonl(path: string, zipped: boolean): Promise<boolean> {
  for await (const bytes of lines(path, zipped)) {
    const text = lenient.decode(bytes).trim()
    if (text === '') continue
    try {
      const value = JSON.parse(text)
      return typeof value === 'object' && value !== null && !Array.isArray(value)
    } catch {
      return false
    }
  }
  return false
}

/** The lines of a file as bytes, without their ends. */
async function* lines(path: string, zipped: boolean, seen?: (bytes: Uint8Array) => void): AsyncGenerator<Uint8Array> {
  const file = pieces(path, seen)
  const unpacked = zipped ? pipeline(file, createGunzip(), () => undefined) : file
  let held: Buffer[] = []
  let size = 0
  let number = 1
  try {
    for await (const piece of unpacked as AsyncIterable<Buffer>) {
      let start = 0
      for (let end = piece.indexOf(10); end >= 0; end = piece.indexOf(10, start)) {
        yield lineOf(held, piece.subarray(start, end))
        held = []
        size = 0
        number++
        start = end + 1
      }
      const rest = piece.subarray(start)
      size += rest.length
      if (size > longestLine)
        throw new FormatError(`${path}, line ${number} is longer than ${longestLine / 2 ** 20} MiB; break it into several lines.`)
      if (rest.length > 0) held.push(rest)
    }
    if (held.length > 0) yield lineOf(held, Buffer.alloc(0))
  } catch (error) {
    if (zipped && systemCode(error)?.startsWith('Z_'))
      throw new FormatError(`${path} cannot be unpacked (${messageOf(error)}); fetch it again.`, { cause: error })
    throw systemCode(error) === undefined ? error : readFailure(error, path)
  }
}

async function* pieces(path: string, seen: ((bytes: Uint8Array) => void) | undefined): AsyncGenerator<Buffer> {
  for await (const piece of createReadStream(path, { highWaterMark: 1 << 18 }) as AsyncIterable<Buffer>) {
    seen?.(piece)
    yield piece
  }
}

function lineOf(held: readonly Buffer[], last: Buffer): Uint8Array {
  const line = held.length === 0 ? last : Buffer.concat([...held, last])
  return line.at(-1) === 13 ? line.subarray(0, -1) : line
}
