/** @file Colour means one thing each: magnitudes on one sequential scale, signed values on one diverging scale with its neutral at zero. */

/** Lightness 0–1, chroma, hue in degrees. */
type Oklch = readonly [lightness: number, chroma: number, hue: number]
/** sRGB, 0–255. */
export type Rgb = readonly [red: number, green: number, blue: number]
/** What a value is: a size from zero on, or a number with a sign. */
export type ScaleKind = 'magnitude' | 'signed'

/** Stops at equal steps of lightness, so that equal steps of the value look equal. */
const stops: Readonly<Record<'light' | 'dark', Readonly<Record<ScaleKind, readonly Oklch[]>>>> = {
  light: {
    magnitude: [
      [0.972, 0.012, 115],
      [0.84, 0.07, 160],
      [0.69, 0.09, 195],
      [0.54, 0.1, 230],
      [0.38, 0.11, 270],
    ],
    signed: [
      [0.45, 0.13, 258],
      [0.72, 0.1, 250],
      [0.968, 0.004, 100],
      [0.75, 0.11, 58],
      [0.5, 0.14, 42],
    ],
  },
  dark: {
    magnitude: [
      [0.245, 0.012, 270],
      [0.38, 0.08, 262],
      [0.53, 0.095, 225],
      [0.69, 0.1, 185],
      [0.87, 0.1, 130],
    ],
    signed: [
      [0.76, 0.11, 250],
      [0.5, 0.11, 256],
      [0.255, 0.005, 260],
      [0.53, 0.115, 48],
      [0.8, 0.12, 62],
    ],
  },
}

const tables = new Map<string, readonly Rgb[]>()
const steps = 255

/** The colours of a scale from its lowest to its highest value. */
export function colours(kind: ScaleKind, dark: boolean): readonly Rgb[] {
  const key = `${kind}${dark}`
  let table = tables.get(key)
  if (!table) {
    const scale = stops[dark ? 'dark' : 'light'][kind]
    table = Array.from({ length: steps + 1 }, (_, i) => toRgb(between(scale, i / steps)))
    tables.set(key, table)
  }
  return table
}

/** The colour of a value between limits; beyond them the end colours. Signed scales expect symmetric limits. */
export function colourAt(value: number, low: number, high: number, kind: ScaleKind, dark: boolean): Rgb {
  const t = high > low ? (value - low) / (high - low) : kind === 'signed' ? 0.5 : 0
  const table = colours(kind, dark)
  return table[Math.round(Math.min(1, Math.max(0, t)) * steps)] as Rgb
}

/** As CSS writes it. */
export const css = ([r, g, b]: Rgb) => `rgb(${r} ${g} ${b})`

/** As SVG files want it, for old readers. */
export const hex = (colour: Rgb) => `#${colour.map((v) => v.toString(16).padStart(2, '0')).join('')}`

// Only pure black and white leave no colour between them on which neither reads well.
const darkInk: Rgb = [0, 0, 0]
const lightInk: Rgb = [255, 255, 255]

/** Black or white text, whichever reads better on a colour; at least 4.5:1 on any. */
export function inkOn(background: Rgb): Rgb {
  return contrast(background, darkInk) >= contrast(background, lightInk) ? darkInk : lightInk
}

/** The contrast ratio of WCAG. */
export function contrast(a: Rgb, b: Rgb): number {
  const [x, y] = [luminance(a), luminance(b)]
  return (Math.max(x, y) + 0.05) / (Math.min(x, y) + 0.05)
}

function luminance(colour: Rgb): number {
  const [r, g, b] = colour.map((v) => (v / 255 <= 0.04045 ? v / 255 / 12.92 : ((v / 255 + 0.055) / 1.055) ** 2.4)) as [
    number,
    number,
    number,
  ]
  return 0.2126 * r + 0.7152 * g + 0.0722 * b
}

/** A CSS gradient over a scale, for legends and tracks. */
export function gradient(kind: ScaleKind, dark: boolean): string {
  const table = colours(kind, dark)
  const parts = Array.from({ length: 17 }, (_, i) => css(table[Math.round((i / 16) * steps)] as Rgb))
  return `linear-gradient(to right, ${parts.join(', ')})`
}

function between(scale: readonly Oklch[], t: number): [number, number, number] {
  const at = Math.min(scale.length - 2, Math.floor(t * (scale.length - 1)))
  const f = t * (scale.length - 1) - at
  const [a, b] = [toLab(scale[at] as Oklch), toLab(scale[at + 1] as Oklch)]
  return a.map((v, i) => v + (b[i]! - v) * f) as [number, number, number]
}

function toLab([lightness, chroma, hue]: Oklch): [number, number, number] {
  const angle = (hue * Math.PI) / 180
  return [lightness, chroma * Math.cos(angle), chroma * Math.sin(angle)]
}

/** From OKLab (Björn Ottosson, 2020) to sRGB. */
function toRgb([L, a, b]: [number, number, number]): Rgb {
  const l = (L + 0.3963377774 * a + 0.2158037573 * b) ** 3
  const m = (L - 0.1055613458 * a - 0.0638541728 * b) ** 3
  const s = (L - 0.0894841775 * a - 1.291485548 * b) ** 3
  const linear = [
    4.0767416621 * l - 3.3077115913 * m + 0.2309699292 * s,
    -1.2684380046 * l + 2.6097574011 * m - 0.3413193965 * s,
    -0.0041960863 * l - 0.7034186147 * m + 1.707614701 * s,
  ]
  return linear.map((v) =>
    Math.round(255 * Math.min(1, Math.max(0, v <= 0.0031308 ? 12.92 * v : 1.055 * v ** (1 / 2.4) - 0.055))),
  ) as unknown as Rgb
}
