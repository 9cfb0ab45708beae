/** @file Attempts of an answer, and rates over answers: how often a model starts again, and how often that helps. */

import { UsageError } from '../../base/errors.ts'
import { meanOf } from '../../base/numbers.ts'

/** Phrases by which people and models say that they start again, lower case. With their commas, since recipes say “Wait ten minutes”. */
export const restartPhrases: readonly string[] = [
  'wait,',
  'wait.',
  'wait!',
  'wait -',
  'wait –',
  'wait —',
  'wait no',
  'no, wait',
  'oh wait',
  'hold on,',
  'hold on.',
  'oops',
  'sorry',
  'i apologize',
  'i apologise',
  'my apologies',
  'apologies',
  'excuse me',
  'actually, let me',
  'let me start over',
  'let me start again',
  'let me try again',
  'let me restart',
  'let me rephrase',
  'let me correct',
  "let's start over",
  'i made a mistake',
  'i got off track',
  'i went off topic',
  'i was wrong',
  "that's wrong",
  'that is wrong',
  "that's not right",
  'that is not right',
  'that was wrong',
  'scratch that',
  'ignore that',
  'disregard that',
  'on second thought',
  'correction:',
  'back to the question',
]

/** Starts of sentences: of the text, of lines, and after a full stop, question mark, exclamation mark, ellipsis or dash. */
const sentenceStart = /(?:^|\n|[.!?…]["'”’)\]*_]*\s|[—–]|\s-)[\s"'“‘*_(]*/g

/** Words from which on a part is an attempt; “Wait, that’s wrong.” only begins one. */
const leastWords = 5
const words = (text: string) => text.match(/[\p{L}\p{N}'’]+/gu)?.length ?? 0

/**
 * Parts of an answer at whose starts it says that it starts again; an answer without such a phrase is one part, and an empty one none. A phrase counts
 * at the start of a sentence only. What is said between two such phrases belongs to the second where it is shorter than five words.
 */
export function splitAttempts(text: string, phrases: readonly string[] = restartPhrases): string[] {
  const lower = text.toLowerCase().replaceAll('’', "'")
  const says = (at: number) =>
    phrases.some((p) => lower.startsWith(p, at) && !/[\p{L}\p{N}']/u.test(/\w$/.test(p) ? (lower[at + p.length] ?? '') : ''))
  const starts = [...lower.matchAll(sentenceStart)]
    .map((m) => m.index + m[0].length)
    .filter((at) => lower.slice(0, at).trim() !== '' && says(at))
  const cuts = [0]
  for (const at of [...new Set(starts)]) if (cuts.length === 1 || words(text.slice(cuts.at(-1), at)) >= leastWords) cuts.push(at)
  if (cuts.length > 1 && words(text.slice(cuts.at(-1))) < leastWords) cuts.pop()
  return cuts.map((at, i) => text.slice(at, cuts[i + 1]).trim()).filter((part) => part !== '')
}

/** Parts of an answer between tokens that say that it starts again; the parts may be empty. */
export function splitTokens(tokens: readonly number[], restarts: readonly number[]): number[][] {
  const parts: number[][] = [[]]
  for (const t of tokens)
    if (restarts.includes(t)) parts.push([])
    else parts.at(-1)?.push(t)
  return parts
}

/** A share with its 95 % interval. */
export interface Rate {
  readonly count: number
  readonly of: number
  readonly value: number
  readonly low: number
  readonly high: number
}

/** A share and Wilson's interval for it (Wilson 1927); NaN with the interval [0, 1] where there is nothing to count. */
export function wilson(count: number, of: number, z = 1.959964): Rate {
  if (!(Number.isInteger(count) && Number.isInteger(of) && count >= 0 && count <= of))
    throw new UsageError(`A share needs whole numbers, not ${count} of ${of}.`)
  if (of === 0) return { count, of, value: Number.NaN, low: 0, high: 1 }
  const value = count / of
  const spread = (z * Math.sqrt((value * (1 - value)) / of + (z / (2 * of)) ** 2)) / (1 + z ** 2 / of)
  const centre = (value + z ** 2 / (2 * of)) / (1 + z ** 2 / of)
  // Rounding must not leave the ends on the wrong side of what was counted.
  return { count, of, value, low: count === 0 ? 0 : centre - spread, high: count === of ? 1 : centre + spread }
}

/** How often answers start again, and with what success. Scores are from 0 to 100. */
export interface ResistanceRates {
  /** Answers with at least one attempt: what the rates are shares of. */
  readonly answers: number
  /** Answers without any attempt, which are left out. */
  readonly dropped: number
  /** Answers with two attempts or more. */
  readonly multiAttempt: Rate
  /** Endogenous steering resistance: answers with two attempts or more whose last scores higher than the first. */
  readonly resistance: Rate
  /** Of the answers with two attempts or more, those whose last scores higher. */
  readonly improvement: Rate
  /** Mean score of first attempts. */
  readonly firstScore: number
  /** Mean of last score less first score over answers with two attempts or more. */
  readonly change: number
}

/** Rates over answers, each given by the scores of its attempts in order (McKenzie et al. 2026, arXiv:2602.06941). */
export function resistanceRates(answers: readonly (readonly number[])[]): ResistanceRates {
  for (const score of answers.flat())
    if (!(score >= 0 && score <= 100)) throw new UsageError(`A score must be a number from 0 to 100, not ${score}; check the judge.`)
  const scored = answers.filter((s) => s.length > 0)
  const several = scored.filter((s) => s.length > 1)
  const change = (s: readonly number[]) => (s.at(-1) as number) - (s[0] as number)
  const better = several.filter((s) => change(s) > 0)
  return {
    answers: scored.length,
    dropped: answers.length - scored.length,
    multiAttempt: wilson(several.length, scored.length),
    resistance: wilson(better.length, scored.length),
    improvement: wilson(better.length, several.length),
    firstScore: meanOf(scored.map((s) => s[0] as number)),
    change: meanOf(several.map(change)),
  }
}
