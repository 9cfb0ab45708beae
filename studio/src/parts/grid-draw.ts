/** @file Drawing a layer × token grid: where its cells lie, and the same strokes on a canvas or into an SVG file. */
import { colourAt, css, hex, inkOn, type Rgb, type ScaleKind } from '../lib/colour.ts'
import { escapeXml } from '../lib/export.ts'
import type { Limits } from '../lib/limits.ts'

/** What a grid shows. */
export interface GridData {
  /** Labels of the rows, from the top. */
  readonly rows: readonly string[]
  /** Labels of the columns. */
  readonly columns: readonly string[]
  /** By row and column; undefined where a row or a cell has not come yet. */
  readonly values: readonly (readonly (number | undefined)[] | undefined)[]
  /** Words inside the cells, by row and column. */
  readonly words?: readonly (readonly string[] | undefined)[]
}

/** Where the cells of a grid lie, in CSS pixels. */
export interface Layout {
  /** Left edge of each column, behind the row labels, and the right edge of the last. */
  readonly x: readonly number[]
  readonly left: number
  readonly top: number
  readonly rowHeight: number
  readonly width: number
  readonly height: number
}

/** Colours and fonts of the page, for a canvas that cannot see its style sheet. */
export interface Style {
  readonly dark: boolean
  readonly paper: string
  readonly ink: string
  readonly quiet: string
  readonly line: string
  readonly accent: string
  readonly serif: string
  readonly sans: string
}

/** What is drawn over the cells. */
export interface Marks {
  readonly hover?: { readonly row: number; readonly column: number } | undefined
  readonly pinned?: { readonly row: number; readonly column: number } | undefined
  /** A selected block, ends included. */
  readonly selected?: { readonly rows: readonly [number, number]; readonly columns: readonly [number, number] } | undefined
}

/** The few strokes that a grid needs. */
export interface Surface {
  rect(x: number, y: number, width: number, height: number, fill: Rgb | string): void
  frame(x: number, y: number, width: number, height: number, stroke: string, width2: number): void
  /** A small triangle in the upper right corner: the value is beyond the scale. */
  corner(x: number, y: number, size: number, fill: Rgb | string): void
  text(
    text: string,
    x: number,
    y: number,
    style: {
      fill: Rgb | string
      font: 'serif' | 'sans'
      size: number
      anchor: 'start' | 'middle' | 'end'
      weight?: number
      maximum?: number
    },
  ): void
}

const labelSize = 15
const wordSize = 13.5
const widestLabel = 150
const widestWord = 92
/** Pixels by which a column may be wider than it must. */
const mostStretch = 30

/** Lays a grid out; columns are as wide as their words, so that the labels read as running text, and share what room is left. */
export function layoutOf(data: GridData, measure: (text: string, font: 'serif' | 'sans', size: number) => number, available = 0): Layout {
  const left = Math.ceil(Math.max(24, ...data.rows.map((r) => measure(r, 'sans', 12.5))) + 14)
  const least = data.words ? 44 : 26
  const widths = data.columns.map((label, n) => {
    const words = data.words ? Math.max(0, ...data.words.map((row) => Math.min(widestWord, measure(row?.[n] ?? '', 'serif', wordSize)))) : 0
    const own = Math.min(widestLabel, measure(label, 'serif', labelSize))
    return Math.ceil(Math.max(least, own + 12, words + 14))
  })
  const spare = available - widths.reduce((sum, w) => sum + w, left)
  const more = Math.max(0, Math.min(mostStretch, Math.floor(spare / widths.length)))
  const x = [left]
  for (const w of widths) x.push((x.at(-1) as number) + w + more)
  const [top, rowHeight] = [34, data.words ? 30 : 26]
  return { x, left, top, rowHeight, width: x.at(-1) as number, height: top + rowHeight * data.rows.length + 1 }
}

/** The cell at a point of the content, or undefined. */
export function cellAt(layout: Layout, x: number, y: number): { row: number; column: number } | undefined {
  const row = Math.floor((y - layout.top) / layout.rowHeight)
  if (row < 0 || x < layout.left || x >= layout.width || y >= layout.height) return undefined
  return { row, column: columnAt(layout, x) }
}

/** The last column that begins at or left of `x`. */
function columnAt({ x: edges }: Layout, x: number): number {
  let [low, high] = [0, edges.length - 2]
  while (low < high) {
    const middle = (low + high + 1) >> 1
    if ((edges[middle] as number) <= x) low = middle
    else high = middle - 1
  }
  return low
}

