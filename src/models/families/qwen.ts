/** @file Qwen 1.5, 2, 2.5 and 3, dense and with experts. */
import type { ConfigReader } from '../config.ts'
import type { DecoderSpec, ExpertMlp, Mlp } from '../spec.ts'
import { type LlamaFacts, llamaLike } from './llama.ts'
import { activations, commonSizes, gated, linear, over, rms, stackedExpert, windowOf } from './parts.ts'

/** Windows are asked for by a flag; then the layers from `max_window_layers` on have them. */
function windows(c: ConfigReader): NonNullable<LlamaFacts['window']> {
  if (!c.flag('use_sliding_window', false)) return () => undefined
  const first = c.optionalInteger('max_window_layers') ?? 28
  return windowOf(c, (layer) => layer >= first)
}

const headNorms = (c: ConfigReader) => (path: string) => over('head', rms(path, c.number('rms_norm_eps', 1e-6)))

/** Reads a Qwen 2 config (and 1.5, 2.5): Llama with biases on q, k and v. */
export const qwen2 = (c: ConfigReader): DecoderSpec => llamaLike(c, { family: 'qwen2', qkvBias: true, window: windows(c) })

/** Reads a Qwen 3 config: Llama with norms of q and k. */
export function qwen3(c: ConfigReader): DecoderSpec {
  const bias = c.flag('attention_bias', false)
  return llamaLike(c, { family: 'qwen3', qkvBias: bias, outputBias: bias, headNorm: headNorms(c), window: windows(c) })
}

/** The MLP of a layer: experts, but where the config says dense. */
function mixture(c: ConfigReader, normalised: boolean): (path: string, layer: number) => Mlp {
  const activation = c.choice('hidden_act', activations, 'silu')
  const count = c.integer('num_experts', 'num_local_experts')
  const perToken = c.integer('num_experts_per_tok')
  const width = c.optionalInteger('moe_intermediate_size') ?? commonSizes(c).dMlp
  const shared = c.optionalInteger('shared_expert_intermediate_size')
  const stacked = c.flag('experts_stacked', false)
  const step = c.optionalInteger('decoder_sparse_step') ?? 1
  const dense = c.config.mlp_only_layers ? c.numbers('mlp_only_layers') : []
  return (path, layer) => {
    if (dense.includes(layer) || (layer + 1) % step !== 0) return gated(path, activation)
    const mlp: ExpertMlp = {
      kind: 'experts',
      router: linear(`${path}.gate`),
      count,
      perToken,
      width,
      normalised,
      expert: stacked ? stackedExpert(`${path}.experts`, activation, count) : (e) => gated(`${path}.experts.${e}`, activation),
      ...(shared
        ? { shared: { mlp: gated(`${path}.shared_expert`, activation), width: shared, gate: linear(`${path}.shared_expert_gate`) } }
        : {}),
    }
    return mlp
  }
}

const routed = { router_logits: 'mlp.gate' }

/** Reads a Qwen 1.5/2 config with experts, of which one is shared. */
export const qwen2Moe = (c: ConfigReader): DecoderSpec =>
  llamaLike(c, {
    family: 'qwen2_moe',
    qkvBias: c.flag('qkv_bias', true),
    window: windows(c),
    mlp: mixture(c, c.flag('norm_topk_prob', false)),
    sites: routed,
  })

/** Reads a Qwen 3 config with experts. */
export function qwen3Moe(c: ConfigReader): DecoderSpec {
  const bias = c.flag('attention_bias', false)
  const window = c.flag('use_sliding_window', false) ? c.optionalInteger('sliding_window') : undefined
  return llamaLike(c, {
    family: 'qwen3_moe',
    qkvBias: bias,
    outputBias: bias,
    headNorm: headNorms(c),
    window: () => window,
    mlp: mixture(c, c.flag('norm_topk_prob', false)),
    sites: routed,
  })
}

/** Reads an OLMoE config, whose experts are laid out as Qwen's. */
export function olmoe(c: ConfigReader): DecoderSpec {
  const clip = c.maybe('clip_qkv')
  const bias = c.flag('attention_bias', false)
  return llamaLike(c, {
    family: 'olmoe',
    qkvBias: bias,
    outputBias: bias,
    headNorm: (path) => over('all heads', rms(path, c.number('rms_norm_eps', 1e-5))),
    attention: clip ? { clip } : {},
    mlp: mixture(c, c.flag('norm_topk_prob', false)),
    sites: routed,
  })
}
