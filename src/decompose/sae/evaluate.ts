/** @file How good a sparse autoencoder is: on activations alone, and spliced into its model. */
import { throwIfCancelled, UsageError } from '../../base/errors.ts'
import type { WorkOptions } from '../../base/progress.ts'
import type { NDArray } from '../../base/types.ts'
import { rowsOf } from '../../explore/capture-pass.ts'
import { type CorpusInput, Moments, openCorpus, type Packing } from '../../explore/index.ts'
import type { Model } from '../../run/index.ts'
import { type Edit, meanAblate, sae as saeEdit, zero } from '../../sites/index.ts'
import {
  exp,
  gatherElements,
  input,
  logSoftmax,
  mul,
  neg,
  Program,
  SessionCache,
  squeeze,
  sub,
  sum,
  unsqueeze,
} from '../../tensor/index.ts'
import type { RowStream } from './rows.ts'
import type { Sae } from './sae.ts'

/** Figures on activations alone. */
export interface SaeMetrics {
  /** Rows that were looked at. */
  readonly rows: number
  /** Active latents of a row, and the sum of their sizes, mean over rows. */
  readonly l0: number
  readonly l1: number
  /** Squared error summed over the width, mean over rows. */
  readonly mse: number
  /** Σ‖x − x̂‖² / Σ‖x − mean‖², and 1 minus that. */
  readonly fvu: number
  readonly explainedVariance: number
  /** Cosine of input and output, and the ratio of their lengths, mean over rows. */
  readonly cosine: number
  readonly lengthRatio: number
  /** E‖x̂‖² / E⟨x, x̂⟩: below 1 where outputs are shrunk. */
  readonly reconstructionBias: number
  /** Share of latents that never fired, and of those that fire in fewer than one row of 10⁵. */
  readonly dead: number
  readonly rare: number
  /** Share of rows in which each latent is active, [d_sae]. */
  readonly density: Float64Array
  /** Counts of latents by log10(density + 1e-10), in bins of a quarter from −10 to 0. */
  readonly densityHistogram: { readonly edges: readonly number[]; readonly counts: readonly number[] }
  /** Mean input, [d_in]. */
  readonly mean: Float64Array
}

/** Options of {@link saeMetrics}. */
export interface SaeMetricsOptions extends WorkOptions {
  /** Rows to look at (default: 65,536, or all there are). */
  readonly tokens?: number
}

/** Figures over rows of activations; the first epoch of a stream. */
export async function saeMetrics(sae: Sae, stream: RowStream, options: SaeMetricsOptions = {}): Promise<SaeMetrics> {
  const { tokens = 65_536, signal, onProgress } = options
  if (sae.weights.transcoder) throw new UsageError('These figures compare the output with the input, which means nothing for a transcoder.')
  if (stream.width !== sae.dIn) throw new UsageError(`The rows are ${stream.width} wide, but the autoencoder takes ${sae.dIn}.`)
  const moments = new Moments(sae.dIn)
  const fired = new Float64Array(sae.dSae)
  const totals = { l0: 0, l1: 0, squares: 0, cosine: 0, ratio: 0, outputs: 0, products: 0 }
  const step = Math.max(1, Math.min(1024, Math.floor((1 << 23) / sae.dSae)))
  for await (const piece of stream.rows(0, 0)) {
    const count = Math.min(piece.length / sae.dIn, tokens - moments.count)
    for (let from = 0; from < count; from += step) {
      throwIfCancelled(signal)
      const to = Math.min(count, from + step)
      const x: NDArray<Float32Array> = { dtype: 'float32', shape: [to - from, sae.dIn], data: piece.slice(from * sae.dIn, to * sae.dIn) }
      const sums = await sae.measure(x)
      for (const name of Object.keys(totals) as (keyof typeof totals)[]) totals[name] += sums[name][0] as number
      for (let i = 0; i < fired.length; i++) fired[i] = (fired[i] as number) + (sums.fired[i] as number)
      await moments.add(x)
      onProgress?.({ task: 'measuring the autoencoder', done: moments.count, total: tokens, unit: 'rows' })
    }
    if (moments.count >= tokens) break
  }
  const rows = moments.count
  if (rows === 0) throw new UsageError('There are no rows to measure on; give at least one.')
  const variance = moments.variance.reduce((s, v) => s + v, 0)
  const fvu = totals.squares / rows / variance
  const density = fired.map((f) => f / rows)
  return {
    rows,
    l0: totals.l0 / rows,
    l1: totals.l1 / rows,
    mse: totals.squares / rows,
    fvu,
    explainedVariance: 1 - fvu,
    cosine: totals.cosine / rows,
    lengthRatio: totals.ratio / rows,
    reconstructionBias: totals.outputs / totals.products,
    dead: share(density, (d) => d === 0),
    rare: share(density, (d) => d < 1e-5),
    density,
    densityHistogram: histogramOf(density),
    mean: moments.mean,
  }
}

