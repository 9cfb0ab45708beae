/** @file Strengths that change while a model writes: lists of factors for the first generated token, the second, …; the last one holds on. */
import { UsageError } from '../base/errors.ts'

function checkTokens(tokens: number): void {
  if (!Number.isInteger(tokens) || tokens < 1) throw new UsageError(`A schedule needs a positive whole number of tokens, not ${tokens}.`)
}

/** Full strength for some tokens, then none. */
export function forTokens(tokens: number): number[] {
  checkTokens(tokens)
  return [...new Array<number>(tokens).fill(1), 0]
}

/** From one factor to another in equal steps over some tokens: `ramp(20, 1, 0)` fades out. */
export function ramp(tokens: number, from: number, to: number): number[] {
  checkTokens(tokens)
  return Array.from({ length: tokens + 1 }, (_, i) => from + ((to - from) * i) / tokens)
}

/** Halves every `halfLife` tokens, until less than a thousandth is left, which is then zero. */
export function decay(halfLife: number): number[] {
  if (!(halfLife > 0 && Number.isFinite(halfLife)))
    throw new UsageError(`A half-life must be a positive number of tokens, not ${halfLife}.`)
  return [...Array.from({ length: Math.ceil(10 * halfLife) }, (_, i) => 0.5 ** (i / halfLife)), 0]
}
