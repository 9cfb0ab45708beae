/** @file A token named by its text. */
import { UsageError } from '../base/errors.ts'
import type { Model } from './model.ts'

/** The one token that a text means (`' dog'`, `ids:7`, and with `numbers` also `7`); refuses texts of several. `what` names the option. */
export function oneToken(model: Model, text: string, what: string, numbers = false): number {
  const found = tokenIn(model, text, numbers)
  if (typeof found === 'number') {
    if (found >= model.vocab) throw new UsageError(`${what} names the token ${found}, but the vocabulary has ids 0 to ${model.vocab - 1}.`)
    return found
  }
  const pieces = found.map((id) => JSON.stringify(model.tokenizer.piece(id))).join(' ')
  throw new UsageError(
    `'${text}' of ${what} must be exactly one token, but it is ${found.length}: ${pieces}. Give its first token, or ids:N.`,
  )
}

/** The token of a text, or the several that it is made of. */
export function tokenIn(model: Model, text: string, numbers: boolean): number | readonly number[] {
  const id = (numbers ? /^(?:ids:)?\s*(\d+)\s*$/ : /^ids:\s*(\d+)\s*$/).exec(text)
  if (id) return Number(id[1])
  if (text.startsWith('ids:')) throw new UsageError(`'${text}' must be one token id: write it as ids:7.`)
  const exact = model.tokenizer.idOf(text)
  if (exact !== undefined) return exact
  const tokens = model.tokenizer.encode(text, { addSpecial: false })
  return tokens.length === 1 ? (tokens[0] as number) : tokens
}
