/** @file Figures as SVG, drawn by Observable Plot without a browser. */
import * as Plot from '@observablehq/plot'
import { parseHTML } from 'linkedom'
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
          }),
        ]
      : []),
  ],
}

const short = (v: number | undefined) => (v === undefined ? '' : String(Number(v.toPrecision(2))))
const hasInterval = (rows: Rows) => rows.some((r) => 'low' in r && 'high' in r)

/** A figure as SVG text. */
export function drawFigure(figure: Figure): string {
  const { document } = parseHTML('<!doctype html><html><body></body></html>')
  const rows = figure.data
  const named = (axis: Axis) => typeof rows[0]?.[axis.key] === 'string' || axis.domain !== undefined
  const scale = (axis: Axis) => ({
    label: axis.label,
    ...(axis.domain ? { domain: [...axis.domain] } : {}),
    ...(axis.scale === 'log' ? { type: 'log' as const } : {}),
  })
  const bars = figure.kind === 'bar' ? new Set(rows.map((r) => r[figure.y.key])).size : 0
  const heat = figure.kind === 'heat'
  const values = heat ? rows.map((r) => Number(r[figure.series?.key ?? 'value'])).filter(Number.isFinite) : []
  const signed = values.some((v) => v < 0)
  const plot = Plot.plot({
    document: document as unknown as Document,
    width: 720,
    ...(bars > 0 ? { height: 60 + 26 * bars } : {}),
    marginLeft: named(figure.y) ? 190 : 60,
    marginBottom: 45,
    style: { fontFamily: 'inherit', fontSize: '12px', background: 'transparent' },
    x: { ...scale(figure.x), ...(heat ? {} : { grid: true }) },
    y: { ...scale(figure.y), ...(heat || bars > 0 ? {} : { grid: true }) },
    color: heat
      ? {
          label: figure.series?.label ?? 'value',
          ...(signed
            ? { type: 'diverging' as const, scheme: 'RdBu' as const, pivot: 0, symmetric: true, reverse: true }
            : { scheme: 'Blues' as const }),
        }
      : { legend: figure.series !== undefined, range: colours, ...(figure.series?.domain ? { domain: [...figure.series.domain] } : {}) },
    marks: [...marks[figure.kind](figure, rows)],
  })
  // The ramp of a heat map's legend wants a canvas, so its limits are told in words.
  const limits =
    values.length > 0
      ? `<p class="note">Colour: ${figure.series?.label ?? 'value'}, from ${short(Math.min(...values))} to ${short(Math.max(...values))}.</p>`
      : ''
  return (plot as unknown as { outerHTML: string }).outerHTML + limits
}
