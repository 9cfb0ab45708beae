/** @file Corpora in Parquet: one column of texts or of lists of token ids, a row group at a time (Node). */
import { brotliDecompressSync, gunzipSync } from 'node:zlib'
import { asyncBufferFromFile, type Compressors, parquetMetadataAsync, parquetReadObjects, parquetSchema } from 'hyparquet'
import { type ActlensError, FormatError, messageOf } from '../base/errors.ts'
import type { DocumentReader } from './corpus-documents.ts'
import { pieces } from './corpus-lines.ts'
import { type Care, columnNamed, contentOf, noText } from './corpus-text.ts'

/** What Node itself unpacks beside Snappy, which the reader knows. */
export const parquetCompressors: Compressors = {
  GZIP: (bytes) => gunzipSync(bytes),
  BROTLI: (bytes) => brotliDecompressSync(bytes),
}

/** Bytes that the column of one row group may unpack to. */
const largestGroup = 2 ** 30

/** Opens a Parquet file. @throws FormatError */
export async function openParquet(path: string) {
  try {
    const file = await asyncBufferFromFile(path)
    return { file, metadata: await parquetMetadataAsync(file) }
  } catch (error) {
    throw parquetFailure(path, error)
  }
}

const parquetFailure = (path: string, cause: unknown): ActlensError =>
  new FormatError(
    `${path} cannot be read as Parquet (${messageOf(cause)}); write it anew, compressed with Snappy or gzip, or fetch it again.`,
    {
      cause,
    },
  )

/** The rows of a table of columns; a row of nothing is empty. */
export const parquetDocuments: DocumentReader = async function* ({ path, field, invalid, from, seen }) {
  if (seen) for await (const piece of pieces(path)) seen(piece)
  const { file, metadata } = await openParquet(path)
  const columns = parquetSchema(metadata).children.map((c) => c.element.name)
  const column = columnNamed(path, columns, field)
  let start = 0
  for (const group of metadata.row_groups) {
    const end = start + Number(group.num_rows)
    if (end > from) {
      const size = group.columns.reduce(
        (sum, { meta_data: m }) => sum + (m?.path_in_schema[0] === column ? Number(m.total_uncompressed_size) : 0),
        0,
      )
      if (size > largestGroup)
        throw new FormatError(
          `A row group of ${path} holds ${Math.round(size / 2 ** 20)} MiB of '${column}', more than is read at once; write the file with smaller row groups.`,
        )
      const rows = await parquetReadObjects({
        file,
        metadata,
        columns: [column],
        rowStart: start,
        rowEnd: end,
        compressors: parquetCompressors,
        // Texts are decoded with the same care as those of other files.
        parsers: { stringFromBytes: (bytes) => bytes },
        utf8: false,
      }).catch((error: unknown) => {
        throw parquetFailure(path, error)
      })
      for (let document = Math.max(start, from); document < end; document++) {
        const value = rows[document - start]?.[column] as unknown
        const care: Care = { invalid, place: `${path}, row ${document + 1}` }
        const content = value === null || value === undefined ? '' : contentOf(value, care)
        if (content === undefined) throw noText(care.place, column, 'a row')
        yield { document, content, replaced: care.replaced ?? false }
      }
    }
    start = end
  }
}
