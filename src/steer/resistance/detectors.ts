/** @file Off-topic detectors: neurons or latents that are active where an answer does not belong to its question; taking them out, and random ones like them. */

import { UsageError } from '../../base/errors.ts'
import { meanOf } from '../../base/numbers.ts'
import type { WorkOptions } from '../../base/progress.ts'
import { RandomStream } from '../../nn/index.ts'
import { ascending, auroc } from '../../probe/metrics.ts'
import type { Model } from '../../run/index.ts'
import { affine, type DataEdit, sae as saeEdit } from '../../sites/index.ts'
import { widthOf } from '../vector.ts'
import { type FeatureSource, type Pooled, pooledFeatures } from './pooled.ts'

/** What is known of one neuron or latent. */
export interface Detector {
  readonly source: FeatureSource
  readonly feature: number
  /** Probability that its maximum over a mismatched text exceeds that over a matched one. */
  readonly auc: number
  /** Mean over texts of the maximum over tokens. */
  readonly matched: number
  readonly mismatched: number
  /** Shares of texts in which the maximum is above zero. */
  readonly firesMatched: number
  readonly firesMismatched: number
  /** Mean over all tokens of matched texts: what an ablation sets it to. */
  readonly mean: number
  /** Whether its maximum ever differs between texts; those of others have nothing to say. */
  readonly alive: boolean
}

/** Texts that are read, and where. */
export interface DetectorOptions extends WorkOptions {
  /** Token ids of questions with their own answers, and with answers to others. */
  readonly matched: readonly (readonly number[])[]
  readonly mismatched: readonly (readonly number[])[]
  readonly sources: readonly FeatureSource[]
  /** Most texts in one pass (default 32). */
  readonly batch?: number
}

/**
 * An order in which nobody stands at a place that is their own: the answer that each question is paired with.
 * @param differ whether two questions differ so much that the answer of one is wrong for the other; by default any two do.
 */
export function derangement(count: number, seed: number, differ: (a: number, b: number) => boolean = (a, b) => a !== b): number[] {
  const random = RandomStream.named(seed, 'derangement')
  const order = Array.from(random.permutation(count))
  const fits = (at: number, value: number) => differ(at, value)
  for (const at of order.keys()) {
    if (fits(at, order[at] as number)) continue
    const others = Array.from(random.permutation(count))
    const other = others.find((o) => fits(at, order[o] as number) && fits(o, order[at] as number))
    if (other === undefined)
      throw new UsageError('Answers cannot be dealt out so that none belongs to its question; give questions about more subjects.')
    ;[order[at], order[other]] = [order[other] as number, order[at] as number]
  }
  return order
}

/**
 * All neurons or latents of some sources, those first that tell mismatched from matched texts best: by the area under the curve of the maximum over
 * tokens (max pooling, teacher-forced, unsteered; arXiv:2602.06941), then by the difference of the maxima in standard deviations.
 */
export async function findDetectors(model: Model, options: DetectorOptions): Promise<Detector[]> {
  const { matched, mismatched, sources } = options
  if (matched.length < 2 || mismatched.length < 2) throw new UsageError('Detectors need at least two matched and two mismatched texts.')
  if (sources.length === 0) throw new UsageError('Name at least one source: a site, or an autoencoder at a site.')
  const own = await pooledFeatures(model.plain, matched, options)
  const other = await pooledFeatures(model.plain, mismatched, options)
  const positive = Uint8Array.from([...mismatched.map(() => 1), ...matched.map(() => 0)])
  const found: { detector: Detector; effect: number }[] = []
  for (const [k, source] of sources.entries()) {
    const [a, b] = [own[k] as Pooled, other[k] as Pooled]
    const count = (a.max[0] as Float32Array).length
    for (let feature = 0; feature < count; feature++) {
      const [x, y] = [a.max.map((v) => v[feature] as number), b.max.map((v) => v[feature] as number)]
      const scores = Float64Array.from([...y, ...x])
      const [m, n] = [meanOf(x), meanOf(y)]
      const deviation = Math.sqrt((meanOf(x.map((v) => (v - m) ** 2)) + meanOf(y.map((v) => (v - n) ** 2))) / 2)
      const detector: Detector = {
        source,
        feature,
        auc: auroc(ascending(scores), scores, positive),
        matched: m,
        mismatched: n,
        firesMatched: meanOf(x.map((v) => Number(v > 0))),
        firesMismatched: meanOf(y.map((v) => Number(v > 0))),
        mean: meanOf(a.mean.map((v) => v[feature] as number)),
        alive: scores.some((v) => v !== scores[0]),
      }
      found.push({ detector, effect: deviation > 0 ? (n - m) / deviation : 0 })
    }
  }
  return found.sort((p, q) => q.detector.auc - p.detector.auc || q.effect - p.effect).map((f) => f.detector)
}

