/** @file Reading latents: where they are most active, on which tokens, what they write into the logits, and as steering vectors. */
import { throwIfCancelled, UsageError } from '../../base/errors.ts'
import type { WorkOptions } from '../../base/progress.ts'
import type { NDArray } from '../../base/types.ts'
import { type CorpusInput, openCorpus, type PassSettings, passOver, planPass, type TopContext, TopContexts } from '../../explore/index.ts'
import { gainOf, matrixOf } from '../../explore/logit-attribution.ts'
import type { Model } from '../../run/index.ts'
import { SteeringVector } from '../../steer/index.ts'
import { input, matmul, mean, mul, sub } from '../../tensor/index.ts'
import type { Sae } from './sae.ts'

/** Where a latent is active. */
export interface LatentSummary {
  readonly latent: number
  /** Positions at which it is active, and in all. */
  readonly active: number
  readonly positions: number
  /** Largest activation, and the mean over positions at which it is active. */
  readonly max: number
  readonly mean: number
  /** Contexts in which it is most active, one for each row, strongest first; each with the activations of its tokens. */
  readonly contexts: readonly LatentContext[]
  /** Tokens on which it is active: how often, and how strongly on the mean; the strongest sums first. */
  readonly tokens: readonly { readonly token: number; readonly count: number; readonly mean: number }[]
  /** Counts of its activations in equal bins from 0 to the largest. */
  readonly histogram: { readonly edges: readonly number[]; readonly counts: readonly number[] }
}

/** A context with the activation of each of its tokens. */
export interface LatentContext extends TopContext {
  readonly activations: readonly number[]
}

/** Options of {@link latentSummaries}. */
export interface LatentOptions extends WorkOptions, Omit<PassSettings, 'sites' | 'where'> {
  readonly data: CorpusInput
  readonly latents: readonly number[]
  /** Site to read (default: what the autoencoder's file says). */
  readonly site?: string
  /** Contexts of each latent (default 10), tokens on each side (default 16), and tokens that are listed (default 20). */
  readonly keep?: number
  readonly around?: number
  readonly listTokens?: number
  /** Leaves out the token that begins every text (default true). */
  readonly dropBos?: boolean
}

/** Bins of a histogram of activations. */
const bins = 40

/** Runs a model over a corpus and tells where some latents are active. */
export async function latentSummaries(model: Model, sae: Sae, options: LatentOptions): Promise<LatentSummary[]> {
  const { latents, keep = 10, around = 16, listTokens = 20, dropBos = true, signal, onProgress } = options
  if (latents.length === 0) throw new UsageError('No latent is named; name at least one.')
  for (const i of latents) sae.checkLatent(i)
  const { site } = sae.site(model, options.site)
  const plan = planPass(model, { ...options, sites: site })
  const corpus = await openCorpus(options.data, signal ? { signal } : {})
  const bos = dropBos && model.hasTokenizer ? model.tokenizer.bos : undefined
  const names = latents.map(String)
  const n = latents.length
  const top = new TopContexts(
    n,
    names.map((name, neuron) => ({ name, neuron })),
    { keep, around },
  )
  const values: number[][] = latents.map(() => [])
  const byToken = latents.map(() => new Map<number, { count: number; sum: number }>())
  let positions = 0
  for await (const window of passOver(model, corpus, plan, signal ? { signal } : {})) {
    throwIfCancelled(signal)
    const x: NDArray<Float32Array> = { dtype: 'float32', shape: [window.count, sae.dIn], data: window.values.get(site) as Float32Array }
    const chosen = await columns(sae, x, latents)
    for (let r = 0; r < window.count; r++) {
      const token = window.tokens[r] as number
      if (token === bos) {
        chosen.fill(0, r * n, (r + 1) * n)
        continue
      }
      positions++
      for (let k = 0; k < n; k++) {
        const v = chosen[r * n + k] as number
        if (v === 0) continue
        ;(values[k] as number[]).push(v)
        const entry = (byToken[k] as Map<number, { count: number; sum: number }>).get(token) ?? { count: 0, sum: 0 }
        entry.count++
        entry.sum += v
        byToken[k]?.set(token, entry)
      }
    }
    await top.add({ dtype: 'float32', shape: [window.count, n], data: chosen }, window)
    onProgress?.({ task: 'reading latents', done: positions, ...(plan.maxTokens ? { total: plan.maxTokens } : {}), unit: 'tokens' })
  }
  const out: LatentSummary[] = []
  for (const [k, latent] of latents.entries()) {
    const seen = values[k] as number[]
    const max = seen.reduce((m, v) => Math.max(m, v), 0)
    const contexts = (top.contexts.get(names[k] as string) ?? []).filter((c) => c.value > 0)
    const entries = [...(byToken[k] as Map<number, { count: number; sum: number }>)].sort(([, a], [, b]) => b.sum - a.sum)
    out.push({
      latent,
      active: seen.length,
      positions,
      max,
      mean: seen.length === 0 ? 0 : seen.reduce((s, v) => s + v, 0) / seen.length,
      contexts: await withActivations(model, sae, site, latent, contexts),
      tokens: entries.slice(0, listTokens).map(([token, { count, sum }]) => ({ token, count, mean: sum / count })),
      histogram: histogramOf(seen, max),
    })
  }
  return out
}

