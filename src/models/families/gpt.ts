/** @file What GPT-2, GPT-Neo and GPT-J share: the names of their modules, layer norms with bias, plain feed-forward networks. */
import type { ConfigReader } from '../config.ts'
import type { Activation, AttentionSpec, BlockSpec, DecoderSpec, Linear, Positions } from '../spec.ts'
import { activations, commonSizes, layerNorm, linear } from './parts.ts'

/** What tells the families of the GPT-2 layout apart. */
export interface GptFacts {
  readonly family: string
  readonly kvHeads?: number
  readonly maxPositions: number
  readonly positions: Positions
  readonly activation: string
  /** The attention of a layer, given its path. */
  readonly attention: (at: (path: string) => string, layer: number) => AttentionSpec
  /** The matrix at a module path of the feed-forward network. */
  readonly matrix: (path: string) => Linear
  /** Module names of its two matrices (default `c_fc` and `c_proj`). */
  readonly mlpNames?: readonly [string, string]
  /** Attention and MLP read the same, after one norm. */
  readonly parallel?: boolean
  readonly head: Linear
  /** Module names of q, k and v where they are apart. */
  readonly projections?: Readonly<Record<string, string>>
}

/** The table of learned positions. */
export const learnedPositions = (count: number): Positions => ({ kind: 'learned', weight: 'transformer.wpe.weight', count, offset: 0 })

/** Reads a config of the GPT-2 layout. */
export function gptLike(c: ConfigReader, facts: GptFacts): DecoderSpec {
  const sizes = commonSizes(c)
  const eps = c.number('layer_norm_epsilon', 1e-5)
  const activation: Activation = c.choice('activation_function', activations, facts.activation)
  const [up, down] = facts.mlpNames ?? ['c_fc', 'c_proj']
  return {
    family: facts.family,
    ...sizes,
    kvHeads: facts.kvHeads ?? sizes.heads,
    maxPositions: facts.maxPositions,
    positions: facts.positions,
    embedding: 'transformer.wte.weight',
    block: (layer): BlockSpec => {
      const at = (path: string) => `transformer.h.${layer}.${path}`
      return {
        residual: facts.parallel ? 'parallel' : 'sequential',
        attnNorm: layerNorm(at('ln_1'), eps),
        attention: facts.attention(at, layer),
        ...(facts.parallel ? {} : { mlpNorm: layerNorm(at('ln_2'), eps) }),
        mlp: { kind: 'plain', up: facts.matrix(at(`mlp.${up}`)), down: facts.matrix(at(`mlp.${down}`)), activation },
      }
    },
    finalNorm: layerNorm('transformer.ln_f', eps),
    head: facts.head,
    modules: {
      blocks: 'transformer.h',
      attention: 'attn',
      mlp: 'mlp',
      embedding: 'transformer.wte',
      finalNorm: 'transformer.ln_f',
      head: 'lm_head',
      sites: { attn_in: 'ln_1', ...(facts.parallel ? {} : { mlp_in: 'ln_2' }), ...facts.projections, mlp_pre: `mlp.${up}` },
    },
  }
}

/** The unembedding of GPT-2: its embedding, unless the config says otherwise. */
export const gptHead = (c: ConfigReader): Linear => linear(c.flag('tie_word_embeddings', true) ? 'transformer.wte' : 'lm_head')
