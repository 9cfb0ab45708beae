/** @file The two sides of a contrast: texts or token ids, checked before any work is done. */
import { UsageError } from '../base/errors.ts'
import type { Model } from '../run/model.ts'

/** A text, which gets the model's special tokens, or the token ids of one row. */
export type Example = string | readonly number[]

/** What a direction leads to, and what it leads away from. */
export interface ContrastExamples {
  readonly positive: readonly Example[]
  readonly negative: readonly Example[]
}

/** Both sides as token ids, in the order given. */
export interface ContrastRows {
  readonly positive: readonly (readonly number[])[]
  readonly negative: readonly (readonly number[])[]
}

const sides = ['positive', 'negative'] as const

/**
 * Tokenises both sides and refuses what would make the direction meaningless.
 * @param paired each positive example belongs to the negative one at the same place, so that both sides are equally long.
 * @throws UsageError for an empty side, an example without tokens or too long for the context, and one that is on both sides.
 */
export function tokenised(model: Model, examples: ContrastExamples, paired: boolean): ContrastRows {
  for (const side of sides)
    if (!Array.isArray(examples[side]) || examples[side].length === 0)
      throw new UsageError(`The ${side} side has no examples, but a direction is a contrast of two sides; give at least one.`)
  const { positive, negative } = examples
  if (paired && positive.length !== negative.length)
    throw new UsageError(
      `This method compares pairs, but there are ${positive.length} positive and ${negative.length} negative examples; give as many of each, in the same order.`,
    )
  const rows = { positive: rowsOf(model, positive, 'positive'), negative: rowsOf(model, negative, 'negative') }
  checkOverlap(rows, examples)
  return rows
}

function rowsOf(model: Model, examples: readonly Example[], side: string): (readonly number[])[] {
  return examples.map((example, i) => {
    if (typeof example !== 'string' && !Array.isArray(example))
      throw new UsageError(`The ${side} example ${i} must be a text or a list of token ids, not ${JSON.stringify(example)}.`)
    const which = `The ${side} example ${i} (${shortened(example)})`
    const row = typeof example === 'string' ? (model.tokens(example).rows[0] as readonly number[]) : example
    if (row.length === 0) throw new UsageError(`${which} holds no token; take it out, or give it a text.`)
    if (row.length > model.contextLength)
      throw new UsageError(`${which} has ${row.length} tokens, but the context holds ${model.contextLength}; shorten it.`)
    const bad = row.find((id) => !Number.isInteger(id) || id < 0 || id >= model.vocab)
    if (bad !== undefined) throw new UsageError(`${which} holds the token ${bad}, but the vocabulary has ids 0 to ${model.vocab - 1}.`)
    return row
  })
}

/** An example on both sides says that it is wanted and unwanted; mostly a list was pasted twice. */
function checkOverlap(rows: ContrastRows, examples: ContrastExamples): void {
  const places = new Map(rows.positive.map((row, i) => [row.join(), i]))
  const j = rows.negative.findIndex((row) => places.has(row.join()))
  if (j < 0) return
  const i = places.get((rows.negative[j] as readonly number[]).join()) as number
  throw new UsageError(
    `The positive example ${i} and the negative example ${j} are the same (${shortened(examples.negative[j] as Example)}); an example belongs to one side only.`,
  )
}

/** The beginning of an example, for a sentence. */
export function shortened(example: Example): string {
  const text = typeof example === 'string' ? JSON.stringify(example) : `ids:${example.join()}`
  return text.length <= 48 ? text : `${text.slice(0, 45)}…`
}
