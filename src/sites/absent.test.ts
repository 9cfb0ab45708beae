import { describe, expect, it } from 'vitest'
import { specOf } from '../models/families/index.ts'
import { SiteResolver } from './address.ts'

const base = {
  hidden_size: 32,
  intermediate_size: 64,
  num_hidden_layers: 2,
  num_attention_heads: 4,
  num_key_value_heads: 2,
  vocab_size: 50,
  max_position_embeddings: 64,
}
const resolver = (config: object) => new SiteResolver([specOf({ ...base, ...config })])

describe('sites that a model lacks', () => {
  it.each([
    [{ model_type: 'gptj', rotary_dim: 4, n_positions: 64 }, 'resid_mid.0', /both read resid_pre/],
    [{ model_type: 'gptj', rotary_dim: 4, n_positions: 64 }, 'mlp_in_scale.0', /the same norm, whose inside is attn_in_scale/],
    [{ model_type: 'bloom', n_head: 4, n_layer: 2 }, 'q_rot.0', /positions are alibi/],
    [{ model_type: 'smollm3', no_rope_layers: [1, 0] }, 'q_rot.1', /layer 1 of 'smollm3' does not rotate/],
    [{ model_type: 'llama' }, 'k_norm_out.0', /no norm of keys/],
    [{ model_type: 'llama' }, 'router_logits.0', /has no experts/],
    [{ model_type: 'llama' }, 'attn_out_post_scale.0', /no norm on the output of its attention/],
    [{ model_type: 'olmo2' }, 'attn_in_scale.0', /reads the residual stream as it is/],
    [{ model_type: 'mixtral', num_local_experts: 4, num_experts_per_tok: 2 }, 'mlp_act.0', /mixture of experts.*read router_logits/],
    [{ model_type: 'opt', ffn_dim: 64, do_layer_norm_before: false }, 'final_norm', /no final norm/],
    [{ model_type: 'llama' }, 'cross_attn_probs.0', /read no other stack/],
    [{ model_type: 'llama' }, 'last_hidden_state', /read final_norm or logits/],
  ])('%j %s', (config, site, reason) => {
    expect(() => resolver(config).one(site)).toThrow(reason)
  })

  it('are absent in the layers that lack them only', () => {
    const moe = resolver({
      model_type: 'qwen2_moe',
      num_experts: 4,
      num_experts_per_tok: 2,
      moe_intermediate_size: 16,
      mlp_only_layers: [1],
    })
    expect(moe.many('router_logits.*').map((i) => i.site)).toEqual(['router_logits.0'])
    expect(moe.many('mlp_act.*').map((i) => i.site)).toEqual(['mlp_act.1'])
    expect(() => moe.one('router_logits.1')).toThrow(/layer 1 has no experts; other layers have/)
  })
})

describe('aliases', () => {
  it('mean what TransformerLens means in each family', () => {
    const site = (config: object, alias: string) => resolver(config).one(alias).site
    const gated = { model_type: 'llama' }
    const parallel = { model_type: 'gpt_neox' }
    expect(site(gated, 'blocks.1.mlp.in.hook_out')).toBe('mlp_pre_linear.1')
    expect(site(parallel, 'blocks.1.mlp.in.hook_out')).toBe('mlp_pre.1')
    expect(site(gated, 'blocks.0.ln2.hook_in')).toBe('resid_mid.0')
    expect(site(parallel, 'blocks.0.ln2.hook_in')).toBe('resid_pre.0')
    expect(site(gated, 'ln_final.hook_in')).toBe('resid_post.1')
    expect(site({ model_type: 'gemma2' }, 'blocks.0.ln1_post.hook_out')).toBe('attn_out_post.0')
  })

  it('mean Hugging Face modules by their path', () => {
    const site = (config: object, alias: string) => resolver(config).one(alias).site
    expect(site({ model_type: 'gemma2' }, 'model.layers.0.post_attention_layernorm')).toBe('attn_out_post.0')
    expect(site({ model_type: 'llama' }, 'model.layers.0.post_attention_layernorm')).toBe('mlp_in.0')
    expect(site({ model_type: 'qwen3' }, 'model.layers.1.self_attn.q_norm')).toBe('q_norm_out.1')
    expect(site({ model_type: 'opt', ffn_dim: 64 }, 'model.decoder.layers.1.fc2')).toBe('mlp_out.1')
    expect(() => resolver({ model_type: 'granite' }).one('model.embed_tokens')).toThrow(/no site/)
  })
})
