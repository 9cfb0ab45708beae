/** @file OPT: learned positions that begin two rows late; the 350M has its norms after each sum and narrow embeddings. */
import type { ConfigReader } from '../config.ts'
import type { DecoderSpec, Norm } from '../spec.ts'
import { splitProjection } from './llama.ts'
import { activations, commonSizes, layerNorm, linear } from './parts.ts'

/** Reads an OPT config. */
export function opt(c: ConfigReader): DecoderSpec {
  const sizes = commonSizes(c)
  const count = c.integer('max_position_embeddings')
  const bias = c.flag('enable_bias', true)
  const first = c.flag('do_layer_norm_before', true)
  const gains = c.flag('layer_norm_elementwise_affine', true)
  const activation = c.choice('activation_function', activations, 'relu')
  const width = c.optionalInteger('word_embed_proj_dim') ?? sizes.dModel
  const norm = (path: string): Norm => (gains ? layerNorm(path, 1e-5) : { kind: 'layer', eps: 1e-5 })
  const last = first && !c.flag('_remove_final_layer_norm', false)
  return {
    family: 'opt',
    ...sizes,
    maxPositions: count,
    positions: { kind: 'learned', weight: 'model.decoder.embed_positions.weight', count, offset: 2 },
    embedding: 'model.decoder.embed_tokens.weight',
    ...(width === sizes.dModel
      ? {}
      : { narrow: { width, in: linear('model.decoder.project_in'), out: linear('model.decoder.project_out') } }),
    block: (layer) => {
      const at = (path: string) => `model.decoder.layers.${layer}.${path}`
      const attnNorm = norm(at('self_attn_layer_norm'))
      const mlpNorm = norm(at('final_layer_norm'))
      return {
        residual: 'sequential',
        ...(first ? { attnNorm, mlpNorm } : { attnSumNorm: attnNorm, mlpSumNorm: mlpNorm }),
        attention: {
          projection: splitProjection(at('self_attn'), bias),
          output: linear(at('self_attn.out_proj'), bias),
          scale: sizes.headDim ** -0.5,
        },
        mlp: { kind: 'plain', up: linear(at('fc1'), bias), down: linear(at('fc2'), bias), activation },
      }
    },
    ...(last ? { finalNorm: norm('model.decoder.final_layer_norm') } : {}),
    head: linear(c.flag('tie_word_embeddings', true) ? 'model.decoder.embed_tokens' : 'lm_head'),
    modules: {
      blocks: 'model.decoder.layers',
      attention: 'self_attn',
      ...(width === sizes.dModel ? { embedding: 'model.decoder.embed_tokens' } : {}),
      ...(last ? { finalNorm: 'model.decoder.final_layer_norm' } : {}),
      head: 'lm_head',
      sites: {
        ...(first ? { attn_in: 'self_attn_layer_norm', mlp_in: 'final_layer_norm' } : {}),
        q: 'self_attn.q_proj',
        k: 'self_attn.k_proj',
        v: 'self_attn.v_proj',
        mlp_pre: 'fc1',
        mlp_out: 'fc2',
      },
    },
  }
}
