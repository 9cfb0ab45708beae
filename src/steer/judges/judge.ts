/** @file What a judge of steering is: a number for each text that a steered model wrote, or for each prompt that it was given. */
import { UsageError } from '../../base/errors.ts'
import type { WorkOptions } from '../../base/progress.ts'
import type { Model } from '../../run/model.ts'

/** A text that a model wrote on from a prompt. */
export interface WrittenText {
  readonly prompt: string
  /** The continuation alone. */
  readonly text: string
}

/** What a judge may look at. */
export interface Judged extends WorkOptions {
  /** The steered model. */
  readonly model: Model
  /** The same model without the steering. */
  readonly unsteered: Model
  readonly prompts: readonly string[]
  /** What the steered model wrote; empty for judges that need no text. */
  readonly texts: readonly WrittenText[]
}

/** Measures an effect: larger means more of it. */
export interface SteeringJudge {
  readonly name: string
  /** What a score is, in a few words: `share of words`. */
  readonly unit: string
  /** Everything that its scores depend on, so that results can be kept by content. */
  readonly key: string
  /** Whether it reads what the model writes; others read the model's probabilities. */
  readonly reads: 'texts' | 'model'
  /** One score for each text, or for each prompt. */
  readonly score: (judged: Judged) => Promise<readonly number[]>
}

/** A user's own function of a text as a judge; give another `key` whenever the function changes. */
export function functionJudge(name: string, score: (text: WrittenText) => number | Promise<number>, key = String(score)): SteeringJudge {
  return {
    name,
    unit: 'as the function says',
    key,
    reads: 'texts',
    score: async ({ texts }) => Promise.all(texts.map(async (t) => score(t))),
  }
}

/** Scores of a judge, checked: as many as asked for, and all of them numbers. */
export async function judged(judge: SteeringJudge, of: Judged): Promise<readonly number[]> {
  const scores = await judge.score(of)
  const wanted = judge.reads === 'texts' ? of.texts.length : of.prompts.length
  if (!Array.isArray(scores) || scores.length !== wanted)
    throw new UsageError(
      `The judge '${judge.name}' gave ${Array.isArray(scores) ? `${scores.length} scores` : JSON.stringify(scores)} for ${wanted} texts; it must give one number for each.`,
    )
  const bad = scores.findIndex((s) => typeof s !== 'number' || !Number.isFinite(s))
  if (bad >= 0)
    throw new UsageError(
      `The judge '${judge.name}' gave ${String(scores[bad])} for text ${bad}, which is no finite number; look at what it reads.`,
    )
  return scores
}
