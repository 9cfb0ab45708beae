import { describe, expect, it } from 'vitest'
import { cacheHolds, ropeAmplitude, ropeFrequencies } from '../rope.ts'
import type { Rotary } from '../spec.ts'
import { families, specOf } from './index.ts'

const llama = {
  model_type: 'llama',
  hidden_size: 64,
  intermediate_size: 128,
  num_hidden_layers: 6,
  num_attention_heads: 4,
  num_key_value_heads: 2,
  vocab_size: 100,
  max_position_embeddings: 4096,
  hidden_act: 'silu',
  rms_norm_eps: 1e-5,
}
const rotaryOf = (config: object, layer = 0) => specOf({ ...llama, ...config }).block(layer).attention.rotary as Rotary

describe('unlisted families', () => {
  it('are read by their declared facts when these are all of the Llama layout and somebody says so', () => {
    const spec = specOf(
      { ...llama, model_type: 'yi', architectures: ['YiForCausalLM'], attention_bias: true, attention_dropout: 0.1 },
      'declared',
    )
    expect(spec.family).toBe('yi')
    expect(() => specOf({ ...llama, model_type: 'yi' })).toThrow(/load it with the family 'declared'/)
    expect(specOf({ ...llama, model_type: 'yi' }, 'qwen2').family).toBe('qwen2')
    expect(spec.block(0).attention.projection).toMatchObject({ q: { bias: 'model.layers.0.self_attn.q_proj.bias' } })
  })

  it('are refused with the fact that is missing', () => {
    const { rms_norm_eps: _, hidden_act: __, ...rest } = llama
    expect(() => specOf({ ...rest, model_type: 'lama' })).toThrow(
      /'lama' is not known.*nearest: llama.*hidden_act, rms_norm_eps are missing/s,
    )
    expect(() => specOf({ hidden_size: 3 })).toThrow(/no 'model_type'/)
  })

  it('are refused with the fact that is not understood', () => {
    expect(() => specOf({ ...llama, model_type: 'new', num_experts: 8, qk_norm: true, use_moe: false })).toThrow(
      /sets num_experts, qk_norm, which the Llama layout does not know/,
    )
  })
})

describe('configs that contradict themselves', () => {
  it.each([
    [{ num_attention_heads: 5 }, /do not divide evenly/],
    [{ num_key_value_heads: 3 }, /do not divide evenly/],
    [{ num_hidden_layers: 0 }, /at least 1/],
    [{ hidden_act: 'gleu' }, /not known.*nearest: gelu/],
    [{ rope_scaling: { type: 'cubic' } }, /RoPE scaling 'cubic' is not known/],
    [{ partial_rotary_factor: 2 }, /cannot be done/],
    [{ model_type: 'bloom', apply_residual_connection_post_layernorm: true, n_head: 4, n_layer: 2 }, /must be false/],
  ])('%j', (change, message) => {
    expect(() => specOf({ ...llama, ...change })).toThrow(message)
  })

  it('are no property of an object', () => {
    expect(Object.hasOwn(families, 'constructor')).toBe(false)
    expect(() => specOf({ model_type: 'constructor' })).toThrow(/is not known/)
  })
})

