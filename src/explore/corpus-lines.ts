/** @file Lines of files, compressed or not, as bytes (Node). */
import { createReadStream } from 'node:fs'
import { pipeline } from 'node:stream'
import { createGunzip } from 'node:zlib'
import { FormatError, messageOf } from '../base/errors.ts'
import { readFailure, systemCode } from '../base/files.ts'

/** Longest line that is read; a longer one would not fit into a JavaScript string with its copies. */
export const longestLine = 2 ** 28

/** The lines of a file as bytes, without their ends. */
export async function* lines(path: string, zipped: boolean, seen?: (bytes: Uint8Array) => void): AsyncGenerator<Uint8Array> {
  const file = pieces(path, seen)
  const unpacked = zipped ? pipeline(file, createGunzip(), () => undefined) : file
  let held: Buffer[] = []
  let size = 0
  let number = 1
  try {
    for await (const piece of unpacked as AsyncIterable<Buffer>) {
      let start = 0
      for (let end = piece.indexOf(10); end >= 0; end = piece.indexOf(10, start)) {
        yield lineOf(held, piece.subarray(start, end))
        held = []
        size = 0
        number++
        start = end + 1
      }
      const rest = piece.subarray(start)
      size += rest.length
      if (size > longestLine)
        throw new FormatError(`${path}, line ${number} is longer than ${longestLine / 2 ** 20} MiB; break it into several lines.`)
      if (rest.length > 0) held.push(rest)
    }
    if (held.length > 0) yield lineOf(held, Buffer.alloc(0))
  } catch (error) {
    if (zipped && systemCode(error)?.startsWith('Z_'))
      throw new FormatError(`${path} cannot be unpacked (${messageOf(error)}); fetch it again.`, { cause: error })
    throw systemCode(error) === undefined ? error : readFailure(error, path)
  }
}

/** The bytes of a file, piece by piece. */
export async function* pieces(path: string, seen?: (bytes: Uint8Array) => void): AsyncGenerator<Buffer> {
  for await (const piece of createReadStream(path, { highWaterMark: 1 << 18 }) as AsyncIterable<Buffer>) {
    seen?.(piece)
    yield piece
  }
}

function lineOf(held: readonly Buffer[], last: Buffer): Uint8Array {
  const line = held.length === 0 ? last : Buffer.concat([...held, last])
  return line.at(-1) === 13 ? line.subarray(0, -1) : line
}
