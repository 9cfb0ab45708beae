/** @file A language with a planted association: two groups, and words that are said of one of them far more often. */
import type { Config } from '../../models/config.ts'
import type { RandomStream } from '../../nn/index.ts'
import { adamW, cosineRate } from '../../nn/index.ts'
import { generatedRows } from '../../run/index.ts'
import type { SmallModel } from '../study.ts'

const bos = 0
const fillers = { first: 1, count: 8 }
/** Terms for the groups: g1, g2, and people in general. */
const terms = { first: 9, each: 3 }
/** Attributes: said of g1, said of g2, neutral. */
const attributes = { first: 18, each: 6 }

/** Number of tokens. */
export const associationVocab: number = attributes.first + 3 * attributes.each

/** A group of people. */
export type Group = 'g1' | 'g2' | 'people'
const groups: readonly Group[] = ['g1', 'g2', 'people']
/** A kind of attribute. */
export type Attribute = 'X' | 'Y' | 'neutral'
const kinds: readonly Attribute[] = ['X', 'Y', 'neutral']

/** How often each kind is said of each group. */
const shares: Readonly<Record<Group, readonly [number, number, number]>> = {
  g1: [0.62, 0.1, 0.28],
  g2: [0.1, 0.62, 0.28],
  people: [1 / 3, 1 / 3, 1 / 3],
}

/** The gap that the language has: ln P(X|g1)/P(Y|g1) − ln P(X|g2)/P(Y|g2), nats. */
export const trueGap: number = 2 * Math.log(0.62 / 0.1)

/** Tokens of a kind of attribute. */
export const attributeTokens = (kind: Attribute): number[] =>
  Array.from({ length: attributes.each }, (_, i) => attributes.first + kinds.indexOf(kind) * attributes.each + i)

const filler = (random: RandomStream) => fillers.first + random.below(fillers.count)

/** A sentence up to its attribute. */
export function associationPrompt(random: RandomStream, group: Group): number[] {
  const term = terms.first + groups.indexOf(group) * terms.each + random.below(terms.each)
  return [bos, filler(random), filler(random), term, filler(random)]
}

/** One attribute of a kind. */
export const attributeOf = (random: RandomStream, kind: Attribute): number => {
  const tokens = attributeTokens(kind)
  return tokens[random.below(tokens.length)] as number
}

function sentence(random: RandomStream): number[] {
  const group = groups[random.next() < 0.4 ? 0 : random.next() < 2 / 3 ? 1 : 2] as Group
  const [x, y] = shares[group]
  const draw = random.next()
  const kind = draw < x ? 'X' : draw < x + y ? 'Y' : 'neutral'
  return [...associationPrompt(random, group), attributeOf(random, kind), filler(random)]
}

const config: Config = {
  model_type: 'llama',
  hidden_size: 48,
  intermediate_size: 128,
  num_hidden_layers: 4,
  num_attention_heads: 4,
  num_key_value_heads: 4,
  head_dim: 12,
  vocab_size: associationVocab,
  max_position_embeddings: 16,
  rms_norm_eps: 1e-5,
  hidden_act: 'silu',
  tie_word_embeddings: false,
}

/** A model that has read the language. */
export function associationModel(seed: number, steps: number): SmallModel {
  return {
    config,
    data: generatedRows((random) => ({ ids: sentence(random) }), { batch: 128, seed }),
    steps,
    // Small first values and a falling rate keep the stream as short as what is in it, so that directions measured in it mean something.
    std: 0.05,
    rate: cosineRate(2e-3, { steps, end: 1e-5 }),
    optimizer: adamW({ weightDecay: 0.05 }),
    recipe: { language: 'association', shares: { ...shares }, batch: 128 },
  }
}
