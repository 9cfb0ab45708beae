/** @file The options that say which corpus a command runs over, and at which places it looks. */
import { InvalidArgumentError } from 'commander'
import { UsageError } from '../base/errors.ts'
import type { CorpusInput, InvalidPolicy } from '../explore/index.ts'
import type { OptionRow } from './command.ts'
import { parseText, type TextOrIds } from './texts.ts'

/** Values of {@link corpusOptions}. */
export interface CorpusOptions {
  readonly text?: readonly TextOrIds[]
  readonly data?: string
  readonly field?: string
  readonly invalid?: InvalidPolicy
}

/** Options that name a corpus. */
export const corpusOptions: readonly OptionRow[] = [
  { flags: '--text <text>', doc: 'a text, one document', parse: parseText, repeat: true, conflicts: ['data'] },
  {
    flags: '--data <file>',
    doc: 'documents: a text a line, JSONL, CSV, Parquet, safetensors with input_ids, or a folder of images',
    conflicts: ['text'],
  },
  { flags: '--field <name>', doc: 'field or column that holds the text (default: text)' },
  {
    flags: '--invalid <how>',
    doc: 'bytes that are no UTF-8, and NUL: refuse, or replace by U+FFFD (default: refuse)',
    choices: ['refuse', 'replace'],
  },
]

/** The option for places. */
export const whereOption: OptionRow = {
  flags: '--where <json>',
  doc: `positions to keep, as in an edits file: '{"positions": -1}' (default: all)`,
  parse: clause,
}

/** The corpus that the options name. */
export function corpusOf({ text, data, field, invalid }: CorpusOptions): CorpusInput {
  if (data !== undefined) return { path: data, ...defined({ field, invalid }) }
  if (field !== undefined || invalid !== undefined)
    throw new UsageError(`--${field === undefined ? 'invalid' : 'field'} says how to read --data; give --data, too.`)
  if (text === undefined) throw new UsageError('There is nothing to run on: give --text or --data.')
  return text
}

function clause(text: string): unknown {
  try {
    return JSON.parse(text)
  } catch {
    throw new InvalidArgumentError(`It must be JSON, such as {"positions": -1}.`)
  }
}

/** The options that were given. */
export function defined<T extends object>(options: T): { [K in keyof T]?: Exclude<T[K], undefined> } {
  return Object.fromEntries(Object.entries(options).filter(([, value]) => value !== undefined)) as ReturnType<typeof defined<T>>
}
