/** @file Mamba: no attention and no feed-forward network; each block is a selective state space. */
import type { ConfigReader } from '../config.ts'
import type { MambaSpec } from '../encoder-spec.ts'
import { linear, rms } from './parts.ts'

/** Reads a Mamba config. */
export function mamba(c: ConfigReader): MambaSpec {
  const [dModel, states] = [c.integer('hidden_size'), c.integer('state_size')]
  c.refuseUnless('hidden_act', 'silu')
  const rank = c.config.time_step_rank
  const eps = c.number('layer_norm_epsilon', 1e-5)
  const bias = c.flag('use_bias', false)
  const tied = c.flag('tie_word_embeddings', true)
  const embedding = 'backbone.embeddings.weight'
  return {
    family: 'mamba',
    layers: c.integer('num_hidden_layers'),
    dModel,
    vocab: c.integer('vocab_size'),
    inner: c.optionalInteger('intermediate_size') ?? c.integer('expand') * dModel,
    states,
    kernel: c.integer('conv_kernel'),
    rank: typeof rank === 'number' ? rank : Math.ceil(dModel / 16),
    embedding,
    norm: (layer) => rms(`backbone.layers.${layer}.norm`, eps),
    mixer: (layer) => {
      const at = (path: string) => `backbone.layers.${layer}.mixer.${path}`
      return {
        in: linear(at('in_proj'), bias),
        convolution: { weight: at('conv1d.weight'), ...(c.flag('use_conv_bias', true) ? { bias: at('conv1d.bias') } : {}) },
        select: linear(at('x_proj')),
        step: linear(at('dt_proj'), true),
        logDecay: at('A_log'),
        skip: at('D'),
        out: linear(at('out_proj'), bias),
      }
    },
    finalNorm: rms('backbone.norm_f', eps),
    head: tied ? { ...linear('lm_head'), weight: embedding } : linear('lm_head'),
    modules: {
      blocks: 'backbone.layers',
      attention: 'mixer',
      embedding: 'backbone.embeddings',
      finalNorm: 'backbone.norm_f',
      head: 'lm_head',
      sites: { mixer_in: 'norm', mixer_out: 'mixer' },
    },
    otherNames: (name) => [name.replace('backbone.embeddings.', 'backbone.embedding.')],
  }
}
