/** @file Further families of the Llama layout that differ from it in one or two things: StableLM, StarCoder 2, SmolLM 3, GLM, EXAONE 4 and others. */
import type { ConfigReader } from '../config.ts'
import type { DecoderSpec, DenseMlp, HeadNorm } from '../spec.ts'
import { llamaLike } from './llama.ts'
import { postNorms } from './olmo.ts'
import { activations, commonSizes, fusedGate, gated, layerNorm, linear, over, rms, windowOf } from './parts.ts'

/** Reads a StableLM config: layer norms, a quarter of each head rotates; the 12B has parallel blocks and a norm of its own for each head. */
export function stablelm(c: ConfigReader): DecoderSpec {
  const eps = c.number('layer_norm_eps', 1e-5)
  const { heads, kvHeads } = commonSizes(c)
  const eachHead = (path: string): HeadNorm => ({
    ...layerNorm(path, eps, false),
    over: 'own head',
    weight: Array.from({ length: path.endsWith('q_layernorm') ? heads : kvHeads }, (_, h) => `${path}.norms.${h}.weight`),
  })
  const parallel = c.flag('use_parallel_residual', false)
  return llamaLike(c, {
    family: 'stablelm',
    qkvBias: c.flag('use_qkv_bias', false),
    norm: (path) => layerNorm(path, eps),
    rotary: { fraction: 0.25 },
    ...(c.flag('qk_layernorm', false) ? { headNorm: eachHead, headNormNames: ['q_layernorm', 'k_layernorm'] as const } : {}),
    ...(parallel ? { block: () => ({ residual: 'parallel', mlpNorm: undefined }), sites: { mlp_in: undefined } } : {}),
  })
}

/** Reads a StarCoder 2 config: layer norms, biases, a plain MLP. */
export function starcoder2(c: ConfigReader): DecoderSpec {
  const eps = c.number('norm_epsilon', 1e-5)
  const bias = c.flag('use_bias', true)
  const activation = c.choice('hidden_act', activations, 'gelu_pytorch_tanh')
  return llamaLike(c, {
    family: 'starcoder2',
    qkvBias: bias,
    outputBias: bias,
    norm: (path) => layerNorm(path, eps),
    tied: true,
    window: windowOf(c, () => true),
    mlp: (path) => ({ kind: 'plain', up: linear(`${path}.c_fc`, bias), down: linear(`${path}.c_proj`, bias), activation }),
    sites: { mlp_pre: 'mlp.c_fc', mlp_pre_linear: undefined },
  })
}

/** Reads a SmolLM 3 config: every fourth layer does not rotate. */
export function smollm3(c: ConfigReader): DecoderSpec {
  const bias = c.flag('attention_bias', false)
  const interval = c.optionalInteger('no_rope_layer_interval') ?? 4
  const given = c.config.no_rope_layers ? c.numbers('no_rope_layers') : undefined
  const rotates = (layer: number) => (given ? given[layer] === 1 : (layer + 1) % interval !== 0)
  return llamaLike(c, {
    family: 'smollm3',
    qkvBias: bias,
    outputBias: bias,
    mlpBias: c.flag('mlp_bias', false),
    tied: true,
    rotary: { theta: 2e6 },
    rotaryOf: (layer, rotary) => (rotates(layer) ? rotary : undefined),
    window: c.flag('use_sliding_window', false) ? windowOf(c, (layer) => !rotates(layer)) : () => undefined,
  })
}

const glmMlp = (c: ConfigReader) => {
  const activation = c.choice('hidden_act', activations, 'silu')
  return (path: string): DenseMlp => fusedGate(path, activation)
}

/** Reads a GLM 4 config of the first release (`glm`): half of each head rotates, in neighbouring pairs. */
export const glm = (c: ConfigReader): DecoderSpec =>
  llamaLike(c, {
    family: 'glm',
    qkvBias: c.flag('attention_bias', false),
    rotary: { interleaved: true, fraction: 0.5 },
    mlp: glmMlp(c),
    sites: { mlp_pre: undefined, mlp_pre_linear: undefined },
  })

