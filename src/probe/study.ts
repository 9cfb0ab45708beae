/** @file A probing study: a probe at each site, judged on source texts that it did not learn from, beside controls that should fail. */
import { listed, throwIfCancelled, UsageError } from '../base/errors.ts'
import { sha256 } from '../base/hash.ts'
import type { WorkOptions } from '../base/progress.ts'
import { randomStream } from '../models/sampling.ts'
import { describeEdits } from '../run/edits-file.ts'
import type { Model } from '../run/index.ts'
import { versions } from '../run/versions.ts'
import type { Position } from '../steer/index.ts'
import { canonicalJson } from '../steer/index.ts'
import { randomFeatures, shuffledTargets, tokenIdentity } from './controls.ts'
import { type FeatureOptions, readFeatures, type TextFeatures } from './features.ts'
import { groupsOf, makeFolds } from './folds.ts'
import type { FitTask, ProbeKind, Regularisation } from './kinds.ts'
import { accuracyOf, aurocOf, bootstrap, type Estimate, type Measure, platt, predicted, r2Of } from './metrics.ts'
import { Probe } from './probe.ts'
import { centred, type Features, type LinearFit, scoresOf } from './solver.ts'
import { prepare, type Study, type StudySettings, taskOf } from './study-setup.ts'

/** Options of {@link probe}. */
export interface ProbeOptions extends StudySettings, WorkOptions, Pick<FeatureOptions, 'texts' | 'site' | 'position'> {
  /** Class of each text, or its number for a regression. */
  readonly labels: readonly (string | number)[]
  /** Source of each text: examples of one source are never on both sides of a fold (default: equal texts share a source). */
  readonly groups?: readonly string[]
  /** Is told what was found at each site as soon as it is known; the study goes on when it returns. */
  readonly onSite?: (result: SiteResult) => void | Promise<void>
  /** What {@link readFeatures} read of these texts, so that they are not run again. */
  readonly features?: TextFeatures
}

/** What a study finds at one site. */
export interface SiteResult {
  readonly site: string
  readonly width: number
  /** On held-out texts, with 95 % intervals: accuracy and auroc of classes, r2 of numbers. */
  readonly scores: Readonly<Record<string, Estimate>>
  /** The same number (accuracy or r2) for what should know nothing: shuffled labels, random features; and for what only the token knows. */
  readonly controls: Readonly<Record<string, number>>
  /** The score above that with shuffled labels (after Hewitt & Liang 2019). */
  readonly selectivity?: number
  /** Chosen for the probe that learned from all. */
  readonly C?: number
  readonly probe: Probe
}

/** A study over sites. */
export interface StudyResult {
  readonly kind: ProbeKind
  readonly examples: number
  readonly groups: number
  readonly classes: readonly string[]
  /** Accuracy of always telling the commonest class. */
  readonly majority?: number
  readonly folds: number
  readonly position: Position
  readonly sites: readonly SiteResult[]
  /** What a reader must know to trust the numbers, as sentences. */
  readonly warnings: readonly string[]
}

/** Folds within the training texts of each fold, by which the strength of the penalty is chosen. */
const innerFolds = 3

/**
 * Trains a probe at each site that matches and judges it by cross-validation grouped by source text, the strength of the penalty chosen
 * inside each fold; beside it the controls.
 * @throws UsageError for labels of one class, classes in too few texts, and settings that do not fit.
 */