const share = (values: Float64Array, is: (v: number) => boolean) => values.reduce((n, v) => n + Number(is(v)), 0) / values.length

function histogramOf(density: Float64Array) {
  const edges = Array.from({ length: 41 }, (_, i) => -10 + i / 4)
  const counts = new Array<number>(40).fill(0)
  for (const d of density) {
    const at = Math.min(39, Math.max(0, Math.floor((Math.log10(d + 1e-10) + 10) * 4)))
    counts[at] = (counts[at] as number) + 1
  }
  return { edges, counts }
}

/** Figures of an autoencoder in its model: what it costs the next-token prediction. */
export interface SpliceScores {
  /** Positions at which a next token was predicted. */
  readonly positions: number
  /** Mean next-token cross-entropy in nats: as it is; with the site replaced by its reconstruction; by zeros; by its mean. */
  readonly ce: { readonly clean: number; readonly sae: number; readonly zero: number; readonly mean?: number }
  /** Mean Kullback–Leibler divergence from the clean model, in nats. */
  readonly kl: { readonly sae: number; readonly zero: number }
  /** (CE zero − CE sae) / (CE zero − CE clean), and 1 − KL sae / KL zero: 1 is perfect, 0 as bad as zeros. */
  readonly ceRecovered: number
  readonly klScore: number
  readonly deltaCe: number
}

/** Options of {@link spliceScores}. */
export interface SpliceOptions extends WorkOptions {
  readonly data: CorpusInput
  /** Site to replace (default: what the autoencoder's file says). */
  readonly site?: string
  /** Tokens to look at (default 4096). */
  readonly tokens?: number
  readonly context?: number
  readonly packing?: Packing
  /** Tokens, padding included, in one forward pass (default 512). */
  readonly batchTokens?: number
  /** Keeps the value where the token that begins a text stands (default true). */
  readonly keepBos?: boolean
  /** Mean activation, for the baseline of mean ablation. */
  readonly mean?: ArrayLike<number>
}

const sessions = new SessionCache(0)
let scoring: Promise<Program> | undefined

/** Sums of cross-entropy and divergence of logits against targets and the clean logits. */
function scorer(): Promise<Program> {
  scoring ??= (async () => {
    const shape = ['batch', 'pos', 'vocab']
    const [logits, clean] = [input('logits', 'float32', shape), input('clean', 'float32', shape)]
    const [targets, counted] = [input('targets', 'int64', ['batch', 'pos']), input('counted', 'float32', ['batch', 'pos'])]
    const [p, q] = [logSoftmax(clean), logSoftmax(logits)]
    const ce = neg(squeeze(gatherElements(q, unsqueeze(targets, -1), -1), -1))
    const kl = sum(mul(exp(p), sub(p, q)), [-1])
    return Program.of({ ce: sum(mul(ce, counted)), kl: sum(mul(kl, counted)) }, { device: 'cpu', cache: sessions })
  })()
  return scoring
}

