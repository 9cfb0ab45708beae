/** @file A GGUF file as a model: its metadata as the config of a family, its tensors under the family's names. */
import { ModelError, nearest } from '../base/errors.ts'
import type { Config } from './config.ts'
import { WeightStore } from './formats/index.ts'
import {
  bloomNames,
  falconNames,
  glm4Names,
  gpt2Names,
  gptNeoxNames,
  llamaNames,
  phi2Names,
  phi3Names,
  postNormNames,
  qwen2MoeNames,
  sandwichNames,
  seedOssNames,
  sparseNames,
  starcoder2Names,
  type TensorNames,
} from './gguf-names.ts'

/** What a row can ask of a file. */
interface Facts {
  /** Metadata of the architecture: `embedding_length` is `llama.embedding_length`. */
  readonly get: (key: string) => unknown
  readonly has: (tensor: string) => boolean
}

/** How one architecture of llama.cpp maps to a family of ours. */
interface Architecture {
  readonly family: string
  readonly names: TensorNames
  /** Settings besides those that all architectures share. */
  readonly config?: (f: Facts) => Config
}

/** Rows of q and k were reordered by the converter, so that pairs are neighbours. */
const reordered = { rope_interleaved: true }
const stacked = (f: Facts): Config => ({
  experts_stacked: true,
  num_experts: f.get('expert_count'),
  num_local_experts: f.get('expert_count'),
  num_experts_per_tok: f.get('expert_used_count'),
  moe_intermediate_size: f.get('expert_feed_forward_length') ?? f.get('feed_forward_length'),
})
const graniteScales = (f: Facts): Config => ({
  ...reordered,
  embedding_multiplier: f.get('embedding_scale') ?? 1,
  attention_multiplier: f.get('attention.scale') ?? Number(f.get('embedding_length')) / Number(f.get('attention.head_count')),
  residual_multiplier: f.get('residual_scale') ?? 1,
  logits_scaling: f.get('logit_scale') ?? 1,
})
/** The head's size, but for the largest models, whose scores are scaled by the width of the stream for each head. */
const scoreScalar = (f: Facts, largest: number) =>
  f.get('block_count') === largest
    ? Number(f.get('embedding_length')) / Number(f.get('attention.head_count'))
    : f.get('attention.key_length')
const windowTypes = (f: Facts): Config => {
  const pattern = f.get('attention.sliding_window_pattern')
  return Array.isArray(pattern) ? { layer_types: pattern.map((w) => (w ? 'sliding_attention' : 'full_attention')) } : {}
}

