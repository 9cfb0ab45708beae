/** @file Figures as SVG text, drawn without a browser. */
import { parseHTML } from 'linkedom'
import type { Figure } from './figure.ts'
import { heatLimits, plotFigure } from './marks.ts'

/** A figure as SVG text. */
export function drawFigure(figure: Figure): string {
  const { document } = parseHTML('<!doctype html><html><body></body></html>')
  const plot = plotFigure(figure, { document: document as unknown as Document })
  // The ramp of a heat map's legend wants a canvas, so its limits are told in words.
  const limits = heatLimits(figure)
  return plot.outerHTML + (limits ? `<p class="note">${limits}</p>` : '')
}