/** Some columns of the activations, [rows, latents] flat. */
async function columns(sae: Sae, x: NDArray<Float32Array>, latents: readonly number[]): Promise<Float32Array> {
  const rows = x.shape[0] as number
  const n = latents.length
  const out = new Float32Array(rows * n)
  const step = 1024
  for (let from = 0; from < rows; from += step) {
    const to = Math.min(rows, from + step)
    const piece = { ...x, shape: [to - from, sae.dIn], data: x.data.subarray(from * sae.dIn, to * sae.dIn) }
    const { data } = await sae.encode(piece)
    for (let r = from; r < to; r++)
      for (let k = 0; k < n; k++) out[r * n + k] = data[(r - from) * sae.dSae + (latents[k] as number)] as number
  }
  return out
}

/** Activations of all tokens of the contexts. They are run alone, from the first token that is shown. */
async function withActivations(
  model: Model,
  sae: Sae,
  site: string,
  latent: number,
  contexts: readonly TopContext[],
): Promise<LatentContext[]> {
  const out: LatentContext[] = []
  for (const c of contexts) {
    const { taps } = await model.run({ ids: c.tokens }, { taps: [site], logits: false })
    const { data } = taps[site] as unknown as NDArray<Float32Array>
    const acts = await columns(sae, { dtype: 'float32', shape: [c.tokens.length, sae.dIn], data }, [latent])
    // The token itself keeps the value that it had with all that came before it.
    out.push({ ...c, activations: Array.from(acts, (v, i) => (i === c.at ? c.value : v)) })
  }
  return out
}

function histogramOf(values: readonly number[], max: number): LatentSummary['histogram'] {
  if (max <= 0) return { edges: [0, 0], counts: [0] }
  const counts = new Array<number>(bins).fill(0)
  for (const v of values) {
    const at = Math.min(bins - 1, Math.max(0, Math.floor((v / max) * bins)))
    counts[at] = (counts[at] as number) + 1
  }
  return { edges: Array.from({ length: bins + 1 }, (_, i) => (i * max) / bins), counts }
}

/** What a latent adds to the logits of tokens, by its decoder row alone. */
export interface LatentLogits {
  readonly latent: number
  /** Tokens with the largest and the smallest weights, strongest first. */
  readonly promoted: readonly { readonly token: number; readonly weight: number }[]
  readonly suppressed: readonly { readonly token: number; readonly weight: number }[]
  /** All weights, [d_vocab]. */
  readonly weights: Float32Array
}

/**
 * Logit weights W_dec·W_U of latents, with the gain of the final norm folded in and its divisor left out, so that they can be compared among
 * themselves; only for autoencoders that write into the residual stream.
 */