/** Reads a GLM 4 config of 2025 (`glm4`): norms on both sides of each module. */
export function glm4(c: ConfigReader): DecoderSpec {
  const eps = c.number('rms_norm_eps', 1e-5)
  return llamaLike(c, {
    family: 'glm4',
    qkvBias: c.flag('attention_bias', false),
    rotary: { interleaved: true, fraction: 0.5 },
    mlp: glmMlp(c),
    block: (at) => ({
      attnPostNorm: rms(at('post_self_attn_layernorm'), eps),
      mlpPostNorm: rms(at('post_mlp_layernorm'), eps),
    }),
    sites: {
      mlp_pre: undefined,
      mlp_pre_linear: undefined,
      attn_out_post: 'post_self_attn_layernorm',
      mlp_out_post: 'post_mlp_layernorm',
    },
  })
}

/** Reads an EXAONE 4 config: norms after the modules, norms of q and k; with windows, layers without one do not rotate. */
export function exaone4(c: ConfigReader): DecoderSpec {
  const eps = c.number('rms_norm_eps', 1e-5)
  const pattern = c.optionalInteger('sliding_window_pattern') ?? 4
  const window = windowOf(c, (layer) => (layer + 1) % pattern !== 0)
  const windowed = c.optionalInteger('sliding_window') !== undefined
  return llamaLike(c, {
    family: 'exaone4',
    headNorm: (path) => over('head', rms(path, eps)),
    ...postNorms(eps),
    window,
    rotaryOf: (layer, rotary) => (!windowed || window(layer) ? rotary : undefined),
  })
}

/** An MLP without gate, under Llama's names. */
const ungated = (c: ConfigReader, otherwise: string) => {
  const activation = c.choice('hidden_act', activations, otherwise)
  const bias = c.flag('mlp_bias', false)
  return (path: string): DenseMlp => ({
    kind: 'plain',
    up: linear(`${path}.up_proj`, bias),
    down: linear(`${path}.down_proj`, bias),
    activation,
  })
}

/** Reads a Nemotron config: layer norms whose gains are stored less one, squared ReLU. */
export function nemotron(c: ConfigReader): DecoderSpec {
  const eps = c.number('norm_eps', 1e-5)
  const bias = c.flag('attention_bias', false)
  return llamaLike(c, {
    family: 'nemotron',
    qkvBias: bias,
    outputBias: bias,
    norm: (path) => ({ ...layerNorm(path, eps), plusOne: !c.flag('gains_whole', false) }),
    rotary: { fraction: 0.5 },
    mlp: ungated(c, 'relu2'),
    sites: { mlp_pre: 'mlp.up_proj', mlp_pre_linear: undefined },
  })
}

/** Reads an Arcee config: squared ReLU without gate. */
export function arcee(c: ConfigReader): DecoderSpec {
  const bias = c.flag('attention_bias', false)
  return llamaLike(c, {
    family: 'arcee',
    qkvBias: bias,
    outputBias: bias,
    mlp: ungated(c, 'relu2'),
    sites: { mlp_pre: 'mlp.up_proj', mlp_pre_linear: undefined },
  })
}

/** Reads a Seed-OSS config: biases on q, k and v, and on the output by a flag of its own. */
export const seedOss = (c: ConfigReader): DecoderSpec =>
  llamaLike(c, {
    family: 'seed_oss',
    qkvBias: c.flag('attention_bias', true),
    outputBias: c.flag('attention_out_bias', false),
    mlpBias: c.flag('mlp_bias', false),
  })

/** Reads a Helium config: neighbouring pairs rotate. */
export function helium(c: ConfigReader): DecoderSpec {
  const bias = c.flag('attention_bias', false)
  return llamaLike(c, { family: 'helium', qkvBias: bias, mlpBias: c.flag('mlp_bias', false), rotary: { interleaved: true, theta: 1e5 } })
}

/** Reads an ERNIE 4.5 config: neighbouring pairs rotate. */
export function ernie45(c: ConfigReader): DecoderSpec {
  const bias = c.flag('use_bias', false)
  const activation = c.choice('hidden_act', activations, 'silu')
  return llamaLike(c, {
    family: 'ernie4_5',
    qkvBias: bias,
    outputBias: bias,
    mlp: (path) => gated(path, activation, bias),
    tied: true,
    rotary: { interleaved: true, theta: 5e5 },
  })
}
