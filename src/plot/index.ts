/** @file Pictures as SVG text, drawn without a browser: figures, and tables that draw themselves. */
export { drawFigure } from './draw.ts'
export type { Axis, Figure } from './figure.ts'
export { type PlottedTable, type TablePlotOptions, tableFigure } from './table.ts'