export async function latentLogits(model: Model, sae: Sae, latents: readonly number[], top = 10): Promise<LatentLogits[]> {
  const { dModel, vocab, narrow } = model.spec
  if (sae.dOut !== dModel)
    throw new UsageError(`Latents of this autoencoder write ${sae.dOut} numbers, not into the residual stream of ${dModel}.`)
  if (narrow)
    throw new UsageError('This model projects its stream before the unembedding, so logit weights of latents are not defined here.')
  const rows = new Float32Array(latents.length * dModel)
  for (const [k, latent] of latents.entries()) rows.set(sae.direction(latent), k * dModel)
  const core = model.internals
  const program = await core.compiled('logit weights', () => {
    const { finalNorm, head, logitScale = 1 } = core.spec
    const x = input('rows', 'float32', ['rows', dModel])
    const centred = finalNorm?.kind === 'layer' ? sub(x, mean(x, [-1], true)) : x
    const gained = finalNorm?.weight ? mul(centred, gainOf(core, finalNorm)) : centred
    return { weights: mul(matmul(gained, matrixOf(core, head), { transB: head.layout === 'out,in' }), logitScale) }
  })
  const out = await program.run({ rows: { dtype: 'float32', shape: [latents.length, dModel], data: rows } })
  const data = (out.weights as NDArray<Float32Array>).data
  return latents.map((latent, k) => {
    const weights = data.slice(k * vocab, (k + 1) * vocab)
    const order = Uint32Array.from({ length: vocab }, (_, i) => i).sort((a, b) => (weights[b] as number) - (weights[a] as number))
    const named = (tokens: Uint32Array) => Array.from(tokens, (token) => ({ token, weight: weights[token] as number }))
    return { latent, weights, promoted: named(order.slice(0, top)), suppressed: named(order.slice(-top).reverse()) }
  })
}

/** A latent as a steering vector: its decoder row at the site that it writes, of the length it has. */
export async function steeringVectorOf(model: Model, sae: Sae, latent: number, site?: string): Promise<SteeringVector> {
  const info = sae.outputSite(model, site)
  const { id } = model.origin
  return new SteeringVector([[info.site, sae.direction(latent)]], {
    method: 'sae',
    options: { latent, ...(sae.weights.source === undefined ? {} : { autoencoder: sae.weights.source }) },
    model: { id, hash: await model.origin.hash(), family: model.spec.family, layers: model.spec.layers },
    sites: [info.site],
    precision: model.precision,
  })
}

/** Activations of latents at a site for some texts, as `sae_acts` in other tools: [batch, pos, d_sae]. */
export async function encodeAt(
  model: Model,
  sae: Sae,
  texts: Parameters<Model['run']>[0],
  options: { readonly site?: string; readonly signal?: AbortSignal } = {},
): Promise<{ readonly acts: NDArray<Float32Array>; readonly tokens: readonly (readonly number[])[] }> {
  const { site } = sae.site(model, options.site)
  const { taps, tokens } = await model.run(texts, { taps: [site], logits: false, signal: options.signal })
  const { shape, data } = taps[site] as unknown as NDArray<Float32Array>
  const acts = await sae.encode({ dtype: 'float32', shape, data }, { signal: options.signal })
  // What stands where no token does is no activation.
  const width = shape[1] as number
  for (const [b, row] of tokens.entries()) if (row.length < width && shape[0] === tokens.length) zeroPadding(acts, data, b, width, shape)
  return { acts, tokens }
}

/** Zeroes activations of places that hold no token: those whose value is all zeros. */
function zeroPadding(acts: NDArray<Float32Array>, values: Float32Array, row: number, positions: number, shape: readonly number[]): void {
  const dIn = shape.slice(2).reduce((p, n) => p * n, 1)
  const dSae = acts.shape.at(-1) as number
  for (let c = 0; c < positions; c++) {
    const at = row * positions + c
    if (values.subarray(at * dIn, (at + 1) * dIn).every((v) => v === 0)) acts.data.fill(0, at * dSae, (at + 1) * dSae)
  }
}
