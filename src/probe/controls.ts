/** @file Controls of probes: labels without meaning, features without meaning, and what the token alone tells. */
import { randomStream } from '../models/sampling.ts'
import type { Features } from './solver.ts'
import type { Study } from './study-setup.ts'

/** The labels, dealt anew among the source texts: every text keeps one label for all its examples where it had one. */
export function shuffledTargets({ targets, groups, groupCount, seed }: Study): Float64Array {
  const first = new Map<number, number>()
  for (const [i, g] of groups.entries()) if (!first.has(g)) first.set(g, targets[i] as number)
  const values = Array.from({ length: groupCount }, (_, g) => first.get(g) as number)
  const random = randomStream(seed + 2)
  for (let i = values.length - 1; i > 0; i--) {
    const j = Math.floor(random() * (i + 1))
    ;[values[i], values[j]] = [values[j] as number, values[i] as number]
  }
  return Float64Array.from(groups, (g) => values[g] as number)
}

/** Features of the same shape that know nothing: normal numbers. */
export function randomFeatures({ shape }: Features, random: () => number): Features {
  const data = new Float32Array(shape.reduce((a, b) => a * b, 1))
  for (let i = 0; i < data.length; i++) data[i] = Math.sqrt(-2 * Math.log(1 - random())) * Math.cos(2 * Math.PI * random())
  return { dtype: 'float32', shape, data }
}

/**
 * Score (accuracy or R²) of knowing only which tokens were read: naive Bayes on them for classes, the mean of the training examples
 * with the same last token for numbers; on the folds of the study.
 */
export function tokenIdentity(tokens: readonly (readonly number[])[], study: Study): number {
  return study.row.regression ? meanOfToken(tokens, study) : naiveBayes(tokens, study)
}

function naiveBayes(tokens: readonly (readonly number[])[], { targets, classes, folds, foldCount }: Study): number {
  let right = 0
  const kinds = new Set(tokens.flat()).size
  for (let f = 0; f < foldCount; f++) {
    const counts = classes.map(() => new Map<number, number>())
    const totals = new Float64Array(classes.length)
    const texts = new Float64Array(classes.length)
    for (const [i, own] of tokens.entries()) {
      if (folds[i] === f) continue
      const k = targets[i] as number
      texts[k] = (texts[k] as number) + 1
      totals[k] = (totals[k] as number) + own.length
      for (const t of own) counts[k]?.set(t, (counts[k]?.get(t) ?? 0) + 1)
    }
    for (const [i, own] of tokens.entries()) {
      if (folds[i] !== f) continue
      const evidence = classes.map((_, k) =>
        own.reduce(
          (sum, t) => sum + Math.log(((counts[k]?.get(t) ?? 0) + 1) / ((totals[k] as number) + kinds)),
          Math.log(texts[k] as number),
        ),
      )
      if (evidence.indexOf(Math.max(...evidence)) === targets[i]) right++
    }
  }
  return right / tokens.length
}

function meanOfToken(tokens: readonly (readonly number[])[], { targets, folds, foldCount }: Study): number {
  const all = targets.reduce((a, b) => a + b, 0) / targets.length
  let [rest, spread] = [0, 0]
  for (let f = 0; f < foldCount; f++) {
    const sums = new Map<number | undefined, { sum: number; count: number }>()
    let [sum, count] = [0, 0]
    for (const [i, own] of tokens.entries()) {
      if (folds[i] === f) continue
      const known = sums.get(own.at(-1)) ?? { sum: 0, count: 0 }
      sums.set(own.at(-1), { sum: known.sum + (targets[i] as number), count: known.count + 1 })
      sum += targets[i] as number
      count++
    }
    for (const [i, own] of tokens.entries()) {
      if (folds[i] !== f) continue
      const known = sums.get(own.at(-1))
      const told = known ? known.sum / known.count : sum / count
      rest += ((targets[i] as number) - told) ** 2
      spread += ((targets[i] as number) - all) ** 2
    }
  }
  return 1 - rest / spread
}
