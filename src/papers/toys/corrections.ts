/** @file A language of questions and answers about topics, in which some answers start on a wrong topic, say so, and begin again. */
import type { Config } from '../../models/config.ts'
import { adamW, cosineRate, type RandomStream } from '../../nn/index.ts'
import { generatedRows, type TrainingRow } from '../../run/index.ts'
import type { SmallModel } from '../study.ts'

/** Sizes of the language: words of a topic, fillers, tokens of an answer, tokens of a wrong start. */
export const corrections = { topics: 6, words: 8, fillers: 8, answer: 25, fillerShare: 0.25, wrongStart: [3, 8] } as const

const firstFiller = corrections.topics * corrections.words
const firstName = firstFiller + corrections.fillers
/** The token that begins a question, the one that ends it, and the one that says: this was wrong. */
export const askToken: number = firstName + corrections.topics
export const answerToken: number = askToken + 1
export const oopsToken: number = askToken + 2
/** Number of tokens. */
export const correctionsVocab: number = askToken + 3

/** The topic of a word; −1 for every other token. */
export const correctionTopic = (token: number): number => (token < firstFiller ? Math.floor(token / corrections.words) : -1)

/** A question about a topic. */
export const question = (topic: number): number[] => [askToken, firstName + topic, answerToken]

const wordOf = (topic: number, random: RandomStream): number =>
  random.next() < corrections.fillerShare
    ? firstFiller + random.below(corrections.fillers)
    : topic * corrections.words + random.below(corrections.words)

/** A question with its answer; with a probability, the answer starts on another topic, which is read but not learnt. */
export function correctedAnswer(random: RandomStream, share: number): TrainingRow {
  const topic = random.below(corrections.topics)
  const [least, most] = corrections.wrongStart
  const wrong = random.next() < share ? least + random.below(most - least + 1) : 0
  const other = (topic + 1 + random.below(corrections.topics - 1)) % corrections.topics
  const start = wrong > 0 ? [...Array.from({ length: wrong }, () => wordOf(other, random)), oopsToken] : []
  const rest = Array.from({ length: corrections.answer - start.length }, () => wordOf(topic, random))
  const asked = question(topic)
  return {
    ids: [...asked, ...start, ...rest],
    weights: [...asked.map(() => 0), ...start.map((_, i) => Number(i === wrong)), ...rest.map(() => 1)],
  }
}

/** An answer's share of words that belong to the topic asked for, in per cent, for each attempt; attempts without a topic's word are none. */
export function attemptScores(topic: number, attempts: readonly (readonly number[])[]): number[] {
  return attempts
    .map((tokens) => tokens.map(correctionTopic).filter((t) => t >= 0))
    .filter((words) => words.length > 0)
    .map((words) => (100 * words.filter((t) => t === topic).length) / words.length)
}

const config: Config = {
  model_type: 'gpt2',
  n_embd: 48,
  n_layer: 3,
  n_head: 4,
  n_positions: 32,
  vocab_size: correctionsVocab,
  layer_norm_epsilon: 1e-5,
  activation_function: 'gelu_new',
  tie_word_embeddings: true,
}

/** A model that has read the language with a share of wrong starts. */
export function correctionsModel(seed: number, steps: number, share: number): SmallModel {
  return {
    config,
    data: generatedRows((random) => correctedAnswer(random, share), { batch: 64, seed }),
    steps,
    // Small first values and a falling rate keep the stream short, so that a vector's length means something beside it.
    std: 0.05,
    rate: cosineRate(3e-3, { steps, end: 1e-5 }),
    optimizer: adamW({ weightDecay: 0.05 }),
    recipe: { language: 'corrections', share, batch: 64, ...corrections, wrongStart: [...corrections.wrongStart] },
  }
}
