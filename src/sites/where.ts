/** @file The `where` clause: which layers, rows, positions and tokens a tap or an edit means. One meaning for both. */
import { EditError } from '../base/errors.ts'

/** A range of positions: `from` inclusive, `to` exclusive; negative from the end of the unpadded row; open where absent. */
export interface PositionRange {
  readonly from?: number
  readonly to?: number
}

/** A condition on a probe's value at the same position. */
export interface When {
  readonly site: string
  readonly vector: readonly number[] | Float32Array
  readonly above?: number
  readonly below?: number
}

/** Where a tap or an edit applies; everywhere when empty. All parts must hold. */
export interface Where {
  /** Layers, among those that the site pattern means. */
  readonly layers?: number | readonly number[]
  /** A position, a list, or a range; negative counts from the end of the unpadded row (of the prompt, while generating). */
  readonly positions?: number | readonly number[] | PositionRange
  /** Positions of the prompt, or those written by generation. */
  readonly phase?: 'prompt' | 'generated'
  /** Positions whose token is one of these ids. */
  readonly tokens?: readonly number[]
  /** Rows of the batch. */
  readonly rows?: readonly number[]
  /** Only where a probe's value is above or below a threshold. */
  readonly when?: When
}

const keys = ['layers', 'positions', 'phase', 'tokens', 'rows', 'when']

/** Refuses a malformed clause, and one that can never hold. */
export function checkWhere(where: unknown, label: string): Where {
  if (where === undefined) return {}
  if (typeof where !== 'object' || where === null || Array.isArray(where)) throw new EditError(`The 'where' of ${label} must be an object.`)
  for (const key of Object.keys(where))
    if (!keys.includes(key)) throw new EditError(`The 'where' of ${label} has the unknown key '${key}'; known are ${keys.join(', ')}.`)
  const w = where as Where
  const integers = (value: unknown, what: string) => {
    const list = Array.isArray(value) ? value : [value]
    if (list.length === 0) throw new EditError(`The 'where.${what}' of ${label} is an empty list, so it can never fire.`)
    if (!list.every((v) => Number.isInteger(v))) throw new EditError(`The 'where.${what}' of ${label} must hold integers.`)
  }
  if (w.layers !== undefined) integers(w.layers, 'layers')
  if (w.rows !== undefined) {
    integers(w.rows, 'rows')
    if (w.rows.some((r) => r < 0)) throw new EditError(`The 'where.rows' of ${label} must count from 0.`)
  }
  if (w.tokens !== undefined) integers(w.tokens, 'tokens')
  if (w.phase !== undefined && w.phase !== 'prompt' && w.phase !== 'generated')
    throw new EditError(`The 'where.phase' of ${label} must be 'prompt' or 'generated', not ${JSON.stringify(w.phase)}.`)
  const p = w.positions
  if (p !== undefined) {
    if (typeof p === 'object' && p !== null && !Array.isArray(p)) {
      const range = p as PositionRange
      for (const key of Object.keys(range))
        if (key !== 'from' && key !== 'to')
          throw new EditError(`The 'where.positions' of ${label} has the unknown key '${key}'; known are from, to.`)
      for (const v of [range.from, range.to]) if (v !== undefined) integers(v, 'positions')
      if (range.from !== undefined && range.to !== undefined && range.from < 0 === range.to < 0 && range.to <= range.from)
        throw new EditError(
          `The 'where.positions' of ${label} goes from ${range.from} to ${range.to}, which holds no position, so it can never fire.`,
        )
    } else integers(p, 'positions')
  }
  if (w.when !== undefined) checkWhen(w.when, label)
  return w
}

function checkWhen(when: When, label: string): void {
  const known = ['site', 'vector', 'above', 'below']
  for (const key of Object.keys(when))
    if (!known.includes(key))
      throw new EditError(`The 'where.when' of ${label} has the unknown key '${key}'; known are ${known.join(', ')}.`)
  if (typeof when.site !== 'string' || when.vector === undefined)
    throw new EditError(`The 'where.when' of ${label} needs a site and a vector.`)
  if ((when.above === undefined) === (when.below === undefined))
    throw new EditError(`The 'where.when' of ${label} needs either 'above' or 'below'.`)
}

/** Whether a clause lets a layer through. */
export function layerAllowed(where: Where, layer: number | undefined, layers: number): boolean {
  if (where.layers === undefined) return true
  const list = typeof where.layers === 'number' ? [where.layers] : where.layers
  return layer !== undefined && list.some((l) => (l < 0 ? l + layers : l) === layer)
}

/** Whether a clause depends on rows, positions or tokens, so that a mask is needed. */
export function needsMask(where: Where): boolean {
  return where.positions !== undefined || where.phase !== undefined || where.tokens !== undefined || where.rows !== undefined
}

/** What the mask of a clause is computed from: one step over a batch of rows, without padding in front. */
export interface StepLayout {
  /** Token ids of each row, from its first position on, including what earlier steps held. */
  readonly rows: readonly (readonly number[])[]
  /** Position of the first column of this step, for each row. */
  readonly start: readonly number[]
  /** Columns of this step. */
  readonly width: number
  /** Length of each row's prompt; positions after it are generated. */
  readonly prompt: readonly number[]
  /** The number that each row has for the caller, where rows were repeated or left out. */
  readonly origin?: readonly number[]
}

/** The number that a row of a step has for the caller. */
export const callerRow = (step: StepLayout, b: number): number => step.origin?.[b] ?? b

/** The mask of a clause for one step, [batch, width] of 0 and 1; places without a token are 0. */
export function maskOf(where: Where, step: StepLayout): { mask: Uint8Array; fired: number } {
  const batch = step.rows.length
  const mask = new Uint8Array(batch * step.width)
  const tokens = where.tokens && new Set(where.tokens)
  let fired = 0
  for (let b = 0; b < batch; b++) {
    if (where.rows && !where.rows.includes(callerRow(step, b))) continue
    const row = step.rows[b] as readonly number[]
    const prompt = step.prompt[b] as number
    const holds = positionTest(where.positions, prompt)
    const first = step.start[b] as number
    for (let c = 0; c < step.width && first + c < row.length; c++) {
      const p = first + c
      if (where.phase && (where.phase === 'prompt') !== p < prompt) continue
      if (tokens && !tokens.has(row[p] as number)) continue
      if (!holds(p)) continue
      mask[b * step.width + c] = 1
      fired++
    }
  }
  return { mask, fired }
}

function positionTest(positions: Where['positions'], length: number): (p: number) => boolean {
  if (positions === undefined) return () => true
  const at = (p: number) => (p < 0 ? p + length : p)
  if (typeof positions === 'number' || Array.isArray(positions)) {
    const set = new Set((typeof positions === 'number' ? [positions] : (positions as readonly number[])).map(at))
    return (p) => set.has(p)
  }
  const range = positions as PositionRange
  const from = range.from === undefined ? 0 : at(range.from)
  const to = range.to === undefined ? Number.POSITIVE_INFINITY : at(range.to)
  return (p) => p >= from && p < to
}
