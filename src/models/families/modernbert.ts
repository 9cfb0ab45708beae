/** @file ModernBERT: norms before the modules, gated networks, rotation; two layers of three look only around themselves. */
import { ConfigReader } from '../config.ts'
import type { EncoderSpec } from '../encoder-spec.ts'
import { readRotary } from '../rope.ts'
import { activations, commonSizes, layerNorm, linear } from './parts.ts'

/** Reads a ModernBERT config. */
export function modernbert(c: ConfigReader): EncoderSpec {
  const sizes = commonSizes(c)
  const { headDim } = sizes
  const eps = c.number('norm_eps', 1e-5)
  const normBias = c.flag('norm_bias', false)
  const [attnBias, mlpBias] = [c.flag('attention_bias', false), c.flag('mlp_bias', false)]
  const activation = c.choice('hidden_activation', activations, 'gelu')
  const types = c.optionalNames('layer_types')
  const every = c.optionalInteger('global_attn_every_n_layers') ?? 3
  const isLocal = (layer: number) => (types ? types[layer] === 'sliding_attention' : layer % every !== 0)
  const rotation = (layerType: string, old: string, theta: number) =>
    c.section('rope_parameters')
      ? readRotary(c, { headDim, theta, layerType })
      : readRotary(new ConfigReader({ rope_theta: c.number(old, theta) }), { headDim })
  const wide = rotation('full_attention', 'global_rope_theta', 160_000)
  const near = rotation('sliding_attention', 'local_rope_theta', 10_000)
  // Half on each side, and the position itself.
  const window = Math.floor((c.optionalInteger('local_attention') ?? 128) / 2) + 1
  const norm = (path: string) => layerNorm(path, eps, normBias)
  return {
    family: 'modernbert',
    ...sizes,
    maxPositions: c.integer('max_position_embeddings'),
    positions: { kind: 'rotary', ...wide },
    input: { kind: 'tokens', embedding: 'embeddings.tok_embeddings.weight', vocab: sizes.vocab },
    inputNorm: norm('embeddings.norm'),
    block: (layer) => {
      const at = (path: string) => `layers.${layer}.${path}`
      return {
        residual: 'sequential',
        // The norm on the embeddings serves the first block.
        ...(layer > 0 ? { attnNorm: norm(at('attn_norm')) } : {}),
        attention: {
          projection: { kind: 'fused', qkv: linear(at('attn.Wqkv'), attnBias), order: 'concatenated' },
          output: linear(at('attn.Wo'), attnBias),
          scale: headDim ** -0.5,
          rotary: isLocal(layer) ? near : wide,
          ...(isLocal(layer) ? { window } : {}),
        },
        mlpNorm: norm(at('mlp_norm')),
        mlp: { kind: 'gated', gate: { gateUp: linear(at('mlp.Wi'), mlpBias) }, down: linear(at('mlp.Wo'), mlpBias), activation },
      }
    },
    finalNorm: norm('final_norm'),
    modules: {
      blocks: 'layers',
      attention: 'attn',
      mlp: 'mlp',
      finalNorm: 'final_norm',
      sites: { attn_in: 'attn_norm', mlp_in: 'mlp_norm' },
    },
    otherNames: (name) => [`model.${name}`],
    foreign: ['head.', 'decoder.', 'classifier.'],
  }
}
