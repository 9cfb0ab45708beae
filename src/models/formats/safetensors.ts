/** @file Reading safetensors: a header of JSON, then the bytes of the tensors. Every number in the header is checked before it is used. */
import { FormatError, listed, messageOf } from '../../base/errors.ts'
import type { NDArray } from '../../base/types.ts'
import { type ByteSource, checkRange } from './bytes.ts'
import { openParts } from './shards.ts'
import type { StoredTensor, WeightStore } from './store.ts'
import { type ElementType, elementTypes, isElementType, storedBytes, viewOf } from './stored-types.ts'

/** Largest header that is read, as in the reference implementation. */
const LARGEST_HEADER = 100_000_000

/** One tensor as the header describes it; `begin` and `end` count from the end of the header. */
interface Entry {
  readonly name: string
  readonly type: ElementType
  readonly shape: readonly number[]
  readonly begin: number
  readonly end: number
}

interface Header {
  readonly entries: readonly Entry[]
  readonly metadata: ReadonlyMap<string, string>
}

/** Opens a file, an index, a folder, or sources (the shards of one checkpoint); throws FormatError where anything is amiss. */
export async function openSafetensors(from: string | ByteSource | readonly ByteSource[]): Promise<WeightStore> {
  return openParts(
    {
      format: 'safetensors',
      single: 'model.safetensors',
      index: 'model.safetensors.index.json',
      endings: ['.safetensors', '.safetensors.index.json'],
    },
    from,
    async (source) => {
      const length = headerLength(await source.read(0, Math.min(8, source.size)), source)
      const header = parseHeader(await source.read(8, length), source.size - 8 - length, source.name)
      const tensors = header.entries.map(
        ({ name, type, shape, begin, end }): StoredTensor => ({
          name,
          type,
          shape,
          source,
          offset: 8 + length + begin,
          bytes: end - begin,
        }),
      )
      return { tensors, metadata: header.metadata }
    },
  )
}

/** Reads safetensors from memory; throws FormatError where anything is amiss or a type has no array in memory. */
export function decodeSafetensors(
  bytes: Uint8Array,
  name = 'safetensors in memory',
): { tensors: Record<string, NDArray>; metadata: Record<string, string> } {
  const whole = { name, size: bytes.byteLength }
  const length = headerLength(bytes.subarray(0, 8), whole)
  const header = parseHeader(bytes.subarray(8, 8 + length), whole.size - 8 - length, name)
  const tensors = header.entries.map((entry): [string, NDArray] => {
    const from = 8 + length + entry.begin
    checkRange(whole, from, entry.end - entry.begin)
    const { dtype, data } = viewOf(entry.type, bytes.slice(from, 8 + length + entry.end))
    if (dtype === undefined) {
      throw new FormatError(
        `${entry.name} in ${name} is stored as ${entry.type}, which has no element type in memory; open it with openSafetensors and read it as float32.`,
      )
    }
    return [entry.name, { dtype, shape: entry.shape, data }]
  })
  // fromEntries, unlike assignment, makes an ordinary property even of "__proto__".
  return { tensors: Object.fromEntries(tensors), metadata: Object.fromEntries(header.metadata) }
}

function headerLength(first: Uint8Array, { name, size }: { name: string; size: number }): number {
  if (first.length < 8) throw new FormatError(`${name} has ${size} bytes, too few for safetensors; fetch it again.`)
  const length = new DataView(first.buffer, first.byteOffset, 8).getBigUint64(0, true)
  if (length > BigInt(LARGEST_HEADER)) {
    throw new FormatError(
      `${name} is not safetensors: its header would have ${length} bytes, of at most ${LARGEST_HEADER}; check what file it is.`,
    )
  }
  if (Number(length) > size - 8) {
    throw new FormatError(`${name} is truncated: its header needs ${length} bytes, but ${size - 8} follow; fetch it again.`)
  }
  return Number(length)
}

function parseHeader(bytes: Uint8Array, dataSize: number, name: string): Header {
  const fields = parseObject(bytes, name)
  const metadata = new Map<string, string>()
  const entries: Entry[] = []
  for (const [key, value] of Object.entries(fields)) {
    if (key === '__metadata__') readMetadata(value, metadata, name)
    else entries.push(readEntry(key, value, name))
  }
  checkTiling(entries, dataSize, name)
  return { entries, metadata }
}

