/** @file Phi 1, 1.5 and 2 (`phi`), and Phi 3 and 4 (`phi3`). */
import type { ConfigReader } from '../config.ts'
import type { DecoderSpec } from '../spec.ts'
import { head, llamaLike } from './llama.ts'
import { activations, fusedGate, layerNorm, linear, over } from './parts.ts'

/** Reads a Phi 1 or 2 config: attention and MLP side by side after one layer norm, half of each head rotates, biases everywhere. */
export function phi(c: ConfigReader): DecoderSpec {
  const eps = c.number('layer_norm_eps', 1e-5)
  const activation = c.choice('hidden_act', activations, 'gelu_new')
  const spec = llamaLike(c, {
    family: 'phi',
    qkvBias: true,
    outputBias: true,
    outputName: 'dense',
    norm: (path) => layerNorm(path, eps),
    rotary: { fraction: 0.5 },
    ...(c.flag('qk_layernorm', false)
      ? { headNorm: (path) => over('head', layerNorm(path, eps)), headNormNames: ['q_layernorm', 'k_layernorm'] as const }
      : {}),
    mlp: (path) => ({ kind: 'plain', up: linear(`${path}.fc1`, true), down: linear(`${path}.fc2`, true), activation }),
    block: () => ({ residual: 'parallel', mlpNorm: undefined }),
    sites: { mlp_in: undefined, mlp_pre: 'mlp.fc1', mlp_pre_linear: undefined },
  })
  return {
    ...spec,
    finalNorm: layerNorm('model.final_layernorm', eps),
    head: head(c, false, true),
    modules: { ...spec.modules, finalNorm: 'model.final_layernorm' },
  }
}

/** Reads a Phi 3 or 4 config: Llama with fused projections. */
export function phi3(c: ConfigReader): DecoderSpec {
  const activation = c.choice('hidden_act', activations, 'silu')
  const window = c.optionalInteger('sliding_window')
  return llamaLike(c, {
    family: 'phi3',
    window: () => window,
    projection: (path) => ({ kind: 'fused', qkv: linear(`${path}.qkv_proj`), order: 'concatenated' }),
    mlp: (path) => fusedGate(path, activation),
    sites: { q: undefined, k: undefined, v: undefined, mlp_pre: undefined, mlp_pre_linear: undefined },
  })
}