/** Replaces a site by its reconstruction, zeros or its mean, and compares the predictions with those of the model as it is. */
export async function spliceScores(model: Model, sae: Sae, options: SpliceOptions): Promise<SpliceScores> {
  const { tokens = 4096, batchTokens = 512, keepBos = true, mean, signal, onProgress } = options
  const { site } = sae.site(model, options.site)
  const bos = keepBos && model.hasTokenizer ? model.tokenizer.bos : undefined
  const corpus = await openCorpus(options.data, signal ? { signal } : {})
  const context = options.context ?? Math.min(256, model.contextLength)
  const arms = (from: number): Record<string, Edit> => {
    const where = from > 0 ? { where: { positions: { from } } } : {}
    return {
      sae: saeEdit(site, sae, where),
      zero: zero(site, where),
      ...(mean ? { mean: meanAblate(site, Float32Array.from(mean), where) } : {}),
    }
  }
  const totals: Record<string, { ce: number; kl: number }> = {}
  let [positions, seen] = [0, 0]
  for await (const batch of batchesOfRows(model, corpus, { context, packing: options.packing ?? 'pad', batchTokens, bos })) {
    throwIfCancelled(signal)
    const { rows, from } = batch
    const clean = await logitsOf(model, rows)
    const { targets, counted, count } = targetsOf(rows, clean.shape[1] as number)
    const program = await scorer()
    const score = async (name: string, logits: NDArray<Float32Array>) => {
      const { ce, kl } = (await program.run({ logits, clean, targets, counted })) as { ce: NDArray; kl: NDArray }
      totals[name] ??= { ce: 0, kl: 0 }
      const total = totals[name]
      total.ce += Number(ce.data[0])
      total.kl += Number(kl.data[0])
    }
    await score('clean', clean)
    for (const [name, edit] of Object.entries(arms(from))) await score(name, await logitsOf(model.with(edit), rows))
    positions += count
    seen += rows.reduce((n, r) => n + r.length, 0)
    onProgress?.({ task: 'splicing the autoencoder', done: seen, total: tokens, unit: 'tokens' })
    if (seen >= tokens) break
  }
  if (positions === 0) throw new UsageError('No text of the corpus has two tokens, so nothing is predicted; give longer texts.')
  const of = (name: string, figure: 'ce' | 'kl') => (totals[name] as { ce: number; kl: number })[figure] / positions
  const ce = { clean: of('clean', 'ce'), sae: of('sae', 'ce'), zero: of('zero', 'ce'), ...(mean ? { mean: of('mean', 'ce') } : {}) }
  const kl = { sae: of('sae', 'kl'), zero: of('zero', 'kl') }
  return {
    positions,
    ce,
    kl,
    ceRecovered: (ce.zero - ce.sae) / (ce.zero - ce.clean),
    klScore: 1 - kl.sae / kl.zero,
    deltaCe: ce.sae - ce.clean,
  }
}

/** Rows run together: all that begin with the first token of a text, or all that do not. */
async function* batchesOfRows(
  model: Model,
  corpus: Awaited<ReturnType<typeof openCorpus>>,
  options: { context: number; packing: Packing; batchTokens: number; bos: number | undefined },
): AsyncGenerator<{ rows: readonly (readonly number[])[]; from: number }> {
  const open = new Map<number, (readonly number[])[]>()
  for await (const { ids } of rowsOf(model, corpus, options, { document: 0, token: 0 })) {
    if (ids.length < 2) continue
    const from = ids[0] === options.bos ? 1 : 0
    const rows = open.get(from) ?? []
    rows.push(ids)
    open.set(from, rows)
    if (rows.length * Math.max(...rows.map((r) => r.length)) < options.batchTokens) continue
    yield { rows, from }
    open.delete(from)
  }
  for (const [from, rows] of open) yield { rows, from }
}

async function logitsOf(model: Model, rows: readonly (readonly number[])[]): Promise<NDArray<Float32Array>> {
  const { logits } = await model.run({ rows })
  const { shape, data } = logits as unknown as NDArray<Float32Array>
  return { dtype: 'float32', shape, data }
}

/** The next token of each place, and which places have one. */
function targetsOf(rows: readonly (readonly number[])[], width: number) {
  const shape = [rows.length, width]
  const targets = new BigInt64Array(rows.length * width)
  const counted = new Float32Array(rows.length * width)
  let count = 0
  for (const [b, row] of rows.entries())
    for (let c = 0; c + 1 < row.length; c++) {
      targets[b * width + c] = BigInt(row[c + 1] as number)
      counted[b * width + c] = 1
      count++
    }
  return {
    targets: { dtype: 'int64', shape, data: targets } as NDArray,
    counted: { dtype: 'float32', shape, data: counted } as NDArray,
    count,
  }
}
