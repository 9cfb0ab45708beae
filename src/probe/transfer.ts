/** @file Transfer of probes: learned on one data set, judged on each of the others. */
import { throwIfCancelled, UsageError } from '../base/errors.ts'
import type { WorkOptions } from '../base/progress.ts'
import type { NDArray } from '../base/types.ts'
import type { Model } from '../run/index.ts'
import { readFeatures, type TextFeatures } from './features.ts'
import { accuracyOf, aurocOf, predicted, r2Of } from './metrics.ts'
import type { Probe } from './probe.ts'
import type { Features } from './solver.ts'
import { type ProbeOptions, probe, type StudyResult } from './study.ts'

/** A data set of labelled texts. */
export type LabelledTexts = Pick<ProbeOptions, 'texts' | 'labels' | 'groups'>

/** Options of {@link transferMatrix}. */
export interface TransferOptions extends Omit<ProbeOptions, 'texts' | 'labels' | 'groups'>, WorkOptions {
  /** At least two, by name; all of the same classes. */
  readonly sets: Readonly<Record<string, LabelledTexts>>
}

/** How probes of one site do across data sets. */
export interface SiteTransfer {
  readonly site: string
  /** By score (accuracy and auroc, or r2), [learned on, judged on]. On the diagonal the score on held-out texts. */
  readonly scores: Readonly<Record<string, NDArray<Float32Array>>>
  /** The probes that learned from all of a set, by its name. */
  readonly probes: Readonly<Record<string, Probe>>
  /** Cosines between the directions of the probes (first output), [set, set]. */
  readonly cosines: NDArray<Float32Array>
}

/** What a transfer gives. */
export interface TransferResult {
  /** Names of the axes `learned on` and `judged on`. */
  readonly sets: readonly string[]
  readonly sites: readonly SiteTransfer[]
  /** The study of each set, with its controls. */
  readonly studies: Readonly<Record<string, StudyResult>>
  readonly warnings: readonly string[]
}

/** Trains probes on each of several data sets and judges them on all. */
export async function transferMatrix(model: Model, options: TransferOptions): Promise<TransferResult> {
  const { sets, ...rest } = options
  const names = Object.keys(sets)
  if (names.length < 2) throw new UsageError(`A transfer needs at least two data sets, not ${names.length}.`)
  const studies: Record<string, StudyResult> = {}
  const features: Record<string, TextFeatures> = {}
  for (const name of names) {
    throwIfCancelled(options.signal)
    const set = sets[name] as LabelledTexts
    const onProgress =
      options.onProgress && ((p: Parameters<typeof options.onProgress>[0]) => options.onProgress?.({ ...p, task: `${p.task} of ${name}` }))
    const own = { ...rest, ...(onProgress ? { onProgress } : {}) }
    features[name] = await readFeatures(model, { ...own, texts: set.texts })
    studies[name] = await probe(model, { ...own, ...set, features: features[name] })
  }
  const first = studies[names[0] as string] as StudyResult
  for (const name of names)
    if (studies[name]?.classes.join('\n') !== first.classes.join('\n'))
      throw new UsageError(
        `'${name}' has the classes ${studies[name]?.classes.join(', ')}, but '${names[0]}' has ${first.classes.join(', ')}; probes can be judged on sets of the same classes only.`,
      )
  const sites: SiteTransfer[] = []
  for (const [i, { site, scores: measured }] of first.sites.entries()) {
    const measures = Object.keys(measured)
    const shape = [names.length, names.length]
    const scores = Object.fromEntries(
      measures.map((m) => [m, { dtype: 'float32' as const, shape, data: new Float32Array(names.length ** 2) }]),
    )
    const probes = names.map((n) => studies[n]?.sites[i]?.probe as Probe)
    for (const [a, learned] of probes.entries())
      for (const [b, judged] of names.entries()) {
        const own = studies[judged]?.sites[i]?.scores
        const values =
          a === b
            ? Object.fromEntries(measures.map((m) => [m, own?.[m]?.value as number]))
            : await judge(learned, features[judged]?.sites.get(site) as Features, (sets[judged] as LabelledTexts).labels)
        for (const m of measures) (scores[m] as NDArray<Float32Array>).data[a * names.length + b] = values[m] as number
      }
    const cosines = Float32Array.from(probes.flatMap((p) => probes.map((q) => cosine(p, q))))
    sites.push({
      site,
      scores,
      probes: Object.fromEntries(names.map((n, k) => [n, probes[k] as Probe])),
      cosines: { dtype: 'float32', shape, data: cosines },
    })
  }
  return { sets: names, sites, studies, warnings: names.flatMap((n) => (studies[n]?.warnings ?? []).map((w) => `${n}: ${w}`)) }
}

async function judge(learned: Probe, x: Features, labels: readonly (string | number)[]): Promise<Record<string, number>> {
  const told = await learned.scores(x)
  const once = new Int32Array(labels.length).fill(1)
  if (learned.classes.length === 0) return { r2: r2Of(told, Float64Array.from(labels, Number))(once) }
  const targets = Float64Array.from(labels, (l) => learned.classes.indexOf(String(l)))
  return {
    accuracy: accuracyOf(predicted(told, learned.outputs), targets)(once),
    auroc: aurocOf(told, learned.outputs, targets)(once),
  }
}

function cosine(p: Probe, q: Probe): number {
  const [a, b] = [p.weights.subarray(0, p.width), q.weights.subarray(0, q.width)]
  const length = (v: Float32Array) => Math.sqrt(v.reduce((s, x) => s + x * x, 0))
  return a.reduce((s, v, i) => s + v * (b[i] as number), 0) / (length(a) * length(b) || 1)
}
