/** @file The tuned lens: an affine translator for what each block reads, trained so that the model's head makes its final distribution of it. */
import { throwIfCancelled, UsageError } from '../base/errors.ts'
import type { NDArray } from '../base/types.ts'
import {
  adamW,
  type BatchSource,
  batches,
  initialisers,
  klDivergence,
  linearRate,
  packedTokens,
  type Scope,
  type TrainOptions,
  type TrainProgress,
  trainSteps,
} from '../nn/index.ts'
import type { Model } from '../run/index.ts'
import { add, mul, stopGradient, type Tensor } from '../tensor/index.ts'
import { type CorpusInput, openCorpus } from './corpus.ts'
import { endOf, type LensMaps, lensSites, throughHead, translated } from './lens.ts'
import { translatedSites } from './lens-file.ts'
import { editedModel, rowFeeds } from './patch-graph.ts'

/** Options of {@link trainTunedLens}. */
export interface TunedLensOptions
  extends Partial<Pick<TrainOptions, 'steps' | 'rate' | 'optimizer' | 'accumulate' | 'clip'>>,
    Pick<TrainOptions, 'checkpoints' | 'evaluation' | 'signal' | 'onProgress'> {
  /** Sites that get a translator; by default what every block reads, as the published layout has it. */
  readonly sites?: string | readonly string[]
  /** Tokens of a row (128, or the context) and rows of a batch (2). */
  readonly length?: number
  readonly batch?: number
  /** Tokens of the corpus that are used at most, 2²² by default. */
  readonly maxTokens?: number
  /** Seed of the order of the rows. */
  readonly seed?: number
}

/** A trained lens, and the loss of each step: KL(model ‖ lens), mean over places and sites, in nats. */
export interface TunedLens {
  readonly lens: LensMaps
  readonly losses: readonly number[]
}

const defaults = { steps: 250, length: 128, batch: 2, maxTokens: 2 ** 22, rate: 1e-3 }

/**
 * Trains a tuned lens (Belrose et al. 2023, arXiv 2303.08112): translators x + x·Mᵀ + b, from zero, that minimise the KL divergence of
 * what the final norm and the unembedding make of them from the model's own distribution. AdamW at a rate that falls to zero by default.
 * Stops and goes on by `checkpoints`, as every training does.
 */
export async function trainTunedLens(model: Model, corpus: CorpusInput, options: TunedLensOptions = {}): Promise<TunedLens> {
  const losses: number[] = []
  const run = tunedLensSteps(model, corpus, options)
  for (;;) {
    const next = await run.next()
    if (next.done) return { lens: next.value, losses }
    losses.push(next.value.loss)
    const { step, steps, loss } = next.value
    options.onProgress?.({ task: `training the lens (KL ${loss.toPrecision(3)})`, done: step, total: steps, unit: 'steps' })
  }
}

/** Trains a tuned lens step by step; leaving the loop ends the training. */
export async function* tunedLensSteps(
  model: Model,
  corpus: CorpusInput,
  options: TunedLensOptions = {},
): AsyncGenerator<TrainProgress, LensMaps> {
  const { steps = defaults.steps, seed = 0, batch = defaults.batch, onProgress: _, ...rest } = options
  const end = endOf(model)
  const sites = lensSites(model, options.sites ?? translatedSites(model.spec.layers)).map((s) => s.site)
  if (sites.includes(end)) throw new UsageError(`'${end}' is what the head reads itself, so it needs no translator; leave it out.`)
  const edited = editedModel(model)
  const data = batches(await rowsOf(model, corpus, options), { batch, seed })
  const translators = (scope: Scope): Tensor => {
    const graph = edited.graph({ taps: [end, ...sites], lastOnly: false })
    const { dModel } = model.spec
    const [stream, own] = [graph.taps.get(end) as Tensor, stopGradient(graph.logits)]
    const divergences = sites.map((site) => {
      const inside = scope.in(site)
      const map = inside.parameter('weight', [dModel, dModel], initialisers.zeros)
      const bias = inside.parameter('bias', [dModel], initialisers.zeros)
      const read = translated('tuned', stopGradient(graph.taps.get(site) as Tensor), map, bias)
      return klDivergence(throughHead(stream, read, graph.logits), own)
    })
    return mul(
      divergences.reduce((a, b) => add(a, b)),
      1 / sites.length,
    )
  }
  const result = yield* trainSteps({
    clip: { norm: 1 },
    optimizer: adamW({ weightDecay: 0 }),
    ...rest,
    rate: options.rate ?? linearRate(defaults.rate, { steps }),
    steps,
    seed,
    model: (_inputs, scope) => translators(scope),
    inputs: {},
    data: fedRows(data, (rows) => rowFeeds(edited, rows)),
    runtime: runtimeOf(model),
  })
  const values = result.parameters.copy()
  const named = (part: string) => Object.fromEntries(sites.map((s) => [s, values[`${s}.${part}`] as NDArray<Float32Array>]))
  return { kind: 'tuned', maps: named('weight'), biases: named('bias') }
}

function runtimeOf(model: Model) {
  const { device, threads } = model.internals.options
  return { device, ...(threads ? { threads } : {}) }
}

/** Rows of equal length over the whole corpus, without padding. */
async function rowsOf(model: Model, input: CorpusInput, options: TunedLensOptions) {
  const { length = Math.min(defaults.length, model.contextLength), maxTokens = defaults.maxTokens, signal } = options
  if (length > model.contextLength)
    throw new UsageError(`Rows of ${length} tokens do not fit into the context of ${model.contextLength}; give a smaller length.`)
  const corpus = await openCorpus(input, signal ? { signal } : {})
  const texts: (readonly number[])[] = []
  let count = 0
  for await (const { content } of corpus.parts()) {
    throwIfCancelled(signal)
    const ids = typeof content === 'string' ? model.tokenizer.encode(content) : content
    texts.push(ids)
    count += ids.length
    if (count >= maxTokens) break
  }
  return packedTokens(texts, { length })
}

/** Batches of blocks of tokens as feeds of the model. */
function fedRows(data: BatchSource, feedsOf: (rows: number[][]) => Record<string, NDArray>): BatchSource {
  return {
    get position() {
      return data.position
    },
    seek: (position) => data.seek(position),
    async next() {
      const ids = (await data.next()).ids as NDArray
      const [rows, length] = ids.shape as [number, number]
      const all = ids.data as BigInt64Array
      return feedsOf(Array.from({ length: rows }, (_, r) => Array.from(all.subarray(r * length, (r + 1) * length), Number)))
    },
  }
}
