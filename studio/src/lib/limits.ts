/** @file Limits of a scale that one huge value cannot spoil. */
import type { ScaleKind } from './colour.ts'

/** What a scale spans, and what lies beyond. */
export interface Limits {
  readonly low: number
  readonly high: number
  /** The first position was left out, since it is far beyond the others; its largest value. */
  readonly first?: number
  /** Values beyond the limits. */
  readonly clipped: number
  readonly pinned: boolean
}

/** Share of values that a scale spans. */
const share = 0.99
/** Where the largest value is no further than this beyond that share, the scale goes up to it. */
const near = 1.4
/** How many times the others the first position must be to be left out. */
const huge = 1.25

/**
 * Limits for rows of values by position: zero to the 99th percentile, or symmetric about zero. Many models hold a huge
 * activation at their first position; where it is beyond the rest, the rest decides. Below `least` a scale does not go, so
 * that small differences do not look large.
 */
export function robustLimits(
  rows: readonly (readonly (number | null)[])[],
  kind: ScaleKind,
  { pin, least = 0 }: { pin?: number | undefined; least?: number } = {},
): Limits {
  const size = (v: number | null | undefined) =>
    v === null || v === undefined || !Number.isFinite(v) ? [] : [kind === 'signed' ? Math.abs(v) : v]
  const first = rows.flatMap((r) => size(r[0]))
  const rest = rows.flatMap((r) => r.slice(1).flatMap(size))
  const most = (values: readonly number[]) => values.reduce((m, v) => Math.max(m, v), 0)
  const outside = rest.length > 0 && most(first) > huge * quantile(rest, share)
  const all = [...first, ...rest]
  const deciding = outside ? rest : all
  const usual = quantile(deciding, share)
  const high = pin ?? Math.max(least, roundUp(most(deciding) <= near * usual ? most(deciding) : usual))
  const clipped = all.filter((v) => v > high).length
  return { low: kind === 'signed' ? -high : 0, high, ...(outside ? { first: most(first) } : {}), clipped, pinned: pin !== undefined }
}

/** The value below which a share of the values lies. */
export function quantile(values: readonly number[], q: number): number {
  if (values.length === 0) return 0
  const sorted = [...values].sort((a, b) => a - b)
  const at = (sorted.length - 1) * q
  const below = sorted[Math.floor(at)] as number
  const above = sorted[Math.ceil(at)] as number
  return below + (above - below) * (at - Math.floor(at))
}

/** The next number up with two significant digits, so that a legend reads well. */
export function roundUp(value: number): number {
  if (!(value > 0)) return 1
  const unit = 10 ** (Math.floor(Math.log10(value)) - 1)
  // What is a hair above a round number is that number.
  return Number((Math.ceil(value / unit - 1e-9) * unit).toPrecision(2))
}
