/** @file Stored tensors whose bytes are made when they are read, so that a changed checkpoint is a checkpoint like any other. */
import { type ByteSource, checkRange } from '../formats/bytes.ts'
import type { StoredTensor } from '../formats/index.ts'
import type { Matrix } from './matrix.ts'

/** A tensor of float32 whose values a matrix makes. */
export function derivedTensor(
  name: string,
  shape: readonly number[],
  matrix: Matrix,
  made: { readonly recipe: string; readonly of: readonly ByteSource[] },
): StoredTensor {
  const bytes = 4 * shape.reduce((p, n) => p * n, 1)
  const rowBytes = 4 * matrix.columns
  const source: ByteSource = {
    name: `${name} (${made.recipe})`,
    size: bytes,
    basis: made.of,
    async read(offset, length) {
      checkRange(source, offset, length)
      if (length === 0) return new Uint8Array(0)
      const from = Math.floor(offset / rowBytes)
      const rows = await matrix.read(from, Math.ceil((offset + length) / rowBytes) - from)
      const begin = rows.byteOffset + offset - from * rowBytes
      return new Uint8Array(rows.buffer.slice(begin, begin + length) as ArrayBuffer)
    },
    close: async () => {},
  }
  return { name, type: 'F32', shape, source, offset: 0, bytes }
}
