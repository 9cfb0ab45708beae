/** @file What can be differentiated: losses as data, and as functions of a traced run. */

import { UsageError } from '../base/errors.ts'
import type { NDArray } from '../base/types.ts'
import { logProbabilityOf } from '../nn/losses.ts'
import type { SiteInfo, SiteResolver } from '../sites/address.ts'
import { type Dim, gather, gatherRows, input, mean, mul, neg, sub, sum, type Tensor } from '../tensor/index.ts'
import { type Batch, fromCaller } from './batch.ts'

/** A run that has not happened yet: what a loss function may look at. */
export interface TracedRun {
  /** [batch, pos, d_vocab], or the last states of a model without an unembedding; rows are not padded in front, and what lies behind a row's end is no data. */
  readonly logits: Tensor
  /** The value of a site, after edits. */
  readonly site: (name: string) => Tensor
  /** Token after each one, int64 [batch, pos]; 0 where there is none. */
  readonly targets: Tensor
  /** 1 / number of positions that hold a token or a patch, there; float32 [batch, pos]. */
  readonly positionWeights: Tensor
  /** 1 / number of predicted tokens where there is a token after, else 0; float32 [batch, pos]. */
  readonly targetWeights: Tensor
  /** Position that single-token losses look at, int64 [batch]. */
  readonly index: Tensor
  /** A token id given at run time, int64 scalar. */
  readonly token: (name: string) => Tensor
}

/** A scalar of a run. */
export type LossFunction = (run: TracedRun) => Tensor

/** A loss as data: tokens are ids. */
export type Loss =
  | { readonly kind: 'next-token' }
  /** Mean square of what the model gives out, logits or last states, over the positions that hold tokens. */
  | { readonly kind: 'mean-square' }
  | { readonly kind: 'logit'; readonly token: number; readonly position?: number }
  | { readonly kind: 'logit-difference'; readonly tokens: readonly [number, number]; readonly position?: number }
  /**
   * The sum of a site's values times a tensor, so that its gradient is a vector-Jacobian product. The tensor has the shape of the site in the layout of
   * the input, or of its last axes.
   */
  | { readonly kind: 'inner-product'; readonly site: string; readonly vector: NDArray | Float32Array | readonly number[] }

/** The logits of each row at the loss's position, [batch, d_vocab]. */
const chosen = (run: TracedRun) => gatherRows(run.logits, run.index)
const logitOf = (run: TracedRun, name: string) => sum(gather(chosen(run), run.token(name), 1))

/** How each kind is computed; rows of a batch add up, except that next-token is a mean. */
const kinds: { readonly [K in Loss['kind']]: (run: TracedRun, loss: Extract<Loss, { kind: K }>) => Tensor } = {
  'next-token': (run) => {
    return neg(sum(mul(logProbabilityOf(run.logits, run.targets), run.targetWeights)))
  },
  'mean-square': (run) => sum(mul(mean(mul(run.logits, run.logits), [-1]), run.positionWeights)),
  logit: (run) => logitOf(run, 'token'),
  'logit-difference': (run) => sub(logitOf(run, 'token'), logitOf(run, 'other')),
  'inner-product': (run, { site, vector }) => {
    const value = run.site(site)
    const rank = rankOf(vector)
    if (rank > value.rank) throw new UsageError(`The vector at ${site} has ${rank} axes, but the site has ${value.rank}.`)
    return sum(mul(value, input(names.vector, 'float32', value.shape.slice(value.rank - rank))))
  },
}

type Vector = Extract<Loss, { kind: 'inner-product' }>['vector']
const rankOf = (vector: Vector) => ('shape' in vector ? vector.shape.length : 1)

/** Whether a loss looks at logits, which not every model gives out. */
export const readsLogits = (loss: Loss) => loss.kind !== 'mean-square' && loss.kind !== 'inner-product'

/** The function of a loss. */
export const lossFunction = (loss: Loss | LossFunction): LossFunction =>
  typeof loss === 'function' ? loss : (run) => (kinds[loss.kind] as (run: TracedRun, loss: Loss) => Tensor)(run, loss)

/** What of a loss is part of the compiled program. */
export const lossKey = (loss: Loss): string =>
  loss.kind === 'inner-product' ? `${loss.kind} ${loss.site} ${rankOf(loss.vector)}` : loss.kind

