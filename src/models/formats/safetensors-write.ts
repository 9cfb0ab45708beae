/** @file Writing safetensors: in memory, to a file at once, or tensor by tensor with little memory. */
import { listed, ShapeError, UsageError } from '../../base/errors.ts'
import { bytesOf, type DType, type NDArray, sizeOf } from '../../base/types.ts'
import { allocate } from './bytes.ts'
import { storedTypeOf, storedTypes, viewOf } from './stored-types.ts'
import { createFile } from './write-file.ts'

/** A tensor that will be written: what the header must know before the data comes. */
export interface SafetensorsEntry {
  readonly name: string
  readonly dtype: DType
  readonly shape: readonly number[]
}

/** Writes the tensors that were announced, in any order and in pieces; the file appears with {@link SafetensorsWriter.finish}. */
export interface SafetensorsWriter {
  /** Adds data to a tensor: its next elements, as a typed array or as little-endian bytes. */
  write(name: string, data: ArrayBufferView): Promise<void>
  /** Gives the file its name; throws UsageError, and leaves no file, where data is missing. */
  finish(): Promise<void>
  /** Removes what was written. */
  abort(): Promise<void>
}

/** Data starts at a multiple of this, so that vector units and memory maps can use it in place. */
const ALIGNMENT = 64

interface Layout {
  /** Length, JSON and padding. */
  readonly header: Uint8Array
  readonly size: number
  readonly places: ReadonlyMap<string, { begin: number; end: number }>
}

function layOut(entries: readonly SafetensorsEntry[], metadata: Record<string, string> | undefined): Layout {
  const fields = new Map<string, unknown>()
  if (metadata !== undefined) fields.set('__metadata__', checkedMetadata(metadata))
  const widths = entries.map((entry) => storedTypes[checkedType(entry)].bytes)
  // Wide elements first, as the reference does, so that every tensor starts at a multiple of its element size.
  const order = entries.map((_, i) => i).sort((a, b) => widths[b]! - widths[a]!)
  const offsets = new Map<string, { begin: number; end: number }>()
  let reached = 0
  for (const i of order) {
    const { name, dtype, shape } = entries[i]!
    if (fields.has(name) || name === '__metadata__') throw new UsageError(`The tensor name ${name} comes twice or is reserved; rename one.`)
    const begin = reached
    reached += bytesOf(dtype, sizeOf(shape))
    fields.set(name, { dtype: checkedType(entries[i]!), shape, data_offsets: [begin, reached] })
    offsets.set(name, { begin, end: reached })
  }
  const json = new TextEncoder().encode(JSON.stringify(Object.fromEntries(fields)))
  const start = Math.ceil((8 + json.length) / ALIGNMENT) * ALIGNMENT
  const header = new Uint8Array(start).fill(0x20)
  new DataView(header.buffer).setBigUint64(0, BigInt(start - 8), true)
  header.set(json, 8)
  const places = new Map([...offsets].map(([name, { begin, end }]) => [name, { begin: begin + start, end: end + start }]))
  return { header, size: start + reached, places }
}

function checkedMetadata(metadata: Record<string, string>): Record<string, string> {
  const wrong = Object.keys(metadata).filter((key) => typeof metadata[key] !== 'string')
  if (wrong.length > 0) throw new UsageError(`The metadata of safetensors holds strings only, but ${listed(wrong)} is none; convert it.`)
  return metadata
}

function checkedType({ name, dtype, shape }: SafetensorsEntry): keyof typeof storedTypes {
  const type = storedTypeOf(dtype)
  if (type === undefined) throw new UsageError(`${name} is ${dtype}, which safetensors does not hold; convert it first.`)
  if (shape.some((d) => !Number.isSafeInteger(d) || d < 0) || !Number.isSafeInteger(bytesOf(dtype, sizeOf(shape)))) {
    throw new ShapeError(`${name} has the shape [${shape.join(', ')}], which no file can hold; correct it.`)
  }
  return type
}

function bytesIn(view: ArrayBufferView): Uint8Array {
  return new Uint8Array(view.buffer, view.byteOffset, view.byteLength)
}

/** The bytes of an array, after a check that the array is what its type and shape say. */
function checkedBytes(name: string, { dtype, shape, data }: NDArray): Uint8Array {
  const type = storedTypeOf(dtype)
  const count = sizeOf(shape)
  const fits = type !== undefined && data.length === count && data instanceof viewOf(type, new Uint8Array(0)).data.constructor
  if (!fits) {
    throw new ShapeError(
      `${name} is said to be ${dtype} [${shape.join(', ')}], but its data is ${data.length} elements of a ${data.constructor.name}.`,
    )
  }
  return bytesIn(data)
}

/** The bytes of a safetensors file with these tensors. */
export function encodeSafetensors(tensors: Record<string, NDArray>, metadata?: Record<string, string>): Uint8Array<ArrayBuffer> {
  const named = Object.entries(tensors)
  const { header, size, places } = layOut(entriesOf(named), metadata)
  const bytes = allocate(size, 'The safetensors file')
  bytes.set(header)
  for (const [name, array] of named) bytes.set(checkedBytes(name, array), places.get(name)!.begin)
  return bytes
}

function entriesOf(named: readonly [string, NDArray][]): SafetensorsEntry[] {
  return named.map(([name, { dtype, shape }]) => ({ name, dtype, shape }))
}

/** Writes a safetensors file whole: it appears complete, or nothing changes and an error says why (Node). */
export async function writeSafetensors(path: string, tensors: Record<string, NDArray>, metadata?: Record<string, string>): Promise<void> {
  const named = Object.entries(tensors)
  // All arrays are checked before the disk is touched.
  const parts = named.map(([name, array]): [string, Uint8Array] => [name, checkedBytes(name, array)])
  const writer = await createSafetensorsWriter(path, entriesOf(named), metadata)
  for (const [name, bytes] of parts) await writer.write(name, bytes)
  await writer.finish()
}

/** Begins a safetensors file whose tensors come one after the other, so that they need never be in memory together (Node). */
export async function createSafetensorsWriter(
  path: string,
  entries: readonly SafetensorsEntry[],
  metadata?: Record<string, string>,
): Promise<SafetensorsWriter> {
  const { header, places } = layOut(entries, metadata)
  const file = await createFile(path)
  await file.write(0, header)
  const next = new Map([...places].map(([name, { begin }]) => [name, begin]))

  /** After a mistake nothing useful can come: remove the file before saying so. */
  async function refuse(message: string): Promise<never> {
    await file.abort()
    throw new UsageError(message)
  }

  return {
    async write(name, data) {
      const place = places.get(name)
      if (place === undefined) return refuse(`The tensor ${name} was not announced when ${path} was begun; announce it.`)
      const at = next.get(name)!
      if (at + data.byteLength > place.end) {
        return refuse(`The tensor ${name} was announced with ${place.end - place.begin} bytes, but more came; correct its shape.`)
      }
      next.set(name, at + data.byteLength)
      await file.write(at, bytesIn(data))
    },
    async finish() {
      const missing = [...places].filter(([name, { end }]) => next.get(name) !== end).map(([name]) => name)
      if (missing.length > 0)
        return refuse(`${path} was not written, since data is missing for ${listed(missing)}; write them before finish().`)
      await file.commit()
    },
    abort: file.abort,
  }
}
