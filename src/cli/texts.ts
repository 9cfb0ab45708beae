/** @file Texts and token ids, from arguments and from files: `ids:5,6,7` gives token ids wherever a text is asked for. */
import { readFile } from 'node:fs/promises'
import { extname } from 'node:path'
import { FormatError, messageOf, UsageError } from '../base/errors.ts'
import { readFailure } from '../base/files.ts'
import type { Model } from '../run/index.ts'

/** A text, or the token ids of one row. */
export type TextOrIds = string | readonly number[]

const idsPattern = /^ids:\s*\d+(\s*,\s*\d+)*\s*$/

/** A text of an argument: token ids where it begins with `ids:`. */
export function parseText(text: string): TextOrIds {
  if (!text.startsWith('ids:')) return text
  return idsIn(text) ?? refuseIds(text)
}

function refuseIds(text: string): never {
  throw new UsageError(`'${text}' is no list of token ids: write them as ids:5,6,7 (whole numbers, at least one).`)
}

/** Token ids where the text is a list of them; in files, other texts may begin with `ids:`, too. */
function idsIn(text: string): readonly number[] | undefined {
  return idsPattern.test(text) ? text.slice(4).split(',').map(Number) : undefined
}

/** The token ids of texts; no tokenizer is needed where all are ids. `what` names one in a refusal: `--text`. */
export function encodeTexts(model: Pick<Model, 'tokenizer'>, texts: readonly TextOrIds[], what: string): number[][] {
  return texts.map((text, i) => {
    if (typeof text !== 'string') return [...text]
    if (text === '')
      throw new UsageError(`${texts.length === 1 ? `The text of ${what}` : `Text ${i} of ${what}`} is empty; give at least one character.`)
    return model.tokenizer.encode(text)
  })
}

/** Which fields of a JSONL object hold the text; the first one that is there counts. */
export interface FieldOptions {
  readonly fields: readonly string[]
}

/**
 * Rows of a JSONL file: in each line a string, or an object with a text (or list of ids) in one of the fields, or with `input_ids`.
 * Empty lines are skipped; a line that is none of this is refused by its number.
 */
export async function readJsonl(path: string, options: FieldOptions): Promise<TextOrIds[]> {
  const lines = await readLines(path)
  const rows = lines.flatMap((line, i) =>
    line.trim() === '' ? [] : [rowOf(parseLine(line, path, i + 1), options, `${path}, line ${i + 1}`)],
  )
  return notEmpty(rows, path)
}

/** Texts of a file: JSONL, or a text a line, as its name or its first line says. */
export async function readTexts(path: string, options: FieldOptions): Promise<TextOrIds[]> {
  const lines = await readLines(path)
  const first = lines.find((line) => line.trim() !== '')
  const json = ['.jsonl', '.ndjson'].includes(extname(path).toLowerCase()) || (first !== undefined && isObject(tryJson(first)))
  if (json) return readJsonl(path, options)
  return notEmpty(
    lines.filter((line) => line.trim() !== '').map((line) => idsIn(line) ?? line),
    path,
  )
}

function notEmpty(rows: TextOrIds[], path: string): TextOrIds[] {
  if (rows.length === 0) throw new UsageError(`${path} holds no texts; give at least one.`)
  return rows
}

async function readLines(path: string): Promise<string[]> {
  return (await readTextFile(path)).split(/\r?\n/)
}

/** The content of a text file; a missing one is a sentence. */
export async function readTextFile(path: string): Promise<string> {
  try {
    const text = await readFile(path, 'utf8')
    return text.startsWith('\uFEFF') ? text.slice(1) : text
  } catch (error) {
    throw readFailure(error, path)
  }
}

function tryJson(line: string): unknown {
  try {
    return JSON.parse(line)
  } catch {
    return undefined
  }
}

function parseLine(line: string, path: string, number: number): unknown {
  try {
    return JSON.parse(line)
  } catch (error) {
    throw new FormatError(`${path}, line ${number} is not JSON (${messageOf(error)}): each line must be one JSON value.`, { cause: error })
  }
}

function rowOf(value: unknown, { fields }: FieldOptions, place: string): TextOrIds {
  if (typeof value === 'string') return idsIn(value) ?? value
  const known = [...fields, 'input_ids']
  const found = isObject(value) ? known.map((f) => value[f]).find((v) => v !== undefined) : undefined
  if (typeof found === 'string') return idsIn(found) ?? found
  if (Array.isArray(found) && found.every((id) => Number.isInteger(id) && id >= 0)) return found as number[]
  throw new UsageError(
    `${place} has no text: it must be a JSON string, or an object with a text or a list of token ids in ${known.map((f) => `'${f}'`).join(' or ')}.`,
  )
}

const isObject = (value: unknown): value is Record<string, unknown> => typeof value === 'object' && value !== null && !Array.isArray(value)
