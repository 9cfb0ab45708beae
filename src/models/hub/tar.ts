/** @file Finds one file in a stream of tar bytes (as npm packs them): ustar with prefix, GNU long names, pax paths and sizes. */

import { FormatError } from '../../base/errors.ts'

/** What {@link TarFinder} tells of the file it looks for. */
export interface TarListener {
  /** The file was found and has this many bytes. */
  onStart(size: number): void
  /** The next bytes of it. */
  onData(bytes: Uint8Array): void | Promise<void>
  /** All its bytes were given. */
  onEnd(): void | Promise<void>
}

const blockSize = 512
/** Long names and pax headers are small; a larger one is damage or an attack. */
const maxHeaderBytes = 1 << 20

/** Reads tar bytes in pieces of any size and gives the bytes of the first file with the wanted path. */
export class TarFinder {
  /** Paths that were passed, for the error when the wanted one is not there. */
  readonly passed: string[] = []
  #pending: Uint8Array = new Uint8Array(0)
  #bodyLeft = 0
  #padding = 0
  #body: 'skip' | 'want' | 'meta' = 'skip'
  #meta: { type: string; bytes: Uint8Array; at: number } | undefined
  #next: { path?: string; size?: number } = {}
  #found = false
  readonly #wanted: string
  readonly #listener: TarListener

  /** `wanted` is a path below the archive's one top folder (which npm calls `package`). */
  constructor(wanted: string, listener: TarListener) {
    this.#wanted = wanted
    this.#listener = listener
  }

  /** Whether all bytes of the wanted file were given. */
  get found(): boolean {
    return this.#found
  }

  /** Takes the next bytes of the archive. */
  async push(bytes: Uint8Array): Promise<void> {
    let rest = bytes
    while (rest.length > 0 && !this.#found) {
      if (this.#bodyLeft > 0) rest = await this.#readBody(rest)
      else if (this.#padding > 0) {
        const skip = Math.min(this.#padding, rest.length)
        this.#padding -= skip
        rest = rest.subarray(skip)
      } else rest = await this.#readHeader(rest)
    }
  }

  async #readBody(bytes: Uint8Array): Promise<Uint8Array> {
    const piece = bytes.subarray(0, this.#bodyLeft)
    this.#bodyLeft -= piece.length
    if (this.#body === 'want') await this.#listener.onData(piece)
    else if (this.#body === 'meta' && this.#meta) {
      this.#meta.bytes.set(piece, this.#meta.at)
      this.#meta.at += piece.length
    }
    if (this.#bodyLeft === 0) await this.#endBody()
    return bytes.subarray(piece.length)
  }

  async #endBody(): Promise<void> {
    if (this.#body === 'want') {
      this.#found = true
      await this.#listener.onEnd()
    } else if (this.#body === 'meta' && this.#meta) {
      const text = new TextDecoder().decode(this.#meta.bytes)
      if (this.#meta.type === 'L') this.#next.path = text.replace(/\0.*$/s, '')
      else if (this.#meta.type === 'x') Object.assign(this.#next, readPax(text))
      this.#meta = undefined
    }
  }

  async #readHeader(bytes: Uint8Array): Promise<Uint8Array> {
    const missing = blockSize - this.#pending.length
    const joined = new Uint8Array(this.#pending.length + Math.min(missing, bytes.length))
    joined.set(this.#pending)
    joined.set(bytes.subarray(0, missing), this.#pending.length)
    this.#pending = joined
    if (joined.length === blockSize) {
      this.#pending = new Uint8Array(0)
      // Blocks of zeros end the archive.
      if (joined.some((byte) => byte !== 0)) await this.#begin(joined)
    }
    return bytes.subarray(missing)
  }

  async #begin(header: Uint8Array): Promise<void> {
    checkSum(header)
    const type = String.fromCharCode(header[156] || 48)
    const isMeta = type === 'L' || type === 'x' || type === 'g' || type === 'K'
    const size = (isMeta ? undefined : this.#next.size) ?? readNumber(header, 124, 12)
    if (!Number.isSafeInteger(size) || size < 0) throw damaged('a file has an impossible size')
    this.#bodyLeft = size
    this.#padding = (blockSize - (size % blockSize)) % blockSize
    if (isMeta) {
      if (size > maxHeaderBytes) throw damaged('a header is too long')
      this.#body = 'meta'
      this.#meta = { type, bytes: new Uint8Array(size), at: 0 }
      return
    }
    const path = (this.#next.path ?? readPath(header)).replace(/^(\.\/)?[^/]+\//, '')
    this.#next = {}
    const isFile = type === '0' || type === '7'
    this.#body = isFile && path === this.#wanted ? 'want' : 'skip'
    if (this.#body === 'skip') {
      if (isFile) this.passed.push(path)
      return
    }
    this.#listener.onStart(size)
    if (size === 0) await this.#endBody()
  }
}

function readText(header: Uint8Array, from: number, length: number): string {
  const field = header.subarray(from, from + length)
  const end = field.indexOf(0)
  return new TextDecoder().decode(end < 0 ? field : field.subarray(0, end))
}

function readPath(header: Uint8Array): string {
  const name = readText(header, 0, 100)
  const prefix = readText(header, 257, 5) === 'ustar' ? readText(header, 345, 155) : ''
  return prefix === '' ? name : `${prefix}/${name}`
}

/** A number in octal digits or, for large ones, GNU's base 256. */
function readNumber(header: Uint8Array, from: number, length: number): number {
  if (((header[from] ?? 0) & 0x80) !== 0) {
    let value = (header[from] ?? 0) & 0x7f
    for (let i = 1; i < length; i++) value = value * 256 + (header[from + i] ?? 0)
    return value
  }
  const text = readText(header, from, length).trim()
  return text === '' ? 0 : /^[0-7]+$/.test(text) ? Number.parseInt(text, 8) : Number.NaN
}

function checkSum(header: Uint8Array): void {
  let sum = 0
  // The field of the sum itself counts as spaces.
  for (let i = 0; i < blockSize; i++) sum += i >= 148 && i < 156 ? 32 : (header[i] ?? 0)
  if (sum !== readNumber(header, 148, 8)) throw damaged('a header has a wrong checksum')
}

/** Records `LENGTH KEY=VALUE\n`; the length counts bytes of UTF-8, but ASCII keys and one record a line are enough for path and size. */
function readPax(text: string): { path?: string; size?: number } {
  const found: { path?: string; size?: number } = {}
  for (const line of text.split('\n')) {
    const record = /^\d+ (path|size)=(.*)$/.exec(line)
    if (record?.[1] === 'path') found.path = record[2] as string
    else if (record?.[1] === 'size') found.size = Number(record[2])
  }
  return found
}

const damaged = (what: string): FormatError => new FormatError(`The archive is damaged: ${what}. Fetch it again.`)
