/** @file A judge without a language model's help: likeness of an attempt to what the model says unsteered. */

import { UsageError } from '../../base/errors.ts'
import { meanOf } from '../../base/numbers.ts'
import { ascending, auroc } from '../../probe/metrics.ts'
import type { Model } from '../../run/index.ts'
import { restartPhrases, splitAttempts } from './attempts.ts'
import { pooledFeatures } from './pooled.ts'
import type { Judge } from './trials.ts'

/** What a {@link referenceJudge} compares with. */
export interface ReferenceOptions {
  /** Unsteered answers to each prompt, two or more of each: texts by the number of the prompt. */
  readonly references: readonly (readonly string[])[]
  /** Site whose mean over tokens stands for a text (default: the middle layer's `resid_post`). */
  readonly site?: string
  readonly phrases?: readonly string[]
  readonly signal?: AbortSignal | undefined
}

/** A judge, and how well it can tell. */
export interface ReferenceJudge {
  readonly judge: Judge
  /** Area under the curve by which it tells unsteered answers to a prompt from those to others; near 0.5 it cannot judge. */
  readonly separation: number
}

/**
 * Splits at phrases and scores each attempt by its likeness to the unsteered answers to its prompt less that to the other prompts': cosines of mean
 * activations, with the mean of all references taken off. Scores of 0 and 100 are the medians of unsteered answers to other prompts and to the prompt.
 */
export async function referenceJudge(model: Model, options: ReferenceOptions): Promise<ReferenceJudge> {
  const { references, site = `resid_post.${Math.floor(model.spec.layers / 2)}`, phrases = restartPhrases, signal } = options
  if (references.length < 2) throw new UsageError('This judge compares with answers to other prompts, so it needs two prompts or more.')
  const few = references.findIndex((r) => r.filter((t) => t.trim() !== '').length < 2)
  if (few >= 0) throw new UsageError(`Prompt ${few} has fewer than two unsteered answers with a text; give the judge two of each.`)
  const plain = model.plain
  const embed = async (texts: readonly string[]): Promise<Float32Array[]> => {
    const rows = texts.map((t) => plain.tokens(t).rows[0] as readonly number[])
    const skip = rows.every((r) => r[0] === plain.tokenizer.bos && r.length > 1) ? 1 : 0
    const [found] = await pooledFeatures(plain, rows, { sources: [{ site }], skip, ...(signal ? { signal } : {}) })
    return found?.mean as Float32Array[]
  }
  const known: Float32Array[][] = []
  for (const texts of references) known.push(await embed(texts.filter((t) => t.trim() !== '')))
  const all = known.flat()
  const centre = (all[0] as Float32Array).map((_, i) => all.reduce((s, v) => s + (v[i] as number), 0) / all.length)
  const unit = (v: Float32Array) => {
    const c = v.map((x, i) => x - (centre[i] as number))
    const length = Math.hypot(...c)
    return length === 0 ? c : c.map((x) => x / length)
  }
  const units = known.map((vectors) => vectors.map(unit))
  const cosine = (a: Float32Array, b: Float32Array) => a.reduce((s, x, i) => s + x * (b[i] as number), 0)
  /** Likeness to a prompt's own references less that to the others'; what is compared is no reference of its own. */
  const likeness = (v: Float32Array, prompt: number) => {
    const to = (p: number) => meanOf((units[p] as Float32Array[]).filter((u) => u !== v).map((u) => cosine(u, v)))
    return to(prompt) - meanOf(units.flatMap((_, p) => (p === prompt ? [] : [to(p)])))
  }
  const own = units.flatMap((vectors, p) => vectors.map((v) => likeness(v, p)))
  const others = units.flatMap((vectors, p) => vectors.map((v) => likeness(v, (p + 1) % units.length)))
  const median = (values: readonly number[]) => [...values].sort((a, b) => a - b)[Math.floor(values.length / 2)] as number
  const [zero, hundred] = [median(others), median(own)]
  if (!(hundred > zero))
    throw new UsageError(
      'Unsteered answers to different prompts look alike to this judge; give prompts about different subjects, or another site.',
    )
  const scores = Float64Array.from([...own, ...others])
  return {
    separation: auroc(ascending(scores), scores, Uint8Array.from([...own.map(() => 1), ...others.map(() => 0)])),
    judge: async ({ prompt, text }) => {
      const attempts = splitAttempts(text, phrases)
      if (attempts.length === 0) return []
      return (await embed(attempts)).map((v) => Math.min(100, Math.max(0, (100 * (likeness(unit(v), prompt) - zero)) / (hundred - zero))))
    },
  }
}
