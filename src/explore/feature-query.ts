/** @file Questions to tables of features, and to any Parquet file, answered by DuckDB (Node; the library is loaded when it is first asked). */
import { FormatError, messageOf, throwIfCancelled, UsageError } from '../base/errors.ts'
import { sizeOrKind } from '../base/files.ts'

/** A value of a column as JavaScript has it; whole numbers that fit are numbers. */
export type QueryValue = string | number | bigint | boolean | null | Date | readonly unknown[] | Readonly<Record<string, unknown>>

/** A row of an answer, by column. */
export type QueryRow = Readonly<Record<string, QueryValue>>

/** Options of a query. */
export interface QueryOptions {
  /** Values of `$name` in the question: nothing needs quoting. */
  readonly parameters?: Readonly<Record<string, string | number | boolean | null>>
  /** Threads of the database (default: one for each core). */
  readonly threads?: number
  readonly signal?: AbortSignal
}

/** An answer: names of its columns in order, and its rows. */
export interface QueryResult<Row extends object = QueryRow> {
  readonly columns: readonly string[]
  readonly rows: readonly Row[]
}

/**
 * Answers a question in SQL about Parquet files, which it sees as the table `features`. The type of the rows is the caller's promise.
 * @param source a Parquet file, or several with the same columns.
 * @throws FormatError for files that are none, UsageError with DuckDB's own words for a wrong question.
 */
export async function queryFeatures<Row extends object = QueryRow>(
  source: string | readonly string[],
  sql: string,
  { parameters, threads, signal }: QueryOptions = {},
): Promise<QueryResult<Row>> {
  throwIfCancelled(signal)
  const paths = typeof source === 'string' ? [source] : source
  if (paths.length === 0) throw new UsageError('There is no file to ask; give at least one Parquet file.')
  for (const path of paths) {
    const kind = await sizeOrKind(path)
    if (typeof kind !== 'number')
      throw new FormatError(`${path} ${kind === 'folder' ? 'is a folder' : 'does not exist or may not be read'}; give a Parquet file.`)
  }
  const { DuckDBInstance } = await import('@duckdb/node-api')
  // Nothing is fetched from elsewhere, whatever the question names.
  const settings = { autoinstall_known_extensions: 'false', autoload_known_extensions: 'false' }
  const instance = await DuckDBInstance.create(':memory:', threads === undefined ? settings : { ...settings, threads: String(threads) })
  const connection = await instance.connect()
  const stop = () => connection.interrupt()
  signal?.addEventListener('abort', stop)
  try {
    const list = paths.map((p) => `'${p.replaceAll("'", "''")}'`).join(', ')
    await connection.run(`CREATE VIEW features AS SELECT * FROM read_parquet([${list}])`).catch((cause: unknown) => {
      throw new FormatError(`${paths.join(', ')} cannot be read as Parquet: ${firstLine(cause)}.`, { cause })
    })
    const reader = await connection.runAndReadAll(sql, parameters as never).catch((cause: unknown) => {
      throwIfCancelled(signal)
      throw new UsageError(`The question cannot be answered: ${firstLine(cause)}. The table is called features.`, { cause })
    })
    const rows = reader.getRowObjectsJS().map((row) => Object.fromEntries(Object.entries(row).map(([name, value]) => [name, plain(value)])))
    return { columns: reader.deduplicatedColumnNames(), rows: rows as unknown as Row[] }
  } finally {
    signal?.removeEventListener('abort', stop)
    connection.closeSync()
    instance.closeSync()
  }
}

const firstLine = (error: unknown) => (messageOf(error).split('\n')[0] as string).replace(/\.$/, '')

const plain = (value: unknown): QueryValue =>
  typeof value === 'bigint' && value >= Number.MIN_SAFE_INTEGER && value <= Number.MAX_SAFE_INTEGER ? Number(value) : (value as QueryValue)

/** How often and how strongly a feature is active. */
export interface FeatureFrequency {
  readonly feature: number
  /** Places and documents where it is active. */
  readonly places: number
  readonly documents: number
  readonly mean: number
  readonly max: number
}

/** The features that are active at most places, or all of them, most frequent first. */
export async function featureFrequencies(
  source: string | readonly string[],
  options: { readonly limit?: number } & Omit<QueryOptions, 'parameters'> = {},
) {
  const { limit = 1_000_000_000, ...rest } = options
  const sql = `SELECT feature, count(*) AS places, count(DISTINCT document) AS documents, avg(value) AS mean, max(value) AS max
    FROM features GROUP BY feature ORDER BY places DESC, feature LIMIT $limit`
  return (await queryFeatures<FeatureFrequency>(source, sql, { ...rest, parameters: { limit } })).rows
}

/** A place where a feature is active. */
export interface FeaturePlace {
  readonly document: number
  readonly position: number
  readonly token: number
  readonly piece: string
  readonly value: number
}

/** The places where a feature is most active, one for each document, strongest first (default 20). */
export async function strongestPlaces(
  source: string | readonly string[],
  feature: number,
  { limit = 20, ...rest }: { readonly limit?: number } & Omit<QueryOptions, 'parameters'> = {},
) {
  const sql = `SELECT document, position, token, piece, value FROM features WHERE feature = $feature
    QUALIFY row_number() OVER (PARTITION BY document ORDER BY value DESC, position) = 1 ORDER BY value DESC, document LIMIT $limit`
  return (await queryFeatures<FeaturePlace>(source, sql, { ...rest, parameters: { feature, limit } })).rows
}
