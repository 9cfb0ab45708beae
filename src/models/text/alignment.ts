/** @file Where tokens lie in a text: their bytes are followed through the bytes of the text, over what a tokenizer added, dropped or changed. */

/** Bytes of a text as the tokenizer sees it, and for each byte the range of the original text it comes from. */
export interface TextMap {
  readonly bytes: Uint8Array
  /** UTF-16 start of the original character(s) of each byte. */
  readonly start: Uint32Array
  /** UTF-16 end of them. */
  readonly end: Uint32Array
  /** UTF-16 length of the original text. */
  readonly length: number
}

/** A token to be found: its bytes, or what is known otherwise. */
export type TokenSurface =
  | Uint8Array
  /** Added before the text: lies at its start, empty. */
  | 'before'
  /** Added after the text. */
  | 'after'
  /** Stands for something that has no token: lies wherever its neighbours leave room. */
  | 'unknown'

const encoder = new TextEncoder()

/** Maps a text; `normalize` is what the tokenizer does to it first, applied to one user-visible character at a time. */
export function mapText(text: string, normalize?: (part: string) => string): TextMap {
  const pieces: Uint8Array[] = []
  const ranges: [number, number][] = []
  let at = 0
  let total = 0
  const add = (original: string, seen: string): void => {
    const bytes = encoder.encode(seen)
    pieces.push(bytes)
    ranges.push([at, at + original.length])
    at += original.length
    total += bytes.length
  }
  if (!normalize) for (const char of text) add(char, char)
  else {
    for (const part of graphemes(text)) {
      const whole = normalize(part)
      const chars = Array.from(part, (char) => [char, normalize(char)] as const)
      // Where normalization joins characters, their bytes come from all of them.
      if (chars.map(([, seen]) => seen).join('') === whole) for (const [char, seen] of chars) add(char, seen)
      else add(part, whole)
    }
  }
  const map = { bytes: new Uint8Array(total), start: new Uint32Array(total), end: new Uint32Array(total), length: text.length }
  let to = 0
  pieces.forEach((bytes, i) => {
    const [start, end] = ranges[i] as [number, number]
    map.bytes.set(bytes, to)
    map.start.fill(start, to, to + bytes.length)
    map.end.fill(end, to, to + bytes.length)
    to += bytes.length
  })
  return map
}

/** Characters with their combining marks, which normalization may join. */
function graphemes(text: string): Iterable<string> {
  if (typeof Intl.Segmenter === 'function') {
    const segments = new Intl.Segmenter('und', { granularity: 'grapheme' }).segment(text)
    return Array.from(segments, (segment) => segment.segment)
  }
  return text.match(/\P{M}\p{M}*|\p{M}+/gsu) ?? []
}

const space = 0x20

/** How far ahead a token is searched when it does not lie where the last one ended: dropped characters are few. */
const reach = 1024

/** The range `[start, end)` of each token in the original text, in UTF-16 code units; starts never go back. */
export function alignTokens(map: TextMap, tokens: readonly TokenSurface[]): [number, number][] {
  const ranges: [number, number][] = []
  let at = 0
  let unknown: number[] = []
  const startAt = (byte: number): number => (byte < map.bytes.length ? (map.start[byte] as number) : map.length)
  const settle = (to: number): void => {
    share(map, at, to, unknown.length).forEach((range, i) => {
      ranges[unknown[i] as number] = range
    })
    unknown = []
  }
  tokens.forEach((token, i) => {
    const here = startAt(at)
    if (token === 'before') ranges.push([0, 0])
    else if (token === 'after') {
      settle(map.bytes.length)
      ranges.push([map.length, map.length])
    } else if (token === 'unknown') {
      ranges.push([here, here])
      unknown.push(i)
    } else {
      const found = find(map.bytes, token, at, unknown.length > 0)
      if (found === undefined) {
        // Nothing of the text: a space that the tokenizer put in front, or a token whose origin cannot be told.
        ranges.push([here, here])
        return
      }
      settle(found.at)
      at = found.at + found.length
      ranges.push([map.start[found.at] as number, map.end[at - 1] as number])
    }
  })
  settle(map.bytes.length)
  return ranges
}

/** Gives tokens of unknown extent what lies between their neighbours: a word each, else a character each, else all of it together. */
function share(map: TextMap, from: number, to: number, count: number): [number, number][] {
  if (count === 0) return []
  const runs = (continues: (byte: number) => boolean): [number, number][] => {
    const found: [number, number][] = []
    for (let at = from; at < to; at++) {
      if (map.bytes[at] === space) continue
      const start = map.start[at] as number
      const end = map.end[at] as number
      const last = found.at(-1)
      if (last && at > from && map.bytes[at - 1] !== space && continues(at)) last[1] = end
      else found.push([start, end])
    }
    return found
  }
  const words = runs(() => true)
  if (words.length === count) return words
  const chars = runs((at) => map.start[at] === map.start[at - 1])
  if (chars.length === count) return chars
  const start = words[0]?.[0] ?? (from < map.bytes.length ? (map.start[from] as number) : map.length)
  return Array.from({ length: count }, () => [start, words.at(-1)?.[1] ?? start])
}

/** Where the token lies: here, here without the space that tokenizers put in front of words, or some way ahead. */
function find(bytes: Uint8Array, token: Uint8Array, from: number, afterUnknown: boolean): { at: number; length: number } | undefined {
  const bare = token[0] === space ? token.subarray(1) : undefined
  // A space alone that is not here was put in by the tokenizer; a later one of the text is not it.
  const until = token.length === 0 || (bare?.length === 0 && !afterUnknown) ? from + 1 : Math.min(bytes.length, from + reach)
  for (let at = from; at < until; at++) {
    if (token.length > 0 && startsWith(bytes, token, at)) return { at, length: token.length }
    if (bare && bare.length > 0 && startsWith(bytes, bare, at)) return { at, length: bare.length }
  }
  return undefined
}

function startsWith(bytes: Uint8Array, token: Uint8Array, at: number): boolean {
  if (at + token.length > bytes.length) return false
  for (let i = 0; i < token.length; i++) if (bytes[at + i] !== token[i]) return false
  return true
}