/** Names of the inputs that losses add. */
const names = {
  targets: 'loss.targets',
  weights: 'loss.weights',
  positions: 'loss.positions',
  index: 'loss.index',
  vector: 'loss.vector',
  token: (n: string) => `loss.${n}`,
}

/** The traced run around a model's logits. */
export function tracedRun(logits: Tensor, site: (name: string) => Tensor): TracedRun {
  const [batch, pos] = logits.shape as [Dim, Dim]
  return {
    logits,
    site,
    targets: input(names.targets, 'int64', [batch, pos]),
    targetWeights: input(names.weights, 'float32', [batch, pos]),
    positionWeights: input(names.positions, 'float32', [batch, pos]),
    index: input(names.index, 'int64', [batch]),
    token: (n) => input(names.token(n), 'int64', []),
  }
}

/** Values of the inputs of a loss. */
export function lossFeeds(
  loss: Loss | LossFunction,
  batch: Batch,
  vocab: number,
  resolver: Pick<SiteResolver, 'one'>,
): Record<string, NDArray> {
  const rows = batch.rows.length
  const width = Math.max(...batch.rows.map((r) => r.length))
  const targets = new BigInt64Array(rows * width)
  const weights = new Float32Array(rows * width)
  const positions = new Float32Array(rows * width)
  const held = batch.rows.reduce((n, r) => n + r.length, 0)
  for (const [b, r] of batch.rows.entries()) positions.fill(1 / held, b * width, b * width + r.length)
  const count = batch.rows.reduce((n, r) => n + r.length - 1, 0)
  for (const [b, r] of batch.rows.entries())
    for (let p = 0; p + 1 < r.length; p++) {
      targets[b * width + p] = BigInt(r[p + 1] as number)
      weights[b * width + p] = 1 / count
    }
  const data = typeof loss === 'function' ? undefined : loss
  if (data?.kind === 'next-token' && count === 0) throw new UsageError('The loss next-token needs a row of at least two tokens.')
  const position = data && 'position' in data ? data.position : undefined
  const index = batch.rows.map((r, b) => {
    const p = position === undefined ? r.length - 1 : position < 0 ? position + r.length : position
    if (!Number.isInteger(p) || p < 0 || p >= r.length)
      throw new UsageError(`Row ${b} has ${r.length} tokens, so it has no position ${position}.`)
    return BigInt(p)
  })
  const tokens =
    data?.kind === 'logit'
      ? { token: data.token }
      : data?.kind === 'logit-difference'
        ? { token: data.tokens[0], other: data.tokens[1] }
        : {}
  const scalar = (name: string, id: number): [string, NDArray] => {
    if (!Number.isInteger(id) || id < 0 || id >= vocab)
      throw new UsageError(`The loss names the token ${id}, but the vocabulary has ids 0 to ${vocab - 1}.`)
    return [names.token(name), { dtype: 'int64', shape: [], data: BigInt64Array.of(BigInt(id)) }]
  }
  return {
    ...(data?.kind === 'inner-product' ? { [names.vector]: vectorFeed(data.vector, resolver.one(data.site), batch) } : {}),
    [names.targets]: { dtype: 'int64', shape: [rows, width], data: targets },
    [names.weights]: { dtype: 'float32', shape: [rows, width], data: weights },
    [names.positions]: { dtype: 'float32', shape: [rows, width], data: positions },
    [names.index]: { dtype: 'int64', shape: [rows], data: BigInt64Array.from(index) },
    ...Object.fromEntries(Object.entries(tokens).map(([n, id]) => scalar(n, id))),
  }
}

/** A vector as the program takes it: in full shape it is in the layout of the input. */
function vectorFeed(vector: Vector, info: SiteInfo, batch: Batch): NDArray {
  if (!('shape' in vector)) return { dtype: 'float32', shape: [vector.length], data: Float32Array.from(vector) }
  if (vector.dtype !== 'float32') throw new UsageError(`The vector at ${info.site} must be float32, not ${vector.dtype}.`)
  const { dtype, shape, data } = vector
  // Places without a token take part in nothing.
  return shape.length === info.row.axes.length ? fromCaller(info, { dtype, shape, data }, batch, 0) : { dtype, shape, data }
}
