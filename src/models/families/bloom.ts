/** @file BLOOM: ALiBi, a norm on the embeddings, and modules that add the residual stream themselves. */
import type { ConfigReader } from '../config.ts'
import type { DecoderSpec } from '../spec.ts'
import { alibiSlopes, fusedOrder, layerNorm, linear } from './parts.ts'

/** Reads a BLOOM config. */
export function bloom(c: ConfigReader): DecoderSpec {
  const dModel = c.integer('hidden_size', 'n_embed')
  const heads = c.integer('n_head', 'num_attention_heads')
  const eps = c.number('layer_norm_epsilon', 1e-5)
  c.refuseUnless('apply_residual_connection_post_layernorm', false)
  return {
    family: 'bloom',
    layers: c.integer('n_layer', 'num_hidden_layers'),
    dModel,
    heads,
    kvHeads: heads,
    headDim: dModel / heads,
    dMlp: 4 * dModel,
    vocab: c.integer('vocab_size'),
    maxPositions: c.optionalInteger('seq_length') ?? 2048,
    positions: { kind: 'alibi', slopes: alibiSlopes(heads) },
    embedding: 'transformer.word_embeddings.weight',
    embeddingNorm: layerNorm('transformer.word_embeddings_layernorm', eps),
    block: (layer) => {
      const at = (path: string) => `transformer.h.${layer}.${path}`
      return {
        residual: 'sequential',
        addsInside: ['attn_out', 'mlp_out'],
        attnNorm: layerNorm(at('input_layernorm'), eps),
        attention: {
          projection: { kind: 'fused', qkv: linear(at('self_attention.query_key_value'), true), order: fusedOrder(c) },
          output: linear(at('self_attention.dense'), true),
          scale: (dModel / heads) ** -0.5,
        },
        mlpNorm: layerNorm(at('post_attention_layernorm'), eps),
        mlp: {
          kind: 'plain',
          up: linear(at('mlp.dense_h_to_4h'), true),
          down: linear(at('mlp.dense_4h_to_h'), true),
          activation: 'gelu_tanh',
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
      sites: { attn_in: 'input_layernorm', mlp_in: 'post_attention_layernorm', mlp_pre: 'mlp.dense_h_to_4h' },
    },
  }
}
