/** @file Help and docs of the command line, derived from the table of commands. */
import { type CommandRow, commonOptions, type OptionRow } from './command.ts'
import { allCommands } from './commands/index.ts'
import { table } from './table.ts'

/** `run MODEL` — a command with its arguments. */
function usageOf(row: CommandRow): string {
  const args = row.arguments.map((a) => {
    const name = a.repeat ? `${a.name}…` : a.name
    return a.optional ? `[${name}]` : name
  })
  return [row.name, ...args].join(' ')
}

/** The help of `actlens` itself. */
export function commandsHelp(rows: readonly CommandRow[]): string {
  const lines = table(
    ['  command', 'does'],
    rows.map((r) => [`  ${usageOf(r)}`, r.summary]),
  )
  const options = table(
    ['  option', 'does'],
    commonOptions.map((o) => [`  ${o.flags}`, docOf(o)]),
  )
  return [
    'actlens COMMAND … — named activations of neural networks: read, edit, steer. Without a command it opens the studio.',
    lines,
    'Every command takes:',
    options,
    "MODEL is 'embedded', a folder, a file, a hub id (org/name), or npm:name@version#path. Wherever a text is asked for, ids:5,6,7 gives token ids.",
    "'actlens COMMAND --help' shows its options and an example. Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted.",
    '',
  ].join('\n')
}

function docOf(o: OptionRow): string {
  return `${o.doc}${o.choices ? ` (${o.choices.join(', ')})` : ''}${o.repeat ? '; may be repeated' : ''}`
}

/** Help as one JSON document. */
export function helpJson(rows: readonly CommandRow[]): string {
  const option = (o: OptionRow) => ({ flags: o.flags, doc: docOf(o) })
  return JSON.stringify({
    commands: rows.map((r) => ({ usage: usageOf(r), summary: r.summary, example: `actlens ${r.example}`, options: r.options.map(option) })),
    commonOptions: commonOptions.map(option),
  })
}

/** The docs page of the command line, in Markdown. */
export async function cliMarkdown(): Promise<string> {
  const cell = (text: string) => text.replaceAll('|', '\\|')
  const optionTable = (options: readonly OptionRow[]) => [
    '| option | does |',
    '|---|---|',
    ...options.map((o) => `| \`${cell(o.flags)}\` | ${cell(docOf(o))} |`),
  ]
  const sections = (await allCommands()).map((row) =>
    [
      `## \`${usageOf(row)}\``,
      '',
      `${row.summary}`,
      '',
      ...(row.options.length > 0 ? [...optionTable(row.options), ''] : []),
      '```sh',
      `actlens ${row.example}`,
      '```',
      '',
    ].join('\n'),
  )
  return [...sections, '## Options of every command', '', ...optionTable(commonOptions), ''].join('\n')
}
