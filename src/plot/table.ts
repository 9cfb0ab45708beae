/** @file From a table with named axes to a figure: two axes make a heat map, one a line. */
import { UsageError } from '../base/errors.ts'
import type { Figure } from './figure.ts'

/** A table of numbers, row-major, with its axes named and their places labelled. */
export interface PlottedTable {
  readonly axes: readonly { readonly name: string; readonly labels: readonly (string | number)[] }[]
  readonly data: ArrayLike<number>
}

/** Words of a plot. */
export interface TablePlotOptions {
  readonly title: string
  /** What the numbers are, with their unit. */
  readonly value: string
  readonly caption?: string
  /** Other labels of an axis, by its name: the words of the positions, say. */
  readonly labels?: Readonly<Record<string, readonly string[]>>
}

/** Equal labels made different, so that their places stay apart: a zero-width space for each time that a label has stood before. */
function apart(labels: readonly (string | number)[]): string[] {
  const seen = new Map<string, number>()
  return labels.map((label) => {
    const l = String(label)
    const times = seen.get(l) ?? 0
    seen.set(l, times + 1)
    return l + '\u200b'.repeat(times)
  })
}

/** The figure of a table: `drawFigure(tableFigure(table, { title, value }))` is SVG text. */
export function tableFigure({ axes, data }: PlottedTable, { title, value, caption = '', labels = {} }: TablePlotOptions): Figure {
  const [rows, columns, ...more] = axes
  if (!rows || more.length > 0)
    throw new UsageError(`A table of one or two axes can be plotted, not one of ${axes.length}; take a slice, or a mean over the others.`)
  const size = rows.labels.length * (columns?.labels.length ?? 1)
  if (data.length !== size) throw new UsageError(`The axes of this table have places for ${size} values, but it has ${data.length}.`)
  const named = (axis: PlottedTable['axes'][number]) => {
    const given = labels[axis.name]
    if (given && given.length !== axis.labels.length)
      throw new UsageError(`The axis '${axis.name}' has ${axis.labels.length} places, but ${given.length} labels were given.`)
    return apart(given ?? axis.labels)
  }
  const [ys, xs] = [named(rows), columns && named(columns)]
  const head = { name: title.toLowerCase().replace(/\W+/g, '-'), title, caption }
  if (!xs || !columns)
    return {
      ...head,
      kind: 'line',
      x: { key: 'x', label: rows.name, domain: ys },
      y: { key: 'y', label: value },
      data: ys.map((x, i) => ({ x, y: data[i] as number })),
    }
  return {
    ...head,
    kind: 'heat',
    x: { key: 'x', label: columns.name, domain: xs },
    y: { key: 'y', label: rows.name, domain: ys },
    series: { key: 'value', label: value },
    data: ys.flatMap((y, i) => xs.map((x, j) => ({ x, y, value: data[i * xs.length + j] as number }))),
  }
}
