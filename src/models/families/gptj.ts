/** @file GPT-J: attention and MLP side by side after one norm, neighbouring pairs of part of each head rotate. */
import type { ConfigReader } from '../config.ts'
import type { DecoderSpec } from '../spec.ts'
import { splitProjection } from './llama.ts'
import { activations, commonSizes, layerNorm, linear } from './parts.ts'

/** Reads a GPT-J config. */
export function gptj(c: ConfigReader): DecoderSpec {
  const sizes = commonSizes(c)
  const eps = c.number('layer_norm_epsilon', 1e-5)
  const activation = c.choice('activation_function', activations, 'gelu_new')
  const dim = c.has('rotary_dim') ? (c.optionalInteger('rotary_dim') ?? sizes.headDim) : 64
  const rotary = { theta: 10_000, dim, interleaved: true, scaling: { kind: 'none' } } as const
  return {
    family: 'gptj',
    ...sizes,
    maxPositions: c.integer('n_positions'),
    positions: { kind: 'rotary', ...rotary },
    embedding: 'transformer.wte.weight',
    block: (layer) => {
      const at = (path: string) => `transformer.h.${layer}.${path}`
      return {
        residual: 'parallel',
        attnNorm: layerNorm(at('ln_1'), eps),
        attention: {
          projection: splitProjection(at('attn')),
          output: linear(at('attn.out_proj')),
          scale: sizes.headDim ** -0.5,
          rotary,
        },
        mlp: { kind: 'plain', up: linear(at('mlp.fc_in'), true), down: linear(at('mlp.fc_out'), true), activation },
      }
    },
    finalNorm: layerNorm('transformer.ln_f', eps),
    head: {
      ...linear('lm_head', true),
      ...(c.flag('tie_word_embeddings', false) ? { weight: 'transformer.wte.weight' } : {}),
    },
    modules: {
      blocks: 'transformer.h',
      attention: 'attn',
      mlp: 'mlp',
      embedding: 'transformer.wte',
      finalNorm: 'transformer.ln_f',
      head: 'lm_head',
      sites: { attn_in: 'ln_1', q: 'attn.q_proj', k: 'attn.k_proj', v: 'attn.v_proj', mlp_pre: 'mlp.fc_in' },
    },
  }
}
