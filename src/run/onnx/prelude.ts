/** @file What an exported file computes before the model: the engine's own inputs, from the ids and masks that other runtimes feed. */
import { EditError } from '../../base/errors.ts'
import type { SequenceName, TokenSequence } from '../../models/architecture.ts'
import type { Where } from '../../sites/where.ts'
import {
  add,
  and,
  cast,
  cumsum,
  equal,
  expand,
  gather,
  greater,
  greaterEqual,
  input,
  iota,
  less,
  max,
  maximum,
  mul,
  or,
  reshape,
  scalar,
  sub,
  sum,
  type Tensor,
  unsqueeze,
} from '../../tensor/index.ts'

/** One sequence of tokens in an exported file. */
export interface Prelude {
  /** Values for the traced inputs of the sequence, by their names. */
  readonly values: ReadonlyMap<string, Tensor>
  /** Which columns may be seen, int64 [batch, key]: 1 or 0; absent where all may. */
  readonly mask?: Tensor
  /** Position of each token of this step in its row, int64 [batch, pos]. */
  readonly positions: Tensor
  /** Columns of this step that hold a token, bool [batch, pos]. */
  readonly valid?: Tensor
  /** Tokens of each row up to the end of this step, int64 [batch]. */
  readonly lengths: Tensor
  readonly ids: Tensor
  /** Columns that came before this step, an int64 scalar; absent without a cache. */
  readonly past?: Tensor
}

const long = (value: number) => scalar(value, 'int64')

/** The number of items along an axis, an int64 scalar. */
const lengthOf = (x: Tensor, axis: number) => add(max(iota(x, axis)), long(1))

/**
 * A sequence whose mask may hide columns on the left or on the right, as transformers' exports take it.
 * @param options.masked whether the file takes a mask; `cache`: the mask goes over earlier steps, too.
 */
export function preludeOf(s: TokenSequence, options: { readonly masked: boolean; readonly cache: boolean }): Prelude {
  const pos = s.name === 'source' ? 'source' : 'pos'
  const ids = input(s.tensors.ids, 'int64', ['batch', pos])
  const columns = unsqueeze(iota(ids, 1), 0)
  const here = (row: Tensor) => expand(row, ['batch', pos], ids)
  const perRow = (value: Tensor) => expand(reshape(value, [1]), ['batch'], ids)
  const mask = options.masked ? input(s.tensors.mask, 'int64', ['batch', options.cache ? 'total' : pos]) : undefined
  const total = lengthOf(mask ?? ids, 1)
  const past = options.cache ? sub(total, lengthOf(ids, 1)) : undefined
  const slotRow = past ? add(columns, past) : columns
  const at = (all: Tensor) => (past ? gather(all, reshape(slotRow, [pos]), 1) : all)
  const positions = mask ? maximum(at(sub(cumsum(mask, 1), long(1))), long(0)) : here(columns)
  const current = mask && at(mask)
  const valid = current && greater(current, long(0))
  const lengths = mask ? sum(mask, [1]) : perRow(total)
  const lastIndex = current ? max(mul(current, columns), [1]) : perRow(sub(total, long(1)))
  const values: Record<keyof TokenSequence['inputs'], Tensor> = {
    ids,
    slots: here(slotRow),
    positions,
    // Columns that are hidden take their slots, too: the mask hides them, not the count.
    lastSlot: cast(perRow(sub(total, long(1))), 'int32'),
    total: cast(total, 'int32'),
    lastIndex,
    types: input(s.inputs.types, 'int64', ['batch', pos]),
  }
  const named = new Map(Object.entries(values).map(([key, t]) => [s.inputs[key as keyof typeof values], t] as const))
  return { values: named, positions, lengths, ids, ...(mask ? { mask } : {}), ...(valid ? { valid } : {}), ...(past ? { past } : {}) }
}

/**
 * The places where a clause holds, bool [batch, pos], told by the inputs of the file. What is written after the prompt are steps with a cache.
 * @throws EditError for what the inputs do not tell.
 */
export function placesOf(where: Where, p: Prelude, label: string): Tensor {
  const refused = (why: string) => new EditError(`The edit ${label} cannot be written into a file, since ${why}; leave it out.`)
  const parts: Tensor[] = []
  const any = (values: readonly Tensor[]) => values.reduce((a, b) => or(a, b))
  // The end of a prompt is not told once tokens of its own were written.
  const place = (at: number) => {
    if (at >= 0) return long(at)
    if (p.past) throw refused("its 'where.positions' counts from the end of the prompt, which a file with a cache does not know")
    return unsqueeze(add(p.lengths, long(at)), 1)
  }
  const { positions, tokens, rows, phase } = where
  if (typeof positions === 'number' || Array.isArray(positions))
    parts.push(any([positions].flat().map((at) => equal(p.positions, place(at as number)))))
  else if (positions) {
    const { from, to } = positions as { from?: number; to?: number }
    if (from !== undefined) parts.push(greaterEqual(p.positions, place(from)))
    if (to !== undefined) parts.push(less(p.positions, place(to)))
  }
  if (tokens) parts.push(any(tokens.map((id) => equal(p.ids, long(id)))))
  if (rows) parts.push(any(rows.map((row) => equal(expand(unsqueeze(iota(p.ids, 0), 1), p.ids.shape, p.ids), long(row)))))
  if (phase) {
    if (!p.past) {
      if (phase === 'generated') throw refused("its 'where.phase' is 'generated', which a file without a cache cannot tell from the prompt")
    } else {
      const generated = greater(p.past, long(0))
      const wide = expand(reshape(generated, [1, 1]), p.ids.shape, p.ids)
      parts.push(phase === 'generated' ? wide : equal(cast(wide, 'int64'), long(0)))
    }
  }
  if (p.valid) parts.push(p.valid)
  return parts.length > 0 ? parts.reduce((a, b) => and(a, b)) : greaterEqual(p.positions, long(0))
}

/** The preludes of a model's sequences, by name. */
export type Preludes = ReadonlyMap<SequenceName, Prelude>
