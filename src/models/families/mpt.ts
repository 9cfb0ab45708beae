/** @file MPT: ALiBi, layer norms without bias, one fused projection. */
import { ConfigReader } from '../config.ts'
import type { DecoderSpec } from '../spec.ts'
import { alibiSlopes, layerNorm, linear } from './parts.ts'

/** Reads an MPT config. */
export function mpt(c: ConfigReader): DecoderSpec {
  const dModel = c.integer('d_model')
  const heads = c.integer('n_heads')
  const headDim = dModel / heads
  const eps = c.number('layer_norm_epsilon', 1e-5)
  const attn = c.section('attn_config') ?? new ConfigReader({})
  const bias = !c.flag('no_bias', true)
  attn.refuseUnless('alibi', true)
  attn.refuseUnless('alibi_bias_max', 8)
  attn.refuseUnless('qk_ln', false)
  attn.refuseUnless('prefix_lm', false)
  const clip = attn.maybe('clip_qkv')
  return {
    family: 'mpt',
    layers: c.integer('n_layers'),
    dModel,
    heads,
    kvHeads: heads,
    headDim,
    // The reference ignores the config's expansion_ratio.
    dMlp: 4 * dModel,
    vocab: c.integer('vocab_size'),
    maxPositions: c.integer('max_seq_len'),
    positions: { kind: 'alibi', slopes: alibiSlopes(heads) },
    embedding: 'transformer.wte.weight',
    block: (layer) => {
      const at = (path: string) => `transformer.blocks.${layer}.${path}`
      return {
        residual: 'sequential',
        addsInside: ['mlp_out'],
        attnNorm: layerNorm(at('norm_1'), eps, bias),
        attention: {
          projection: { kind: 'fused', qkv: linear(at('attn.Wqkv'), bias), order: 'concatenated' },
          output: linear(at('attn.out_proj'), bias),
          scale: attn.maybe('softmax_scale') ?? headDim ** -0.5,
          ...(clip ? { clip } : {}),
        },
        mlpNorm: layerNorm(at('norm_2'), eps, bias),
        mlp: { kind: 'plain', up: linear(at('ffn.up_proj'), bias), down: linear(at('ffn.down_proj'), bias), activation: 'gelu' },
      }
    },
    finalNorm: layerNorm('transformer.norm_f', eps, bias),
    head: linear(c.flag('tie_word_embeddings', true) ? 'transformer.wte' : 'lm_head'),
    modules: {
      blocks: 'transformer.blocks',
      attention: 'attn',
      mlp: 'ffn',
      embedding: 'transformer.wte',
      finalNorm: 'transformer.norm_f',
      head: 'lm_head',
      sites: { attn_in: 'norm_1', mlp_in: 'norm_2', mlp_pre: 'ffn.up_proj' },
    },
  }
}
