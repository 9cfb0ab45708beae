/** @file Questions after the indirect object in English, for models with a tokenizer. */
import { ModelError } from '../../base/errors.ts'
import type { RandomStream } from '../../nn/index.ts'
import type { Model } from '../../run/index.ts'
import type { IoiItem } from './ioi.ts'

const names = [
  'Mary',
  'John',
  'Tom',
  'Anna',
  'Paul',
  'Sarah',
  'James',
  'Kate',
  'Peter',
  'Lucy',
  'David',
  'Emma',
  'Mark',
  'Jane',
  'Simon',
  'Laura',
  'Lily',
  'Tim',
  'Ben',
  'Sue',
]
const places = ['store', 'park', 'school', 'office', 'station', 'garden', 'house', 'beach']
const objects = ['drink', 'book', 'ring', 'ball', 'letter', 'flower', 'toy', 'cake']

/** Questions, and the candidates' tokens: names that are one token after a space. */
export function englishItems(model: Model, random: RandomStream, count: number): { items: IoiItem[]; candidates: number[] } {
  const bare = model.tokens('x').rows[0] as readonly number[]
  const tokenOf = (name: string): number | undefined => {
    const ids = model.tokens(`x ${name}`).rows[0] as readonly number[]
    return ids.length === bare.length + 1 && bare.every((id, i) => ids[i] === id) ? ids.at(-1) : undefined
  }
  const known = names.map((n) => [n, tokenOf(n)] as const).filter((e): e is readonly [string, number] => e[1] !== undefined)
  if (known.length < 6)
    throw new ModelError(
      `Only ${known.length} of ${names.length} names are one token for ${model.origin.id}; this task needs at least 6, so choose another model.`,
    )
  const one = <T>(list: readonly T[]): T => list[random.below(list.length)] as T
  const items = Array.from({ length: count }, (_, i) => {
    const order = random.permutation(known.length)
    const [a, b] = [known[order[0] as number], known[order[1] as number]] as [readonly [string, number], readonly [string, number]]
    const subject = i % 2 === 0 ? b : a
    const receiver = subject === a ? b : a
    const text = `When ${a[0]} and ${b[0]} went to the ${one(places)}, ${subject[0]} gave a ${one(objects)} to`
    return { prompt: model.tokens(text).rows[0] as readonly number[], answer: receiver[1], subject: subject[1] }
  })
  return { items, candidates: known.map((k) => k[1]) }
}
