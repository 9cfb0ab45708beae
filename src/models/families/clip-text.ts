/** @file The text tower of CLIP: a causal stack with learned positions whose output is its last states. */
import type { ConfigReader } from '../config.ts'
import type { EncoderSpec } from '../encoder-spec.ts'
import { splitProjection } from './llama.ts'
import { activations, commonSizes, layerNorm, linear } from './parts.ts'

/** Reads a CLIP config's text tower. */
export function clipText(whole: ConfigReader): EncoderSpec {
  const c = whole.section('text_config') ?? whole
  const sizes = commonSizes(c)
  const eps = c.number('layer_norm_eps', 1e-5)
  const activation = c.choice('hidden_act', activations, 'quick_gelu')
  const count = c.integer('max_position_embeddings')
  return {
    family: 'clip_text_model',
    ...sizes,
    causal: true,
    maxPositions: count,
    positions: { kind: 'learned', weight: 'embeddings.position_embedding.weight', count, offset: 0 },
    input: { kind: 'tokens', embedding: 'embeddings.token_embedding.weight', vocab: sizes.vocab },
    block: (layer) => {
      const at = (path: string) => `encoder.layers.${layer}.${path}`
      return {
        residual: 'sequential',
        attnNorm: layerNorm(at('layer_norm1'), eps),
        attention: {
          projection: splitProjection(at('self_attn'), true),
          output: linear(at('self_attn.out_proj'), true),
          scale: sizes.headDim ** -0.5,
        },
        mlpNorm: layerNorm(at('layer_norm2'), eps),
        mlp: { kind: 'plain', up: linear(at('mlp.fc1'), true), down: linear(at('mlp.fc2'), true), activation },
      }
    },
    finalNorm: layerNorm('final_layer_norm', eps),
    modules: {
      blocks: 'encoder.layers',
      attention: 'self_attn',
      mlp: 'mlp',
      embedding: 'embeddings.token_embedding',
      finalNorm: 'final_layer_norm',
      sites: {
        attn_in: 'layer_norm1',
        mlp_in: 'layer_norm2',
        q: 'self_attn.q_proj',
        k: 'self_attn.k_proj',
        v: 'self_attn.v_proj',
        mlp_pre: 'mlp.fc1',
      },
    },
    otherNames: (name) => [`text_model.${name}`],
    foreign: ['vision_model.', 'visual_projection.', 'text_projection.', 'logit_'],
  }
}