describe('rotary frequencies', () => {
  const theta = (i: number, dim = 16, base = 10_000) => base ** ((-2 * i) / dim)
  const close = (ours: Float32Array, expected: (i: number) => number) => {
    for (const [i, f] of ours.entries()) expect(f / expected(i)).toBeCloseTo(1, 5)
  }

  it('are those of the config before and after transformers 5', () => {
    close(ropeFrequencies(rotaryOf({})), (i) => theta(i))
    close(ropeFrequencies(rotaryOf({ rope_theta: 5e5 })), (i) => theta(i, 16, 5e5))
    close(ropeFrequencies(rotaryOf({ rope_parameters: { rope_type: 'default', rope_theta: 5e5 } })), (i) => theta(i, 16, 5e5))
    close(ropeFrequencies(rotaryOf({ rope_scaling: { type: 'linear', factor: 4 } })), (i) => theta(i) / 4)
  })

  it('keep an odd number of coordinates in their exponents', () => {
    const r = rotaryOf({ model_type: 'gpt_neox', hidden_size: 48, rotary_pct: 0.25 })
    expect(r.dim).toBe(4)
    close(ropeFrequencies(r), (i) => theta(i, 3))
  })

  it('of yarn keep fast pairs, stretch slow ones, and grow in amplitude', () => {
    const r = rotaryOf({ head_dim: 64, rope_scaling: { rope_type: 'yarn', factor: 8, original_max_position_embeddings: 512 } })
    const f = ropeFrequencies(r)
    expect(f[0]).toBe(1)
    expect((f[31] as number) / theta(31, 64)).toBeCloseTo(1 / 8, 6)
    expect(ropeAmplitude(r)).toBeCloseTo(0.1 * Math.log(8) + 1, 12)
  })

  it('of longrope are divided by one list or the other', () => {
    const lists = { short_factor: [1, 2, 3, 4, 5, 6, 7, 8], long_factor: [8, 7, 6, 5, 4, 3, 2, 1] }
    const r = rotaryOf({ original_max_position_embeddings: 1024, rope_scaling: { type: 'su', ...lists } })
    close(ropeFrequencies(r), (i) => theta(i) / (i + 1))
    close(ropeFrequencies(r, true), (i) => theta(i) / (8 - i))
    expect(ropeAmplitude(r)).toBeCloseTo(Math.sqrt(1 + Math.log(4) / Math.log(1024)), 12)
    expect(cacheHolds([r], 1000, 1024)).toBe(true)
    expect(cacheHolds([r], 1024, 1025)).toBe(false)
  })

  it('of dynamic scaling reach beyond the declared length', () => {
    const spec = specOf({ ...llama, rope_scaling: { type: 'dynamic', factor: 2 } })
    expect(spec.maxPositions).toBe(8192)
    const r = spec.block(0).attention.rotary as Rotary
    expect([cacheHolds([r], 10, 4096), cacheHolds([r], 4096, 4097), cacheHolds([r], 5000, 5001)]).toEqual([true, false, false])
  })
})

describe('layers that differ', () => {
  it('of Gemma 3 rotate by their kind, in the first configs and in later ones', () => {
    const gemma = { ...llama, model_type: 'gemma3_text', head_dim: 16, sliding_window: 512, rms_norm_eps: 1e-6 }
    const first = specOf({ ...gemma, rope_theta: 1e6, rope_local_base_freq: 1e4, rope_scaling: { rope_type: 'linear', factor: 8 } })
    const later = specOf({
      ...gemma,
      rope_parameters: {
        full_attention: { rope_type: 'linear', factor: 8, rope_theta: 1e6 },
        sliding_attention: { rope_type: 'default', rope_theta: 1e4 },
      },
      layer_types: [...Array(5).fill('sliding_attention'), 'full_attention'],
    })
    for (const spec of [first, later]) {
      expect(spec.block(4).attention).toMatchObject({ window: 512, rotary: { theta: 1e4, scaling: { kind: 'none' } } })
      expect(spec.block(5).attention).toMatchObject({ rotary: { theta: 1e6, scaling: { kind: 'linear', factor: 8 } } })
      expect(spec.block(5).attention.window).toBeUndefined()
    }
  })

  it('of SmolLM 3 and Cohere 2 do not all rotate', () => {
    const smol = specOf({ ...llama, model_type: 'smollm3' })
    expect([0, 1, 2, 3, 4].map((l) => smol.block(l).attention.rotary !== undefined)).toEqual([true, true, true, false, true])
    const cohere = specOf({ ...llama, model_type: 'cohere2', sliding_window: 128 })
    expect([2, 3].map((l) => cohere.block(l).attention.rotary !== undefined)).toEqual([true, false])
  })

  it('of Mistral have the first release’s window unless the config says otherwise', () => {
    expect(specOf({ ...llama, model_type: 'mistral' }).block(0).attention.window).toBe(4096)
    expect(specOf({ ...llama, model_type: 'mistral', sliding_window: null }).block(0).attention.window).toBeUndefined()
  })
})
