/** @file The directory of a zip archive, whose members are read in place where they are stored uncompressed. */
import { FormatError } from '../../base/errors.ts'
import { type ByteSource, checkRange } from './bytes.ts'

/** A member of an archive: its bytes lie at `offset` of the archive. */
export interface ZipMember {
  readonly name: string
  /** Where its own header begins. */
  readonly start: number
  readonly offset: number
  /** Bytes that it takes there. */
  readonly size: number
  /** Bytes that it has once inflated; undefined where it is stored as it is. */
  readonly inflated?: number
}

const END = 0x06054b50
const END_64 = 0x06064b50
const LOCATOR_64 = 0x07064b50
const ENTRY = 0x02014b50
const LOCAL = 0x04034b50
const END_BYTES = 22
const LOCATOR_BYTES = 20
const ENTRY_BYTES = 46
const LOCAL_BYTES = 30
/** The compression of zip that others use, besides none. */
const DEFLATED = 8
/** Value of a field that has moved to the 64-bit extension. */
const MOVED_32 = 0xffffffff
const MOVED_16 = 0xffff
/** Largest directory that is read; checkpoints have at most some ten thousand members. */
const LARGEST_DIRECTORY = 2 ** 27

/** Whether the bytes at the start of a file are those of a zip archive. */
export function looksLikeZip(first: Uint8Array): boolean {
  return first.length >= 4 && viewOf(first).getUint32(0, true) === LOCAL
}

function viewOf(bytes: Uint8Array): DataView {
  return new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength)
}

function malformed(source: ByteSource, problem: string): FormatError {
  return new FormatError(`The archive ${source.name} ${problem}; fetch it again.`)
}

interface Directory {
  readonly count: number
  readonly size: number
  readonly offset: number
}

/** The members of an archive by name; refuses encrypted, repeated and overlapping ones, and compressed ones unless `deflated` are asked for. */
export async function readZip(
  source: ByteSource,
  { deflated = false }: { deflated?: boolean } = {},
): Promise<ReadonlyMap<string, ZipMember>> {
  const { count, size, offset } = await findDirectory(source)
  checkRange(source, offset, size)
  if (size > LARGEST_DIRECTORY || count * ENTRY_BYTES > size)
    throw malformed(source, `claims ${count} members in a directory of ${size} bytes`)
  const bytes = await source.read(offset, size)
  const view = viewOf(bytes)
  const members = new Map<string, ZipMember>()
  let at = 0
  for (let i = 0; i < count; i++) {
    if (at + ENTRY_BYTES > size || view.getUint32(at, true) !== ENTRY) throw malformed(source, 'has a broken directory')
    const lengths = { name: view.getUint16(at + 28, true), extra: view.getUint16(at + 30, true), comment: view.getUint16(at + 32, true) }
    const end = at + ENTRY_BYTES + lengths.name + lengths.extra + lengths.comment
    if (end > size) throw malformed(source, 'has a broken directory')
    const entry = bytes.subarray(at, end)
    const member = await readMember(source, entry, lengths, deflated)
    if (members.has(member.name)) throw malformed(source, `has the member ${member.name} twice`)
    members.set(member.name, member)
    at = end
  }
  checkOverlaps(source, members)
  return members
}

async function findDirectory(source: ByteSource): Promise<Directory> {
  // The end record may be followed by a comment of up to 65,535 bytes.
  const tailSize = Math.min(source.size, END_BYTES + MOVED_16 + LOCATOR_BYTES)
  const tailStart = source.size - tailSize
  const tail = viewOf(await source.read(tailStart, tailSize))
  for (let at = tailSize - END_BYTES; at >= 0; at--) {
    if (tail.getUint32(at, true) !== END || at + END_BYTES + tail.getUint16(at + 20, true) !== tailSize) continue
    const directory = { count: tail.getUint16(at + 10, true), size: tail.getUint32(at + 12, true), offset: tail.getUint32(at + 16, true) }
    const moved = directory.count === MOVED_16 || directory.size === MOVED_32 || directory.offset === MOVED_32
    const locator = at - LOCATOR_BYTES
    const has64 = locator >= 0 && tail.getUint32(locator, true) === LOCATOR_64
    return moved && has64 ? findDirectory64(source, tail.getBigUint64(locator + 8, true)) : directory
  }
  throw malformed(source, 'has no directory at its end: it is truncated')
}

