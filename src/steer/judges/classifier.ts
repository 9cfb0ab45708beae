/** @file A judge by a small classifier of texts that is trained here: logistic regression on which words occur. */
import { UsageError } from '../../base/errors.ts'
import type { WorkOptions } from '../../base/progress.ts'
import { groupsOf, makeFolds } from '../../probe/folds.ts'
import { accuracyOf, ascending, auroc } from '../../probe/metrics.ts'
import { type Features, fitLinear } from '../../probe/solver.ts'
import { canonicalJson } from '../record.ts'
import type { SteeringJudge } from './judge.ts'

/** Texts of two classes. */
export interface LabelledText {
  readonly text: string
  /** 1 for what is looked for. */
  readonly label: 0 | 1
}

/** Settings of {@link trainTextClassifier}. */
export interface TextClassifierOptions extends WorkOptions {
  /** Most words and pairs of neighbouring words that are counted, the most frequent ones (default 4000). */
  readonly vocabulary?: number
  /** Strength of ½‖w‖² beside the sum of the losses (default 1). */
  readonly l2?: number
  readonly seed?: number
}

/** A trained classifier, and how good it is on texts that it did not learn from. */
export interface TextClassifier {
  /** Weight of each word or pair of words. */
  readonly weights: ReadonlyMap<string, number>
  readonly bias: number
  /** On a held-out fifth of the texts. */
  readonly heldOut: { readonly accuracy: number; readonly auroc: number; readonly texts: number }
  /** Log-odds of label 1, nats. */
  readonly score: (text: string) => number
}

/** Words of a text and pairs of neighbours, each once. */
function partsOf(text: string): string[] {
  const words = text.toLowerCase().match(/[\p{L}\p{N}']+/gu) ?? []
  return [...new Set([...words, ...words.slice(1).map((w, i) => `${words[i]} ${w}`)])]
}

/** Trains on four fifths of the texts, measures on the rest, and then learns from all; equal inputs give equal weights. */
export async function trainTextClassifier(examples: readonly LabelledText[], options: TextClassifierOptions = {}): Promise<TextClassifier> {
  const { vocabulary = 4000, l2 = 1, seed = 0, signal } = options
  const counts = [0, 0]
  for (const { label } of examples) counts[label] = (counts[label] ?? 0) + 1
  const fewest = Math.min(...counts)
  if (fewest < 5)
    throw new UsageError(
      `A classifier needs at least five texts of each class, but label ${counts.indexOf(fewest)} has ${fewest}; give more.`,
    )
  const parts = examples.map((e) => partsOf(e.text))
  const frequency = new Map<string, number>()
  for (const p of parts) for (const word of p) frequency.set(word, (frequency.get(word) ?? 0) + 1)
  const words = [...frequency]
    .sort((a, b) => b[1] - a[1] || (a[0] < b[0] ? -1 : 1))
    .slice(0, vocabulary)
    .map(([w]) => w)
  if (words.length === 0) throw new UsageError('The texts have no words to tell them apart by; give texts.')
  const ids = new Map(words.map((w, i) => [w, i]))
  const data = new Float32Array(examples.length * words.length)
  for (const [i, p] of parts.entries())
    for (const w of p) {
      const id = ids.get(w)
      if (id !== undefined) data[i * words.length + id] = 1
    }
  const features: Features = { dtype: 'float32', shape: [examples.length, words.length], data }
  const labels = Int32Array.from(examples, (e) => e.label)
  // Equal texts are on one side of the split.
  const folds = makeFolds(groupsOf(examples.map((e) => e.text)), labels, 5, seed)
  const problem = (own: (i: number) => boolean) => ({
    loss: 'logistic' as const,
    weights: Float64Array.from(labels, (_, i) => (own(i) ? 1 : 0)),
    targets: Float64Array.from(labels, (l) => (l === 1 ? 1 : -1)),
    outputs: 1,
    l2,
    l1: 0,
    standardise: false,
  })
  const [held, all] = await fitLinear(features, [problem((i) => folds[i] !== 0), problem(() => true)], signal ? { signal } : {})
  const scorer = (fit: { weights: Float64Array; bias: Float64Array } | undefined) => (text: readonly string[]) =>
    text.reduce((s, w) => s + (ids.has(w) ? (fit?.weights[ids.get(w) as number] as number) : 0), fit?.bias[0] as number)
  const test = parts.map((p, i) => ({ p, label: labels[i] as number })).filter((_, i) => folds[i] === 0)
  const scores = Float64Array.from(test, ({ p }) => scorer(held)(p))
  const ones = new Int32Array(test.length).fill(1)
  const score = scorer(all)
  return {
    weights: new Map(words.map((w, i) => [w, all?.weights[i] as number])),
    bias: all?.bias[0] as number,
    heldOut: {
      accuracy: accuracyOf(
        Int32Array.from(scores, (s) => (s > 0 ? 1 : 0)),
        Float64Array.from(test, (t) => t.label),
      )(ones),
      auroc: auroc(
        ascending(scores),
        scores,
        Uint8Array.from(test, (t) => t.label),
      ),
      texts: test.length,
    },
    score: (text) => score(partsOf(text)),
  }
}

/** A classifier as a judge: the log-odds of label 1, nats. Refuses one that is no better than chance on held-out texts. */
export function classifierJudge(classifier: TextClassifier): SteeringJudge {
  if (!(classifier.heldOut.auroc > 0.6))
    throw new UsageError(
      `The classifier tells held-out texts apart with an area of ${classifier.heldOut.auroc.toFixed(2)} only, so it cannot judge; give more, or clearer, labelled texts.`,
    )
  return {
    name: 'classifier',
    unit: 'log-odds of the class',
    key: canonicalJson({ weights: [...classifier.weights], bias: classifier.bias }),
    reads: 'texts',
    score: async ({ texts }) => texts.map((t) => classifier.score(t.text)),
  }
}
