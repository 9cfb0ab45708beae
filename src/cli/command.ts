/** @file A command is a row: name, summary, example, arguments, options and what it does. Parser, help and docs derive from it. */
import { Argument, Command, InvalidArgumentError, Option } from 'commander'
import type { OnProgress } from '../base/progress.ts'
import { type Precision, precisions } from '../models/quantised.ts'
import type { Device } from '../tensor/index.ts'
import type { Io } from './io.ts'

/** An argument that is told by its place. */
export interface ArgumentRow {
  /** As help shows it: `MODEL`. Its value arrives under the name in lower case. */
  readonly name: string
  readonly doc: string
  readonly optional?: boolean
  /** Takes all that follow. */
  readonly repeat?: boolean
  readonly choices?: readonly string[]
}

/** An option. */
export interface OptionRow {
  /** In commander's notation: `--taps <pattern>`. */
  readonly flags: string
  readonly doc: string
  /** The value of a text; throws {@link InvalidArgumentError}. */
  readonly parse?: (text: string) => unknown
  /** Takes several values, after one another or each after its own flag; the value is a list. */
  readonly repeat?: boolean
  readonly choices?: readonly string[]
  readonly required?: boolean
  /** Options (camel case) that contradict this one. */
  readonly conflicts?: readonly string[]
}

/** Options that every command has. */
export interface CommonOptions {
  readonly json?: boolean
  readonly quiet?: boolean
  readonly threads?: number
  readonly device?: Device
  readonly precision?: Precision
  readonly family?: string
  readonly debug?: boolean
}

/** What a command is given besides its arguments. */
export interface CommandContext {
  readonly io: Io
  readonly common: CommonOptions
  /** Shows progress on stderr, as a bar or as sparse lines; nothing with `--quiet`. */
  readonly onProgress: OnProgress
  /** Text for stdout that comes before the outcome; nothing with `--json`. Ends a progress bar. */
  readonly write: (text: string) => Promise<void>
  /** A line for people on stderr; nothing with `--quiet`. */
  readonly note: (line: string) => void
  /** A line on stderr that even `--quiet` does not hide. */
  readonly warn: (line: string) => void
}

/** What a command has done: one value for `--json` and a text for people, or that it has printed itself; the exit code where it is not 0. */
export type Outcome = { readonly code?: number } & ({ readonly json: unknown; readonly text?: string } | { readonly printed: true })

/** A command of the table. */
export interface CommandRow {
  readonly name: string
  readonly summary: string
  /** A command line to copy, without `actlens`. */
  readonly example: string
  readonly arguments: readonly ArgumentRow[]
  readonly options: readonly OptionRow[]
  readonly run: (context: CommandContext, args: Readonly<Record<string, unknown>>, options: unknown) => Promise<Outcome>
}

/** A row whose `run` knows the types of its arguments and options: `Args` by lower-case name, `Options` by camel-case name. */
export function defineCommand<Args, Options>(
  row: Omit<CommandRow, 'run'> & { readonly run: (context: CommandContext, args: Args, options: Options) => Promise<Outcome> },
): CommandRow {
  // The parser fills in what the rows of arguments and options say; their agreement with the two types is the author's promise.
  return row as unknown as CommandRow
}

/** Parses a whole number from `low` to `high`. */
export function integer(low: number, high = Number.MAX_SAFE_INTEGER): (text: string) => number {
  return (text) => {
    const value = Number(text)
    if (text.trim() === '' || !Number.isInteger(value) || value < low || value > high)
      throw new InvalidArgumentError(`It must be a whole number from ${low}${high === Number.MAX_SAFE_INTEGER ? '' : ` to ${high}`}.`)
    return value
  }
}

/** Parses a number; its range is checked where it is used. */
export function number(text: string): number {
  const value = Number(text)
  if (text.trim() === '' || !Number.isFinite(value)) throw new InvalidArgumentError('It must be a number.')
  return value
}

/** The options that every command has. */
export const commonOptions: readonly OptionRow[] = [
  { flags: '--json', doc: 'print one JSON document on stdout' },
  { flags: '--quiet', doc: 'no progress and no notes on stderr' },
  { flags: '--threads <n>', doc: 'threads of the runtime (default: its own choice)', parse: integer(1, 1024) },
  { flags: '--device <device>', doc: 'where the model runs (default: cpu)', choices: ['cpu', 'webgpu', 'cuda'] },
  { flags: '--precision <precision>', doc: 'number format of the matrices (default: f32); activations are f32', choices: precisions },
  { flags: '--family <name>', doc: "read the config as this family's; 'declared' takes an unlisted one by its facts" },
  { flags: '--debug', doc: 'with an error, print its stack' },
]

const modelHelp = "MODEL is 'embedded', a folder, a file, a hub id (org/name), or npm:name@version#path."
const idsHelp = 'Wherever a text is asked for, ids:5,6,7 gives token ids.'

/** The MODEL argument. */
export const modelArgument: ArgumentRow = { name: 'MODEL', doc: "'embedded', a folder, a file, a hub id, or npm:name@version#path" }

/** The parser of a row; `run` receives the parsed arguments and options. */
export function parserOf(row: CommandRow, run: (args: Record<string, unknown>, options: Record<string, unknown>) => void): Command {
  const command = new Command(`actlens ${row.name}`)
    .summary(row.summary)
    .description(row.summary)
    .exitOverride()
    .configureOutput({ writeErr: () => {} })
  for (const a of row.arguments) {
    const shown = `${a.name}${a.repeat ? '...' : ''}`
    const argument = new Argument(a.optional ? `[${shown}]` : `<${shown}>`, a.doc)
    command.addArgument(a.choices ? argument.choices(a.choices) : argument)
  }
  for (const o of row.options) command.addOption(optionOf(o))
  for (const o of commonOptions) command.addOption(optionOf(o).helpGroup('Options of every command:'))
  command.addHelpText('after', () => `\n${helpNotes(row)}Example:\n  actlens ${row.example}`)
  command.action((...values: unknown[]) => {
    const args = Object.fromEntries(row.arguments.map((a, i) => [a.name.toLowerCase(), values[i]]))
    run(args, values[row.arguments.length] as Record<string, unknown>)
  })
  return command
}

function helpNotes(row: CommandRow): string {
  const notes = [
    ...(row.arguments.some((a) => a.name === 'MODEL') ? [modelHelp] : []),
    ...(row.options.some((o) => /<text>|<file>/.test(o.flags)) ? [idsHelp] : []),
  ]
  return notes.map((n) => `${n}\n`).join('')
}

function optionOf(row: OptionRow): Option {
  // A list may be given as `--taps A B` as well as `--taps A --taps B`.
  const option = new Option(row.repeat ? row.flags.replace(/>$/, '...>') : row.flags, row.doc)
  if (row.choices) option.choices(row.choices)
  if (row.conflicts) option.conflicts([...row.conflicts])
  if (row.required) option.makeOptionMandatory()
  const parse = row.parse ?? ((text: string): unknown => text)
  if (row.repeat) option.argParser((text: string, before: unknown[] | undefined) => [...(before ?? []), parse(text)])
  else if (row.parse) option.argParser((text: string) => parse(text))
  return option
}
