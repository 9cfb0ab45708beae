/** @file Pictures from PNG and JPEG files, as red, green and blue bytes. */
import { decode as decodePng } from 'fast-png'
import jpeg from 'jpeg-js'
import { FormatError, messageOf } from '../../base/errors.ts'

/** A picture: bytes [row, column, channel], red, green and blue. */
export interface Picture {
  readonly width: number
  readonly height: number
  readonly data: Uint8Array
}

/** Pictures of more pixels are refused before memory is taken. */
const mostPixels = 100e6

/** Kinds of files, by their first bytes. */
const kinds: readonly {
  readonly magic: readonly number[]
  readonly size: (b: DataView) => number
  readonly read: (b: Uint8Array) => Picture
}[] = [
  { magic: [0x89, 0x50, 0x4e, 0x47], size: (b) => (b.byteLength < 24 ? 0 : b.getUint32(16) * b.getUint32(20)), read: readPng },
  { magic: [0xff, 0xd8, 0xff], size: () => 0, read: readJpeg },
]

/**
 * Reads a PNG or JPEG file. Transparency is dropped, grey becomes three equal channels, 16 bits become 8; a rotation that a camera noted is not applied.
 * @param name what to call the file in a message.
 * @throws FormatError for other files, damaged ones, and more than 100 million pixels.
 */
export function decodeImage(bytes: Uint8Array, name = 'The image'): Picture {
  const kind = kinds.find((k) => k.magic.every((m, i) => bytes[i] === m))
  if (!kind) throw new FormatError(`${name} is neither a PNG nor a JPEG file; convert it to one of them.`)
  try {
    if (kind.size(new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength)) > mostPixels)
      throw new RangeError(`it says that it has more than ${mostPixels / 1e6} million pixels`)
    return kind.read(bytes)
  } catch (cause) {
    throw new FormatError(`${name} cannot be read: ${messageOf(cause)}.`, { cause })
  }
}

function readJpeg(bytes: Uint8Array): Picture {
  const { width, height, data } = jpeg.decode(bytes, {
    useTArray: true,
    formatAsRGBA: false,
    tolerantDecoding: false,
    maxResolutionInMP: mostPixels / 1e6,
    maxMemoryUsageInMB: 2048,
  })
  return { width, height, data }
}

function readPng(bytes: Uint8Array): Picture {
  const { width, height, data, depth, channels, palette } = decodePng(bytes)
  const line = Math.ceil((width * channels * depth) / 8)
  const samples = width * channels
  const sample = (row: number, i: number) => {
    if (depth === 16) return (data[row * samples + i] as number) >> 8
    if (depth === 8) return data[row * samples + i] as number
    const bit = i * depth
    return ((data[row * line + (bit >> 3)] as number) >> (8 - depth - (bit & 7))) & ((1 << depth) - 1)
  }
  const scale = depth < 8 ? 255 / ((1 << depth) - 1) : 1
  const grey = channels < 3
  const out = new Uint8Array(width * height * 3)
  for (let row = 0; row < height; row++)
    for (let column = 0; column < width; column++)
      for (let c = 0; c < 3; c++) {
        const value = sample(row, column * channels + (grey ? 0 : c))
        out[(row * width + column) * 3 + c] = palette ? (palette[value]?.[c] ?? 0) : value * scale
      }
  return { width, height, data: out }
}
