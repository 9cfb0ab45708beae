/** @file GPT-J: attention and MLP side by side after one norm, neighbouring pairs of part of each head rotate. */
import type { ConfigReader } from '../config.ts'
import type { DecoderSpec } from '../spec.ts'
import { gptLike } from './gpt.ts'
import { splitProjection } from './llama.ts'
import { commonSizes, linear } from './parts.ts'

/** Reads a GPT-J config. */
export function gptj(c: ConfigReader): DecoderSpec {
  const { headDim } = commonSizes(c)
  const dim = c.has('rotary_dim') ? (c.optionalInteger('rotary_dim') ?? headDim) : 64
  const rotary = { theta: 10_000, dim, interleaved: true, scaling: { kind: 'none' } } as const
  return gptLike(c, {
    family: 'gptj',
    maxPositions: c.integer('n_positions'),
    positions: { kind: 'rotary', ...rotary },
    activation: 'gelu_new',
    attention: (at) => ({
      projection: splitProjection(at('attn')),
      output: linear(at('attn.out_proj')),
      scale: headDim ** -0.5,
      rotary,
    }),
    matrix: (path) => linear(path, true),
    mlpNames: ['fc_in', 'fc_out'],
    parallel: true,
    head: {
      ...linear('lm_head', true),
      ...(c.flag('tie_word_embeddings', false) ? { weight: 'transformer.wte.weight' } : {}),
    },
    projections: { q: 'attn.q_proj', k: 'attn.k_proj', v: 'attn.v_proj' },
  })
}
