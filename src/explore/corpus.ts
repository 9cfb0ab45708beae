/** @file Corpora: lists of texts, files of texts, JSONL, tables (CSV, Parquet), token ids and folders of images, read as a stream of documents (Node). */
import { createHash } from 'node:crypto'
import { extname } from 'node:path'
import { FormatError, throwIfCancelled, UsageError } from '../base/errors.ts'
import { sizeOrKind } from '../base/files.ts'
import type { WorkOptions } from '../base/progress.ts'
import { csvDocuments, type DocumentReader, jsonlDocuments, textDocuments } from './corpus-documents.ts'
import { imageParts } from './corpus-images.ts'
import { lines } from './corpus-lines.ts'
import { parquetDocuments } from './corpus-parquet.ts'
import { type InvalidPolicy, lenient, sound } from './corpus-text.ts'
import { tokenFileParts } from './corpus-tokens.ts'

/** Kinds of files that hold a corpus. */
export type CorpusFormat = 'text' | 'jsonl' | 'csv' | 'tsv' | 'parquet' | 'tokens' | 'images'

/** A file of documents, or a folder of images. */
export interface CorpusFile {
  readonly path: string
  /** Field of JSONL objects, or column of a table, that holds the text or token ids (default `text`, else `input_ids`). */
  readonly field?: string
  /**
   * By default told by the extension (`.jsonl`, `.ndjson`: JSONL; `.csv`, `.tsv`; `.parquet`; `.safetensors`: token ids) or the first
   * line; behind texts, JSONL and CSV `.gz` may follow.
   */
  readonly format?: CorpusFormat
  /** Default `refuse`. */
  readonly invalid?: InvalidPolicy
}

/** Documents to run a model over: texts or rows of token ids in memory, or a file. */
export type CorpusInput = readonly (string | readonly number[])[] | CorpusFile

/** A document, or its next part where it is too long to be held at once. */
export interface CorpusPart {
  /** Place of the document: index of its line in the file, its row in the table, or its item in the list, from 0; empty ones keep theirs. */
  readonly document: number
  /** Whether the document begins here. */
  readonly first: boolean
  /** Empty for an image. */
  readonly content: string | readonly number[]
  /** Path of an image, where the document is one. */
  readonly image?: string
}

/** Size of a part: characters, token ids counted as four each, an image as one. */
export const sizeOfPart = ({ content, image }: CorpusPart) =>
  image === undefined ? content.length * (typeof content === 'string' ? 1 : 4) : 1

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
  /** Size of all documents: characters, token ids counted as four each, images as one. */
  readonly characters: number
  /** The documents from one on, in order; those before it are passed over without being parsed. */
  parts(from?: number): AsyncIterable<CorpusPart>
}

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
    characters += sizeOfPart(part)
  }
  if (documents === 0) throw new UsageError(`${reader.name} holds no texts or images; give at least one.`)
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

/** How each kind of file is read; token ids come in parts of their own. */
const readers: Readonly<
  Record<Exclude<CorpusFormat, 'tokens' | 'images'>, { readonly zipped: boolean; readonly documents: DocumentReader }>
> = {
  text: { zipped: true, documents: textDocuments },
  jsonl: { zipped: true, documents: jsonlDocuments },
  csv: { zipped: true, documents: csvDocuments(',') },
  tsv: { zipped: true, documents: csvDocuments('\t') },
  parquet: { zipped: false, documents: parquetDocuments },
}

const extensions: Readonly<Record<string, Exclude<CorpusFormat, 'images'>>> = {
  '.jsonl': 'jsonl',
  '.ndjson': 'jsonl',
  '.csv': 'csv',
  '.tsv': 'tsv',
  '.parquet': 'parquet',
  '.safetensors': 'tokens',
}

async function fileReader({ path, field, format, invalid = 'refuse' }: CorpusFile): Promise<Reader> {
  const zipped = path.toLowerCase().endsWith('.gz')
  const extension = extname(zipped ? path.slice(0, -3) : path).toLowerCase()
  const size = await sizeOrKind(path)
  if (size === 'folder' && (format ?? 'images') === 'images') {
    if (field !== undefined) throw new UsageError(`${path} is a folder of images, so there is no field '${field}'; leave it out.`)
    return { name: path, facts: { source: 'images', path, invalid }, parts: ({ from, seen }) => imageParts(path, from, seen) }
  }
  if (size === 'folder' || format === 'images')
    throw new UsageError(
      `${path} is a ${size === 'folder' ? 'folder' : 'file'}; ${size === 'folder' ? `give a file for the format '${format}'` : 'images come as a folder of files'}.`,
    )
  if (size === undefined) throw new FormatError(`${path} does not exist or may not be read; check the path.`)
  const known = format ?? extensions[extension]
  if (known === undefined && extension === '.json')
    throw new UsageError(`${path}: A JSON document is not read as a corpus; write one JSON value a line (.jsonl).`)
  if (zipped && known !== undefined && (known === 'tokens' || !readers[known].zipped))
    throw new UsageError(
      `${path}: ${known === 'tokens' ? 'token ids' : 'a table of columns'} cannot be read from a compressed file; unpack it first.`,
    )
  if (known === 'tokens') {
    if (field !== undefined) throw new UsageError(`${path} holds token ids, so there is no field '${field}'; leave it out.`)
    return {
      name: path,
      bytes: size,
      facts: { source: 'tokens', path, invalid },
      parts: ({ from, seen }) => tokenFileParts(path, from, seen),
    }
  }
  const source = known ?? (field !== undefined || (await looksLikeJsonl(path, zipped)) ? 'jsonl' : 'text')
  if (source === 'text' && field !== undefined)
    throw new UsageError(`${path} holds a text a line, so there is no field '${field}'; leave it out.`)
  return {
    name: path,
    ...(zipped ? {} : { bytes: size }),
    facts: { source, path, ...(field === undefined ? {} : { field }), invalid },
    async *parts({ from, seen, count }) {
      for await (const { document, content, replaced } of readers[source].documents({ path, zipped, field, invalid, from, seen })) {
        if (replaced) bump(count, 'replaced')
        if (isEmpty(content)) bump(count, 'skipped')
        else yield* cut(document, content)
      }
    },
  }
}

const isEmpty = (content: string | readonly number[]) => (typeof content === 'string' ? content.trim() === '' : content.length === 0)

function bump(count: Reading['count'], name: 'skipped' | 'replaced'): void {
  if (count) count[name]++
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
