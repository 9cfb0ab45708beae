/** @file A GGUF file as a model: its metadata as the config of a family, its tensors under the family's names. */
import { ModelError } from '../base/errors.ts'
import type { Config } from './config.ts'
import { WeightStore } from './formats/index.ts'

/** How one architecture of llama.cpp maps to a family of ours. */
interface Architecture {
  readonly config: (get: (key: string) => unknown, has: (tensor: string) => boolean) => Config
  /** GGUF names, `{L}` for the layer → checkpoint names of the family. */
  readonly tensors: Readonly<Record<string, string>>
}

/** Architectures by `general.architecture`. */
const architectures: Readonly<Record<string, Architecture>> = {
  llama: {
    config: (get, has) => ({
      model_type: 'llama',
      hidden_size: get('embedding_length'),
      num_hidden_layers: get('block_count'),
      num_attention_heads: get('attention.head_count'),
      num_key_value_heads: get('attention.head_count_kv') ?? get('attention.head_count'),
      ...(get('attention.key_length') === undefined ? {} : { head_dim: get('attention.key_length') }),
      intermediate_size: get('feed_forward_length'),
      max_position_embeddings: get('context_length'),
      rms_norm_eps: get('attention.layer_norm_rms_epsilon'),
      rope_theta: get('rope.freq_base') ?? 10_000,
      tie_word_embeddings: !has('output.weight'),
      // The converter reorders the rows of q and k, so that pairs are neighbours.
      rope_interleaved: true,
    }),
    tensors: {
      'token_embd.weight': 'model.embed_tokens.weight',
      'output_norm.weight': 'model.norm.weight',
      'output.weight': 'lm_head.weight',
      'blk.{L}.attn_norm.weight': 'model.layers.{L}.input_layernorm.weight',
      'blk.{L}.attn_q.weight': 'model.layers.{L}.self_attn.q_proj.weight',
      'blk.{L}.attn_k.weight': 'model.layers.{L}.self_attn.k_proj.weight',
      'blk.{L}.attn_v.weight': 'model.layers.{L}.self_attn.v_proj.weight',
      'blk.{L}.attn_output.weight': 'model.layers.{L}.self_attn.o_proj.weight',
      'blk.{L}.ffn_norm.weight': 'model.layers.{L}.post_attention_layernorm.weight',
      'blk.{L}.ffn_gate.weight': 'model.layers.{L}.mlp.gate_proj.weight',
      'blk.{L}.ffn_up.weight': 'model.layers.{L}.mlp.up_proj.weight',
      'blk.{L}.ffn_down.weight': 'model.layers.{L}.mlp.down_proj.weight',
    },
  },
}

/** Config and renamed weights of an opened GGUF file. */
export function ggufModel(store: WeightStore): { config: Config; store: WeightStore } {
  const type = store.metadata.get('general.architecture')
  const architecture = typeof type === 'string' ? architectures[type] : undefined
  if (!architecture)
    throw new ModelError(
      `The architecture '${String(type)}' of ${store.name} is not known; known are ${Object.keys(architectures).join(', ')}.`,
    )
  const get = (key: string) => {
    const value = store.metadata.get(`${String(type)}.${key}`)
    return typeof value === 'bigint' ? Number(value) : value
  }
  if (store.has('rope_freqs.weight'))
    throw new ModelError(
      `${store.name} carries its own rotary frequencies (rope_freqs.weight), which are not read yet; load the Hugging Face folder instead.`,
    )
  const embedding = store.get('token_embd.weight')
  const config = { ...architecture.config(get, (t) => store.has(t)), vocab_size: embedding.shape[0] }
  const tensors = [...store.tensors.values()].map((t) => ({ ...t, name: rename(t.name, architecture) }))
  const renamed = new WeightStore({
    format: store.format,
    name: store.name,
    tensors,
    metadata: store.metadata,
    sources: new Set(tensors.map((t) => t.source)),
  })
  return { config, store: renamed }
}

function rename(name: string, architecture: Architecture): string {
  const layer = /\.(\d+)\./.exec(name)?.[1]
  const known = architecture.tensors[layer === undefined ? name : name.replace(`.${layer}.`, '.{L}.')]
  return known?.replace('{L}', String(layer)) ?? name
}