export async function probe(model: Model, options: ProbeOptions): Promise<StudyResult> {
  const { texts, labels, signal, onProgress } = options
  if (texts.length !== labels.length)
    throw new UsageError(`There are ${texts.length} texts, but ${labels.length} labels; give one for each.`)
  const keys = options.groups ?? texts.map((t) => (typeof t === 'string' ? t : t.join()))
  const study = prepare(labels, keys, options)
  const features = options.features ?? (await readFeatures(model, options))
  if (features.tokens.length !== texts.length)
    throw new UsageError(`The features are of ${features.tokens.length} texts, but there are ${texts.length}; read them of these texts.`)
  const edits = describeEdits(model.edits)
  const record = {
    model: { id: model.origin.id, hash: await model.origin.hash(), family: model.architecture.family },
    position: features.position,
    data: { sha256: await sha256(canonicalJson({ texts, labels })), examples: texts.length, groups: study.groupCount },
    edits,
    precision: model.precision,
    seed: study.seed,
    versions: await versions(),
  }
  const sites: SiteResult[] = []
  const warnings = warningsOf(study, features)
  const identity = study.controls ? tokenIdentity(features.tokens, study) : undefined
  const task = `fitting ${study.kind}`
  for (const [i, [site, x]] of [...features.sites].entries()) {
    throwIfCancelled(signal)
    onProgress?.({ task, done: i, total: features.sites.size, unit: 'sites' })
    const judged = await judge(x, study, signal)
    const { mean, scale } = await centred(x, true)
    const parts = {
      kind: study.kind,
      site,
      classes: study.classes,
      scaler: { mean: Float32Array.from(mean), scale: Float32Array.from(scale) },
      ...(judged.calibration ? { calibration: judged.calibration } : {}),
      record: { ...record, regularisation: judged.regularisation, heldOut: judged.scores[study.main]?.value as number },
    }
    const controls: Record<string, number> = { ...judged.controls, ...(identity === undefined ? {} : { tokenIdentity: identity }) }
    const shuffled = controls.shuffledLabels
    const result: SiteResult = {
      site,
      width: x.shape[1] as number,
      scores: judged.scores,
      controls,
      ...(shuffled === undefined ? {} : { selectivity: (judged.scores[study.main]?.value as number) - shuffled }),
      ...(study.row.searches ? { C: judged.regularisation.C } : {}),
      probe: Probe.fromFit(judged.fit, parts),
    }
    sites.push(result)
    await options.onSite?.(result)
  }
  onProgress?.({ task, done: features.sites.size, total: features.sites.size, unit: 'sites' })
  return {
    kind: study.kind,
    examples: texts.length,
    groups: study.groupCount,
    classes: study.classes,
    ...(study.majority === undefined ? {} : { majority: study.majority }),
    folds: study.foldCount,
    position: features.position,
    sites,
    warnings,
  }
}

interface Judged {
  readonly scores: Record<string, Estimate>
  readonly controls: Record<string, number>
  readonly regularisation: Regularisation
  readonly fit: LinearFit
  readonly calibration?: { readonly slope: number; readonly offset: number }
}

/** Nested cross-validation on the features of one site: all fits of a stage share their passes over the features. */
async function judge(x: Features, study: Study, signal: AbortSignal | undefined): Promise<Judged> {
  const { row, targets, folds, foldCount, strengths, seed, samples, groups, main } = study
  const options = signal ? { signal } : {}
  const outer = Array.from({ length: foldCount }, (_, f) => f)
  const outerFits = await row.fit(
    x,
    outer.flatMap((f) => strengths.map((s) => taskOf(study, targets, s, (i) => folds[i] !== f))),
    options,
  )
  const at = (f: number, s: number) => outerFits[f * strengths.length + s] as LinearFit
  const best = strengths.length === 1 ? outer.map(() => 0) : await innerChoice(x, study, options)
  const heldOut = await scoresOfFolds(
    x,
    outer.map((f) => at(f, best[f] as number)),
    folds,
  )
  const outputs = (outerFits[0] as LinearFit).bias.length
  const measures = measuresOf(study, heldOut, outputs)
  const scores = bootstrap(measures, groups, { samples, seed })
  // The probe itself learns from all; its strength is the one that does best over the outer folds.
  const chosen = strengths.length === 1 ? 0 : await outerChoice(x, study, at)
  const regularisation = strengths[chosen] as Regularisation
  const [fit] = (await row.fit(x, [taskOf(study, targets, regularisation, () => true)], options)) as [LinearFit]
  const calibration = study.classes.length === 2 ? platt(heldOut, Uint8Array.from(targets)) : undefined
  const controls = study.controls ? await controlsOf(x, study, regularisation, options) : {}
  return { scores: scores as Record<string, Estimate>, controls, regularisation, fit, ...(calibration ? { calibration } : {}) }

  async function controlsOf(features: Features, s: Study, r: Regularisation, o: object): Promise<Record<string, number>> {
    const run = async (input: Features, labels: Float64Array) => {
      const fits = await row.fit(
        input,
        outer.map((f) => taskOf(s, labels, r, (i) => folds[i] !== f)),
        o,
      )
      const told = await scoresOfFolds(input, fits, folds)
      return measuresOf({ ...s, targets: labels }, told, outputs)[main]?.(new Int32Array(labels.length).fill(1)) as number
    }
    return {
      shuffledLabels: await run(features, shuffledTargets(s)),
      randomFeatures: await run(randomFeatures(features, randomStream(seed + 1)), targets),
    }
  }
}