/** Which part is on screen. */
export interface Port {
  readonly scrollX: number
  readonly scrollY: number
  readonly width: number
  readonly height: number
}

/** Draws the part that is on screen: cells, then labels, which stay at the edges. */
export function drawGrid(
  surface: Surface,
  data: GridData,
  layout: Layout,
  limits: Limits,
  kind: ScaleKind,
  style: Style,
  marks: Marks,
  port: Port,
): void {
  const { x, left, top, rowHeight } = layout
  const [dx, dy] = [-port.scrollX, -port.scrollY]
  const first = columnAt(layout, left + port.scrollX)
  const last = columnAt(layout, port.scrollX + port.width)
  surface.rect(0, 0, port.width, port.height, style.paper)
  for (const [r, row] of data.values.entries()) {
    const y = top + r * rowHeight + dy
    if (y > port.height || y + rowHeight < top) continue
    for (let n = first; n <= last; n++) {
      const [cx, width] = [(x[n] as number) + dx, (x[n + 1] as number) - (x[n] as number)]
      const value = row?.[n]
      if (value === undefined) {
        surface.rect(cx, y, width - 1, rowHeight - 1, style.line)
        continue
      }
      const fill = colourAt(value, limits.low, limits.high, kind, style.dark)
      surface.rect(cx, y, width - 1, rowHeight - 1, fill)
      if (Math.abs(value) > limits.high) surface.corner(cx + width - 1, y, 7, inkOn(fill))
      const word = data.words?.[r]?.[n]
      if (word)
        surface.text(word, cx + (width - 1) / 2, y + rowHeight / 2, {
          fill: inkOn(fill),
          font: 'serif',
          size: wordSize,
          anchor: 'middle',
          maximum: width - 6,
        })
    }
  }
  drawMarks(surface, layout, style, marks, dx, dy)
  drawLabels(surface, data, layout, style, marks, port, first, last)
}

function drawMarks(surface: Surface, { x, top, rowHeight }: Layout, style: Style, marks: Marks, dx: number, dy: number): void {
  const block = (rows: readonly [number, number], columns: readonly [number, number], stroke: string, weight: number) => {
    const [a, b] = [(x[columns[0]] as number) + dx, (x[columns[1] + 1] as number) + dx]
    const [c, d] = [top + rows[0] * rowHeight + dy, top + (rows[1] + 1) * rowHeight + dy]
    surface.frame(a - 0.5, c - 0.5, b - a, d - c, stroke, weight)
  }
  if (marks.selected) block(marks.selected.rows, marks.selected.columns, style.ink, 1.5)
  if (marks.hover) block([marks.hover.row, marks.hover.row], [marks.hover.column, marks.hover.column], style.ink, 1.5)
  if (marks.pinned) block([marks.pinned.row, marks.pinned.row], [marks.pinned.column, marks.pinned.column], style.accent, 2.5)
}

function drawLabels(
  surface: Surface,
  data: GridData,
  layout: Layout,
  style: Style,
  marks: Marks,
  port: Port,
  first: number,
  last: number,
): void {
  const { x, left, top, rowHeight } = layout
  const lit = marks.hover ?? marks.pinned
  surface.rect(0, 0, port.width, top - 1, style.paper)
  for (let n = first; n <= last; n++) {
    const width = (x[n + 1] as number) - (x[n] as number)
    const fill = lit?.column === n ? style.ink : style.quiet
    const centre = (x[n] as number) - port.scrollX + (width - 1) / 2
    surface.text(data.columns[n] ?? '', centre, top / 2 + 1, { fill, font: 'serif', size: labelSize, anchor: 'middle', maximum: width - 4 })
  }
  surface.rect(0, 0, left - 1, port.height, style.paper)
  for (const [r, label] of data.rows.entries()) {
    const y = top + r * rowHeight - port.scrollY + (rowHeight - 1) / 2
    if (y < top - rowHeight / 2 || y > port.height) continue
    const on = lit?.row === r
    surface.text(label, left - 8, y, {
      fill: on ? style.ink : style.quiet,
      font: 'sans',
      size: 12.5,
      anchor: 'end',
      weight: on ? 600 : 400,
    })
  }
  surface.rect(0, 0, left - 1, top - 1, style.paper)
}

/** Strokes on a canvas. */
export class CanvasSurface implements Surface {
  readonly #c: CanvasRenderingContext2D
  readonly #style: Style

  constructor(context: CanvasRenderingContext2D, style: Style) {
    this.#c = context
    this.#style = style
  }