function parseObject(bytes: Uint8Array, name: string): object {
  if (bytes[0] !== 0x7b) throw new FormatError(`${name} is not safetensors: its header does not begin with "{"; check what file it is.`)
  let text: string
  let fields: object
  try {
    text = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(bytes)
    fields = JSON.parse(text) as object
  } catch (error) {
    throw new FormatError(`The header of ${name} is not JSON (${messageOf(error)}); fetch the file again.`, { cause: error })
  }
  const twice = repeatedKey(text)
  if (twice !== undefined) throw new FormatError(`The header of ${name} has the key ${twice} twice; fetch the file again.`)
  return fields
}

/**
 * A key that an object of valid JSON has twice. JSON.parse keeps the last one silently, other readers the first:
 * two programs would load different tensors from one file.
 */
function repeatedKey(json: string): string | undefined {
  // By hand, because a regular expression overflows its stack on strings of megabytes.
  const open: (Set<string> | undefined)[] = []
  for (let i = 0; i < json.length; i++) {
    const c = json[i]
    if (c === '{') open.push(new Set())
    else if (c === '[') open.push(undefined)
    else if (c === '}' || c === ']') open.pop()
    else if (c === '"') {
      const start = i++
      while (json[i] !== '"') i += json[i] === '\\' ? 2 : 1
      let next = i + 1
      while (' \t\n\r'.includes(json[next] ?? '.')) next++
      if (json[next] !== ':') continue
      const key = JSON.parse(json.slice(start, i + 1)) as string
      const keys = open.at(-1)
      if (keys?.has(key)) return key
      keys?.add(key)
    }
  }
  return undefined
}

function readMetadata(value: unknown, into: Map<string, string>, name: string): void {
  if (!isObject(value)) throw new FormatError(`The __metadata__ of ${name} is not an object of strings; fetch the file again.`)
  for (const [key, text] of Object.entries(value)) {
    if (typeof text !== 'string')
      throw new FormatError(`The __metadata__ of ${name} has ${key}, which is not a string; fetch the file again.`)
    into.set(key, text)
  }
}

function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null && !Array.isArray(value)
}

const entryKeys = ['dtype', 'shape', 'data_offsets'] as const

function readEntry(key: string, value: unknown, name: string): Entry {
  const what = `${key} in ${name}`
  if (!isObject(value)) throw new FormatError(`The header of ${name} does not describe the tensor ${key}; fetch the file again.`)
  const unknown = Object.keys(value).filter((field) => !(entryKeys as readonly string[]).includes(field))
  if (unknown.length > 0) {
    throw new FormatError(`${what} has fields that safetensors does not know (${listed(unknown)}); convert the file to plain safetensors.`)
  }
  const { dtype, shape, data_offsets: offsets } = value
  if (typeof dtype !== 'string' || !isElementType(dtype)) {
    const known = listed(Object.keys(elementTypes), 20)
    throw new FormatError(`${what} has the type ${JSON.stringify(dtype)}, which cannot be read (known: ${known}); convert the tensor.`)
  }
  if (!Array.isArray(shape)) throw new FormatError(`${what} has no shape; fetch the file again.`)
  const bytes = storedBytes(dtype, shape as number[], what)
  const [begin, end] = Array.isArray(offsets) && offsets.length === 2 ? (offsets as unknown[]) : []
  if (!isOffset(begin) || !isOffset(end) || begin > end) {
    throw new FormatError(`${what} has the data_offsets ${JSON.stringify(offsets)}, which are no range; fetch the file again.`)
  }
  if (end - begin !== bytes) {
    throw new FormatError(
      `${what} is ${dtype} [${shape.join(', ')}], which takes ${bytes} bytes, but its data_offsets span ${end - begin}; fetch the file again.`,
    )
  }
  return { name: key, type: dtype, shape: shape as number[], begin, end }
}

function isOffset(value: unknown): value is number {
  return Number.isSafeInteger(value) && (value as number) >= 0
}

/** The tensors must cover the data exactly once: an overlap or a gap means that the file is not what its writer made. */
function checkTiling(entries: readonly Entry[], dataSize: number, name: string): void {
  let reached = 0
  let previous = 'the header'
  for (const { name: key, begin, end } of entries.toSorted((a, b) => a.begin - b.begin || a.end - b.end)) {
    if (begin < reached) throw new FormatError(`${key} overlaps ${previous} in ${name}; fetch the file again.`)
    if (begin > reached)
      throw new FormatError(`${name} has ${begin - reached} bytes between ${previous} and ${key} that belong to no tensor; fetch it again.`)
    reached = end
    previous = key
  }
  if (reached > dataSize)
    throw new FormatError(`${name} is truncated: its tensors need ${reached} bytes, but ${dataSize} follow the header; fetch it again.`)
  if (reached < dataSize)
    throw new FormatError(`${name} has ${dataSize - reached} bytes after its last tensor that belong to none; fetch it again.`)
}
