/** @file A few numbers that tell what a tensor looks like, over the positions that hold tokens. */
import type { NDArray } from '../base/types.ts'
import type { Activation } from '../run/index.ts'

/** What the table of a run says of a tensor; padding is left out, and so are values that are not finite. */
export interface TensorStatistics {
  readonly site: string
  readonly axes: readonly string[]
  readonly shape: readonly number[]
  readonly mean: number
  /** Standard deviation. */
  readonly std: number
  readonly maxAbs: number
  /** Mean Euclidean length of the vectors along the last axis. */
  readonly norm: number
  /** Values that are infinite or not a number; -inf is right in masked attention scores. */
  readonly notFinite: number
}

/** Statistics of a tapped value. */
export function statisticsOf(value: Activation): TensorStatistics {
  const total = { count: 0, sum: 0, maxAbs: 0, norms: 0, vectors: 0, notFinite: 0 }
  const rows = value.lengths.map((_, b) => value.row(b))
  for (const row of rows) add(total, row)
  const mean = total.count > 0 ? total.sum / total.count : 0
  // A second pass over the differences: sums of squares lose the digits where the mean is large.
  let squares = 0
  for (const { data } of rows) for (const v of data) if (Number.isFinite(v)) squares += (v - mean) ** 2
  return {
    site: value.site,
    axes: value.axes.map((a) => (a === 'one' ? '1' : a)),
    shape: value.shape,
    mean,
    std: total.count > 0 ? Math.sqrt(squares / total.count) : 0,
    maxAbs: total.maxAbs,
    norm: total.vectors > 0 ? total.norms / total.vectors : 0,
    notFinite: total.notFinite,
  }
}

function add(
  total: { count: number; sum: number; maxAbs: number; norms: number; vectors: number; notFinite: number },
  { shape, data }: NDArray<Float32Array>,
): void {
  const width = shape.at(-1) ?? 1
  for (let start = 0; start < data.length; start += width) {
    let square = 0
    for (let i = start; i < start + width; i++) {
      const v = data[i] as number
      if (!Number.isFinite(v)) {
        total.notFinite++
        continue
      }
      total.count++
      total.sum += v
      square += v * v
      total.maxAbs = Math.max(total.maxAbs, Math.abs(v))
    }
    total.norms += Math.sqrt(square)
    total.vectors++
  }
}

/** A token that may come next. */
export interface NextToken {
  readonly id: number
  readonly piece?: string
  readonly logit: number
  readonly probability: number
}

/** The likeliest tokens after a row, most likely first. */
export function topTokens(logits: Float32Array, count: number, piece?: (id: number) => string): NextToken[] {
  const top: number[] = []
  for (let id = 0; id < logits.length; id++) {
    const at = top.findIndex((t) => (logits[id] as number) > (logits[t] as number))
    if (at >= 0) top.splice(at, 0, id)
    else if (top.length < count) top.push(id)
    if (top.length > count) top.pop()
  }
  const largest = logits[top[0] as number] as number
  let sum = 0
  for (const v of logits) sum += Math.exp(v - largest)
  return top.map((id) => ({
    id,
    ...(piece ? { piece: piece(id) } : {}),
    logit: logits[id] as number,
    probability: Math.exp((logits[id] as number) - largest) / sum,
  }))
}
