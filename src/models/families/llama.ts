/** @file Llama 1 to 3.2, SmolLM2 and others that share their checkpoint layout. */
import type { ConfigReader } from '../config.ts'
import { readRope } from '../rope.ts'
import type { Activation, DecoderSpec, Linear } from '../spec.ts'

const activations: Readonly<Record<string, Activation>> = { silu: 'silu', gelu: 'gelu', gelu_pytorch_tanh: 'gelu_tanh', relu: 'relu' }

/** Reads a Llama config. */
export function llama(c: ConfigReader): DecoderSpec {
  const dModel = c.integer('hidden_size')
  const heads = c.integer('num_attention_heads')
  const headDim = c.optionalInteger('head_dim') ?? dModel / heads
  const eps = c.number('rms_norm_eps', 1e-6)
  const { theta, scaling } = readRope(c)
  const activation = c.choice('hidden_act', activations, 'silu')
  const [attnBias, mlpBias] = [c.flag('attention_bias', false), c.flag('mlp_bias', false)]
  const linear = (path: string, bias: boolean): Linear => ({
    weight: `${path}.weight`,
    ...(bias ? { bias: `${path}.bias` } : {}),
    layout: 'out,in',
  })
  const norm = (path: string) => ({ kind: 'rms' as const, weight: `${path}.weight`, eps })
  return {
    family: 'llama',
    layers: c.integer('num_hidden_layers'),
    dModel,
    heads,
    kvHeads: c.optionalInteger('num_key_value_heads') ?? heads,
    headDim,
    dMlp: c.integer('intermediate_size'),
    vocab: c.integer('vocab_size'),
    maxPositions: c.integer('max_position_embeddings'),
    positions: { kind: 'rotary', theta, dim: headDim, interleaved: c.flag('rope_interleaved', false), scaling },
    embedding: 'model.embed_tokens.weight',
    block: (layer) => {
      const at = (path: string) => `model.layers.${layer}.${path}`
      return {
        attnNorm: norm(at('input_layernorm')),
        projection: {
          kind: 'split',
          q: linear(at('self_attn.q_proj'), attnBias),
          k: linear(at('self_attn.k_proj'), attnBias),
          v: linear(at('self_attn.v_proj'), attnBias),
        },
        output: linear(at('self_attn.o_proj'), attnBias),
        mlpNorm: norm(at('post_attention_layernorm')),
        mlp: {
          kind: 'gated',
          gate: linear(at('mlp.gate_proj'), mlpBias),
          up: linear(at('mlp.up_proj'), mlpBias),
          down: linear(at('mlp.down_proj'), mlpBias),
          activation,
        },
      }
    },
    finalNorm: norm('model.norm'),
    head: { weight: c.flag('tie_word_embeddings', false) ? 'model.embed_tokens.weight' : 'lm_head.weight', layout: 'out,in' },
    modules: {
      blocks: 'model.layers',
      attention: 'self_attn',
      mlp: 'mlp',
      attnNorm: 'input_layernorm',
      mlpNorm: 'post_attention_layernorm',
      embedding: 'model.embed_tokens',
      finalNorm: 'model.norm',
      head: 'lm_head',
      extra: {
        q: 'self_attn.q_proj',
        k: 'self_attn.k_proj',
        v: 'self_attn.v_proj',
        mlp_pre: 'mlp.gate_proj',
        mlp_pre_linear: 'mlp.up_proj',
      },
    },
  }
}
