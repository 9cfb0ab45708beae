/** @file NumPy archives (`.npz`): a zip of `.npy` arrays, stored or deflated. */
import { FormatError, messageOf } from '../../base/errors.ts'
import { allocate, type ByteSource, fromBytes, toSource } from './bytes.ts'
import { type StoredTensor, WeightStore } from './store.ts'
import { type ElementType, storedBytes, storedTypes } from './stored-types.ts'
import { isContiguous, stridedSource } from './strided.ts'
import { readZip, type ZipMember } from './zip.ts'

/** Types of elements by NumPy's description; big-endian ones and objects are refused. */
const types: Readonly<Record<string, ElementType>> = {
  '<f4': 'F32',
  '<f8': 'F64',
  '<f2': 'F16',
  '<i8': 'I64',
  '<i4': 'I32',
  '<i2': 'I16',
  '|i1': 'I8',
  '<u8': 'U64',
  '<u4': 'U32',
  '<u2': 'U16',
  '|u1': 'U8',
  '|b1': 'BOOL',
}

const magic = [0x93, 0x4e, 0x55, 0x4d, 0x50, 0x59]
/** Longest header that is read; real ones have some hundred bytes. */
const longestHeader = 65_536

/** Opens an archive of arrays: a file, or a source. Throws FormatError for what is truncated, or holds objects. */
export async function openNpz(from: string | ByteSource): Promise<WeightStore> {
  const source = await toSource(from)
  try {
    const members = [...(await readZip(source, { deflated: true })).values()]
    if (members.length === 0) throw new FormatError(`${source.name} is an archive of no arrays; fetch it again.`)
    const tensors = await Promise.all(members.map((m) => readArray(source, m)))
    return new WeightStore({ format: 'npz', name: source.name, tensors, sources: [source] })
  } catch (error) {
    await source.close()
    throw error
  }
}

async function readArray(source: ByteSource, member: ZipMember): Promise<StoredTensor> {
  const name = member.name.replace(/\.npy$/, '')
  const what = `${member.name} in ${source.name}`
  if (name === member.name) throw new FormatError(`${what} is no array of NumPy; an .npz holds .npy files only.`)
  const inside = member.inflated === undefined ? undefined : fromBytes(await inflate(source, member, what), what)
  const [place, start, size] = inside ? [inside, 0, inside.size] : [source, member.offset, member.size]
  const { type, shape, fortran, length } = await readHeader(place, start, size, what)
  const bytes = storedBytes(type, shape, what)
  if (bytes !== size - length)
    throw new FormatError(`${what} announces ${bytes} bytes of values but holds ${size - length}: it is truncated; fetch it again.`)
  const offset = start + length
  const strides = shape.map((_, i) => shape.slice(0, i).reduce((p, n) => p * n, 1))
  if (!fortran || isContiguous(shape, strides)) return { name, type, shape, source: place, offset, bytes }
  const layout = { shape, strides, offset, elementSize: storedTypes[type].bytes }
  return { name, type, shape, source: stridedSource(place, what, layout), offset: 0, bytes }
}

interface Header {
  readonly type: ElementType
  readonly shape: readonly number[]
  readonly fortran: boolean
  /** Bytes before the values. */
  readonly length: number
}

async function readHeader(source: ByteSource, start: number, size: number, what: string): Promise<Header> {
  const bad = (why: string) => new FormatError(`${what} ${why}; fetch it again, or save it by numpy.savez with plain arrays of numbers.`)
  if (size < 12) throw bad('is too short for an array')
  const first = await source.read(start, 12)
  if (magic.some((b, i) => first[i] !== b)) throw bad('does not begin as an array of NumPy')
  const wide = (first[6] as number) >= 2
  const view = new DataView(first.buffer, first.byteOffset, first.byteLength)
  const text = wide ? view.getUint32(8, true) : view.getUint16(8, true)
  const length = (wide ? 12 : 10) + text
  if (text > longestHeader || length > size) throw bad('has a header that does not end')
  const header = new TextDecoder('latin1').decode(await source.read(start + length - text, text))
  const field = (pattern: RegExp) => pattern.exec(header)?.[1]
  const descr = field(/'descr':\s*'([^']*)'/)
  const fortran = field(/'fortran_order':\s*(True|False)/)
  const sizes = field(/'shape':\s*\(([\d,\s]*)\)/)
  const type = types[descr ?? '']
  if (fortran === undefined || sizes === undefined) throw bad('does not say its order and shape')
  if (type === undefined) throw bad(`holds values of type ${descr ?? 'unknown'}, which are no plain little-endian numbers`)
  const shape = sizes
    .split(',')
    .filter((s) => s.trim() !== '')
    .map(Number)
  return { type, shape, fortran: fortran === 'True', length }
}

async function inflate(source: ByteSource, member: ZipMember, what: string): Promise<Uint8Array> {
  const wrong = (why: string) => new FormatError(`${what} cannot be inflated (${why}): it is damaged; fetch it again.`)
  const out = allocate(member.inflated as number, what)
  const packed = new Blob([await source.read(member.offset, member.size)])
  let at = 0
  try {
    const stream = packed.stream().pipeThrough(new DecompressionStream('deflate-raw')) as ReadableStream<Uint8Array>
    for await (const piece of stream as unknown as AsyncIterable<Uint8Array>) {
      // A few bytes can inflate to very many: never to more than the directory says.
      if (at + piece.length > out.length) throw wrong('it is longer than it says')
      out.set(piece, at)
      at += piece.length
    }
  } catch (error) {
    throw error instanceof FormatError ? error : wrong(messageOf(error))
  }
  if (at !== out.length) throw wrong('it is shorter than it says')
  return out
}
