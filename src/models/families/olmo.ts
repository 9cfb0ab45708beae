/** @file OLMo 1, 2 and 3. */
import type { ConfigReader } from '../config.ts'
import type { DecoderSpec } from '../spec.ts'
import { type LlamaFacts, llamaLike } from './llama.ts'
import { over, rms, windowOf } from './parts.ts'

const biases = (c: ConfigReader) => {
  const bias = c.flag('attention_bias', false)
  return { qkvBias: bias, outputBias: bias }
}

/** Reads an OLMo 1 config: layer norms without parameters, q, k and v clamped. */
export function olmo(c: ConfigReader): DecoderSpec {
  const clip = c.maybe('clip_qkv')
  return llamaLike(c, {
    family: 'olmo',
    ...biases(c),
    norm: () => ({ kind: 'layer', eps: 1e-5 }),
    attention: clip ? { clip } : {},
  })
}

/** Norms after each module instead of before it, and over all of q and of k. */
const reordered = (c: ConfigReader): Pick<LlamaFacts, 'block' | 'headNorm' | 'sites' | 'qkvBias' | 'outputBias'> => {
  const eps = c.number('rms_norm_eps', 1e-5)
  return {
    ...biases(c),
    headNorm: (path) => over('all heads', rms(path, eps)),
    ...postNorms(eps),
  }
}

/** No norm before a module, one after it. */
export const postNorms = (eps: number): Pick<LlamaFacts, 'block' | 'sites'> => ({
  block: (at) => ({
    attnNorm: undefined,
    mlpNorm: undefined,
    attnPostNorm: rms(at('post_attention_layernorm'), eps),
    mlpPostNorm: rms(at('post_feedforward_layernorm'), eps),
  }),
  sites: {
    attn_in: undefined,
    mlp_in: undefined,
    attn_out_post: 'post_attention_layernorm',
    mlp_out_post: 'post_feedforward_layernorm',
  },
})

/** Reads an OLMo 2 config. */
export const olmo2 = (c: ConfigReader): DecoderSpec => llamaLike(c, { family: 'olmo2', ...reordered(c) })

/** Reads an OLMo 3 config: three layers with windows to one without. */
export const olmo3 = (c: ConfigReader): DecoderSpec =>
  llamaLike(c, { family: 'olmo3', ...reordered(c), window: windowOf(c, (layer) => (layer + 1) % 4 !== 0) })
