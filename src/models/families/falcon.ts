/** @file Falcon: RW (ALiBi, sequential), 7B (one key-value head, one norm for both branches), 40B and 11B (grouped heads). */
import type { ConfigReader } from '../config.ts'
import { readRotary } from '../rope.ts'
import type { BlockSpec, DecoderSpec } from '../spec.ts'
import { activations, alibiSlopes, commonSizes, fusedOrder, layerNorm, linear } from './parts.ts'

/** Reads a Falcon config. */
export function falcon(c: ConfigReader): DecoderSpec {
  const sizes = commonSizes(c)
  const { heads, headDim } = sizes
  const eps = c.number('layer_norm_epsilon', 1e-5)
  const bias = c.flag('bias', false)
  const grouped = c.flag('new_decoder_architecture', false)
  const parallel = grouped || c.flag('parallel_attn', true)
  const twoNorms = grouped && (c.optionalInteger('num_ln_in_parallel_attn') ?? 2) === 2
  const kvHeads = grouped ? (c.optionalInteger('num_kv_heads') ?? heads) : c.flag('multi_query', true) ? 1 : heads
  const rotary = c.flag('alibi', false) ? undefined : readRotary(c, { headDim })
  const activation = c.choice('activation', activations, 'gelu')
  const norms = (at: (path: string) => string): Pick<BlockSpec, 'attnNorm' | 'mlpNorm'> => {
    if (twoNorms) return { attnNorm: layerNorm(at('ln_attn'), eps), mlpNorm: layerNorm(at('ln_mlp'), eps) }
    const attnNorm = layerNorm(at('input_layernorm'), eps)
    return parallel ? { attnNorm } : { attnNorm, mlpNorm: layerNorm(at('post_attention_layernorm'), eps) }
  }
  return {
    family: 'falcon',
    ...sizes,
    kvHeads,
    dMlp: c.optionalInteger('ffn_hidden_size') ?? 4 * sizes.dModel,
    maxPositions: c.optionalInteger('max_position_embeddings') ?? 2048,
    positions: rotary
      ? { kind: 'rotary', ...rotary }
      : { kind: 'alibi', slopes: alibiSlopes(heads), rounded: { to: 'bfloat16', factor: headDim ** -0.5 } },
    embedding: 'transformer.word_embeddings.weight',
    block: (layer) => {
      const at = (path: string) => `transformer.h.${layer}.${path}`
      return {
        residual: parallel ? 'parallel' : 'sequential',
        ...norms(at),
        attention: {
          projection: { kind: 'fused', qkv: linear(at('self_attention.query_key_value'), bias), order: fusedOrder(c) },
          output: linear(at('self_attention.dense'), bias),
          scale: headDim ** -0.5,
          ...(rotary ? { rotary } : {}),
        },
        mlp: {
          kind: 'plain',
          up: linear(at('mlp.dense_h_to_4h'), bias),
          down: linear(at('mlp.dense_4h_to_h'), bias),
          activation,
        },
      }
    },
    finalNorm: layerNorm('transformer.ln_f', eps),
    head: linear(c.flag('tie_word_embeddings', true) ? 'transformer.word_embeddings' : 'lm_head'),
    modules: {
      blocks: 'transformer.h',
      attention: 'self_attention',
      mlp: 'mlp',
      embedding: 'transformer.word_embeddings',
      finalNorm: 'transformer.ln_f',
      head: 'lm_head',
      sites: {
        attn_in: twoNorms ? 'ln_attn' : 'input_layernorm',
        ...(twoNorms ? { mlp_in: 'ln_mlp' } : parallel ? {} : { mlp_in: 'post_attention_layernorm' }),
        mlp_pre: 'mlp.dense_h_to_4h',
      },
    },
  }
}
