/** @file Tensor names of GGUF files, by the layout of the checkpoint that they were made from: GGUF stem → module path, `{L}` for the layer. */

/** Names of one layout. */
export type TensorNames = Readonly<Record<string, string>>

const inBlocks = (prefix: string, names: TensorNames): TensorNames =>
  Object.fromEntries(Object.entries(names).map(([from, to]) => [`blk.{L}.${from}`, `${prefix}.{L}.${to}`]))

/** The layout of Llama; `attn_norm` and `ffn_norm` are those of its two norms. */
export const llamaNames: TensorNames = {
  token_embd: 'model.embed_tokens',
  output_norm: 'model.norm',
  output: 'lm_head',
  ...inBlocks('model.layers', {
    attn_norm: 'input_layernorm',
    attn_q: 'self_attn.q_proj',
    attn_k: 'self_attn.k_proj',
    attn_v: 'self_attn.v_proj',
    attn_q_norm: 'self_attn.q_norm',
    attn_k_norm: 'self_attn.k_norm',
    attn_output: 'self_attn.o_proj',
    ffn_norm: 'post_attention_layernorm',
    ffn_gate: 'mlp.gate_proj',
    ffn_up: 'mlp.up_proj',
    ffn_down: 'mlp.down_proj',
    ffn_gate_inp: 'mlp.gate',
    ffn_gate_exps: 'mlp.experts.gate_proj',
    ffn_up_exps: 'mlp.experts.up_proj',
    ffn_down_exps: 'mlp.experts.down_proj',
    ffn_gate_shexp: 'mlp.shared_expert.gate_proj',
    ffn_up_shexp: 'mlp.shared_expert.up_proj',
    ffn_down_shexp: 'mlp.shared_expert.down_proj',
  }),
}

/** Mixtral and Granite with experts. */
export const sparseNames = (router: string): TensorNames => ({
  ...llamaNames,
  ...inBlocks('model.layers', {
    ffn_gate_inp: `block_sparse_moe.${router}`,
    ffn_gate_exps: 'block_sparse_moe.experts.gate_proj',
    ffn_up_exps: 'block_sparse_moe.experts.up_proj',
    ffn_down_exps: 'block_sparse_moe.experts.down_proj',
  }),
})

/** Qwen 2 with experts; the gate of the shared one is a vector there. */
export const qwen2MoeNames: TensorNames = { ...llamaNames, 'blk.{L}.ffn_gate_inp_shexp': 'model.layers.{L}.mlp.shared_expert_gate' }

/** Gemma 2 and 3. */
export const sandwichNames: TensorNames = {
  ...llamaNames,
  ...inBlocks('model.layers', {
    post_attention_norm: 'post_attention_layernorm',
    ffn_norm: 'pre_feedforward_layernorm',
    post_ffw_norm: 'post_feedforward_layernorm',
  }),
}

/** OLMo 2 and EXAONE 4: norms after the modules only. */
export const postNormNames: TensorNames = {
  ...llamaNames,
  ...inBlocks('model.layers', { post_attention_norm: 'post_attention_layernorm', post_ffw_norm: 'post_feedforward_layernorm' }),
}

/** GLM 4 of 2025. */
export const glm4Names: TensorNames = {
  ...llamaNames,
  ...inBlocks('model.layers', {
    post_attention_norm: 'post_self_attn_layernorm',
    post_ffw_norm: 'post_mlp_layernorm',
    ffn_up: 'mlp.gate_up_proj',
  }),
}

/** Seed-OSS, whose second norm goes by another name. */
export const seedOssNames: TensorNames = {
  ...llamaNames,
  'blk.{L}.post_attention_norm': 'model.layers.{L}.post_attention_layernorm',
}

/** Phi 3: fused projections. */
export const phi3Names: TensorNames = {
  ...llamaNames,
  ...inBlocks('model.layers', { attn_qkv: 'self_attn.qkv_proj', ffn_up: 'mlp.gate_up_proj' }),
}

/** Phi 1 and 2. */
export const phi2Names: TensorNames = {
  ...llamaNames,
  output_norm: 'model.final_layernorm',
  ...inBlocks('model.layers', { attn_output: 'self_attn.dense', ffn_up: 'mlp.fc1', ffn_down: 'mlp.fc2' }),
}

/** StarCoder 2. */
export const starcoder2Names: TensorNames = { ...llamaNames, ...inBlocks('model.layers', { ffn_up: 'mlp.c_fc', ffn_down: 'mlp.c_proj' }) }

/** GPT-2 and StarCoder 1. */
export const gpt2Names: TensorNames = {
  token_embd: 'transformer.wte',
  position_embd: 'transformer.wpe',
  output_norm: 'transformer.ln_f',
  output: 'lm_head',
  ...inBlocks('transformer.h', {
    attn_norm: 'ln_1',
    attn_qkv: 'attn.c_attn',
    attn_output: 'attn.c_proj',
    ffn_norm: 'ln_2',
    ffn_up: 'mlp.c_fc',
    ffn_down: 'mlp.c_proj',
  }),
}

const wideMlp = { ffn_up: 'mlp.dense_h_to_4h', ffn_down: 'mlp.dense_4h_to_h' }

/** GPT-NeoX. */
export const gptNeoxNames: TensorNames = {
  token_embd: 'gpt_neox.embed_in',
  output_norm: 'gpt_neox.final_layer_norm',
  output: 'embed_out',
  ...inBlocks('gpt_neox.layers', {
    attn_norm: 'input_layernorm',
    attn_qkv: 'attention.query_key_value',
    attn_output: 'attention.dense',
    ffn_norm: 'post_attention_layernorm',
    ...wideMlp,
  }),
}

/** BLOOM. */
export const bloomNames: TensorNames = {
  token_embd: 'transformer.word_embeddings',
  token_embd_norm: 'transformer.word_embeddings_layernorm',
  output_norm: 'transformer.ln_f',
  output: 'lm_head',
  ...inBlocks('transformer.h', {
    attn_norm: 'input_layernorm',
    attn_qkv: 'self_attention.query_key_value',
    attn_output: 'self_attention.dense',
    ffn_norm: 'post_attention_layernorm',
    ...wideMlp,
  }),
}

/** Falcon with two norms before its branches, or one. */
export const falconNames = (twoNorms: boolean): TensorNames => ({
  ...bloomNames,
  ...inBlocks('transformer.h', twoNorms ? { attn_norm: 'ln_mlp', attn_norm_2: 'ln_attn' } : {}),
})
