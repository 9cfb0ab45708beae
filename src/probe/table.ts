/** @file Tables of text: CSV and TSV by RFC 4180, compressed or not (Node). */
import { readFile } from 'node:fs/promises'
import { extname } from 'node:path'
import { promisify } from 'node:util'
import { gunzip } from 'node:zlib'
import { FormatError, listed, messageOf, nearest, UsageError } from '../base/errors.ts'
import { readFailure } from '../base/files.ts'

/** A table: the names of its columns, and its rows as texts. */
export interface TextTable {
  readonly path: string
  readonly columns: readonly string[]
  readonly rows: readonly (readonly string[])[]
}

/**
 * Parses CSV: fields in quotes may hold separators, line breaks and doubled quotes; lines end in \n or \r\n; empty lines are skipped.
 * @throws FormatError with the line, where quotes are not closed or something follows a closing one.
 */
export function parseCsv(text: string, separator: string, name: string): string[][] {
  const rows: string[][] = []
  let row: string[] = []
  let line = 1
  let at = text.startsWith('\uFEFF') ? 1 : 0
  const fail = (what: string, where = line): never => {
    throw new FormatError(`${name}, line ${where}: ${what}; quote such fields and double the quotes inside.`)
  }
  while (at < text.length) {
    let field: string
    if (text[at] === '"') {
      const begun = line
      const pieces: string[] = []
      at++
      for (;;) {
        const end = text.indexOf('"', at)
        if (end < 0) fail('a quote is opened and never closed', begun)
        const piece = text.slice(at, end)
        pieces.push(piece)
        for (let i = piece.indexOf('\n'); i >= 0; i = piece.indexOf('\n', i + 1)) line++
        at = end + 1
        if (text[at] !== '"') break
        pieces.push('"')
        at++
      }
      field = pieces.join('')
      if (at < text.length && text[at] !== separator && text[at] !== '\n' && !text.startsWith('\r\n', at))
        fail(`'${text[at]}' follows a closing quote`)
    } else {
      let end = at
      while (end < text.length && text[end] !== separator && text[end] !== '\n') end++
      field = text.slice(at, text[end] === '\n' && text[end - 1] === '\r' && end > at ? end - 1 : end)
      // Tables of tabs are often written without any quoting.
      if (separator === ',' && field.includes('"')) fail('a quote stands inside a field that is not quoted')
      at = end
    }
    row.push(field)
    if (text.startsWith('\r\n', at)) at++
    if (text[at] === separator) {
      at++
      if (at < text.length) continue
      row.push('')
    }
    if (row.length > 1 || row[0] !== '') rows.push(row)
    row = []
    line++
    at++
  }
  return rows
}

/** Reads a table: `.csv` or `.tsv` with a header line, or `.jsonl`, perhaps with `.gz` behind. */
export async function readTable(path: string): Promise<TextTable> {
  const zipped = path.toLowerCase().endsWith('.gz')
  const extension = extname(zipped ? path.slice(0, -3) : path).toLowerCase()
  if (!Object.hasOwn(separators, extension))
    throw new UsageError(
      `The name ${path} does not say what it holds; give a table that ends in .csv, .tsv or .jsonl, perhaps with .gz behind.`,
    )
  let bytes: Buffer
  try {
    bytes = await readFile(path)
  } catch (error) {
    throw readFailure(error, path)
  }
  if (zipped)
    bytes = await promisify(gunzip)(bytes).catch((cause: unknown) => {
      throw new FormatError(`${path} cannot be unpacked (${messageOf(cause)}); fetch it again.`, { cause })
    })
  let text: string
  try {
    text = new TextDecoder('utf-8', { fatal: true }).decode(bytes)
  } catch (cause) {
    throw new FormatError(`${path} holds bytes that are no UTF-8; save it as UTF-8.`, { cause })
  }
  return tableOf(text, path, separators[extension])
}

/** By extension; undefined for JSONL. */
const separators: Readonly<Record<string, ',' | '\t' | undefined>> = {
  '.csv': ',',
  '.tsv': '\t',
  '.jsonl': undefined,
  '.ndjson': undefined,
}

/**
 * The table of a text: CSV or TSV with a header line, or JSONL with one object a line.
 * @param separator told by the header line, where absent.
 */
export function tableOf(text: string, name: string, separator?: ',' | '\t'): TextTable {
  if (separator === undefined && /^\uFEFF?\s*\{/.test(text)) return jsonlTable(text, name)
  const [columns, ...rows] = parseCsv(text, separator ?? (text.split('\n', 1)[0]?.includes('\t') ? '\t' : ','), name)
  if (!columns || rows.length === 0)
    throw new UsageError(`${name} holds ${columns ? 'a header and no rows' : 'nothing'}; give labelled texts.`)
  const ragged = rows.findIndex((r) => r.length !== columns.length)
  if (ragged >= 0)
    throw new FormatError(
      `Row ${ragged + 1} of ${name} has ${rows[ragged]?.length} fields, but the header names ${columns.length} columns; correct it, or put texts with commas in quotes.`,
    )
  return { path: name, columns, rows }
}

function jsonlTable(text: string, name: string): TextTable {
  const items = text.split(/\r?\n/).flatMap((line, i) => {
    if (line.trim() === '') return []
    let value: unknown
    try {
      value = JSON.parse(line)
    } catch (cause) {
      throw new FormatError(`${name}, line ${i + 1} is not JSON (${messageOf(cause)}): each line must be one JSON object.`, { cause })
    }
    if (typeof value !== 'object' || value === null || Array.isArray(value))
      throw new FormatError(`${name}, line ${i + 1} is no JSON object; write {"text": …, "label": …} on each line.`)
    return [{ line: i + 1, value: value as Record<string, unknown> }]
  })
  const columns = Object.keys(items[0]?.value ?? {})
  const rows = items.map(({ line, value }) =>
    columns.map((c) => {
      const field = value[c]
      if (field === undefined || field === null || typeof field === 'object')
        throw new FormatError(`${name}, line ${line}: '${c}' must be a text, a number or a truth value, as on the first line.`)
      return String(field)
    }),
  )
  return { path: name, columns, rows }
}

/** Usual names of columns. */
export const usualColumns = { text: ['text', 'sentence', 'prompt', 'statement'], label: ['label', 'target', 'class'] } as const

/** The values of a column, by its name or by the first of some usual names. */
export function columnOf(
  { path, columns, rows }: TextTable,
  name: string | undefined,
  usual: readonly string[],
  what: string,
): { name: string; values: string[] } {
  const found = name ?? usual.find((u) => columns.includes(u))
  const at = found === undefined ? -1 : columns.indexOf(found)
  if (at >= 0) return { name: found as string, values: rows.map((r) => r[at] as string) }
  if (name === undefined)
    throw new UsageError(
      `${path} has no column for the ${what} under a usual name (${usual.join(', ')}); say which of ${listed(columns)} it is.`,
    )
  const near = nearest(name, columns)
  throw new UsageError(`${path} has no column '${name}'${near ? `; did you mean '${near}'?` : '.'} Its columns are ${listed(columns)}.`)
}
