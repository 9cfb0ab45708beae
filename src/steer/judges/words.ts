/** @file A judge by a list of words. */
import { UsageError } from '../../base/errors.ts'
import { canonicalJson } from '../record.ts'
import type { SteeringJudge } from './judge.ts'

/** Words of a text, lower case. */
const wordsOf = (text: string): string[] => text.toLowerCase().match(/[\p{L}\p{N}']+/gu) ?? []

/**
 * Share of a text's words that are on a list, less the share that is on another one; 0 for a text without words. A word that ends in `*`
 * means all that begin so.
 */
export function wordJudge(words: readonly string[], against: readonly string[] = []): SteeringJudge {
  const [wanted, unwanted] = [matcher(words), matcher(against)]
  if (words.length === 0) throw new UsageError('The list of words is empty; name at least one.')
  const both = words.find((w) => against.includes(w))
  if (both !== undefined) throw new UsageError(`The word '${both}' is on both lists; a word counts for one side only.`)
  return {
    name: 'word list',
    unit: 'share of words',
    key: canonicalJson({ words, against }),
    reads: 'texts',
    score: async ({ texts }) =>
      texts.map(({ text }) => {
        const all = wordsOf(text)
        const score = all.reduce((n, w) => n + Number(wanted(w)) - Number(unwanted(w)), 0)
        return all.length === 0 ? 0 : score / all.length
      }),
  }
}

function matcher(list: readonly string[]): (word: string) => boolean {
  const lower = list.map((w) => w.trim().toLowerCase())
  const odd = lower.find((w) => wordsOf(w.replace(/\*$/, '')).join() !== w.replace(/\*$/, ''))
  if (odd !== undefined) throw new UsageError(`'${odd}' is not one word, so it can never be found; write single words.`)
  const whole = new Set(lower.filter((w) => !w.endsWith('*')))
  const begins = lower.filter((w) => w.endsWith('*')).map((w) => w.slice(0, -1))
  return (word) => whole.has(word) || begins.some((b) => word.startsWith(b))
}
