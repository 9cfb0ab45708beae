/** @file What wording alone gives away: the audit that a probe of texts must pass before its accuracy means anything. */
import { UsageError } from '../base/errors.ts'
import { groupsOf, makeFolds } from './folds.ts'
import { aurocOf, bootstrap, type Estimate } from './metrics.ts'
import { type Features, fitLinear, scoresOf } from './solver.ts'

/** What of a text a reader may see. */
const views = {
  'bag of words': (words: readonly string[]) => words,
  'function words': (words: readonly string[]) => words.filter((w) => functionWords.has(w)),
  'first two words': (words: readonly string[]) => words.slice(0, 2).map((w, i) => `${i}:${w}`),
  'last word': (words: readonly string[]) => words.slice(-1),
  length: (words: readonly string[]) => [`length ${words.length}`],
} as const

/** A view of a text. */
export type LexicalView = keyof typeof views

/** Areas under the curve of held-out texts, by view, with 95 % intervals, and what they warn of. */
export interface LexicalAudit {
  readonly auroc: Readonly<Record<LexicalView, Estimate>>
  readonly warnings: readonly string[]
}

/** Settings of {@link lexicalAudit}. */
export interface LexicalOptions {
  /** Source of each text: texts of one source are never on both sides of a fold. */
  readonly groups?: readonly string[]
  readonly folds?: number
  readonly seed?: number
  /** Area above which wording is warned of (default 0.7). */
  readonly limit?: number
}

const functionWords = new Set(
  'a an the and or but if of to in on at by for with from as is are was were be been being do does did have has had will would can could should may might must not no nor so than that this these those there here who whom which what when where why how it its he him his she her hers they them their theirs we us our you your i me my all any each every some more most many much few such only very too just always never often usually'.split(
    ' ',
  ),
)

/** Words of a text, lower case. */
const wordsOf = (text: string): string[] => text.toLowerCase().match(/[\p{L}\p{N}']+/gu) ?? []

/** How well logistic regressions on words alone tell two classes of texts apart, on texts that they did not learn from. */
export async function lexicalAudit(
  texts: readonly string[],
  labels: readonly (0 | 1)[],
  options: LexicalOptions = {},
): Promise<LexicalAudit> {
  if (texts.length !== labels.length)
    throw new UsageError(`There are ${texts.length} texts, but ${labels.length} labels; give one for each.`)
  if (new Set(labels).size < 2)
    throw new UsageError('All labels are the same, so there is nothing to tell apart; give texts of both classes.')
  const { folds: count = 5, seed = 0, limit = 0.7 } = options
  const groups = groupsOf(options.groups ?? texts.map((t, i) => `${i}:${t}`))
  const folds = makeFolds(groups, Int32Array.from(labels), count, seed)
  const words = texts.map(wordsOf)
  const auroc = {} as Record<LexicalView, Estimate>
  const targets = Float64Array.from(labels)
  for (const [name, view] of Object.entries(views) as [LexicalView, (w: readonly string[]) => readonly string[]][]) {
    const scores = await heldOutScores(countsOf(words.map(view)), labels, folds, count)
    auroc[name] = bootstrap({ auroc: aurocOf(scores, 1, targets) }, groups, { seed }).auroc
  }
  const told = (Object.keys(auroc) as LexicalView[]).filter((v) => auroc[v].value > limit)
  const warnings = told.map(
    (v) =>
      `The ${v} alone tells the classes apart with an area of ${auroc[v].value.toFixed(2)}, so a probe that does no better has found wording; balance the words of both classes.`,
  )
  return { auroc, warnings }
}

/** Counts of words, [texts, vocabulary]. */
function countsOf(texts: readonly (readonly string[])[]): Features {
  const ids = new Map<string, number>()
  for (const t of texts) for (const w of t) if (!ids.has(w)) ids.set(w, ids.size)
  const width = Math.max(1, ids.size)
  const data = new Float32Array(texts.length * width)
  for (const [i, t] of texts.entries()) for (const w of t) data[i * width + (ids.get(w) as number)]!++
  return { dtype: 'float32', shape: [texts.length, width], data }
}

async function heldOutScores(x: Features, labels: readonly (0 | 1)[], folds: Int32Array, count: number): Promise<Float64Array> {
  const problems = Array.from({ length: count }, (_, f) => ({
    loss: 'logistic' as const,
    weights: Float64Array.from(folds, (own) => (own === f ? 0 : 1)),
    targets: Float64Array.from(labels, (l) => (l === 1 ? 1 : -1)),
    outputs: 1,
    l2: 1,
    l1: 0,
    standardise: false,
  }))
  const fits = await fitLinear(x, problems)
  const out = new Float64Array(labels.length)
  for (const [f, { weights, bias }] of fits.entries()) {
    const z = await scoresOf(x, Float32Array.from(weights), 1)
    for (const [i, own] of folds.entries()) if (own === f) out[i] = (z[i] as number) + (bias[0] as number)
  }
  return out
}
