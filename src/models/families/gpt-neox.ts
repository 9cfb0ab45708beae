/** @file GPT-NeoX and Pythia: q, k and v of each head in one matrix, part of each head rotates, parallel blocks with two norms. */
import type { ConfigReader } from '../config.ts'
import { readRotary } from '../rope.ts'
import type { DecoderSpec } from '../spec.ts'
import { activations, commonSizes, fusedOrder, layerNorm, linear } from './parts.ts'

/** Reads a GPT-NeoX config. */
export function gptNeox(c: ConfigReader): DecoderSpec {
  const sizes = commonSizes(c)
  const eps = c.number('layer_norm_eps', 1e-5)
  const bias = c.flag('attention_bias', true)
  const activation = c.choice('hidden_act', activations, 'gelu')
  const rotary = readRotary(c, { headDim: sizes.headDim, fraction: 0.25 })
  const residual = c.flag('use_parallel_residual', true) ? 'parallel' : 'sequential'
  return {
    family: 'gpt_neox',
    ...sizes,
    maxPositions: c.integer('max_position_embeddings'),
    positions: { kind: 'rotary', ...rotary },
    embedding: 'gpt_neox.embed_in.weight',
    block: (layer) => {
      const at = (path: string) => `gpt_neox.layers.${layer}.${path}`
      return {
        residual,
        attnNorm: layerNorm(at('input_layernorm'), eps),
        attention: {
          projection: { kind: 'fused', qkv: linear(at('attention.query_key_value'), bias), order: fusedOrder(c) },
          output: linear(at('attention.dense'), bias),
          scale: sizes.headDim ** -0.5,
          rotary,
        },
        mlpNorm: layerNorm(at('post_attention_layernorm'), eps),
        mlp: {
          kind: 'plain',
          up: linear(at('mlp.dense_h_to_4h'), true),
          down: linear(at('mlp.dense_4h_to_h'), true),
          activation,
        },
      }
    },
    finalNorm: layerNorm('gpt_neox.final_layer_norm', eps),
    head: linear(c.flag('tie_word_embeddings', false) ? 'gpt_neox.embed_in' : 'embed_out'),
    otherNames: (name) => (name === 'embed_out.weight' ? ['lm_head.weight'] : []),
    modules: {
      blocks: 'gpt_neox.layers',
      attention: 'attention',
      mlp: 'mlp',
      embedding: 'gpt_neox.embed_in',
      finalNorm: 'gpt_neox.final_layer_norm',
      head: 'embed_out',
      sites: { attn_in: 'input_layernorm', mlp_in: 'post_attention_layernorm', mlp_pre: 'mlp.dense_h_to_4h' },
    },
  }
}
