/** @file A language of topics: words of a topic and fillers, in streams that may change their topic once. */
import type { Config } from '../../models/config.ts'
import { RandomStream } from '../../nn/index.ts'
import { generatedRows } from '../../run/index.ts'
import type { SmallModel } from '../study.ts'

/** Sizes of the language. */
export const topics = { count: 6, words: 8, fillers: 8, length: 23, fillerShare: 0.25, changes: 0.25 } as const

const bos = 0
/** Number of tokens: the one that begins a stream, the topics' words, the fillers. */
export const topicVocab = 1 + topics.count * topics.words + topics.fillers

/** The topic of a word; −1 for a filler and for the token that begins a stream. */
export const topicOf = (token: number): number =>
  token === bos || token > topics.count * topics.words ? -1 : Math.floor((token - 1) / topics.words)

const wordOf = (topic: number, random: RandomStream): number =>
  random.next() < topics.fillerShare
    ? 1 + topics.count * topics.words + random.below(topics.fillers)
    : 1 + topic * topics.words + random.below(topics.words)

/** A stream that begins with a topic and may change it once. */
export function topicStream(random: RandomStream, first: number, length: number = topics.length): number[] {
  const change = random.next() < topics.changes ? 1 + random.below(length - 1) : length
  const other = (first + 1 + random.below(topics.count - 1)) % topics.count
  return [bos, ...Array.from({ length }, (_, i) => wordOf(i < change ? first : other, random))]
}

/** `count` streams that begin with the topic that `pick` chooses. */
export function topicStreams(seed: number, name: string, count: number, pick: (random: RandomStream) => number): number[][] {
  const random = RandomStream.named(seed, name)
  return Array.from({ length: count }, () => topicStream(random, pick(random)))
}

/** Config of the small model that learns the language: three blocks of width 48, layer norms. */
const config: Config = {
  model_type: 'gpt2',
  n_embd: 48,
  n_layer: 3,
  n_head: 4,
  n_positions: 64,
  vocab_size: topicVocab,
  layer_norm_epsilon: 1e-5,
  activation_function: 'gelu_new',
  tie_word_embeddings: true,
}

/** The model and how it is trained. */
export function topicModel(seed: number, steps: number): SmallModel {
  return {
    config,
    data: generatedRows((random) => ({ ids: topicStream(random, random.below(topics.count)) }), { batch: 64, seed }),
    steps,
    rate: 3e-3,
    recipe: { language: topics, batch: 64 },
  }
}
