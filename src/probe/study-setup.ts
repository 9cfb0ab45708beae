/** @file What a probing study is about: its settings, labels as numbers, folds, and the tasks that probes learn from. */
import { UsageError } from '../base/errors.ts'
import { groupsOf, makeFolds } from './folds.ts'
import { type FitTask, type KindRow, type ProbeKind, probeKinds, type Regularisation } from './kinds.ts'
import { withComponents } from './pca.ts'

/** Settings of a study that do not concern a model. */
export interface StudySettings {
  readonly kind?: ProbeKind
  /** Inverse strength of the penalty; by default searched by an inner cross-validation for each outer fold. */
  readonly C?: number
  /** Share of the L1 penalty, for logistic probes (default 0). */
  readonly l1Ratio?: number
  readonly shrinkage?: 'auto' | number
  /** Whether the penalty sees features of unit variance (default true). */
  readonly standardise?: boolean
  /** Weights examples so that each class counts the same. */
  readonly balanced?: boolean
  /** Folds of source texts (default 5). */
  readonly folds?: number
  readonly seed?: number
  /** Learn from this many principal components of the training texts instead of all features. */
  readonly pca?: number
  /** Samples of the bootstrap (default 1000). */
  readonly samples?: number
  /** Also judge the controls (default true). */
  readonly controls?: boolean
}

/** Strengths that are searched. */
const searched = [0.0001, 0.001, 0.01, 0.1, 1, 10]
/** A study that is checked and divided into folds. */
export interface Study {
  readonly kind: ProbeKind
  readonly row: KindRow
  readonly main: 'accuracy' | 'r2'
  readonly targets: Float64Array
  readonly classes: readonly string[]
  readonly majority?: number
  readonly groups: Int32Array
  readonly groupCount: number
  readonly folds: Int32Array
  readonly foldCount: number
  readonly seed: number
  readonly samples: number
  readonly controls: boolean
  readonly balanced: boolean
  readonly strengths: readonly Regularisation[]
}

/** Checks labels and settings, and makes the folds. */
export function prepare(labels: readonly (string | number)[], keys: readonly string[], settings: StudySettings): Study {
  const {
    kind = 'logistic',
    seed = 0,
    folds: foldCount = 5,
    samples = 1000,
    controls = true,
    balanced = false,
    standardise = true,
  } = settings
  if (!Object.hasOwn(probeKinds, kind))
    throw new UsageError(`There is no kind of probe '${kind}'; choose one of ${Object.keys(probeKinds).join(', ')}.`)
  if (keys.length !== labels.length)
    throw new UsageError(`There are ${labels.length} labels, but ${keys.length} groups; give one for each.`)
  if (settings.C !== undefined && !(settings.C > 0 && Number.isFinite(settings.C)))
    throw new UsageError(`C must be a positive number, not ${settings.C}.`)
  if (!(Number.isInteger(foldCount) && foldCount >= 2)) throw new UsageError(`folds must be a whole number from 2, not ${foldCount}.`)
  if (settings.l1Ratio && kind !== 'logistic') throw new UsageError(`l1Ratio concerns logistic probes only, not '${kind}'; leave it out.`)
  if (settings.shrinkage !== undefined && kind !== 'lda')
    throw new UsageError(`shrinkage concerns the kind lda only, not '${kind}'; leave it out.`)
  const row = settings.pca === undefined ? probeKinds[kind] : withComponents(probeKinds[kind], settings.pca)
  const { targets, classes } = row.regression ? numbersOf(labels) : classesOf(labels)
  const groups = groupsOf(keys)
  const groupCount = new Set(groups).size
  const folds = makeFolds(groups, row.regression ? new Int32Array(targets.length) : Int32Array.from(targets), foldCount, seed)
  for (const [k, name] of classes.entries())
    for (let f = 0; f < foldCount; f++)
      if (!targets.some((t, i) => t === k && folds[i] !== f))
        throw new UsageError(
          `The class '${name}' occurs in one source text only, so it cannot be both learned and held out; give it more texts.`,
        )
  const base: Omit<Regularisation, 'C'> = {
    standardise,
    ...(settings.l1Ratio === undefined ? {} : { l1Ratio: settings.l1Ratio }),
    ...(settings.shrinkage === undefined ? {} : { shrinkage: settings.shrinkage }),
  }
  const searches = row.searches && settings.C === undefined
  return {
    kind,
    row,
    main: row.regression ? 'r2' : 'accuracy',
    targets,
    classes,
    ...(row.regression ? {} : { majority: Math.max(...classes.map((_, k) => targets.filter((t) => t === k).length)) / targets.length }),
    groups,
    groupCount,
    folds,
    foldCount,
    seed,
    samples,
    controls,
    balanced,
    strengths: (searches ? searched : [settings.C ?? 1]).map((C) => ({ C, ...base })),
  }
}

function classesOf(labels: readonly (string | number)[]): { targets: Float64Array; classes: string[] } {
  const names = labels.map(String)
  const classes = [...new Set(names)].sort((a, b) => a.localeCompare(b, 'en', { numeric: true }))
  if (classes.length === 1)
    throw new UsageError(
      `All ${labels.length} labels are '${classes[0]}', so there is nothing to tell apart; give examples of at least two classes.`,
    )
  if (classes.length > 100 && classes.length > labels.length / 2)
    throw new UsageError(
      `There are ${classes.length} different labels for ${labels.length} texts; if they are numbers, use the kind 'regression'.`,
    )
  const index = new Map(classes.map((c, k) => [c, k]))
  return { targets: Float64Array.from(names, (n) => index.get(n) as number), classes }
}

function numbersOf(labels: readonly (string | number)[]): { targets: Float64Array; classes: string[] } {
  const bad = labels.findIndex((l) => String(l).trim() === '' || !Number.isFinite(Number(l)))
  if (bad >= 0)
    throw new UsageError(`Label ${bad} is '${labels[bad]}', which is no number; a regression needs numbers, or choose another kind.`)
  const targets = Float64Array.from(labels, Number)
  if (targets.every((t) => t === targets[0]))
    throw new UsageError(`All ${labels.length} labels are ${targets[0]}, so there is nothing to learn.`)
  return { targets, classes: [] }
}

/** The task of learning from the examples that `kept` lets through. */
export function taskOf(study: Study, targets: Float64Array, regularisation: Regularisation, kept: (example: number) => boolean): FitTask {
  const weights = Float64Array.from(targets, (_, i) => (kept(i) ? 1 : 0))
  const classes = study.classes.length
  if (study.balanced && classes > 0) {
    const counts = new Float64Array(classes)
    let all = 0
    for (const [i, t] of targets.entries())
      if (weights[i] === 1) {
        counts[t] = (counts[t] as number) + 1
        all++
      }
    for (const [i, t] of targets.entries()) if (weights[i] === 1) weights[i] = all / (classes * (counts[t] as number))
  }
  return { weights, targets, classes, regularisation }
}