async function findDirectory64(source: ByteSource, offset: bigint): Promise<Directory> {
  const record = viewOf(await source.read(Number(offset), 56))
  if (record.getUint32(0, true) !== END_64) throw malformed(source, 'has a broken 64-bit directory')
  const field = (at: number) => Number(record.getBigUint64(at, true))
  return { count: field(32), size: field(40), offset: field(48) }
}

async function readMember(
  source: ByteSource,
  entry: Uint8Array,
  lengths: { name: number; extra: number },
  deflated: boolean,
): Promise<ZipMember> {
  const view = viewOf(entry)
  const nameBytes = entry.subarray(ENTRY_BYTES, ENTRY_BYTES + lengths.name)
  const name = new TextDecoder().decode(nameBytes)
  const method = view.getUint16(10, true)
  const packed = deflated && method === DEFLATED
  if (method !== 0 && !packed) {
    throw new FormatError(
      `${name} in ${source.name} is compressed, so it cannot be read in place; save it again with torch.save, or as safetensors.`,
    )
  }
  if ((view.getUint16(8, true) & 1) !== 0) throw new FormatError(`${name} in ${source.name} is encrypted; decrypt the archive first.`)
  const wide = new Wide(source, entry.subarray(ENTRY_BYTES + lengths.name, ENTRY_BYTES + lengths.name + lengths.extra))
  const size = wide.next(view.getUint32(24, true))
  const storedSize = wide.next(view.getUint32(20, true))
  const header = wide.next(view.getUint32(42, true))
  if (size !== storedSize && !packed) throw malformed(source, `gives two sizes for ${name}`)
  // The data begins after the local header, whose extra field may differ from the directory's: torch aligns data with it.
  const local = await source.read(header, LOCAL_BYTES)
  const localView = viewOf(local)
  if (localView.getUint32(0, true) !== LOCAL || localView.getUint16(26, true) !== lengths.name)
    throw malformed(source, `has no member where ${name} should be`)
  const offset = header + LOCAL_BYTES + lengths.name + localView.getUint16(28, true)
  checkRange(source, offset, storedSize)
  return { name, start: header, offset, size: storedSize, ...(packed ? { inflated: size } : {}) }
}

/** The 64-bit extension of a directory entry: holds, in order, the fields whose 32 bits are all set. */
class Wide {
  private readonly source: ByteSource
  private fields: DataView | undefined
  private at = 0

  constructor(source: ByteSource, extra: Uint8Array) {
    this.source = source
    const view = viewOf(extra)
    for (let at = 0; at + 4 <= extra.length; at += 4 + view.getUint16(at + 2, true)) {
      if (view.getUint16(at, true) === 1) this.fields = viewOf(extra.subarray(at + 4, at + 4 + view.getUint16(at + 2, true)))
    }
  }

  next(value: number): number {
    if (value !== MOVED_32) return value
    if (this.fields === undefined || this.at + 8 > this.fields.byteLength) throw malformed(this.source, 'lacks a 64-bit size')
    this.at += 8
    return Number(this.fields.getBigUint64(this.at - 8, true))
  }
}

function checkOverlaps(source: ByteSource, members: ReadonlyMap<string, ZipMember>): void {
  let reached = 0
  for (const { name, start, offset, size } of [...members.values()].sort((a, b) => a.start - b.start)) {
    if (start < reached) throw malformed(source, `has the member ${name} inside another`)
    reached = offset + size
  }
}
