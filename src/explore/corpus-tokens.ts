/** @file Token files: documents as rows of `input_ids` in safetensors, read row by row. */
import { createReadStream } from 'node:fs'
import { FormatError } from '../base/errors.ts'
import { openSafetensors, type StoredTensor } from '../models/formats/index.ts'
import { isElementType, storedTypes, viewOf } from '../models/formats/stored-types.ts'
import type { CorpusPart } from './corpus.ts'

/** Ids that are read at once from a document that is one long row. */
const idsAtOnce = 2 ** 16

/** The documents of a token file: `input_ids` [pos] is one, [batch, pos] one a row, without what `attention_mask` hides. */
export async function* tokenFileParts(path: string, from: number, seen?: (bytes: Uint8Array) => void): AsyncGenerator<CorpusPart> {
  if (seen) for await (const piece of createReadStream(path, { highWaterMark: 1 << 20 }) as AsyncIterable<Buffer>) seen(piece)
  const store = await openSafetensors(path)
  try {
    const ids = integers(store.get('input_ids'), path)
    const mask = store.has('attention_mask') ? integers(store.get('attention_mask'), path) : undefined
    if (mask && mask.shape.join() !== ids.shape.join())
      throw new FormatError(
        `'attention_mask' in ${path} has the shape [${mask.shape.join(', ')}], but 'input_ids' has [${ids.shape.join(', ')}].`,
      )
    const [rows, width] = ids.shape.length === 1 ? [1, ids.shape[0] as number] : (ids.shape as [number, number])
    for (let row = from; row < rows; row++) {
      let first = true
      for (let at = 0; at < width; at += idsAtOnce) {
        const [start, count] = [row * width + at, Math.min(idsAtOnce, width - at)]
        const values = await range(ids, start, count)
        const kept = mask && (await range(mask, start, count))
        const content = kept ? values.filter((_, i) => kept[i] !== 0) : values
        if (content.length === 0) continue
        yield { document: row, first, content }
        first = false
      }
    }
  } finally {
    await store.close()
  }
}

function integers(tensor: StoredTensor, path: string): StoredTensor {
  if (/^(I|U)\d+$|^BOOL$/.test(tensor.type) && (tensor.shape.length === 1 || tensor.shape.length === 2)) return tensor
  throw new FormatError(
    `'${tensor.name}' in ${path} is ${tensor.type} [${tensor.shape.join(', ')}], but must hold integers of shape [batch, pos] or [pos].`,
  )
}

async function range({ type, source, offset }: StoredTensor, start: number, count: number): Promise<number[]> {
  const size = storedTypes[type].bytes
  const bytes = await source.read(offset + start * size, count * size)
  if (!isElementType(type)) return []
  return Array.from(viewOf(type, bytes).data as ArrayLike<number | bigint>, Number)
}
