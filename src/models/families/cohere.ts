/** @file Cohere's Command R and Command R7B / A: attention and MLP read the same norm, side by side. */
import type { ConfigReader } from '../config.ts'
import type { DecoderSpec } from '../spec.ts'
import { type LlamaFacts, llamaLike } from './llama.ts'
import { layerNorm, over, windowOf } from './parts.ts'

function cohereLike(c: ConfigReader, facts: LlamaFacts): DecoderSpec {
  const eps = c.number('layer_norm_eps', 1e-5)
  const bias = c.flag('attention_bias', false)
  const spec = llamaLike(c, {
    qkvBias: bias,
    outputBias: bias,
    norm: (path) => layerNorm(path, eps, false),
    rotary: { interleaved: true },
    tied: true,
    block: () => ({ residual: 'parallel', mlpNorm: undefined }),
    sites: { mlp_in: undefined },
    ...facts,
  })
  return { ...spec, logitScale: c.number('logit_scale', 0.0625) }
}

/** Reads a Cohere config. */
export function cohere(c: ConfigReader): DecoderSpec {
  const eps = c.number('layer_norm_eps', 1e-5)
  return cohereLike(c, {
    family: 'cohere',
    ...(c.flag('use_qk_norm', false) ? { headNorm: (path) => over('own head', layerNorm(path, eps, false)) } : {}),
  })
}

/** Reads a Cohere 2 config: layers with a window rotate, those without know no positions. */
export function cohere2(c: ConfigReader): DecoderSpec {
  const pattern = c.optionalInteger('sliding_window_pattern', '_sliding_window_pattern') ?? 4
  const window = windowOf(c, (layer) => (layer + 1) % pattern !== 0)
  return cohereLike(c, { family: 'cohere2', window, rotaryOf: (layer, rotary) => (window(layer) ? rotary : undefined) })
}
