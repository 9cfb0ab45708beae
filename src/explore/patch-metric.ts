/** @file Metrics of patching and attribution: a number for each row, from its logits, as data or as a function. */

import { UsageError } from '../base/errors.ts'
import type { NDArray } from '../base/types.ts'
import { logProbabilityOf } from '../nn/losses.ts'
import type { ModelCore } from '../run/core.ts'
import { exp, gather, input, logSoftmax, mul, neg, softmax, squeeze, sub, sum, type Tensor } from '../tensor/index.ts'
import { int64 } from './patch-graph.ts'

/** A token id, or one for each pair of texts. */
export type TokenOf = number | readonly number[]

/** A function from the logits of the last position [batch, d_vocab] to a number for each row [batch], traced. */
export type MetricFunction = (logits: Tensor) => Tensor

/** What is measured of a run. Tokens are ids; `position` is the one whose logits are read, the last by default. */
export type Metric =
  | { readonly kind: 'logit-difference'; readonly answer: TokenOf; readonly wrong: TokenOf; readonly position?: number }
  | { readonly kind: 'logit'; readonly answer: TokenOf; readonly position?: number }
  | { readonly kind: 'probability'; readonly answer: TokenOf; readonly position?: number }
  | { readonly kind: 'log-probability'; readonly answer: TokenOf; readonly position?: number }
  /** KL divergence from the clean run's distribution at the position, in nats. */
  | { readonly kind: 'kl'; readonly position?: number }
  /** Mean cross-entropy of the clean text's next tokens, in nats. */
  | { readonly kind: 'loss' }

/** The kinds of metrics that are data. */
export type MetricKind = Metric['kind']

interface KindRow {
  readonly doc: string
  /** Keys of tokens that it needs. */
  readonly tokens: readonly ('answer' | 'wrong')[]
  /** It reads the logits of all positions. */
  readonly everywhere?: boolean
  /** From logits [batch, d_vocab] (or [batch, pos, d_vocab]) to [batch]. */
  readonly build: (logits: Tensor) => Tensor
}

const names = {
  answer: 'metric.answer',
  wrong: 'metric.wrong',
  reference: 'metric.reference',
  targets: 'metric.targets',
  weights: 'metric.weights',
} as const

const at = (x: Tensor, name: 'answer' | 'wrong') => squeeze(gather(x, input(names[name], 'int64', [1]), 1), 1)

/** The table of metrics. */
export const metricKinds: Readonly<Record<MetricKind, KindRow>> = {
  'logit-difference': {
    doc: 'logit of the answer less that of the wrong token',
    tokens: ['answer', 'wrong'],
    build: (x) => sub(at(x, 'answer'), at(x, 'wrong')),
  },
  logit: { doc: 'logit of the answer', tokens: ['answer'], build: (x) => at(x, 'answer') },
  probability: { doc: 'probability of the answer', tokens: ['answer'], build: (x) => at(softmax(x), 'answer') },
  'log-probability': { doc: 'log-probability of the answer, in nats', tokens: ['answer'], build: (x) => at(logSoftmax(x), 'answer') },
  kl: {
    doc: "KL divergence from the clean run's distribution, in nats",
    tokens: [],
    build: (x) => {
      const reference = logSoftmax(input(names.reference, 'float32', [1, x.shape[1] as number]))
      return sum(mul(exp(reference), sub(reference, logSoftmax(x))), [1])
    },
  },
  loss: {
    doc: "mean cross-entropy of the clean text's next tokens, in nats",
    tokens: [],
    everywhere: true,
    build: (x) => {
      const targets = input(names.targets, 'int64', ['batch', 'pos'])
      return neg(sum(mul(logProbabilityOf(x, targets), input(names.weights, 'float32', [1, 'pos'])), [1]))
    },
  },
}

const functionIds = new WeakMap<MetricFunction, number>()
let nextId = 0

/** A metric made ready: what of it is compiled, and what is fed. */
export interface PreparedMetric {
  /** What of it is part of a compiled program. */
  readonly key: string
  readonly everywhere: boolean
  /** Position whose logits are read; undefined for the last. */
  readonly position: number | undefined
  /** It compares with the logits of the clean run. */
  readonly needsReference: boolean
  /** From the model's logits, [batch, 1, d_vocab] or those of all positions, to [batch]. */
  readonly build: (logits: Tensor) => Tensor
  /** Values of its inputs for stacked rows of one pair. */
  readonly feeds: (pair: number, rows: number, clean: readonly number[], reference: NDArray | undefined) => Record<string, NDArray>
}

