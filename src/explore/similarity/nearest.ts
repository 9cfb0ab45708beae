/** @file Nearest activations: exact search by compiled programs, a block of the points at a time. */
import { ShapeError, throwIfCancelled, UsageError } from '../../base/errors.ts'
import type { WorkOptions } from '../../base/progress.ts'
import { sizeOf } from '../../base/types.ts'
import {
  add,
  cast,
  div,
  input,
  matmul,
  maximum,
  neg,
  Program,
  SessionCache,
  scalar,
  sqrt,
  sub,
  sumSquares,
  type Tensor,
  topK,
  transpose,
} from '../../tensor/index.ts'
import { type Points, pointsMatrix } from './features.ts'

/** What near means: a small distance, a large cosine, or a large product. */
export type Nearness = 'euclidean' | 'cosine' | 'dot'

/** The nearest points of some queries, nearest first. */
export interface Neighbours {
  /** Rows of the points, [queries, k]. */
  readonly rows: Float64Array
  /** Distance, cosine or product, [queries, k]. */
  readonly values: Float64Array
  readonly k: number
}

/** Options of {@link nearestPoints}. */
export interface NearestOptions extends WorkOptions {
  readonly k: number
  /** Default `cosine`. */
  readonly nearness?: Nearness
}

/** Points that are compared with the queries at once. */
const pointsAtOnce = 4096
/** Queries that are compared at once. */
const queriesAtOnce = 512

const cache = new SessionCache(0)
const compiled = new Map<string, Promise<Program<'values' | 'rows'>>>()

/** Larger is nearer, for all of them. */
const scores: Readonly<Record<Nearness, (q: Tensor, p: Tensor) => Tensor>> = {
  dot: (q, p) => matmul(q, p, { transB: true }),
  cosine: (q, p) => matmul(unitRows(q), unitRows(p), { transB: true }),
  euclidean(q, p) {
    const squares = add(sumSquares(q, [1], true), transpose(sumSquares(p, [1], true), [1, 0]))
    return neg(sqrt(maximum(sub(squares, matmul(q, p, { transB: true, alpha: 2 })), scalar(0, 'float64'))))
  },
}

const unitRows = (x: Tensor) => div(x, sqrt(maximum(sumSquares(x, [1], true), scalar(1e-300, 'float64'))))

function program(nearness: Nearness, k: number) {
  const name = `${nearness}/${k}`
  let found = compiled.get(name)
  if (!found) {
    const [q, p] = [
      cast(input('q', 'float32', ['queries', 'width']), 'float64'),
      cast(input('p', 'float32', ['points', 'width']), 'float64'),
    ]
    const { values, indices } = topK(scores[nearness](q, p), k, 1)
    found = Program.of({ values, rows: indices }, { device: 'cpu', cache })
    compiled.set(name, found)
    found.catch(() => compiled.delete(name))
  }
  return found
}

/** Neighbours that are merged from block to block. */
class Merged {
  readonly values: Float64Array
  readonly rows: Float64Array
  private readonly k: number

  constructor(queries: number, k: number) {
    this.k = k
    this.values = new Float64Array(queries * k).fill(Number.NEGATIVE_INFINITY)
    this.rows = new Float64Array(queries * k).fill(-1)
  }

  offer(query: number, value: number, row: number): void {
    const { k, values, rows } = this
    let at = query * k + k - 1
    if (!(value > (values[at] as number))) return
    for (; at > query * k && value > (values[at - 1] as number); at--) {
      values[at] = values[at - 1] as number
      rows[at] = rows[at - 1] as number
    }
    values[at] = value
    rows[at] = row
  }
}

/**
 * The `k` nearest of any points for each query, exactly, in double precision.
 * @param points [points, …axes], or pieces of them as they come from a store, in order.
 * @param queries [queries, …axes]
 */
export async function nearestPoints(points: Points | AsyncIterable<Points>, queries: Points, options: NearestOptions): Promise<Neighbours> {
  const { k, nearness = 'cosine', signal, onProgress } = options
  if (!(Number.isInteger(k) && k > 0)) throw new UsageError(`k must be a positive whole number, not ${k}.`)
  if (!Object.hasOwn(scores, nearness))
    throw new UsageError(`There is no nearness '${nearness}'; choose one of ${Object.keys(scores).join(', ')}.`)
  const q = pointsMatrix(queries, 1)
  const width = q.shape[1]
  const merged = new Merged(q.shape[0], k)
  let seen = 0
  for await (const piece of 'data' in points ? [points] : points) {
    if (sizeOf(piece.shape.slice(1)) !== width)
      throw new ShapeError(`The points have ${sizeOf(piece.shape.slice(1))} numbers and the queries ${width}; they must agree.`)
    const rows = piece.shape[0] as number
    for (let at = 0; at < rows; at += pointsAtOnce) {
      const count = Math.min(pointsAtOnce, rows - at)
      const block = { dtype: 'float32' as const, shape: [count, width], data: piece.data.subarray(at * width, (at + count) * width) }
      await offerBlock(merged, block, q, seen + at, nearness, k, signal)
    }
    seen += rows
    onProgress?.({ task: 'searching', done: seen, unit: 'points' })
  }
  if (seen < k) throw new UsageError(`There are ${seen} points, so there are no ${k} nearest ones; ask for fewer.`)
  const values = nearness === 'euclidean' ? merged.values.map((v) => -v) : merged.values
  return { rows: merged.rows, values, k }
}

async function offerBlock(
  merged: Merged,
  block: Points,
  q: Points,
  offset: number,
  nearness: Nearness,
  k: number,
  signal: AbortSignal | undefined,
): Promise<void> {
  const width = q.shape[1] as number
  const take = Math.min(k, block.shape[0] as number)
  const found = await program(nearness, take)
  for (let from = 0; from < (q.shape[0] as number); from += queriesAtOnce) {
    throwIfCancelled(signal)
    const count = Math.min(queriesAtOnce, (q.shape[0] as number) - from)
    const part = { dtype: 'float32' as const, shape: [count, width], data: q.data.subarray(from * width, (from + count) * width) }
    const { values, rows } = await found.run({ q: part, p: block })
    for (let i = 0; i < count; i++)
      for (let j = 0; j < take; j++) merged.offer(from + i, values.data[i * take + j] as number, offset + Number(rows.data[i * take + j]))
  }
}