function measuresOf(study: Study, scores: Float64Array, outputs: number): Record<string, Measure> {
  const { targets, row } = study
  if (row.regression) return { r2: r2Of(scores, targets) }
  return { accuracy: accuracyOf(predicted(scores, outputs), targets), auroc: aurocOf(scores, outputs, targets) }
}

/** Scores of each example by the fit that did not learn from its fold, [examples, outputs]. */
async function scoresOfFolds(x: Features, fits: readonly LinearFit[], folds: Int32Array): Promise<Float64Array> {
  const [n, d] = x.shape as [number, number]
  const outputs = (fits[0] as LinearFit).bias.length
  const columns = fits.length * outputs
  const w = new Float32Array(d * columns)
  for (const [f, fit] of fits.entries())
    for (let k = 0; k < outputs; k++) for (let j = 0; j < d; j++) w[j * columns + f * outputs + k] = fit.weights[k * d + j] as number
  const z = await scoresOf(x, w, columns)
  const out = new Float64Array(n * outputs)
  for (let i = 0; i < n; i++) {
    const f = folds[i] as number
    for (let k = 0; k < outputs; k++)
      out[i * outputs + k] = (z[i * columns + f * outputs + k] as number) + ((fits[f] as LinearFit).bias[k] as number)
  }
  return out
}

/** For each outer fold, the strength that does best on inner folds of its training texts; the weakest penalty loses ties. */
async function innerChoice(x: Features, study: Study, options: object): Promise<number[]> {
  const { strengths, folds, foldCount, row, targets, groups, seed } = study
  const tasks: FitTask[] = []
  const inner: Int32Array[] = []
  for (let f = 0; f < foldCount; f++) {
    const training = Array.from(folds.keys()).filter((i) => folds[i] !== f)
    const sources = groupsOf(training.map((i) => String(groups[i])))
    // With so few texts nothing can be chosen, and the usual strength is as good as any.
    if (new Set(sources).size < innerFolds) return new Array(foldCount).fill(strengths.findIndex((r) => r.C === 1))
    const kinds = Int32Array.from(training, (i) => (row.regression ? 0 : (targets[i] as number)))
    const parts = makeFolds(sources, kinds, innerFolds, seed + 1 + f)
    const fold = new Int32Array(folds.length).fill(-1)
    for (const [at, i] of training.entries()) fold[i] = parts[at] as number
    inner.push(fold)
    for (const s of strengths)
      for (let g = 0; g < innerFolds; g++) tasks.push(taskOf(study, targets, s, (i) => (fold[i] as number) >= 0 && fold[i] !== g))
  }
  const fits = await row.fit(x, tasks, options)
  const choice: number[] = []
  for (const [f, fold] of inner.entries()) {
    const counted = Int32Array.from(fold, (g) => (g >= 0 ? 1 : 0))
    const values: number[] = []
    for (let s = 0; s < strengths.length; s++) {
      const start = (f * strengths.length + s) * innerFolds
      const own = fits.slice(start, start + innerFolds)
      values.push(
        await mainScore(
          x,
          study,
          own,
          fold.map((g) => Math.max(g, 0)),
          counted,
        ),
      )
    }
    choice.push(values.indexOf(Math.max(...values)))
  }
  return choice
}

async function outerChoice(x: Features, study: Study, at: (f: number, s: number) => LinearFit): Promise<number> {
  const values: number[] = []
  for (let s = 0; s < study.strengths.length; s++) {
    const own = Array.from({ length: study.foldCount }, (_, f) => at(f, s))
    values.push(await mainScore(x, study, own, study.folds, new Int32Array(study.targets.length).fill(1)))
  }
  return values.indexOf(Math.max(...values))
}

async function mainScore(x: Features, study: Study, fits: readonly LinearFit[], folds: Int32Array, counted: Int32Array): Promise<number> {
  const told = await scoresOfFolds(x, fits, folds)
  return measuresOf(study, told, (fits[0] as LinearFit).bias.length)[study.main]?.(counted) as number
}

function warningsOf(study: Study, features: TextFeatures): string[] {
  const n = study.targets.length
  const narrow = [...features.sites].filter(([, x]) => n < (x.shape[1] as number)).map(([site]) => site)
  const out: string[] = []
  if (narrow.length > 0)
    out.push(
      `There are ${n} examples, fewer than the features at ${listed(narrow, 3)}: a probe can fit any labels there, so trust only held-out scores and controls.`,
    )
  if (features.cut > 0) out.push(`${features.cut} texts are longer than the context and were read in parts.`)
  return out
}