/** Architectures by `general.architecture`. */
const architectures: Readonly<Record<string, (f: Facts) => Architecture>> = {
  arcee: () => ({ family: 'arcee', names: llamaNames, config: () => ({ ...reordered, hidden_act: 'relu2' }) }),
  bloom: () => ({ family: 'bloom', names: bloomNames, config: (f) => ({ qkv_concatenated: true, seq_length: f.get('context_length') }) }),
  cohere2: () => ({ family: 'cohere2', names: llamaNames, config: (f) => ({ logit_scale: f.get('logit_scale'), ...windowTypes(f) }) }),
  'command-r': (f) => ({
    family: 'cohere',
    names: llamaNames,
    config: () => ({ logit_scale: f.get('logit_scale'), use_qk_norm: f.has('blk.0.attn_q_norm.weight') }),
  }),
  ernie4_5: () => ({ family: 'ernie4_5', names: llamaNames }),
  exaone4: () => ({ family: 'exaone4', names: postNormNames, config: windowTypes }),
  falcon: (f) => {
    const twoNorms = f.has('blk.0.attn_norm_2.weight')
    return {
      family: 'falcon',
      names: falconNames(twoNorms),
      config: () => ({
        qkv_concatenated: true,
        new_decoder_architecture: true,
        num_kv_heads: f.get('attention.head_count_kv') ?? 1,
        num_ln_in_parallel_attn: twoNorms ? 2 : 1,
        bias: f.has('blk.0.attn_qkv.bias'),
      }),
    }
  },
  gemma: () => ({ family: 'gemma', names: llamaNames, config: () => ({ gains_whole: true }) }),
  gemma2: () => ({
    family: 'gemma2',
    names: sandwichNames,
    config: (f) => ({
      gains_whole: true,
      query_pre_attn_scalar: scoreScalar(f, 46),
      attn_logit_softcapping: f.get('attn_logit_softcapping') ?? null,
      final_logit_softcapping: f.get('final_logit_softcapping') ?? null,
    }),
  }),
  gemma3: () => ({
    family: 'gemma3_text',
    names: sandwichNames,
    config: (f) => ({
      gains_whole: true,
      query_pre_attn_scalar: scoreScalar(f, 62),
      final_logit_softcapping: f.get('final_logit_softcapping') ?? null,
      rope_local_base_freq: f.get('rope.freq_base_swa') ?? 10_000,
      ...windowTypes(f),
    }),
  }),
  glm4: () => ({ family: 'glm4', names: glm4Names }),
  gpt2: () => ({ family: 'gpt2', names: gpt2Names, config: () => ({ conv1d_transposed: true }) }),
  gptneox: () => ({
    family: 'gpt_neox',
    names: gptNeoxNames,
    config: (f) => ({ qkv_concatenated: true, use_parallel_residual: f.get('use_parallel_residual') ?? true }),
  }),
  granite: () => ({ family: 'granite', names: llamaNames, config: graniteScales }),
  granitemoe: () => ({
    family: 'granitemoe',
    names: sparseNames('router.layer'),
    config: (f) => ({ ...graniteScales(f), ...stacked(f) }),
  }),
  llama: (f) =>
    f.get('expert_count')
      ? { family: 'mixtral', names: sparseNames('gate'), config: () => ({ ...reordered, ...stacked(f) }) }
      : { family: 'llama', names: llamaNames, config: () => reordered },
  nemotron: () => ({ family: 'nemotron', names: llamaNames, config: () => ({ gains_whole: true }) }),
  olmo: () => ({
    family: 'olmo',
    names: llamaNames,
    config: (f) => ({ ...reordered, clip_qkv: f.get('attention.clamp_kqv') ?? null }),
  }),
  olmo2: (f) => ({ family: f.get('attention.sliding_window') ? 'olmo3' : 'olmo2', names: postNormNames, config: windowTypes }),
  olmoe: () => ({ family: 'olmoe', names: llamaNames, config: stacked }),
  phi2: () => ({ family: 'phi', names: phi2Names }),
  phi3: () => ({ family: 'phi3', names: phi3Names }),
  qwen2: () => ({ family: 'qwen2', names: llamaNames }),
  qwen2moe: () => ({
    family: 'qwen2_moe',
    names: qwen2MoeNames,
    config: (f) => ({ ...stacked(f), shared_expert_intermediate_size: f.get('expert_shared_feed_forward_length') }),
  }),
  qwen3: () => ({ family: 'qwen3', names: llamaNames }),
  qwen3moe: () => ({ family: 'qwen3_moe', names: llamaNames, config: (f) => ({ ...stacked(f), norm_topk_prob: true }) }),
  seed_oss: () => ({ family: 'seed_oss', names: seedOssNames }),
  smollm3: () => ({ family: 'smollm3', names: llamaNames, config: () => reordered }),
  stablelm: () => ({
    family: 'stablelm',
    names: llamaNames,
    config: (f) => ({ use_qkv_bias: f.has('blk.0.attn_q.bias'), use_parallel_residual: f.get('use_parallel_residual') ?? false }),
  }),
  starcoder: (f) => ({
    family: 'gpt_bigcode',
    names: gpt2Names,
    config: () => ({ multi_query: f.get('attention.head_count_kv') === 1 }),
  }),
  starcoder2: () => ({ family: 'starcoder2', names: starcoder2Names, config: (f) => ({ use_bias: f.has('blk.0.attn_q.bias') }) }),
}

/** Config and renamed weights of an opened GGUF file. */
export async function ggufModel(store: WeightStore): Promise<{ config: Config; store: WeightStore }> {
  const type = store.metadata.get('general.architecture')
  const row = typeof type === 'string' && Object.hasOwn(architectures, type) ? architectures[type] : undefined
  if (!row) {
    const near = typeof type === 'string' ? nearest(type, Object.keys(architectures)) : undefined
    throw new ModelError(
      `The architecture '${String(type)}' of ${store.name} is not known; known are ${Object.keys(architectures).join(', ')}${near ? ` (nearest: ${near})` : ''}. Load the Hugging Face folder instead, if its family is known.`,
    )
  }
  const get = (key: string) => {
    const value = store.metadata.get(`${String(type)}.${key}`)
    return typeof value === 'bigint' ? Number(value) : value
  }
  const facts: Facts = { get, has: (tensor) => store.has(tensor) }
  const architecture = row(facts)
  const config = {
    ...common(store, facts),
    model_type: architecture.family,
    ...architecture.config?.(facts),
    rope_parameters: await rope(store, get),
  }
  const tensors = [...store.tensors.values()]
    .filter((t) => !ropeTensors.includes(t.name))
    .map((t) => {
      const name = rename(t.name, architecture.names)
      // A vector is stored where the family has a matrix of one row.
      return { ...t, name, shape: t.shape.length === 1 && name.endsWith('shared_expert_gate.weight') ? [1, ...t.shape] : t.shape }
    })
  const sources = new Set(tensors.map((t) => t.source))
  return { config, store: new WeightStore({ format: store.format, name: store.name, tensors, metadata: store.metadata, sources }) }
}

