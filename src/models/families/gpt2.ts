/** @file GPT-2: learned positions, layer norms with bias, one fused projection for q, k and v. */
import type { ConfigReader } from '../config.ts'
import type { Activation, DecoderSpec, Linear } from '../spec.ts'

const activations: Readonly<Record<string, Activation>> = {
  gelu_new: 'gelu_tanh',
  gelu_pytorch_tanh: 'gelu_tanh',
  gelu: 'gelu',
  relu: 'relu',
  silu: 'silu',
  swish: 'silu',
}

/** Reads a GPT-2 config. Checkpoints name tensors with or without the prefix `transformer.`; the loader strips it. */
export function gpt2(c: ConfigReader): DecoderSpec {
  const dModel = c.integer('n_embd')
  const heads = c.integer('n_head')
  const eps = c.number('layer_norm_epsilon', 1e-5)
  const linear = (path: string): Linear => ({ weight: `${path}.weight`, bias: `${path}.bias`, layout: 'in,out' })
  const norm = (path: string) => ({ kind: 'layer' as const, weight: `${path}.weight`, bias: `${path}.bias`, eps })
  const maxPositions = c.integer('n_positions', 'n_ctx')
  return {
    family: 'gpt2',
    layers: c.integer('n_layer'),
    dModel,
    heads,
    kvHeads: heads,
    headDim: dModel / heads,
    dMlp: c.optionalInteger('n_inner') ?? 4 * dModel,
    vocab: c.integer('vocab_size'),
    maxPositions,
    positions: { kind: 'learned', weight: 'transformer.wpe.weight', count: maxPositions },
    embedding: 'transformer.wte.weight',
    block: (layer) => {
      const at = (path: string) => `transformer.h.${layer}.${path}`
      return {
        attnNorm: norm(at('ln_1')),
        projection: { kind: 'fused', qkv: linear(at('attn.c_attn')) },
        output: linear(at('attn.c_proj')),
        mlpNorm: norm(at('ln_2')),
        mlp: {
          kind: 'plain',
          up: linear(at('mlp.c_fc')),
          down: linear(at('mlp.c_proj')),
          activation: c.choice('activation_function', activations, 'gelu_new'),
        },
      }
    },
    finalNorm: norm('transformer.ln_f'),
    head: { weight: c.flag('tie_word_embeddings', true) ? 'transformer.wte.weight' : 'lm_head.weight', layout: 'out,in' },
    modules: {
      blocks: 'transformer.h',
      attention: 'attn',
      mlp: 'mlp',
      attnNorm: 'ln_1',
      mlpNorm: 'ln_2',
      embedding: 'transformer.wte',
      finalNorm: 'transformer.ln_f',
      head: 'lm_head',
      extra: { mlp_pre: 'mlp.c_fc' },
    },
  }
}
