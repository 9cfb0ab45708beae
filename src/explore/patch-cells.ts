/** @file The cells of a sweep: what of a site is changed in one row, and the table that the rows' metrics make. */
import { range } from '../base/numbers.ts'
import type { NDArray } from '../base/types.ts'
import type { Model } from '../run/index.ts'
import type { SiteInfo } from '../sites/address.ts'
import { axisSize } from '../sites/prepare.ts'
import type { AxisName } from '../sites/vocabulary.ts'
import { input, type Shape, type Tensor } from '../tensor/index.ts'
import { sitesOf } from './patch-graph.ts'

/** Which positions a row changes: one each, or all at once. */
export type Positions = 'each' | 'all'

/** Axis of a table. */
export interface TableAxis {
  readonly name: 'layer' | 'pos' | 'head' | 'kv_head'
  /** What each index stands for: layers by number, positions, heads. */
  readonly labels: readonly number[]
}

/** A number for each cell of a sweep over one pattern: layers, positions and heads, as far as the site has them. */
export interface SweepTable {
  /** The pattern as it was given. */
  readonly name: string
  /** Canonical sites, in the order of the axis `layer`. */
  readonly sites: readonly string[]
  readonly axes: readonly TableAxis[]
  readonly shape: readonly number[]
  readonly data: Float32Array
}

/** One row of a sweep: a site, with the position and head that are changed, where not all are. */
export interface Cell {
  readonly site: SiteInfo
  readonly position?: number
  readonly head?: number
  /** Its place in the data of the table of `pattern`. */
  readonly pattern: number
  readonly index: number
}

/** The layout of a sweep over one pattern. */
export interface Layout {
  readonly name: string
  readonly sites: readonly SiteInfo[]
  readonly axes: readonly TableAxis[]
}

/** The axis of heads that a site has. */
export const headAxis = (axes: readonly AxisName[]): 'head' | 'kv_head' | undefined =>
  axes.find((a): a is 'head' | 'kv_head' => a === 'head' || a === 'kv_head')

/** Lays a pattern's table out over texts of `length` tokens. */
export function layoutOf(model: Model, name: string, positions: Positions, length: number): Layout {
  const sites = sitesOf(model, name)
  const { row } = sites[0]
  const heads = headAxis(row.axes)
  const axes: TableAxis[] = []
  if (row.per === 'layer') axes.push({ name: 'layer', labels: sites.map((s) => s.layer as number) })
  if (positions === 'each') axes.push({ name: 'pos', labels: range(length) })
  if (heads) axes.push({ name: heads, labels: range(axisSize(heads, model.spec) as number) })
  return { name, sites, axes }
}

/** The cells of a table, in its order. */
export function cellsOf(layout: Layout, pattern: number): Cell[] {
  const label = (name: string) => layout.axes.find((a) => a.name === name)?.labels
  const positions = label('pos') ?? [undefined]
  const heads = label('head') ?? label('kv_head') ?? [undefined]
  let index = 0
  return layout.sites.flatMap((site) =>
    positions.flatMap((position) =>
      heads.map((head) => ({
        site,
        pattern,
        index: index++,
        ...(position === undefined ? {} : { position }),
        ...(head === undefined ? {} : { head }),
      })),
    ),
  )
}

/** The table of a layout with its values. */
export function tableOf({ name, sites, axes }: Layout, data: Float32Array): SweepTable {
  return { name, sites: sites.map((s) => s.site), axes, shape: axes.map((a) => a.labels.length), data }
}

/** Names of the inputs by which a site is changed. */
export const cellInputs = {
  mask: (site: string) => `patch.mask:${site}`,
  source: (site: string) => `patch.source:${site}`,
}

/** Axes along which a mask has values of its own: those of a cell, and the rows. */
const masked: readonly AxisName[] = ['batch', 'pos', 'head', 'kv_head']

/** The traced mask of a site and the traced values [1, …] that go in where it holds. */
export function cellTensors(site: SiteInfo, value: Tensor): { mask: Tensor; source: Tensor } {
  const shape: Shape = site.row.axes.map((a, i) => (masked.includes(a) ? (value.shape[i] as number | string) : 1))
  return {
    mask: input(cellInputs.mask(site.site), 'bool', shape),
    source: input(cellInputs.source(site.site), value.dtype, [1, ...value.shape.slice(1)]),
  }
}

/** The mask of a site over stacked rows: row `b` changes what `cells[b]` says, if that is of this site. */
export function maskOf(site: SiteInfo, cells: readonly (Cell | undefined)[], length: number, heads: number): NDArray {
  const { axes } = site.row
  const ownHeads = headAxis(axes) ? heads : 1
  const shape = axes.map((a) => (a === 'batch' ? cells.length : a === 'pos' ? length : a === 'head' || a === 'kv_head' ? ownHeads : 1))
  const data = new Uint8Array(shape.reduce((p, n) => p * n, 1))
  const headFirst = axes.indexOf('pos') > 1
  const [position, head] = headFirst ? [1, length] : [ownHeads, 1]
  for (const [b, cell] of cells.entries()) {
    if (cell?.site.site !== site.site) continue
    for (let p = cell.position ?? 0; p < (cell.position === undefined ? length : cell.position + 1); p++)
      for (let h = cell.head ?? 0; h < (cell.head === undefined ? ownHeads : cell.head + 1); h++)
        data[b * length * ownHeads + p * position + h * head] = 1
  }
  return { dtype: 'bool', shape, data }
}
