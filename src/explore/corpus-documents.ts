/** @file Documents of texts, JSONL and CSV, line by line (Node). */
import { FormatError, messageOf } from '../base/errors.ts'
import { parseCsv } from '../probe/table.ts'
import { lines, longestLine } from './corpus-lines.ts'
import { type Care, columnNamed, contentOf, decode, type InvalidPolicy, noText, sound, textOrIds, usualFields } from './corpus-text.ts'

/** A document of a file. */
export interface Document {
  /** Line of the file, or row of the table, from 0. */
  readonly document: number
  /** Empty where there is nothing. */
  readonly content: string | readonly number[]
  /** Whether something in it was replaced by U+FFFD. */
  readonly replaced: boolean
}

/** What a reader of documents is told. */
export interface DocumentSource {
  readonly path: string
  readonly zipped: boolean
  readonly field: string | undefined
  readonly invalid: InvalidPolicy
  /** First document that is wanted. */
  readonly from: number
  /** Sees all bytes of the file. */
  readonly seen: ((bytes: Uint8Array) => void) | undefined
}

/** Reads the documents of a file in order. */
export type DocumentReader = (source: DocumentSource) => AsyncGenerator<Document>

/** A text a line, or token ids as `ids:5,6,7`. */
export const textDocuments: DocumentReader = (source) => lineDocuments(source, textOrIds)

/** A JSON value a line: a string, a list of ids, or an object with one of them. */
export const jsonlDocuments: DocumentReader = (source) =>
  lineDocuments(source, (text, care) => {
    const { place } = care
    let value: unknown
    try {
      value = JSON.parse(text)
    } catch (error) {
      throw new FormatError(`${place} is not JSON (${messageOf(error)}): each line must be one JSON value.`, { cause: error })
    }
    const isObject = typeof value === 'object' && value !== null && !Array.isArray(value)
    const names = source.field === undefined ? usualFields : [source.field]
    const found = isObject ? names.map((n) => (value as Record<string, unknown>)[n]).find((v) => v !== undefined) : value
    const content = contentOf(found, care)
    if (content === undefined)
      throw noText(place, source.field, 'a JSON string, or an object', isObject ? Object.keys(value as object) : undefined)
    return content
  })

async function* lineDocuments(
  { path, zipped, invalid, from, seen }: DocumentSource,
  read: (text: string, care: Care) => string | readonly number[],
): AsyncGenerator<Document> {
  let index = -1
  for await (const bytes of lines(path, zipped, seen)) {
    index++
    if (index < from) continue
    const care: Care = { invalid, place: `${path}, line ${index + 1}` }
    const text = sound(decode(bytes, care, index === 0), care)
    const content = text.trim() === '' ? '' : read(text, care)
    yield { document: index, content, replaced: care.replaced ?? false }
  }
}

/**
 * The rows of a table with a header line (RFC 4180): fields in quotes may hold separators, doubled quotes and line breaks, which come
 * as \n; empty lines are no rows.
 */
export function csvDocuments(separator: ',' | '\t'): DocumentReader {
  return async function* ({ path, zipped, field, invalid, from, seen }) {
    let column = -1
    let columns: readonly string[] | undefined
    let index = -1
    for await (const { text, line, care } of records(path, zipped, invalid, separator, seen)) {
      if (columns === undefined) {
        columns = parseCsv(text, separator, path)[0] as string[]
        column = columns.indexOf(columnNamed(path, columns, field))
        continue
      }
      index++
      if (index < from) continue
      const row = (parseCsv(text, separator, `${path}, row from line ${line}`)[0] ?? []) as string[]
      if (row.length !== columns.length)
        throw new FormatError(
          `The row of ${path} in line ${line} has ${row.length} fields, but the header names ${columns.length} columns; correct it.`,
        )
      const content = contentOf(row[column] as string, care) as string | readonly number[]
      yield { document: index, content, replaced: care.replaced ?? false }
    }
  }
}

interface CsvRecord {
  readonly text: string
  /** Its first line, from 1. */
  readonly line: number
  readonly care: Care
}

/** Records of a table: lines, joined where a quoted field goes on in the next. */
async function* records(
  path: string,
  zipped: boolean,
  invalid: InvalidPolicy,
  separator: string,
  seen: DocumentSource['seen'],
): AsyncGenerator<CsvRecord> {
  let number = 0
  let begun = 0
  let held = ''
  let quoted = false
  let care: Care = { invalid, place: path }
  for await (const bytes of lines(path, zipped, seen)) {
    number++
    if (!quoted) {
      begun = number
      held = ''
      care = { invalid, place: `${path}, line ${number}` }
    }
    const text = decode(bytes, care, number === 1)
    quoted = endsQuoted(text, separator, quoted)
    held = held === '' ? text : `${held}\n${text}`
    if (held.length > longestLine) break
    if (!quoted && held !== '') yield { text: held, line: begun, care }
  }
  if (quoted)
    throw new FormatError(`${path}, line ${begun}: a quote is opened and never closed; quote such fields and double the quotes inside.`)
}

/** Whether a quoted field is still open at the end of a line. */
function endsQuoted(text: string, separator: string, quoted: boolean): boolean {
  let open = quoted
  let fieldStart = !quoted
  for (let at = 0; at < text.length; at++) {
    const c = text[at]
    if (open) {
      if (c !== '"') continue
      if (text[at + 1] === '"') at++
      else open = false
    } else {
      if (c === '"' && fieldStart) open = true
      fieldStart = c === separator
    }
  }
  return open
}
