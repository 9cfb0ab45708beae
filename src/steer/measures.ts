/** @file What steering does to a model and its text: loss and perplexity, divergence from the unsteered model, entropy, diversity, repetition. */

import { throwIfCancelled, UsageError } from '../base/errors.ts'
import type { WorkOptions } from '../base/progress.ts'
import type { NDArray } from '../base/types.ts'
import { editedModel, rowFeeds, stackableRows } from '../explore/patch-graph.ts'
import { logProbabilityOf } from '../nn/losses.ts'
import type { Model, ModelInput } from '../run/index.ts'
import { exp, gather, input, logSoftmax, logSumExp, mul, neg, squeeze, sub, sum, type Tensor } from '../tensor/index.ts'

/** Options of measures that run a model. */
export interface MeasureOptions extends WorkOptions {
  /** Most positions in one pass (default 4096). */
  readonly batchTokens?: number
}

const outputs = { loss: 'loss', kl: 'kl', entropy: 'entropy' } as const
const targetsInput = 'measured_targets'
const candidatesInput = 'candidates'
const otherInput = 'unsteered_logits'

/** Rows in passes of like length that hold no more positions than the budget. */
function* passes(rows: readonly (readonly number[])[], budget: number): Generator<number[]> {
  const order = rows.map((_, i) => i).sort((a, b) => (rows[a] as readonly number[]).length - (rows[b] as readonly number[]).length)
  let pass: number[] = []
  for (const i of order) {
    if (pass.length > 0 && (pass.length + 1) * (rows[i] as readonly number[]).length > budget) {
      yield pass
      pass = []
    }
    pass.push(i)
  }
  if (pass.length > 0) yield pass
}

/**
 * Negative log-probability of every token but the first of each row, in nats: [tokens − 1] for each row. The model's edits are in force.
 * @param texts texts or token ids; each needs at least two tokens.
 */
export async function tokenLosses(model: Model, texts: ModelInput, options: MeasureOptions = {}): Promise<Float32Array[]> {
  const rows = stackableRows(model, texts, 'The text')
  const short = rows.findIndex((r) => r.length < 2)
  if (short >= 0) throw new UsageError(`The text ${short} has one token, so there is nothing to predict in it; give at least two.`)
  const edited = editedModel(model)
  const program = await edited.core.compiled(JSON.stringify(['token losses', edited.structure]), () => {
    const { logits } = edited.graph({ taps: [], lastOnly: false })
    const targets = input(targetsInput, 'int64', ['batch', 'pos'])
    return { [outputs.loss]: neg(logProbabilityOf(logits, targets)) }
  })
  const out = new Array<Float32Array>(rows.length)
  let done = 0
  for (const pass of passes(rows, options.batchTokens ?? 4096)) {
    throwIfCancelled(options.signal)
    const batch = pass.map((i) => rows[i] as readonly number[])
    const width = Math.max(...batch.map((r) => r.length)) - 1
    const data = new BigInt64Array(batch.length * width)
    for (const [b, r] of batch.entries()) for (let p = 1; p < r.length; p++) data[b * width + p - 1] = BigInt(r[p] as number)
    const targets: NDArray = { dtype: 'int64', shape: [batch.length, width], data }
    const feeds = {
      ...rowFeeds(
        edited,
        batch.map((r) => r.slice(0, -1)),
      ),
      [targetsInput]: targets,
    }
    const losses = (await program.run(feeds, { signal: options.signal }))[outputs.loss]?.data as Float32Array
    for (const [b, i] of pass.entries()) out[i] = losses.slice(b * width, b * width + (batch[b] as readonly number[]).length - 1)
    done += pass.length
    options.onProgress?.({ task: 'measuring loss', done, total: rows.length, unit: 'texts' })
  }
  return out
}

/** Perplexity: the exponential of the mean loss over all predicted tokens of all texts. */
export async function perplexity(model: Model, texts: ModelInput, options: MeasureOptions = {}): Promise<number> {
  const losses = await tokenLosses(model, texts, options)
  let [sum, count] = [0, 0]
  for (const row of losses) {
    for (const v of row) sum += v
    count += row.length
  }
  return Math.exp(sum / count)
}

/** How far one model's next-token distributions are from another's, over positions. */
export interface Divergence {
  /** Mean of Σ p₀ (ln p₀ − ln p), nats: p₀ of the base model, p of the changed one. */
  readonly kl: number
  /** Mean entropy of the changed model, bits. */
  readonly entropy: number
  /** Divergence of each text, nats, [positions] for each row. */
  readonly klByToken: readonly Float32Array[]
}

/**
 * Divergence of a changed model from its base on the same texts, from logarithms of probabilities, so that nothing underflows.
 * @param options.positions `all`, or `last`: the position after each whole text.
 */
