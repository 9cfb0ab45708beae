/** @file A sweep as it comes from the server, and as a grid. */
import type { MetricEnds, PatchLine, RequestOf, SiteKind, TableHead } from '../../../../src/server/protocol.ts'
import { lines } from '../../lib/api.ts'
import { tokenLabel } from '../../lib/format.ts'
import type { GridData } from '../../parts/grid-draw.ts'

/** A table of numbers by layer, position and head, as far as it has come. */
export interface Table {
  readonly head: TableHead
  readonly values: readonly (number | undefined)[]
}

/** A sweep as far as it has come. */
export interface Sweep {
  readonly table: Table
  readonly metric: MetricEnds
  readonly pieces: readonly string[]
  readonly done: number
  readonly total: number
  /** Milliseconds since it was asked for. */
  readonly ms: number
  readonly finished: boolean
}

/** Asks for a sweep over one pattern and hands it on as it fills in. */
export async function readSweep(request: RequestOf<'patch'>, signal: AbortSignal, put: (sweep: Sweep) => void): Promise<void> {
  const begun = performance.now()
  let sweep: Sweep | undefined
  for await (const batch of lines<PatchLine>('patch', request, signal)) {
    let values = sweep?.table.values.slice()
    for (const line of batch) {
      if (line.type === 'head') {
        const head = line.tables[0] as TableHead
        const total = head.axes.reduce((n, a) => n * a.labels.length, 1)
        values = new Array<number | undefined>(total).fill(undefined)
        sweep = { table: { head, values }, metric: line.metric, pieces: line.pieces, done: 0, total, ms: 0, finished: false }
      } else if (!sweep || !values) continue
      else if (line.type === 'cells') {
        for (const [i, at] of line.places.entries()) values[at] = line.values[i]
        sweep = { ...sweep, done: sweep.done + line.places.length }
      } else sweep = { ...sweep, finished: true }
    }
    if (!sweep || !values) continue
    sweep = { ...sweep, table: { ...sweep.table, values }, ms: performance.now() - begun }
    put(sweep)
  }
}

/** A cell of a table by what it is. */
export interface Place {
  readonly site: string
  readonly position?: number
  readonly head?: number
}

/** A table laid out in rows and columns. */
export interface Laid {
  readonly data: GridData
  readonly rowTitle: string
  /** What stands at a row and a column. */
  readonly place: (row: number, column: number) => Place
  /** Where a place stands. */
  readonly find: (place: Place) => { readonly row: number; readonly column: number } | undefined
  readonly index: (row: number, column: number) => number
}

/**
 * Lays a table out: layers (and heads, where positions have the columns) downwards, positions or heads across. `change` turns a number
 * of the table into what is drawn.
 */
export function laid({ head, values }: Table, pieces: readonly string[], change: (value: number) => number): Laid {
  const labels = (name: string) => head.axes.find((a) => a.name === name)?.labels
  const positions = labels('pos')
  const heads = labels('head') ?? labels('kv_head')
  const layers = head.sites.map((s) => s.split('.')[1] ?? s)
  const inRows = positions && heads ? heads.length : 1
  const columns = positions ? positions.length : (heads?.length ?? 1)
  const perLayer = (positions?.length ?? 1) * (heads?.length ?? 1)
  const index = (row: number, column: number) => {
    const layer = Math.floor(row / inRows)
    const h = row % inRows
    return layer * perLayer + (positions ? column * (heads?.length ?? 1) + h : column)
  }
  const rows = layers.flatMap((l) => (inRows > 1 ? (heads as readonly number[]).map((h) => `${l}.${h}`) : [l]))
  return {
    data: {
      rows,
      columns: positions ? pieces.map((p) => tokenLabel(p)) : heads ? heads.map((h) => `head ${h}`) : ['all positions'],
      values: rows.map((_, r) => {
        const row = Array.from({ length: columns }, (_, c) => values[index(r, c)])
        return row.some((v) => v !== undefined) ? row.map((v) => (v === undefined ? undefined : change(v))) : undefined
      }),
    },
    rowTitle: inRows > 1 ? 'layer.head' : 'layer',
    index,
    place: (row, column) => ({
      site: head.sites[Math.floor(row / inRows)] as string,
      ...(positions ? { position: column } : {}),
      ...(heads ? { head: positions ? row % inRows : column } : {}),
    }),
    find: ({ site, position, head: h }) => {
      const layer = head.sites.indexOf(site)
      const column = positions ? position : (h ?? 0)
      if (layer < 0 || column === undefined || column >= columns) return undefined
      return { row: layer * inRows + (inRows > 1 ? (h ?? 0) : 0), column }
    },
  }
}

/** A place as the link carries it: `resid_pre.3@4`, `z.2@4.1`, `z.2@.1`. */
export const placeText = ({ site, position, head }: Place) => `${site}@${position ?? ''}${head === undefined ? '' : `.${head}`}`

/** The place that a link means. */
export function placeOf(text: string): Place | undefined {
  const [, site, position, head] = /^([a-z_.0-9]+)@(\d*)(?:\.(\d+))?$/.exec(text) ?? []
  if (!site) return undefined
  return { site, ...(position ? { position: Number(position) } : {}), ...(head === undefined ? {} : { head: Number(head) }) }
}

/** Kinds of sites that are patched most, in words. */
export const usualSites: readonly { readonly name: string; readonly label: string }[] = [
  { name: 'resid_pre', label: 'the stream before each layer' },
  { name: 'attn_out', label: 'what attention adds' },
  { name: 'mlp_out', label: 'what the MLP adds' },
  { name: 'z', label: 'each head' },
]

/** Kinds of sites of each layer that a sweep can patch. */
export const patchable = (sites: readonly SiteKind[] | undefined) =>
  (sites ?? []).filter((s) => s.per === 'layer' && !s.absent && s.axes.includes('pos'))
