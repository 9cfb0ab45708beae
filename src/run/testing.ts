/** @file Tiny random models for tests, in memory. */

import type { NDArray } from '../base/types.ts'
import type { Config } from '../models/config.ts'
import { encodeSafetensors, fromBytes, openSafetensors } from '../models/formats/index.ts'
import { randomStream } from '../models/sampling.ts'
import { assemble, type LoadOptions } from './load.ts'
import type { Model } from './model.ts'

/** Config of a three-layer Llama with grouped heads. */
export const tinyLlama: Config = {
  model_type: 'llama',
  hidden_size: 32,
  intermediate_size: 48,
  num_hidden_layers: 3,
  num_attention_heads: 4,
  num_key_value_heads: 2,
  head_dim: 16,
  vocab_size: 61,
  max_position_embeddings: 64,
  rms_norm_eps: 1e-5,
  hidden_act: 'silu',
  tie_word_embeddings: false,
}

/** Config of a small GPT-2. */
export const tinyGpt2: Config = {
  model_type: 'gpt2',
  n_embd: 32,
  n_layer: 2,
  n_head: 4,
  n_positions: 64,
  vocab_size: 61,
  layer_norm_epsilon: 1e-5,
  activation_function: 'gelu_new',
}

/** Shapes of the tensors of the two configs above, by family. */
function shapes(c: Config): Record<string, number[]> {
  const out: Record<string, number[]> = {}
  if (c.model_type === 'gpt2') {
    const [d, v, p] = [c.n_embd as number, c.vocab_size as number, c.n_positions as number]
    Object.assign(out, {
      'transformer.wte.weight': [v, d],
      'transformer.wpe.weight': [p, d],
      'transformer.ln_f.weight': [d],
      'transformer.ln_f.bias': [d],
    })
    for (let l = 0; l < (c.n_layer as number); l++) {
      const at = (n: string, s: number[]) => {
        out[`transformer.h.${l}.${n}`] = s
      }
      for (const n of ['ln_1', 'ln_2']) for (const p of ['weight', 'bias']) at(`${n}.${p}`, [d])
      for (const [n, i, o] of [
        ['attn.c_attn', d, 3 * d],
        ['attn.c_proj', d, d],
        ['mlp.c_fc', d, 4 * d],
        ['mlp.c_proj', 4 * d, d],
      ] as const) {
        at(`${n}.weight`, [i, o])
        at(`${n}.bias`, [o])
      }
    }
    return out
  }
  const [d, f, v] = [c.hidden_size as number, c.intermediate_size as number, c.vocab_size as number]
  const [q, kv] = [(c.num_attention_heads as number) * (c.head_dim as number), (c.num_key_value_heads as number) * (c.head_dim as number)]
  Object.assign(out, { 'model.embed_tokens.weight': [v, d], 'model.norm.weight': [d], 'lm_head.weight': [v, d] })
  for (let l = 0; l < (c.num_hidden_layers as number); l++)
    for (const [n, s] of Object.entries({
      input_layernorm: [d],
      'self_attn.q_proj': [q, d],
      'self_attn.k_proj': [kv, d],
      'self_attn.v_proj': [kv, d],
      'self_attn.o_proj': [d, q],
      post_attention_layernorm: [d],
      'mlp.gate_proj': [f, d],
      'mlp.up_proj': [f, d],
      'mlp.down_proj': [d, f],
    }))
      out[`model.layers.${l}.${n}.weight`] = s
  return out
}

/** Random weights for one of the configs above, by checkpoint name. */
export function tinyTensors(config: Config, seed = 1): Record<string, NDArray> {
  const random = randomStream(seed)
  const tensors: Record<string, NDArray> = {}
  for (const [name, shape] of Object.entries(shapes(config))) {
    const norm = /norm|ln_/.test(name) && name.endsWith('weight')
    const scale = shape.length === 1 ? 0.2 : 1.2 / Math.sqrt(shape.at(-1) as number)
    const size = shape.reduce((p, n) => p * n, 1)
    tensors[name] = {
      dtype: 'float32',
      shape,
      data: Float32Array.from({ length: size }, () => (norm ? 1 : 0) + (random() * 2 - 1) * scale * 1.7),
    }
  }
  return tensors
}

/** A tiny random model in memory. */
export async function tinyModel(config: Config = tinyLlama, options: LoadOptions = {}): Promise<Model> {
  const store = await openSafetensors(fromBytes(encodeSafetensors(tinyTensors(config))))
  return assemble({ id: 'tiny', hash: async () => 'tiny', store, config }, { threads: 1, ...options })
}
