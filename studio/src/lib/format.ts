/** @file Numbers and tokens as people read them. */

/** A number with three significant digits, a true minus sign, no exponent in the usual range. */
export function number(value: number, digits = 3): string {
  if (!Number.isFinite(value)) return value > 0 ? '∞' : value < 0 ? '−∞' : '–'
  if (value === 0) return '0'
  const size = Math.abs(value)
  const text =
    size >= 1e5 || size < 1e-3 ? value.toExponential(digits - 1) : value.toFixed(Math.max(0, digits - 1 - Math.floor(Math.log10(size))))
  return text.replace('-', '−').replace('e+', 'e')
}

/** A signed number with one decimal: `+1.5`, `0`, `−2.0`. */
export function signed(value: number): string {
  return value === 0 ? '0' : `${value > 0 ? '+' : '−'}${Math.abs(value).toFixed(1)}`
}

/** A probability: `97 %`, `0.4 %`, `<0.1 %`, with a space that does not break. */
export function percent(p: number): string {
  if (p > 0 && p < 0.001) return '<0.1\u202f%'
  return `${p < 0.1 ? (100 * p).toFixed(1) : (100 * p).toFixed(0)}\u202f%`
}

/** Megabytes, with a decimal below ten. */
export function bytes(count: number): string {
  const mb = count / 1e6
  return mb >= 1000 ? `${(mb / 1000).toFixed(1)} GB` : `${mb < 10 ? mb.toFixed(1) : mb.toFixed(0)} MB`
}

/** A token on its own: newlines as ⏎, a leading space left out or shown as a dot. */
export function tokenLabel(piece: string, whitespace = false): string {
  const text = withBreaks(piece)
  const spaced = whitespace ? text.replaceAll(' ', '·') : text.replace(/^ +/, '')
  return spaced === '' ? '·' : spaced
}

/** A token within running text. */
export function tokenText(piece: string, whitespace: boolean): string {
  const text = withBreaks(piece)
  return whitespace ? text.replaceAll(' ', '·') : text
}

/** Whether a token ends a line. */
export const breaksLine = (piece: string) => piece.includes('\n') || piece === '<0x0A>'

/** Whether a token is no text: `<s>`, `<|endoftext|>`. */
export const isSpecial = (piece: string) => /^<[^<>\s]+>$/.test(piece) && piece !== '<0x0A>'

const withBreaks = (piece: string) => (piece === '<0x0A>' ? '⏎' : piece.replaceAll('\n', '⏎').replaceAll('\t', '⇥'))

/** `1 edit`, `3 edits`. */
export const counted = (n: number, one: string, many = `${one}s`) => `${n} ${n === 1 ? one : many}`

/** Seconds as people say them: `4 s`, `2 min`, `1 h 5 min`. */
export function duration(seconds: number): string {
  if (!Number.isFinite(seconds)) return 'a while'
  if (seconds < 100) return `${Math.max(1, Math.round(seconds))}\u202fs`
  const minutes = Math.round(seconds / 60)
  return minutes < 60 ? `${minutes}\u202fmin` : `${Math.floor(minutes / 60)}\u202fh ${minutes % 60}\u202fmin`
}
