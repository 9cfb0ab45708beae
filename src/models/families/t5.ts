/** @file T5 and its first successor: positions are biases of distances, scores are not scaled. */
import type { ConfigReader } from '../config.ts'
import type { EncoderDecoderSpec, StackSpec, TokenInput } from '../encoder-spec.ts'
import type { Activation, AttentionSpec, DenseMlp } from '../spec.ts'
import { activations, linear, rms } from './parts.ts'

const attention = (path: string): AttentionSpec => ({
  projection: { kind: 'split', q: linear(`${path}.q`), k: linear(`${path}.k`), v: linear(`${path}.v`) },
  output: linear(`${path}.o`),
  scale: 1,
})

/** Reads a T5 config. */
export function t5(c: ConfigReader): EncoderDecoderSpec {
  const [dModel, heads, vocab] = [c.integer('d_model'), c.integer('num_heads'), c.integer('vocab_size')]
  const eps = c.number('layer_norm_epsilon', 1e-6)
  const [gated, activation] = feedForward(c)
  const mlp = (path: string): DenseMlp =>
    gated
      ? { kind: 'gated', gate: { gate: linear(`${path}.wi_0`), up: linear(`${path}.wi_1`) }, down: linear(`${path}.wo`), activation }
      : { kind: 'plain', up: linear(`${path}.wi`), down: linear(`${path}.wo`), activation }
  const input: TokenInput = { kind: 'tokens', embedding: 'shared.weight', vocab }
  const stack = (which: 'encoder' | 'decoder', layers: number): StackSpec & { input: TokenInput } => {
    const last = which === 'decoder' ? 2 : 1
    return {
      layers,
      dModel,
      heads,
      kvHeads: heads,
      headDim: c.integer('d_kv'),
      dMlp: c.integer('d_ff'),
      input,
      positions: {
        kind: 'distance',
        bias: {
          weight: `${which}.block.0.layer.0.SelfAttention.relative_attention_bias.weight`,
          classes: c.optionalInteger('relative_attention_num_buckets') ?? 32,
          furthest: c.optionalInteger('relative_attention_max_distance') ?? 128,
        },
      },
      block: (layer) => {
        const at = (path: string) => `${which}.block.${layer}.layer.${path}`
        return {
          residual: 'sequential',
          attnNorm: rms(at('0.layer_norm'), eps),
          attention: attention(at('0.SelfAttention')),
          ...(which === 'decoder' ? { cross: { norm: rms(at('1.layer_norm'), eps), attention: attention(at('1.EncDecAttention')) } } : {}),
          mlpNorm: rms(at(`${last}.layer_norm`), eps),
          mlp: mlp(at(`${last}.DenseReluDense`)),
        }
      },
      finalNorm: rms(`${which}.final_layer_norm`, eps),
      modules: {
        blocks: `${which}.block`,
        attention: 'layer.0.SelfAttention',
        mlp: `layer.${last}.DenseReluDense`,
        finalNorm: `${which}.final_layer_norm`,
        sites: { attn_in: 'layer.0.layer_norm', mlp_in: `layer.${last}.layer_norm` },
      },
    }
  }
  const layers = c.integer('num_layers')
  const tied = c.flag('tie_word_embeddings', true)
  return {
    family: 't5',
    dModel,
    vocab,
    // Distances have no end; this is what the model was trained on.
    maxPositions: c.optionalInteger('n_positions') ?? 512,
    encoder: stack('encoder', layers),
    decoder: stack('decoder', c.optionalInteger('num_decoder_layers') ?? layers),
    head: linear('lm_head'),
    ...(c.flag('scale_decoder_outputs', tied) ? { headScale: dModel ** -0.5 } : {}),
    startToken: c.optionalInteger('decoder_start_token_id', 'pad_token_id') ?? 0,
    // Configs say in several ways whether it is tied; the file is sure.
    otherNames: (name) => (name === 'lm_head.weight' ? ['shared.weight'] : []),
    foreign: ['encoder.embed_tokens.', 'decoder.embed_tokens.'],
  }
}

/** `relu`, or `gated-gelu` of the later checkpoints, whose gelu is the approximate one. */
function feedForward(c: ConfigReader): [gated: boolean, activation: Activation] {
  const kinds: Readonly<Record<string, [boolean, Activation]>> = {
    ...Object.fromEntries(Object.entries(activations).map(([name, a]) => [name, [false, a] as [boolean, Activation]])),
    ...Object.fromEntries(Object.entries(activations).map(([name, a]) => [`gated-${name}`, [true, a] as [boolean, Activation]])),
    'gated-gelu': [true, 'gelu_tanh'],
  }
  return c.choice('feed_forward_proj', kinds, 'relu')
}
