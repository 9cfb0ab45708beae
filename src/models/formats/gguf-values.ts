/** @file The values of a GGUF header, read through a window that moves over the file. */
import { FormatError } from '../../base/errors.ts'
import type { ByteSource } from './bytes.ts'
import type { MetadataValue } from './store.ts'

/** Bytes that are fetched at once: headers have from kilobytes to a few megabytes. */
const WINDOW = 2 ** 20
/** Longest text that is read; the longest real ones are chat templates. */
const LONGEST_STRING = 2 ** 26
/** Longest list that is read: some 50 times the largest vocabulary. */
const LONGEST_LIST = 2 ** 24
const DEEPEST_LIST = 4

/** Reads a file from the front; never holds more of it than a window, or than one value needs. */
export class GgufCursor {
  readonly source: ByteSource
  private view = new DataView(new ArrayBuffer(0))
  private start = 0
  private at = 0

  constructor(source: ByteSource) {
    this.source = source
  }

  /** Bytes read so far. */
  get position(): number {
    return this.start + this.at
  }

  /** Bytes that follow. */
  get remaining(): number {
    return this.source.size - this.position
  }

  /** Makes the next `length` bytes available to {@link take}; throws FormatError where the file has fewer. */
  async need(length: number): Promise<void> {
    if (this.at + length <= this.view.byteLength) return
    if (length > this.remaining) {
      throw new FormatError(`${this.source.name} is truncated: its header needs more than its ${this.source.size} bytes; fetch it again.`)
    }
    const start = this.position
    const bytes = await this.source.read(start, Math.min(Math.max(length, WINDOW), this.remaining))
    this.view = new DataView(bytes.buffer)
    this.start = start
    this.at = 0
  }

  /** Passes over `length` bytes that {@link need} has made available, and says where they are. */
  take(length: number): { view: DataView; at: number } {
    const at = this.at
    this.at += length
    return { view: this.view, at }
  }

  /** The next text, where all of it is available already; else nothing is passed over. */
  textInWindow(): string | undefined {
    const left = this.view.byteLength - this.at - 8
    if (left < 0) return undefined
    const length = this.view.getBigUint64(this.at, true)
    if (length > left) return undefined
    const text = decode(this.view, this.at + 8, Number(length))
    this.at += 8 + Number(length)
    return text
  }
}

// A byte order mark is a token of real vocabularies and must stay; bytes that are not UTF-8 occur in old vocabularies.
const utf8 = new TextDecoder('utf-8', { ignoreBOM: true })

function decode(view: DataView, at: number, length: number): string {
  return utf8.decode(new Uint8Array(view.buffer, view.byteOffset + at, length))
}

/** Reads a value, or the items of a list of that type. */
export type MetadataReader = (cursor: GgufCursor, key: string, depth: number) => Promise<MetadataValue>

interface Scalar {
  readonly bytes: number
  get(view: DataView, at: number): MetadataValue
}

/** A 64-bit integer as a number where that is exact. */
function narrowed(value: bigint): number | bigint {
  return value >= BigInt(Number.MIN_SAFE_INTEGER) && value <= BigInt(Number.MAX_SAFE_INTEGER) ? Number(value) : value
}

const TEXT = 8
const LIST = 9

const scalars: Readonly<Record<number, Scalar>> = {
  0: { bytes: 1, get: (view, at) => view.getUint8(at) },
  1: { bytes: 1, get: (view, at) => view.getInt8(at) },
  2: { bytes: 2, get: (view, at) => view.getUint16(at, true) },
  3: { bytes: 2, get: (view, at) => view.getInt16(at, true) },
  4: { bytes: 4, get: (view, at) => view.getUint32(at, true) },
  5: { bytes: 4, get: (view, at) => view.getInt32(at, true) },
  6: { bytes: 4, get: (view, at) => view.getFloat32(at, true) },
  7: { bytes: 1, get: (view, at) => view.getUint8(at) !== 0 },
  10: { bytes: 8, get: (view, at) => narrowed(view.getBigUint64(at, true)) },
  11: { bytes: 8, get: (view, at) => narrowed(view.getBigInt64(at, true)) },
  12: { bytes: 8, get: (view, at) => view.getFloat64(at, true) },
}

/** How each of GGUF's numbered value types is read. */
export const metadataReaders: Readonly<Record<number, MetadataReader>> = {
  ...Object.fromEntries(
    Object.entries(scalars).map(([type, { bytes, get }]) => [
      type,
      async (cursor: GgufCursor) => {
        await cursor.need(bytes)
        const { view, at } = cursor.take(bytes)
        return get(view, at)
      },
    ]),
  ),
  [TEXT]: (cursor, key) => readString(cursor, `value of ${key}`),
  [LIST]: readList,
}

async function readList(cursor: GgufCursor, key: string, depth: number): Promise<MetadataValue[]> {
  const { name } = cursor.source
  if (depth >= DEEPEST_LIST)
    throw new FormatError(`The metadata ${key} of ${name} is nested deeper than ${DEEPEST_LIST} lists; fetch the file again.`)
  await cursor.need(4)
  const field = cursor.take(4)
  const type = field.view.getUint32(field.at, true)
  const read = metadataReaders[type]
  if (read === undefined) throw new FormatError(`The list ${key} of ${name} has items of the unknown type ${type}; fetch the file again.`)
  const scalar = scalars[type]
  // A text takes at least its length, a list its type and length.
  const length = await readCount(cursor, scalar?.bytes ?? (type === TEXT ? 8 : 12), `items of ${key}`)
  if (length > LONGEST_LIST)
    throw new FormatError(`The list ${key} of ${name} has ${length} items, of at most ${LONGEST_LIST}; fetch the file again.`)
  const items: MetadataValue[] = []
  if (scalar === undefined) {
    // Most texts of a vocabulary are in the window already: waiting for each would take most of the time.
    for (let i = 0; i < length; i++) items.push((type === TEXT ? cursor.textInWindow() : undefined) ?? (await read(cursor, key, depth + 1)))
    return items
  }
  await cursor.need(length * scalar.bytes)
  const { view, at } = cursor.take(length * scalar.bytes)
  for (let i = 0; i < length; i++) items.push(scalar.get(view, at + i * scalar.bytes))
  return items
}

/** Reads how many things follow, each of at least `atLeast` bytes; a count that the file cannot hold is refused before anything is made. */
export async function readCount(cursor: GgufCursor, atLeast: number, what: string): Promise<number> {
  await cursor.need(8)
  const { view, at } = cursor.take(8)
  const count = view.getBigUint64(at, true)
  if (count * BigInt(atLeast) > BigInt(cursor.remaining)) {
    throw new FormatError(
      `${cursor.source.name} claims ${count} ${what}, more than its ${cursor.source.size} bytes can hold; fetch it again.`,
    )
  }
  return Number(count)
}

/** Reads a text; `what` names it in a message. */
export async function readString(cursor: GgufCursor, what: string): Promise<string> {
  const length = await readCount(cursor, 1, `bytes in the ${what}`)
  if (length > LONGEST_STRING) {
    throw new FormatError(`The ${what} in ${cursor.source.name} has ${length} bytes, of at most ${LONGEST_STRING}; fetch the file again.`)
  }
  await cursor.need(length)
  const { view, at } = cursor.take(length)
  return decode(view, at, length)
}
