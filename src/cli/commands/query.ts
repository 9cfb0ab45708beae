/** @file `actlens query`: questions in SQL to tables of features. */
import { type QueryRow, queryFeatures } from '../../explore/index.ts'
import { defineCommand } from '../command.ts'
import { short, table } from '../table.ts'

export const command = defineCommand<{ sql: string; file: string[] }, object>({
  name: 'query',
  summary: 'Answers a question in SQL about tables of features (Parquet), which it sees as the table features.',
  example: "query 'SELECT feature, count(*) AS places FROM features GROUP BY feature ORDER BY places DESC LIMIT 10' features.parquet",
  arguments: [
    { name: 'SQL', doc: 'the question, in the SQL of DuckDB; columns: feature, document, position, token, piece, value' },
    { name: 'FILE', doc: 'Parquet files with the same columns', repeat: true },
  ],
  options: [],
  async run({ io, common }, { sql, file }) {
    const { columns, rows } = await queryFeatures(file, sql, {
      signal: io.signal,
      ...(common.threads === undefined ? {} : { threads: common.threads }),
    })
    const json = rows.map((row) =>
      Object.fromEntries(Object.entries(row).map(([name, value]) => [name, typeof value === 'bigint' ? String(value) : value])),
    )
    return {
      json: { columns, rows: json },
      text: table(
        columns,
        rows.map((row) => columns.map((c) => cell(row, c))),
      ),
    }
  },
})

function cell(row: QueryRow, column: string): string {
  const value = row[column]
  if (value === null || value === undefined) return ''
  if (typeof value === 'number') return Number.isInteger(value) ? String(value) : short(value)
  return typeof value === 'object' ? JSON.stringify(value) : String(value)
}