/** Settings that all architectures share, under the names of the configs that we read. */
function common(store: WeightStore, { get, has }: Facts): Config {
  const heads = get('attention.head_count')
  if (typeof heads !== 'number')
    throw new ModelError(`The number of heads differs between the layers of ${store.name}, which no family here has.`)
  const eps = get('attention.layer_norm_rms_epsilon') ?? get('attention.layer_norm_epsilon')
  const context = get('context_length')
  const keyLength = get('attention.key_length')
  // Some converters wrote a width that the tensors do not have.
  const width = has('blk.0.ffn_down.weight') ? store.get('blk.0.ffn_down.weight').shape[1] : get('feed_forward_length')
  const attentionBias = has('blk.0.attn_q.bias') || has('blk.0.attn_qkv.bias')
  return {
    vocab_size: store.get('token_embd.weight').shape[0],
    hidden_size: get('embedding_length'),
    num_hidden_layers: get('block_count'),
    num_attention_heads: heads,
    num_key_value_heads: get('attention.head_count_kv') ?? heads,
    ...(keyLength === undefined ? {} : { head_dim: keyLength }),
    intermediate_size: width,
    ffn_hidden_size: width,
    max_position_embeddings: context,
    n_positions: context,
    ...Object.fromEntries(epsNames.map((name) => [name, eps])),
    tie_word_embeddings: !has('output.weight'),
    attention_bias: attentionBias,
    attention_out_bias: has('blk.0.attn_output.bias'),
    mlp_bias: has('blk.0.ffn_up.bias'),
    sliding_window: get('attention.sliding_window') || null,
  }
}

/** The names that families have for the small number in their norms. */
const epsNames = ['rms_norm_eps', 'layer_norm_eps', 'layer_norm_epsilon', 'norm_epsilon', 'norm_eps']

/** Tensors that hold divisors of the rotary frequencies. */
const ropeTensors = ['rope_freqs.weight', 'rope_factors_long.weight', 'rope_factors_short.weight']

async function rope(store: WeightStore, get: Facts['get']): Promise<Config> {
  const context = Number(get('context_length'))
  const headDim = Number(get('attention.key_length') ?? Number(get('embedding_length')) / Number(get('attention.head_count')))
  const dim = get('rope.dimension_count')
  const basic = { rope_theta: get('rope.freq_base') ?? 10_000, partial_rotary_factor: typeof dim === 'number' ? dim / headDim : 1 }
  const original = get('rope.scaling.original_context_length')
  const divisors = async (name: string) => Array.from(await store.readFloat32(name))
  if (store.has('rope_freqs.weight')) {
    // Llama 3.1's stretching, worked out by the converter.
    const factor = await divisors('rope_freqs.weight')
    return {
      ...basic,
      rope_type: 'longrope',
      short_factor: factor,
      long_factor: factor,
      attention_factor: 1,
      original_max_position_embeddings: context,
    }
  }
  if (store.has('rope_factors_long.weight'))
    return {
      ...basic,
      rope_type: 'longrope',
      short_factor: await divisors('rope_factors_short.weight'),
      long_factor: await divisors('rope_factors_long.weight'),
      attention_factor: get('rope.scaling.attn_factor') ?? 1,
      original_max_position_embeddings: original ?? context,
    }
  const type = get('rope.scaling.type')
  if (type === undefined || type === 'none') return { ...basic, rope_type: 'default' }
  return {
    ...basic,
    rope_type: type,
    factor: get('rope.scaling.factor') ?? 1,
    original_max_position_embeddings: original ?? context,
    ...(get('rope.scaling.yarn_beta_fast') === undefined ? {} : { beta_fast: get('rope.scaling.yarn_beta_fast') }),
    ...(get('rope.scaling.yarn_beta_slow') === undefined ? {} : { beta_slow: get('rope.scaling.yarn_beta_slow') }),
  }
}

function rename(name: string, names: TensorNames): string {
  const layer = /^blk\.(\d+)\./.exec(name)?.[1]
  const [, stem, suffix] = /^(.*)\.(weight|bias)$/.exec(name) ?? []
  if (stem === undefined) return name
  const known = names[layer === undefined ? stem : stem.replace(`blk.${layer}.`, 'blk.{L}.')]
  return known ? `${known.replace('{L}', String(layer))}.${suffix}` : name
}
