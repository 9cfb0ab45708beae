/** @file BART: norms after each sum, learned positions that begin two rows late, in both stacks. */
import type { ConfigReader } from '../config.ts'
import type { EncoderDecoderSpec, StackSpec, TokenInput } from '../encoder-spec.ts'
import type { AttentionSpec } from '../spec.ts'
import { splitProjection } from './llama.ts'
import { activations, layerNorm, linear } from './parts.ts'

/** Reads a BART config. */
export function bart(c: ConfigReader): EncoderDecoderSpec {
  const [dModel, vocab, count] = [c.integer('d_model'), c.integer('vocab_size'), c.integer('max_position_embeddings')]
  const activation = c.choice('activation_function', activations, 'gelu')
  const scale = c.flag('scale_embedding', false) ? Math.sqrt(dModel) : undefined
  const input: TokenInput = { kind: 'tokens', embedding: 'model.shared.weight', vocab, ...(scale ? { scale } : {}) }
  const stack = (which: 'encoder' | 'decoder'): StackSpec & { input: TokenInput } => {
    const heads = c.integer(`${which}_attention_heads`)
    const headDim = dModel / heads
    const attention = (path: string): AttentionSpec => ({
      projection: splitProjection(path, true),
      output: linear(`${path}.out_proj`, true),
      scale: headDim ** -0.5,
    })
    const root = `model.${which}`
    return {
      layers: c.integer(`${which}_layers`),
      dModel,
      heads,
      kvHeads: heads,
      headDim,
      dMlp: c.integer(`${which}_ffn_dim`),
      input,
      positions: { kind: 'learned', weight: `${root}.embed_positions.weight`, count, offset: 2 },
      inputNorm: layerNorm(`${root}.layernorm_embedding`, 1e-5),
      block: (layer) => {
        const at = (path: string) => `${root}.layers.${layer}.${path}`
        const cross = { attention: attention(at('encoder_attn')), sumNorm: layerNorm(at('encoder_attn_layer_norm'), 1e-5) }
        return {
          residual: 'sequential',
          attention: attention(at('self_attn')),
          attnSumNorm: layerNorm(at('self_attn_layer_norm'), 1e-5),
          ...(which === 'decoder' ? { cross } : {}),
          mlp: { kind: 'plain', up: linear(at('fc1'), true), down: linear(at('fc2'), true), activation },
          mlpSumNorm: layerNorm(at('final_layer_norm'), 1e-5),
        }
      },
      modules: {
        blocks: `${root}.layers`,
        attention: 'self_attn',
        sites: {
          q: 'self_attn.q_proj',
          k: 'self_attn.k_proj',
          v: 'self_attn.v_proj',
          cross_attn_out: 'encoder_attn',
          mlp_pre: 'fc1',
          mlp_out: 'fc2',
        },
      },
    }
  }
  return {
    family: 'bart',
    dModel,
    vocab,
    maxPositions: count,
    encoder: stack('encoder'),
    decoder: stack('decoder'),
    head: linear('lm_head'),
    headBias: { weight: 'final_logits_bias', shape: [1, vocab] },
    startToken: c.optionalInteger('decoder_start_token_id') ?? 2,
    otherNames: (name) => (name === 'lm_head.weight' ? ['model.shared.weight'] : []),
    foreign: ['model.encoder.embed_tokens.', 'model.decoder.embed_tokens.', 'classification_head.'],
  }
}
