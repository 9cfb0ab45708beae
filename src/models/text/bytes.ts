/** @file Bytes and text of single tokens: GPT-2's spelling of bytes as printable characters, `<0xNN>` pieces, and how pieces are shown. */

const encoder = new TextEncoder()
const strict = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true })
const lenient = new TextDecoder('utf-8', { ignoreBOM: true })

/** The character that stands for each byte in byte-level vocabularies: printable ones for themselves, the rest from U+0100 on. */
export const charOfByte: readonly string[] = (() => {
  let others = 0
  return Array.from({ length: 256 }, (_, byte) => {
    const printable = (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte <= 0xac) || byte >= 0xae
    return String.fromCharCode(printable ? byte : 0x100 + others++)
  })
})()

const byteOfChar = new Map(charOfByte.map((char, byte) => [char, byte]))

/** Bytes that a byte-level token stands for; a token with other characters (an added one) stands for its own text. */
export function bytesOfLevelToken(token: string): Uint8Array {
  const bytes = new Uint8Array(token.length)
  for (let i = 0; i < token.length; i++) {
    const byte = byteOfChar.get(token[i] as string)
    if (byte === undefined) return encoder.encode(token)
    bytes[i] = byte
  }
  return bytes
}

/** How a byte-level vocabulary spells a text. */
export function spellInBytes(text: string): string {
  return Array.from(encoder.encode(text), (byte) => charOfByte[byte]).join('')
}

/** The byte that a piece such as `<0x0A>` stands for, or undefined. */
export function byteOfPiece(piece: string): number | undefined {
  const digits = /^<0x([0-9A-Fa-f]{2})>$/.exec(piece)?.[1]
  return digits === undefined ? undefined : Number.parseInt(digits, 16)
}

/** The piece for a byte: `<0x0A>`. */
export function pieceOfByte(byte: number): string {
  return `<0x${byte.toString(16).toUpperCase().padStart(2, '0')}>`
}

/** Bytes as text where they are valid UTF-8, else as `<0xE2><0x80>`. */
export function shownBytes(bytes: Uint8Array): string {
  try {
    return strict.decode(bytes)
  } catch {
    return Array.from(bytes, pieceOfByte).join('')
  }
}

/** Text of bytes, with U+FFFD for what is not valid UTF-8. */
export function textOfBytes(bytes: Uint8Array): string {
  return lenient.decode(bytes)
}

/** Text of bytes that must be valid UTF-8, or undefined. */
export function validText(bytes: Uint8Array): string | undefined {
  try {
    return strict.decode(bytes)
  } catch {
    return undefined
  }
}

/** All the bytes, one after the other. */
export function joinBytes(parts: readonly Uint8Array[]): Uint8Array {
  const joined = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0))
  let at = 0
  for (const part of parts) {
    joined.set(part, at)
    at += part.length
  }
  return joined
}

/** Bytes of the last character that are still to be completed, after `rest` and `bytes`; undefined where these cannot become UTF-8. */
export function unfinished(rest: Uint8Array, bytes: Uint8Array): Uint8Array<ArrayBuffer> | undefined {
  const all = new Uint8Array(rest.length + bytes.length)
  all.set(rest)
  all.set(bytes, rest.length)
  for (let open = 0; open <= Math.min(3, all.length); open++) {
    const [whole, tail] = [all.subarray(0, all.length - open), all.slice(all.length - open)]
    if (validText(whole) !== undefined && (open === 0 || beginsCharacter(tail))) return tail
  }
  return undefined
}

/** Whether bytes can be completed to one character: some continuation of them is valid. */
function beginsCharacter(tail: Uint8Array): boolean {
  const first = tail[0] as number
  const length = first >= 0xf0 ? 4 : first >= 0xe0 ? 3 : first >= 0xc0 ? 2 : 0
  if (tail.length >= length) return false
  // The second byte is the only one whose range depends on the first; its ends are 0x80, 0x8f, 0x90, 0x9f, 0xa0 and 0xbf.
  return [0x80, 0x9f, 0xa0, 0xbf, 0x8f, 0x90].some((next) => {
    const filled = Uint8Array.from({ length }, (_, i) => tail[i] ?? (i === tail.length ? next : 0x80))
    return validText(filled) !== undefined
  })
}
