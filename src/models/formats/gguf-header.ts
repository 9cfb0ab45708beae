/**
 * @file The header of a GGUF file.
 *
 * Not parsed by `@huggingface/gguf`, which 0.4.6 does not do soundly for what we need: it pads what it has read with zeros, so that
 * a truncated file yields nameless tensors instead of an error; it drops a byte order mark, which is a token of real vocabularies;
 * it checks neither repeated names nor where tensors lie; it reads local files only by path, and only in Node.
 */
import { FormatError } from '../../base/errors.ts'
import type { ByteSource } from './bytes.ts'
import { GgufCursor, metadataReaders, readCount, readString } from './gguf-values.ts'
import type { MetadataValue, StoredTensor } from './store.ts'
import { countOf, type StoredType, storedBytes } from './stored-types.ts'

/** What one GGUF file holds. */
export interface GgufFile {
  readonly source: ByteSource
  readonly metadata: ReadonlyMap<string, MetadataValue>
  readonly tensors: readonly StoredTensor[]
}

/** GGUF's numbers of types; a string that is no stored type is a type that llama.cpp has given up. */
const typeNumbers: ReadonlyMap<number, StoredType> = new Map([
  [0, 'F32'],
  [1, 'F16'],
  [2, 'Q4_0'],
  [3, 'Q4_1'],
  [6, 'Q5_0'],
  [7, 'Q5_1'],
  [8, 'Q8_0'],
  [10, 'Q2_K'],
  [11, 'Q3_K'],
  [12, 'Q4_K'],
  [13, 'Q5_K'],
  [14, 'Q6_K'],
  [15, 'Q8_K'],
  [16, 'IQ2_XXS'],
  [17, 'IQ2_XS'],
  [18, 'IQ3_XXS'],
  [19, 'IQ1_S'],
  [20, 'IQ4_NL'],
  [21, 'IQ3_S'],
  [22, 'IQ2_S'],
  [23, 'IQ4_XS'],
  [24, 'I8'],
  [25, 'I16'],
  [26, 'I32'],
  [27, 'I64'],
  [28, 'F64'],
  [29, 'IQ1_M'],
  [30, 'BF16'],
  [34, 'TQ1_0'],
  [35, 'TQ2_0'],
  [39, 'MXFP4'],
  [40, 'NVFP4'],
  [41, 'Q1_0'],
])

/** Types that files once had, or that llama.cpp uses only while it computes. */
const retiredTypes: ReadonlyMap<number, string> = new Map([
  [4, 'Q4_2'],
  [5, 'Q4_3'],
  [9, 'Q8_1'],
  [31, 'Q4_0_4_4'],
  [32, 'Q4_0_4_8'],
  [33, 'Q4_0_8_8'],
  [36, 'IQ4_NL_4_4'],
  [37, 'IQ4_NL_4_8'],
  [38, 'IQ4_NL_8_8'],
])

/** ggml's tensors have at most four dimensions. */
const MOST_DIMENSIONS = 4
/** Bytes of the shortest key with its value, and of the shortest description of a tensor: they bound the counts. */
const SHORTEST_PAIR = 13
const SHORTEST_TENSOR = 24

/** Reads and checks the header of one GGUF file. */
export async function parseGguf(source: ByteSource): Promise<GgufFile> {
  const cursor = new GgufCursor(source)
  await readMagic(cursor)
  const tensorCount = await readCount(cursor, SHORTEST_TENSOR, 'tensors')
  const pairCount = await readCount(cursor, SHORTEST_PAIR, 'metadata values')
  const metadata = new Map<string, MetadataValue>()
  for (let i = 0; i < pairCount; i++) {
    const key = await readString(cursor, 'key')
    if (metadata.has(key)) throw new FormatError(`${source.name} has the metadata ${key} twice; fetch it again.`)
    metadata.set(key, await readValue(cursor, key))
  }
  const described: Described[] = []
  for (let i = 0; i < tensorCount; i++) described.push(await readTensor(cursor))
  const alignment = alignmentOf(metadata, source.name)
  const start = Math.ceil(cursor.position / alignment) * alignment
  checkPlaces(described, source, start, alignment)
  const tensors = described.map(({ offset, ...tensor }): StoredTensor => ({ ...tensor, source, offset: start + offset }))
  return { source, metadata, tensors }
}