/** The rule by which the paper's code chose latents: silent on every matched text, active on at least a share of the mismatched ones. */
export const silentOnMatched = (detectors: readonly Detector[], share = 0.8): Detector[] =>
  detectors.filter((d) => d.firesMatched === 0 && d.firesMismatched >= share)

/** Edits that hold detectors at their mean over matched texts, or at zero; in an autoencoder with what it does not reconstruct kept. */
export function ablation(model: Model, detectors: readonly Detector[], to: 'mean' | 'zero'): DataEdit[] {
  if (detectors.length === 0) throw new UsageError('No detectors are named, so there is nothing to hold.')
  const value = (d: Detector) => (to === 'mean' ? d.mean : 0)
  const sources = new Map<string, Detector[]>()
  for (const d of detectors) {
    const key = `${d.source.site} ${d.source.sae ? 'latents' : ''}`
    sources.set(key, [...(sources.get(key) ?? []), d])
  }
  return [...sources.values()].map((own) => {
    const { site, sae } = (own[0] as Detector).source
    if (sae)
      return saeEdit(sae.site(model, site).site, sae, {
        latents: Object.fromEntries(own.map((d) => [d.feature, value(d)])),
        mode: 'clamp',
      })
    const width = widthOf(model, model.site(site))
    const [scale, shift] = [new Float32Array(width).fill(1), new Float32Array(width)]
    for (const d of own) {
      scale[d.feature] = 0
      shift[d.feature] = value(d)
    }
    return affine(site, { scale, shift })
  })
}

/** How many of the likest features each random one is drawn among. */
const neighbours = 8

/**
 * Random sets that resemble a set of detectors: for each one, one of the features of the same source that are nearest in how active they are over all
 * texts. Detectors themselves, chosen or not, and features that never change are left out.
 * @param options.detects area under the curve from which on a feature counts as a detector (default 0.95).
 */
export function randomSets(
  all: readonly Detector[],
  chosen: readonly Detector[],
  options: { readonly sets: number; readonly seed: number; readonly detects?: number },
): Detector[][] {
  const { sets, seed, detects = 0.95 } = options
  const taken = new Set(chosen)
  const pool = all.filter((d) => d.alive && d.auc < detects && !taken.has(d))
  const level = (d: Detector) => (d.matched + d.mismatched) / 2
  return Array.from({ length: sets }, (_, k) => {
    const random = RandomStream.named(seed, `random set ${k}`)
    const left = new Set(pool)
    return chosen.map((d) => {
      const near = [...left]
        .filter((p) => p.source === d.source)
        .sort((a, b) => Math.abs(level(a) - level(d)) - Math.abs(level(b) - level(d)))
        .slice(0, neighbours)
      const pick = near[random.below(Math.max(1, near.length))]
      if (!pick)
        throw new UsageError(`There are not enough features beside the detectors at '${d.source.site}' for a random set of their size.`)
      left.delete(pick)
      return pick
    })
  })
}
