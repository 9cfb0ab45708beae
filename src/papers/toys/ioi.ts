/** @file Indirect objects as a language of tokens: two people, one of them acts, the other receives. */
import type { Config } from '../../models/config.ts'
import type { RandomStream } from '../../nn/index.ts'
import { generatedRows } from '../../run/index.ts'
import type { SmallModel } from '../study.ts'

const size = { names: 20, places: 10, objects: 10 } as const
const words = ['<s>', 'and', 'went', 'to', 'the', 'gave', 'a', '.', 'then', 'later', 'friends', 'while', 'at', 'decided', 'give'] as const
const word = (w: (typeof words)[number]): number => words.indexOf(w)
const name = (i: number): number => words.length + i
const place = (i: number): number => words.length + size.names + i
const object = (i: number): number => words.length + size.names + size.places + i

/** Number of tokens. */
export const ioiVocab: number = words.length + size.names + size.places + size.objects
/** Tokens of all names: the candidates. */
export const nameTokens: readonly number[] = Array.from({ length: size.names }, (_, i) => name(i))

/** One question: the prompt, the receiver, the one who acts. */
export interface IoiItem {
  readonly prompt: readonly number[]
  readonly answer: number
  readonly subject: number
}

/** Orders of the two names (ABBA, BABA) and their longer versions. */
export const ioiTemplates = ['A', 'B', 'AL', 'BL'] as const
/** One of the orders. */
export type IoiTemplate = (typeof ioiTemplates)[number]

/** A question of a template. */
export function ioiItem(random: RandomStream, template: IoiTemplate): IoiItem {
  const [first, second] = random.permutation(size.names) as unknown as [number, number]
  const [subject, receiver] = template.startsWith('A') ? [second, first] : [first, second]
  const [p, o] = [place(random.below(size.places)), object(random.below(size.objects))]
  const long = template.endsWith('L')
  const start = [word('<s>'), ...(long ? [word('then'), word('the'), word('friends')] : []), name(first), word('and'), name(second)]
  const middle = long ? [word('while'), word('at'), word('the'), p, word('later')] : [word('went'), word('to'), word('the'), p]
  const end = long
    ? [name(subject), word('decided'), word('to'), word('give'), word('a'), o, word('to')]
    : [word('.'), name(subject), word('gave'), word('a'), o, word('to')]
  return { prompt: [...start, ...middle, ...end], answer: name(receiver), subject: name(subject) }
}

/** Questions of the templates in turn, all different. */
export function ioiItems(random: RandomStream, count: number, templates: readonly IoiTemplate[] = ioiTemplates): IoiItem[] {
  const items = new Map<string, IoiItem>()
  for (let i = 0; items.size < count; i++) {
    const item = ioiItem(random, templates[i % templates.length] as IoiTemplate)
    items.set(item.prompt.join(), item)
  }
  return [...items.values()]
}

/** Ways to make a prompt that is not solved. */
export const ioiNegatives = {
  /** Random tokens of equal length. */
  random: (item: IoiItem, random: RandomStream): number[] => [...item.prompt, item.answer].map(() => random.below(ioiVocab)),
  /** The same tokens in another order. */
  shuffled: (item: IoiItem, random: RandomStream): number[] => {
    const all = [...item.prompt, item.answer]
    return Array.from(random.permutation(all.length), (i) => all[i] as number)
  },
  /** The same prompt with the wrong name. */
  wrong: (item: IoiItem): number[] => [...item.prompt, item.subject],
} as const

const config: Config = {
  model_type: 'gpt2',
  n_embd: 48,
  n_layer: 4,
  n_head: 4,
  n_positions: 32,
  vocab_size: ioiVocab,
  layer_norm_epsilon: 1e-5,
  activation_function: 'gelu_new',
}

/** A model that solves most of them; stopped before it solves all, so that there is room for better and worse. */
export function ioiModel(seed: number, steps: number): SmallModel {
  return {
    config,
    data: generatedRows(
      (random) => {
        const { prompt, answer } = ioiItem(random, ioiTemplates[random.below(ioiTemplates.length)] as IoiTemplate)
        return { ids: [...prompt, answer] }
      },
      { batch: 64, seed },
    ),
    steps,
    rate: 3e-3,
    recipe: { language: 'indirect objects', ...size, templates: [...ioiTemplates], batch: 64 },
  }
}
