/** @file What becomes of the texts of a corpus: token ids among them, bytes that are no text, characters that tokenizers do not agree about. */
import { FormatError, listed, nearest, UsageError } from '../base/errors.ts'

/** What becomes of bytes that are no UTF-8, of NUL, and of halves of surrogate pairs: the corpus is refused, or U+FFFD stands for them and they are counted. */
export type InvalidPolicy = 'refuse' | 'replace'

const idsPattern = /^ids:\s*\d+(\s*,\s*\d+)*\s*$/

/** Token ids where a text is a list of them. */
export const textOrIds = (text: string) => (idsPattern.test(text) ? text.slice(4).split(',').map(Number) : text)

/** What is done about characters that should not be there, where they would be, and whether there were any. */
export interface Care {
  readonly invalid: InvalidPolicy
  readonly place: string
  replaced?: boolean
}

const strict = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true })
export const lenient = new TextDecoder('utf-8', { ignoreBOM: true })

/** The text of bytes; a byte-order mark at the very beginning of a file is left out. */
export function decode(bytes: Uint8Array, care: Care, first: boolean): string {
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
export function sound(text: string, care: Care): string {
  if (!/\0|\p{Surrogate}/u.test(text)) return text
  if (care.invalid === 'refuse')
    throw new FormatError(
      `${care.place} holds ${text.includes('\0') ? 'the character NUL' : 'half of a surrogate pair'}; clean the text, or let such characters be replaced.`,
    )
  care.replaced = true
  return text.replace(/\0|\p{Surrogate}/gu, '\uFFFD')
}

/** Fields in which a text or token ids are looked for, in this order. */
export const usualFields: readonly string[] = ['text', 'input_ids']

/** A document as a value of a table or of JSON: a text, or a list of token ids; undefined where it is neither. */
export function contentOf(value: unknown, care: Care): string | readonly number[] | undefined {
  if (typeof value === 'string') return textOrIds(sound(value, care))
  if (value instanceof Uint8Array) return textOrIds(sound(decode(value, care, false), care))
  if (!Array.isArray(value) && !ArrayBuffer.isView(value)) return undefined
  const ids = Array.from(value as ArrayLike<unknown>, (id) => (typeof id === 'bigint' ? Number(id) : id))
  return ids.every((id) => Number.isSafeInteger(id) && (id as number) >= 0) ? (ids as number[]) : undefined
}

/** The refusal of a document in which nothing was found. */
export function noText(place: string, field: string | undefined, what: string, fields?: readonly string[]): UsageError {
  const names = field === undefined ? usualFields : [field]
  return new UsageError(
    `${place} has no text: it must be ${what} with a text or a list of token ids in ${names.map((n) => `'${n}'`).join(' or ')}.${fields ? ` Its fields are ${fields.join(', ')}.` : ''}`,
  )
}

/** The column that is meant: the one that is named, or the first of the usual ones. @throws UsageError that lists them. */
export function columnNamed(path: string, columns: readonly string[], field: string | undefined): string {
  const found = field ?? usualFields.find((f) => columns.includes(f))
  if (found !== undefined && columns.includes(found)) return found
  const near = found === undefined ? undefined : nearest(found, columns)
  throw new UsageError(
    `${path} has no column ${found === undefined ? usualFields.map((f) => `'${f}'`).join(' or ') : `'${found}'`}${near ? `; did you mean '${near}'?` : '.'} Its columns are ${listed(columns)}: name one as the field.`,
  )
}