export async function divergence(
  base: Model,
  changed: Model,
  texts: ModelInput,
  options: MeasureOptions & { readonly positions?: 'all' | 'last' } = {},
): Promise<Divergence> {
  const rows = stackableRows(base, texts, 'The text')
  if (base.spec.vocab !== changed.spec.vocab)
    throw new UsageError(`The models have ${base.spec.vocab} and ${changed.spec.vocab} tokens, so their distributions cannot be compared.`)
  const lastOnly = options.positions === 'last'
  const [plain, edited] = [editedModel(base), editedModel(changed)]
  const first = await plain.core.compiled(JSON.stringify(['divergence, base', plain.structure, lastOnly]), () => ({
    logits: plain.graph({ taps: [], lastOnly }).logits,
  }))
  const second = await edited.core.compiled(JSON.stringify(['divergence', edited.structure, lastOnly]), () =>
    divergenceGraph(edited.graph({ taps: [], lastOnly }).logits),
  )
  const klByToken = new Array<Float32Array>(rows.length)
  let [kl, entropy, count] = [0, 0, 0]
  // Logits of both models are in memory together.
  for (const pass of passes(rows, Math.min(options.batchTokens ?? 4096, Math.max(64, Math.floor(2 ** 26 / base.spec.vocab))))) {
    throwIfCancelled(options.signal)
    const batch = pass.map((i) => rows[i] as readonly number[])
    const { logits } = await first.run(rowFeeds(plain, batch), { signal: options.signal })
    const out = await second.run({ ...rowFeeds(edited, batch), [otherInput]: logits as NDArray }, { signal: options.signal })
    const width = lastOnly ? 1 : Math.max(...batch.map((r) => r.length))
    for (const [b, i] of pass.entries()) {
      const length = lastOnly ? 1 : (batch[b] as readonly number[]).length
      const part = (name: string) => ((out[name] as NDArray).data as Float32Array).slice(b * width, b * width + length)
      klByToken[i] = part(outputs.kl)
      for (const v of klByToken[i] as Float32Array) kl += v
      for (const v of part(outputs.entropy)) entropy += v
      count += length
    }
  }
  return { kl: kl / count, entropy: entropy / count, klByToken }
}

function divergenceGraph(logits: Tensor): Record<string, Tensor> {
  const changed = logSoftmax(logits)
  const base = logSoftmax(input(otherInput, 'float32', logits.shape))
  return {
    [outputs.kl]: sum(mul(exp(base), sub(base, changed)), [-1]),
    [outputs.entropy]: mul(sum(mul(exp(changed), changed), [-1]), -1 / Math.LN2),
  }
}

/** What a model says about some tokens at the end of each text. */
export interface CandidateScores {
  /** Logits of the candidates, [texts][candidates]. */
  readonly logits: readonly Float32Array[]
  /** Logarithm of the probability of all candidates together, nats, for each text. */
  readonly logMass: readonly number[]
}

/** Logits of candidate tokens after each whole text. */
export async function candidateScores(
  model: Model,
  texts: ModelInput,
  candidates: readonly number[],
  options: MeasureOptions = {},
): Promise<CandidateScores> {
  const rows = stackableRows(model, texts, 'The text')
  const outside = candidates.find((c) => !Number.isInteger(c) || c < 0 || c >= model.spec.vocab)
  if (candidates.length === 0 || outside !== undefined)
    throw new UsageError(
      outside === undefined ? 'Name at least one candidate token.' : `There is no token ${outside} in this model's vocabulary.`,
    )
  const edited = editedModel(model)
  const program = await edited.core.compiled(JSON.stringify(['candidates', edited.structure]), () => {
    const { logits } = edited.graph({ taps: [], lastOnly: true })
    const last = squeeze(logits, 1)
    const chosen = gather(last, input(candidatesInput, 'int64', ['candidates']), 1)
    return { chosen, mass: sub(logSumExp(chosen, [-1]), logSumExp(last, [-1])) }
  })
  const ids: NDArray = { dtype: 'int64', shape: [candidates.length], data: BigInt64Array.from(candidates, BigInt) }
  const logits = new Array<Float32Array>(rows.length)
  const logMass = new Array<number>(rows.length)
  for (const pass of passes(rows, options.batchTokens ?? 4096)) {
    throwIfCancelled(options.signal)
    const feeds = rowFeeds(
      edited,
      pass.map((i) => rows[i] as readonly number[]),
    )
    const out = await program.run({ ...feeds, [candidatesInput]: ids }, { signal: options.signal })
    const [chosen, mass] = [(out.chosen as NDArray).data as Float32Array, (out.mass as NDArray).data as Float32Array]
    for (const [b, i] of pass.entries()) {
      logits[i] = chosen.slice(b * candidates.length, (b + 1) * candidates.length)
      logMass[i] = mass[b] as number
    }
  }
  return { logits, logMass }
}

/** Words, lower case; or tokens as they are. */
const units = (text: string | readonly number[]): readonly (string | number)[] =>
  typeof text === 'string' ? (text.toLowerCase().match(/[\p{L}\p{N}']+/gu) ?? []) : text

function ngrams(text: string | readonly number[], n: number): string[] {
  const u = units(text)
  return Array.from({ length: Math.max(0, u.length - n + 1) }, (_, i) => u.slice(i, i + n).join(' '))
}

/** Share of different n-grams among all n-grams of the texts together (distinct-n, Li et al. 2016); NaN where there is none. */
export function distinct(texts: readonly (string | readonly number[])[], n = 2): number {
  const all = texts.flatMap((t) => ngrams(t, n))
  return new Set(all).size / all.length
}

/** Share of n-grams of a text that it has said before; 0 where it has none. */
export function repetition(text: string | readonly number[], n = 3): number {
  const all = ngrams(text, n)
  return all.length === 0 ? 0 : 1 - new Set(all).size / all.length
}

/** Longest run of one word or token. */
export function longestRun(text: string | readonly number[]): number {
  let [longest, run] = [0, 0]
  let last: string | number | undefined
  for (const u of units(text)) {
    run = u === last ? run + 1 : 1
    last = u
    longest = Math.max(longest, run)
  }
  return longest
}