async function readMagic(cursor: GgufCursor): Promise<void> {
  const { name, size } = cursor.source
  if (size < 24) throw new FormatError(`${name} has ${size} bytes, too few for GGUF; fetch it again.`)
  await cursor.need(8)
  const magic = cursor.take(4)
  const found = magic.view.getUint32(magic.at, false)
  if (found !== 0x47475546) throw new FormatError(`${name} is not a GGUF file; check what file it is.`)
  const field = cursor.take(4)
  const version = field.view.getUint32(field.at, true)
  if (version === 2 || version === 3) return
  // The version of a big-endian file seems huge.
  const problem = (version & 0xffff) === 0 ? 'is a big-endian GGUF file' : `is a GGUF file of version ${version}`
  throw new FormatError(`${name} ${problem}, but versions 2 and 3 in little-endian order are read; convert it with llama.cpp's tools.`)
}

async function readValue(cursor: GgufCursor, key: string): Promise<MetadataValue> {
  await cursor.need(4)
  const field = cursor.take(4)
  const type = field.view.getUint32(field.at, true)
  const reader = metadataReaders[type]
  if (reader === undefined) {
    throw new FormatError(`The metadata ${key} of ${cursor.source.name} has the unknown type ${type}; fetch the file again.`)
  }
  return reader(cursor, key, 0)
}

/** A tensor whose offset still counts from the start of the data. */
type Described = Omit<StoredTensor, 'source'>

async function readTensor(cursor: GgufCursor): Promise<Described> {
  const name = await readString(cursor, 'name of a tensor')
  const what = `${name} in ${cursor.source.name}`
  await cursor.need(4)
  const field = cursor.take(4)
  const dimensions = field.view.getUint32(field.at, true)
  if (dimensions > MOST_DIMENSIONS)
    throw new FormatError(`${what} has ${dimensions} dimensions, of at most ${MOST_DIMENSIONS}; fetch the file again.`)
  await cursor.need(8 * dimensions + 12)
  const rest = cursor.take(8 * dimensions + 12)
  // GGUF lists the fastest dimension first.
  const shape = Array.from({ length: dimensions }, (_, i) => Number(rest.view.getBigUint64(rest.at + 8 * i, true))).reverse()
  countOf(shape, what)
  const type = typeOf(rest.view.getUint32(rest.at + 8 * dimensions, true), what)
  const offset = Number(rest.view.getBigUint64(rest.at + 8 * dimensions + 4, true))
  return { name, type, shape, offset, bytes: storedBytes(type, shape, what) }
}

function typeOf(number: number, what: string): StoredType {
  const type = typeNumbers.get(number)
  if (type !== undefined) return type
  const retired = retiredTypes.get(number)
  throw new FormatError(
    retired === undefined
      ? `${what} has the unknown GGUF type ${number}; quantise the model to another type, or update actlens.`
      : `${what} has the GGUF type ${retired}, which llama.cpp no longer keeps in files; quantise the model again.`,
  )
}

function alignmentOf(metadata: ReadonlyMap<string, MetadataValue>, name: string): number {
  const alignment = metadata.get('general.alignment') ?? 32
  const sound = typeof alignment === 'number' && Number.isInteger(Math.log2(alignment)) && alignment >= 1 && alignment <= 2 ** 30
  if (!sound) throw new FormatError(`${name} has a general.alignment of ${String(alignment)}, which is no power of two; fetch it again.`)
  return alignment
}

/** Tensors must lie inside the file, aligned, without overlaps, and with no more than padding between them, as llama.cpp demands. */
function checkPlaces(tensors: readonly Described[], source: ByteSource, start: number, alignment: number): void {
  let reached = 0
  let previous = 'the header'
  for (const { name, offset, bytes } of tensors.toSorted((a, b) => a.offset - b.offset || a.bytes - b.bytes)) {
    const what = `${name} in ${source.name}`
    if (!Number.isSafeInteger(offset + bytes) || start + offset + bytes > source.size) {
      throw new FormatError(
        `${what} ends at byte ${start + offset + bytes}, but the file has ${source.size}: it is truncated; fetch it again.`,
      )
    }
    if (offset % alignment !== 0) throw new FormatError(`${what} does not start at a multiple of ${alignment}; fetch the file again.`)
    if (offset < reached) throw new FormatError(`${what} overlaps ${previous}; fetch the file again.`)
    if (offset - reached >= alignment)
      throw new FormatError(`${what} leaves ${offset - reached} unused bytes after ${previous}; fetch the file again.`)
    reached = offset + bytes
    previous = name
  }
}
