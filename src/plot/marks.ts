/** @file Figures by Observable Plot, as elements of whatever document they go into: a report, the studio's page. */
import * as Plot from '@observablehq/plot'
import type { Axis, Figure } from './figure.ts'

type Rows = Figure['data']
type Marks = readonly Plot.Markish[]

/** Colours that colour-blind people can tell apart (Okabe and Ito 2008), dark enough for lines on white. */
const colours = ['#0072b2', '#d55e00', '#009e73', '#cc79a7', '#56b4e9', '#e69f00', '#7a7a7a', '#000000']

const marks: Readonly<Record<Figure['kind'], (f: Figure, rows: Rows) => Marks>> = {
  line: ({ x, y, series }, rows) => [
    Plot.ruleY([0], { stroke: '#ddd' }),
    ...(hasInterval(rows)
      ? [Plot.areaY(rows as object[], { x: x.key, y1: 'low', y2: 'high', fill: series?.key ?? (colours[0] as string), fillOpacity: 0.15 })]
      : []),
    Plot.lineY(rows as object[], { x: x.key, y: y.key, stroke: series?.key ?? (colours[0] as string), strokeWidth: 2 }),
    Plot.dot(rows as object[], { x: x.key, y: y.key, fill: series?.key ?? (colours[0] as string), r: 3 }),
  ],
  dot: ({ x, y, series }, rows) => [
    Plot.dot(rows as object[], { x: x.key, y: y.key, fill: series?.key ?? (colours[0] as string), r: 4, fillOpacity: 0.85 }),
    ...('label' in (rows[0] ?? {}) ? [Plot.text(rows as object[], { x: x.key, y: y.key, text: 'label', dy: -9, fontSize: 11 })] : []),
  ],
  bar: ({ x, y, series }, rows) => [
    Plot.barX(rows as object[], { x: x.key, y: y.key, fill: series?.key ?? (colours[0] as string) }),
    ...(hasInterval(rows) ? [Plot.ruleY(rows as object[], { y: y.key, x1: 'low', x2: 'high', strokeWidth: 1.5 })] : []),
    Plot.ruleX([0]),
  ],
  heat: ({ x, y, series }, rows) => [
    Plot.cell(rows as object[], { x: x.key, y: y.key, fill: series?.key ?? 'value', inset: 0.5 }),
    ...(rows.length <= 150
      ? [
          Plot.text(rows as object[], {
            x: x.key,
            y: y.key,
            text: (d: Record<string, number>) => short(d[series?.key ?? 'value']),
            fontSize: 10,
            // Readable on the darkest and on the lightest cell.
            fill: 'black',
            stroke: 'white',
            strokeWidth: 2.5,
          }),
        ]
      : []),
  ],
}

const short = (v: number | undefined) => (v === undefined ? '' : String(Number(v.toPrecision(2))))
const hasInterval = (rows: Rows) => rows.some((r) => 'low' in r && 'high' in r)

/** Where and how a figure is drawn. */
export interface FigureStyle {
  /** The document that the figure becomes a part of (default: the page's). */
  readonly document?: Document
  /** Pixels (default 720). */
  readonly width?: number
  /** Colour at a place from 0 to 1 of a heat map's scale, where the page has its own scales. */
  readonly ramp?: (place: number, signed: boolean) => string
  /** Draws what the colours of series mean; a page that is not allowed inline styles draws its own. */
  readonly legend?: boolean
}

const heatName = ({ series }: Figure) => series?.key ?? 'value'
const heatValues = (figure: Figure) => figure.data.map((r) => Number(r[heatName(figure)])).filter(Number.isFinite)

/** The series of a figure with their colours, in the order of the legend. */
export function seriesOf({ kind, series, data }: Figure): { readonly name: string; readonly colour: string }[] {
  if (kind === 'heat' || !series) return []
  const names = series.domain ?? [...new Set(data.map((r) => r[series.key] as string | number))].sort()
  return names.map((name, i) => ({ name: String(name), colour: colours[i % colours.length] as string }))
}

/** What the colours of a heat map mean, in words; undefined for other figures. */
export function heatLimits(figure: Figure): string | undefined {
  const values = figure.kind === 'heat' ? heatValues(figure) : []
  if (values.length === 0) return undefined
  return `Colour: ${figure.series?.label ?? 'value'}, from ${short(Math.min(...values))} to ${short(Math.max(...values))}.`
}

/** A figure as an element. */
export function plotFigure(figure: Figure, { document, width = 720, ramp, legend = true }: FigureStyle = {}): Element {
  const rows = figure.data
  const named = (axis: Axis) => typeof rows[0]?.[axis.key] === 'string' || axis.domain !== undefined
  const scale = (axis: Axis) => ({
    label: axis.label,
    ...(axis.domain ? { domain: [...axis.domain] } : {}),
    ...(axis.scale === 'log' ? { type: 'log' as const } : {}),
  })
  const bars = figure.kind === 'bar' ? new Set(rows.map((r) => r[figure.y.key])).size : 0
  const heat = figure.kind === 'heat'
  const signed = heat && heatValues(figure).some((v) => v < 0)
  const own = ramp && { interpolate: (place: number) => ramp(place, signed) }
  return Plot.plot({
    ...(document ? { document } : {}),
    width,
    ...(bars > 0 ? { height: 60 + 26 * bars } : {}),
    marginLeft: named(figure.y) ? Math.min(190, width / 3) : 60,
    marginBottom: 45,
    className: 'plot',
    style: { fontFamily: 'inherit', fontSize: '12px', background: 'transparent' },
    x: { ...scale(figure.x), ...(heat ? {} : { grid: true }) },
    y: { ...scale(figure.y), ...(heat || bars > 0 ? {} : { grid: true }) },
    color: heat
      ? {
          label: figure.series?.label ?? 'value',
          ...(signed
            ? { type: 'diverging' as const, pivot: 0, symmetric: true, ...(own ?? { scheme: 'RdBu' as const, reverse: true }) }
            : { type: 'linear' as const, ...(own ?? { scheme: 'Blues' as const }) }),
        }
      : {
          legend: legend && figure.series !== undefined,
          range: colours,
          ...(figure.series?.domain ? { domain: [...figure.series.domain] } : {}),
        },
    marks: [...marks[figure.kind](figure, rows)],
  })
}
