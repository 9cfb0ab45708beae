/** @file Bytes that are read by position, from a file, from memory or from a browser's Blob. */
import { FormatError, messageOf } from '../../base/errors.ts'

/** A fixed run of bytes that can be read piece by piece; what it holds is never loaded whole. */
export interface ByteSource {
  /** What to call it in a message: the path of a file. */
  readonly name: string
  /** Number of bytes it holds. */
  readonly size: number
  /** Path of the file that holds exactly these bytes, where there is one. */
  readonly path?: string
  /** The sources of whose bytes its own are made when they are read. */
  readonly basis?: readonly ByteSource[]
  /** Reads `length` bytes from `offset` into an array of their own; throws FormatError where the range does not exist. */
  read(offset: number, length: number): Promise<Uint8Array<ArrayBuffer>>
  /** Frees what the source holds open; reading afterwards fails. */
  close(): Promise<void>
}

/** Node refuses single reads of 2 GiB and more. */
const LARGEST_READ = 2 ** 30

/** Throws {@link FormatError} unless `source` holds `length` bytes at `offset`. */
export function checkRange(source: { name: string; size: number }, offset: number, length: number): void {
  const sound = Number.isSafeInteger(offset) && Number.isSafeInteger(length) && offset >= 0 && length >= 0
  if (sound && offset + length <= source.size) return
  throw new FormatError(
    `${source.name} has ${source.size} bytes, so ${length} bytes at ${offset} cannot be read: the file is truncated or malformed; fetch it again.`,
  )
}

/** Memory for `length` bytes, or a sentence where there is not so much. */
export function allocate(length: number, what: string): Uint8Array<ArrayBuffer> {
  try {
    return new Uint8Array(length)
  } catch (error) {
    throw new FormatError(`${what} needs ${length} bytes at once, which this machine does not give; read it in chunks.`, { cause: error })
  }
}

const openFailures: Readonly<Record<string, (path: string) => string>> = {
  ENOENT: (path) => `There is no file ${path}; check the path.`,
  ENOTDIR: (path) => `There is no file ${path}, since a part of the path is a file; check the path.`,
  EACCES: (path) => `The file ${path} may not be read; change its permissions.`,
  EMFILE: (path) => `The file ${path} cannot be opened, since too many files are open; close models that are no longer used.`,
}

/** The error to throw where `path` could not be opened or listed. */
export function openFailure(path: string, error: unknown): FormatError {
  const code = (error as { code?: string }).code ?? ''
  return new FormatError(openFailures[code]?.(path) ?? `The file ${path} cannot be opened: ${messageOf(error)}.`, { cause: error })
}

/** Opens a file for reading by position (Node). */
export async function openFile(path: string): Promise<ByteSource> {
  const { fs } = await import('../../base/node.ts')
  let descriptor: number
  let size: number
  try {
    descriptor = fs.openSync(path, 'r')
  } catch (error) {
    throw openFailure(path, error)
  }
  try {
    const stat = fs.fstatSync(descriptor)
    if (!stat.isFile()) throw new FormatError(`${path} is not a file; name a file, or use a format that is a folder.`)
    size = stat.size
  } catch (error) {
    fs.closeSync(descriptor)
    throw error
  }
  return new FileSource(path, size, descriptor, fs)
}

/** Closes files whose source was dropped without `close()`, so that no user must count references. */
const dropped = new FinalizationRegistry<{ descriptor: number; fs: typeof import('node:fs') }>(({ descriptor, fs }) =>
  fs.closeSync(descriptor),
)

class FileSource implements ByteSource {
  readonly name: string
  readonly path: string
  readonly size: number
  private readonly fs: typeof import('node:fs')
  private descriptor: number | undefined

  constructor(path: string, size: number, descriptor: number, fs: typeof import('node:fs')) {
    this.name = path
    this.path = path
    this.size = size
    this.descriptor = descriptor
    this.fs = fs
    dropped.register(this, { descriptor, fs }, this)
  }

  async read(offset: number, length: number): Promise<Uint8Array<ArrayBuffer>> {
    checkRange(this, offset, length)
    const bytes = allocate(length, this.name)
    let done = 0
    while (done < length) {
      const got = await this.readSome(bytes, done, Math.min(length - done, LARGEST_READ), offset + done)
      if (got === 0) throw new FormatError(`${this.path} became shorter while it was read; fetch it again.`)
      done += got
    }
    return bytes
  }

  private readSome(into: Uint8Array, at: number, length: number, position: number): Promise<number> {
    const { descriptor, fs, path } = this
    if (descriptor === undefined) throw new FormatError(`${path} was closed; open it again before reading.`)
    return new Promise((resolve, reject) => {
      fs.read(descriptor, into, at, length, position, (error, got) => {
        if (error) reject(new FormatError(`${path} cannot be read: ${error.message}.`, { cause: error }))
        else resolve(got)
      })
    })
  }

  async close(): Promise<void> {
    const { descriptor } = this
    if (descriptor === undefined) return
    this.descriptor = undefined
    dropped.unregister(this)
    this.fs.closeSync(descriptor)
  }
}

/** Reads from bytes in memory; every read is a copy, so that nothing can change what the source holds. */
export function fromBytes(bytes: Uint8Array, name = 'bytes in memory'): ByteSource {
  const source: ByteSource = {
    name,
    size: bytes.byteLength,
    async read(offset, length) {
      checkRange(source, offset, length)
      const copy = allocate(length, name)
      copy.set(bytes.subarray(offset, offset + length))
      return copy
    },
    async close() {},
  }
  return source
}

/** Reads from a Blob or File of the browser, of which only what is asked for is loaded. */
export function fromBlob(blob: Blob, name = 'name' in blob ? String(blob.name) : 'blob'): ByteSource {
  const source: ByteSource = {
    name,
    size: blob.size,
    async read(offset, length) {
      checkRange(source, offset, length)
      const buffer = await blob.slice(offset, offset + length).arrayBuffer()
      if (buffer.byteLength !== length) throw new FormatError(`${name} became shorter while it was read; choose the file again.`)
      return new Uint8Array(buffer)
    },
    async close() {},
  }
  return source
}

/** Opens what was given: a path as a file, a source as it is. */
export async function toSource(from: string | ByteSource): Promise<ByteSource> {
  return typeof from === 'string' ? openFile(from) : from
}
