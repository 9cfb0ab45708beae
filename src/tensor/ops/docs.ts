/** @file The documentation of the op table, made from its rows. */
import { type OpRow, opTable } from '../tensor.ts'

/** What a row says about its gradient. */
function gradientOf({ gradient, expand }: OpRow): string {
  if (gradient === 'none') return 'none'
  if (gradient) return 'yes'
  return expand ? 'of its definition' : 'no'
}

/** How a row runs: as nodes of the runtime, written out in other ops, or either, as it suits. */
function formOf({ lower, expand }: OpRow): string {
  if (lower && expand) return 'fused or written out'
  return expand ? 'written out' : 'fused'
}

const leaves: ReadonlySet<string> = new Set(['input', 'constant', 'weight'])

/** The op table as a Markdown table, in alphabetical order: name, what it computes, how it runs, whether it has a gradient. */
export function opsMarkdown(): string {
  const cell = (text: string) => text.replaceAll('|', '\\|')
  const rows = [...opTable.values()]
    .sort((a, b) => (a.name < b.name ? -1 : 1))
    .map((row) => `| \`${row.name}\` | ${cell(row.doc)} | ${leaves.has(row.name) ? 'leaf' : formOf(row)} | ${gradientOf(row)} |`)
  return ['| op | what it gives | runs | gradient |', '|---|---|---|---|', ...rows, ''].join('\n')
}