/** Checks a metric for a number of pairs; refuses tokens outside the vocabulary. */
export function prepareMetric(metric: Metric | MetricFunction, pairs: number, vocab: number): PreparedMetric {
  if (typeof metric === 'function') {
    if (!functionIds.has(metric)) functionIds.set(metric, nextId++)
    return {
      key: `#${functionIds.get(metric)}`,
      everywhere: false,
      position: undefined,
      needsReference: false,
      build: (logits) => ofRows(metric(squeeze(logits, 1))),
      feeds: () => ({}),
    }
  }
  const row = Object.hasOwn(metricKinds, metric.kind) ? metricKinds[metric.kind] : undefined
  if (!row) throw new UsageError(`There is no metric '${metric.kind}'; metrics are ${Object.keys(metricKinds).join(', ')}, or a function.`)
  const tokens = Object.fromEntries(row.tokens.map((n) => [n, tokensOf(metric, n, pairs, vocab)]))
  return {
    key: metric.kind,
    everywhere: row.everywhere ?? false,
    position: 'position' in metric ? metric.position : undefined,
    needsReference: metric.kind === 'kl',
    build: (logits) => ofRows(row.build(row.everywhere ? logits : squeeze(logits, 1))),
    feeds: (pair, rows, clean, reference) => ({
      ...Object.fromEntries(Object.entries(tokens).map(([n, ids]) => [names[n as 'answer'], int64([ids[pair] as number])])),
      ...(reference ? { [names.reference]: reference } : {}),
      ...(row.everywhere ? targetsOf(clean, rows) : {}),
    }),
  }
}

function ofRows(value: Tensor): Tensor {
  if (value.rank !== 1 || value.shape[0] !== 'batch')
    throw new UsageError(
      `A metric must give one number for each row, shape [batch], not [${value.shape.join(', ')}]; sum over the other axes.`,
    )
  return value
}

function tokensOf(metric: Metric, name: 'answer' | 'wrong', pairs: number, vocab: number): readonly number[] {
  const given = (metric as Partial<Record<typeof name, TokenOf>>)[name]
  if (given === undefined) throw new UsageError(`The metric ${metric.kind} needs '${name}', a token id.`)
  const list = typeof given === 'number' ? new Array<number>(pairs).fill(given) : given
  if (list.length !== pairs)
    throw new UsageError(`The metric names ${list.length} tokens as '${name}' for ${pairs} pairs of texts; give one each.`)
  const bad = list.find((id) => !Number.isInteger(id) || id < 0 || id >= vocab)
  if (bad !== undefined) throw new UsageError(`The metric names the token ${bad}, but the vocabulary has ids 0 to ${vocab - 1}.`)
  return list
}

function targetsOf(clean: readonly number[], rows: number): Record<string, NDArray> {
  const n = clean.length
  if (n < 2) throw new UsageError('The metric loss needs texts of at least two tokens.')
  const next = clean.map((_, i) => clean[i + 1] ?? 0)
  const weights = Float32Array.from(clean, (_, i) => (i + 1 < n ? 1 / (n - 1) : 0))
  return {
    [names.targets]: int64(new Array<readonly number[]>(rows).fill(next).flat(), [rows, n]),
    [names.weights]: { dtype: 'float32', shape: [1, n], data: weights },
  }
}

/** The metric of rows whose logits are known, [batch, 1 or pos, d_vocab]. */
export async function metricOf(
  core: ModelCore,
  metric: PreparedMetric,
  logits: NDArray,
  feeds: Record<string, NDArray>,
): Promise<Float32Array> {
  const program = await core.compiled(JSON.stringify(['metric', metric.key]), () => ({
    metric: metric.build(input('logits', 'float32', ['batch', metric.everywhere ? 'pos' : 1, core.spec.vocab])),
  }))
  return (await program.run({ ...feeds, logits })).metric?.data as Float32Array
}