  rect(x: number, y: number, width: number, height: number, fill: Rgb | string): void {
    this.#c.fillStyle = typeof fill === 'string' ? fill : css(fill)
    this.#c.fillRect(x, y, width, height)
  }

  frame(x: number, y: number, width: number, height: number, stroke: string, weight: number): void {
    this.#c.strokeStyle = stroke
    this.#c.lineWidth = weight
    this.#c.strokeRect(x, y, width, height)
  }

  corner(x: number, y: number, size: number, fill: Rgb | string): void {
    this.#c.fillStyle = typeof fill === 'string' ? fill : css(fill)
    this.#c.beginPath()
    this.#c.moveTo(x, y)
    this.#c.lineTo(x - size, y)
    this.#c.lineTo(x, y + size)
    this.#c.fill()
  }

  text(text: string, x: number, y: number, style: Parameters<Surface['text']>[3]): void {
    const { fill, font, size, anchor, weight = 400, maximum } = style
    this.#c.font = `${weight} ${size}px ${this.#style[font]}`
    this.#c.textAlign = anchor === 'middle' ? 'center' : anchor
    this.#c.textBaseline = 'middle'
    this.#c.fillStyle = typeof fill === 'string' ? fill : css(fill)
    this.#c.fillText(maximum === undefined ? text : shortened(text, maximum, (t) => this.#c.measureText(t).width), x, y)
  }
}

/** Strokes into an SVG file. */
export class SvgSurface implements Surface {
  readonly parts: string[] = []
  readonly #style: Style
  readonly #measure: (text: string, font: 'serif' | 'sans', size: number) => number

  constructor(style: Style, measure: (text: string, font: 'serif' | 'sans', size: number) => number) {
    this.#style = style
    this.#measure = measure
  }

  rect(x: number, y: number, width: number, height: number, fill: Rgb | string): void {
    this.parts.push(`<rect x="${x}" y="${y}" width="${width}" height="${height}" fill="${svgFill(fill)}"/>`)
  }

  frame(x: number, y: number, width: number, height: number, stroke: string, weight: number): void {
    this.parts.push(`<rect x="${x}" y="${y}" width="${width}" height="${height}" fill="none" stroke="${stroke}" stroke-width="${weight}"/>`)
  }

  corner(x: number, y: number, size: number, fill: Rgb | string): void {
    this.parts.push(`<path d="M${x} ${y}h${-size}l${size} ${size}z" fill="${svgFill(fill)}"/>`)
  }

  text(text: string, x: number, y: number, style: Parameters<Surface['text']>[3]): void {
    const { fill, font, size, anchor, weight = 400, maximum } = style
    const shown = maximum === undefined ? text : shortened(text, maximum, (t) => this.#measure(t, font, size))
    this.parts.push(
      `<text x="${x}" y="${y}" dy="0.34em" text-anchor="${anchor}" font-family="${escapeXml(this.#style[font])}" font-size="${size}" font-weight="${weight}" fill="${svgFill(fill)}">${escapeXml(shown)}</text>`,
    )
  }
}

const svgFill = (fill: Rgb | string) => (typeof fill === 'string' ? fill : hex(fill))

function shortened(text: string, maximum: number, width: (text: string) => number): string {
  if (width(text) <= maximum) return text
  let n = text.length - 1
  while (n > 1 && width(`${text.slice(0, n)}…`) > maximum) n--
  return `${text.slice(0, n)}…`
}

/** The style of the page as it is now. */
export function pageStyle(dark: boolean): Style {
  const style = getComputedStyle(document.documentElement)
  const value = (name: string) => style.getPropertyValue(name).trim()
  return {
    dark,
    paper: value('--paper'),
    ink: value('--ink'),
    quiet: value('--ink-2'),
    line: value('--line'),
    accent: value('--accent'),
    serif: value('--serif'),
    sans: value('--sans'),
  }
}

let ruler: CanvasRenderingContext2D | undefined
const widths = new Map<string, number>()

/** The width of a text in CSS pixels. */
export function textWidth(style: Style): (text: string, font: 'serif' | 'sans', size: number) => number {
  return (text, font, size) => {
    const key = `${font}${size}${text}`
    let width = widths.get(key)
    if (width === undefined) {
      ruler ??= document.createElement('canvas').getContext('2d') as CanvasRenderingContext2D
      ruler.font = `400 ${size}px ${style[font]}`
      width = ruler.measureText(text).width
      widths.set(key, width)
    }
    return width
  }
}
