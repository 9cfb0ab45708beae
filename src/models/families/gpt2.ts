/** @file GPT-2 and StarCoder 1 (`gpt_bigcode`): learned positions, layer norms with bias, one fused projection for q, k and v. */
import type { ConfigReader } from '../config.ts'
import type { DecoderSpec, Linear, Projection } from '../spec.ts'
import { activations, commonSizes, conv1d, layerNorm, linear } from './parts.ts'

interface Facts {
  readonly family: string
  readonly kvHeads?: number
  readonly matrix: (path: string) => Linear
  readonly order: (Projection & { kind: 'fused' })['order']
  readonly activation: string
}

function gpt2Like(c: ConfigReader, facts: Facts): DecoderSpec {
  const sizes = commonSizes(c)
  const eps = c.number('layer_norm_epsilon', 1e-5)
  const count = c.integer('n_positions', 'n_ctx')
  const scale = c.flag('scale_attn_weights', true) ? sizes.headDim ** -0.5 : 1
  const byDepth = c.flag('scale_attn_by_inverse_layer_idx', false)
  const activation = c.choice('activation_function', activations, facts.activation)
  c.refuseUnless('add_cross_attention', false)
  return {
    family: facts.family,
    ...sizes,
    kvHeads: facts.kvHeads ?? sizes.heads,
    maxPositions: count,
    positions: { kind: 'learned', weight: 'transformer.wpe.weight', count, offset: 0 },
    embedding: 'transformer.wte.weight',
    block: (layer) => {
      const at = (path: string) => `transformer.h.${layer}.${path}`
      return {
        residual: 'sequential',
        attnNorm: layerNorm(at('ln_1'), eps),
        attention: {
          projection: { kind: 'fused', qkv: facts.matrix(at('attn.c_attn')), order: facts.order },
          output: facts.matrix(at('attn.c_proj')),
          scale: byDepth ? scale / (layer + 1) : scale,
        },
        mlpNorm: layerNorm(at('ln_2'), eps),
        mlp: { kind: 'plain', up: facts.matrix(at('mlp.c_fc')), down: facts.matrix(at('mlp.c_proj')), activation },
      }
    },
    finalNorm: layerNorm('transformer.ln_f', eps),
    head: linear(c.flag('tie_word_embeddings', true) ? 'transformer.wte' : 'lm_head'),
    modules: {
      blocks: 'transformer.h',
      attention: 'attn',
      mlp: 'mlp',
      embedding: 'transformer.wte',
      finalNorm: 'transformer.ln_f',
      head: 'lm_head',
      sites: { attn_in: 'ln_1', mlp_in: 'ln_2', mlp_pre: 'mlp.c_fc' },
    },
  }
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
