/** @file Contrastive activation addition: multiple-choice questions, each answered in two ways. */
import { UsageError } from '../base/errors.ts'
import type { WorkOptions } from '../base/progress.ts'
import type { Model } from '../run/model.ts'
import { type ContrastRows, type Example, shortened, tokenised } from './examples.ts'
import type { ExtractOptions } from './extract.ts'
import { meanDifference } from './mean-difference.ts'
import { SteeringVector } from './vector.ts'

/** A question with two answers, under the names of the model-written evaluations that CAA's data files use. Ids are joined as they are. */
export interface ChoiceQuestion {
  readonly question: Example
  /** The answer that shows the behaviour: `' (A)'`. */
  readonly answer_matching_behavior: Example
  readonly answer_not_matching_behavior: Example
}

/** Options of {@link caa}. */
export interface CaaOptions extends Omit<ExtractOptions, 'positive' | 'negative' | 'position'>, WorkOptions {
  readonly questions: readonly ChoiceQuestion[]
  /** The token that is read (default `answer`: the last one in which the two answers differ, which is the letter). */
  readonly position?: 'answer' | 'last' | number
}

/**
 * Mean over questions of the activation at the answer's letter, behaviour less its opposite, [width] for each site
 * (Panickssery et al. 2023, arXiv:2312.06681).
 */
export async function caa(model: Model, options: CaaOptions): Promise<SteeringVector> {
  const { questions, position = 'answer', ...rest } = options
  const examples = choiceExamples(questions)
  const read = position === 'answer' ? answerPosition(tokenised(model, examples, true), questions) : position
  const vector = await meanDifference(model, { ...rest, ...examples, position: read })
  return new SteeringVector(vector.vectors, { ...vector.record, method: 'caa' })
}

/** Both sides of a contrast: each question followed by the one answer, and by the other. */
export function choiceExamples(questions: readonly ChoiceQuestion[]): { positive: Example[]; negative: Example[] } {
  if (!Array.isArray(questions) || questions.length === 0)
    throw new UsageError('There are no questions; give at least one, with its two answers.')
  return {
    positive: questions.map((q, i) => joined(q, 'answer_matching_behavior', i)),
    negative: questions.map((q, i) => joined(q, 'answer_not_matching_behavior', i)),
  }
}

function joined(q: ChoiceQuestion, key: 'answer_matching_behavior' | 'answer_not_matching_behavior', i: number): Example {
  const [question, answer] = [q.question, q[key]]
  if (typeof question === 'string' && typeof answer === 'string' && answer !== '') return question + answer
  if (Array.isArray(question) && Array.isArray(answer) && answer.length > 0) return [...question, ...answer]
  throw new UsageError(`Question ${i} needs a 'question' and a '${key}' that are both texts or both lists of token ids.`)
}

/** The last place, from the end, at which the answers differ; it must be the same for all questions. */
function answerPosition({ positive, negative }: ContrastRows, questions: readonly ChoiceQuestion[]): number {
  const places = positive.map((row, i) => {
    const other = negative[i] as readonly number[]
    let place = -1
    while (row.at(place) === other.at(place)) place--
    return place
  })
  const first = places[0] as number
  const odd = places.findIndex((p) => p !== first)
  if (odd >= 0)
    throw new UsageError(
      `The answers differ at position ${first} from the end in question 0, but at ${places[odd]} in question ${odd} (${shortened((questions[odd] as ChoiceQuestion).question)}); write all answers alike, or say which position to read.`,
    )
  return first
}
