/** @file Figures as SVG text, drawn without a browser. */
import { parseHTML } from 'linkedom'
import type { Figure } from './figure.ts'
import { heatLimits, plotFigure, seriesOf } from './marks.ts'

const width = 720
const namespace = 'http://www.w3.org/2000/svg'

/** A figure as the text of one SVG, its legend inside: to write into a file or into a page. */
export function drawFigure(figure: Figure): string {
  const { document } = parseHTML('<!doctype html><html><body></body></html>')
  const plot = plotFigure(figure, { document: document as unknown as Document, width, legend: false })
  const legend = legendOf(figure)
  const height = Number(plot.getAttribute('height')) + legend.height
  plot.setAttribute('y', String(legend.height))
  return `<svg xmlns="${namespace}" width="${width}" height="${height}" viewBox="0 0 ${width} ${height}" font-family="system-ui, sans-serif">${legend.svg}${plot.outerHTML}</svg>`
}

/** What the colours mean: a swatch for each series, or the limits of a heat map in words. */
function legendOf(figure: Figure): { readonly svg: string; readonly height: number } {
  const limits = heatLimits(figure)
  if (limits !== undefined) return { svg: text(2, 14, limits), height: 22 }
  let [x, y, svg] = [2, 14, '']
  const series = seriesOf(figure)
  for (const { name, colour } of series) {
    const wide = 30 + 7 * name.length
    if (x + wide > width && x > 2) [x, y] = [2, y + 18]
    svg += `<rect x="${x}" y="${y - 10}" width="12" height="12" fill="${colour}"/>${text(x + 17, y, name)}`
    x += wide
  }
  return { svg, height: series.length > 0 ? y + 10 : 0 }
}

const text = (x: number, y: number, content: string) =>
  `<text x="${x}" y="${y}" font-size="12" fill="currentColor">${content.replace(/[&<>]/g, (c) => ({ '&': '&amp;', '<': '&lt;', '>': '&gt;' })[c] as string)}</text>`
