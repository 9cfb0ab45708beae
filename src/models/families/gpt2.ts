/** @file GPT-2 and StarCoder 1 (`gpt_bigcode`): learned positions, one fused projection for q, k and v. */
import type { ConfigReader } from '../config.ts'
import type { DecoderSpec, Linear, Projection } from '../spec.ts'
import { gptHead, gptLike, learnedPositions } from './gpt.ts'
import { commonSizes, conv1d, linear } from './parts.ts'

interface Facts {
  readonly family: string
  readonly kvHeads?: number
  readonly matrix: (path: string) => Linear
  readonly order: (Projection & { kind: 'fused' })['order']
  readonly activation: string
}

function gpt2Like(c: ConfigReader, { order, ...facts }: Facts): DecoderSpec {
  const count = c.integer('n_positions', 'n_ctx')
  const scale = c.flag('scale_attn_weights', true) ? commonSizes(c).headDim ** -0.5 : 1
  const byDepth = c.flag('scale_attn_by_inverse_layer_idx', false)
  c.refuseUnless('add_cross_attention', false)
  return gptLike(c, {
    ...facts,
    maxPositions: count,
    positions: learnedPositions(count),
    attention: (at, layer) => ({
      projection: { kind: 'fused', qkv: facts.matrix(at('attn.c_attn')), order },
      output: facts.matrix(at('attn.c_proj')),
      scale: byDepth ? scale / (layer + 1) : scale,
    }),
    head: gptHead(c),
  })
}

/** Reads a GPT-2 config. */
export const gpt2 = (c: ConfigReader): DecoderSpec =>
  gpt2Like(c, {
    family: 'gpt2',
    matrix: c.flag('conv1d_transposed', false) ? (path) => linear(path, true) : conv1d,
    order: 'concatenated',
    activation: 'gelu_new',
  })

/** Reads a GPT-BigCode config: all heads may share one key and one value. */
export function gptBigcode(c: ConfigReader): DecoderSpec {
  const shared = c.flag('multi_query', true)
  return gpt2Like(c, {
    family: 'gpt_bigcode',
    kvHeads: shared ? 1 : commonSizes(c).heads,
    matrix: (path) => linear(path, true),
    order: 'by key-value head',
    activation: 'gelu_pytorch_tanh',
  })
}
