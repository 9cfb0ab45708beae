/** @file Gemma 1, 2 and 3: gains stored less one, scaled embeddings, norms on both sides of each module. */
import { ModelError } from '../../base/errors.ts'
import { ConfigReader } from '../config.ts'
import { readRotary } from '../rope.ts'
import type { DecoderSpec, Norm } from '../spec.ts'
import { type LlamaFacts, llamaLike } from './llama.ts'
import { activations, commonSizes, gated, over, rms, windowOf } from './parts.ts'

/** Norms whose gain is stored less one, but in GGUF files. */
function gains(c: ConfigReader): (path: string) => Norm {
  const eps = c.number('rms_norm_eps', 1e-6)
  const plusOne = !c.flag('gains_whole', false)
  return (path) => rms(path, eps, plusOne)
}

function gemmaLike(c: ConfigReader, facts: LlamaFacts): DecoderSpec {
  const norm = gains(c)
  const field = c.has('hidden_activation') && c.config.hidden_activation !== null ? 'hidden_activation' : 'hidden_act'
  // The first release said gelu and meant its approximation.
  const activation = c.choice(field, { ...activations, gelu: 'gelu_tanh' } as typeof activations, 'gelu_pytorch_tanh')
  const spec = llamaLike(c, {
    norm,
    mlp: (path) => gated(path, activation),
    tied: true,
    qkvBias: c.flag('attention_bias', false),
    outputBias: c.flag('attention_bias', false),
    ...facts,
  })
  return { ...spec, embeddingScale: Math.fround(Math.sqrt(spec.dModel)) }
}

/** Norms before and after each module. */
const sandwich = (norm: (path: string) => Norm): Pick<LlamaFacts, 'block' | 'sites'> => ({
  block: (at) => ({
    attnPostNorm: norm(at('post_attention_layernorm')),
    mlpNorm: norm(at('pre_feedforward_layernorm')),
    mlpPostNorm: norm(at('post_feedforward_layernorm')),
  }),
  sites: { attn_out_post: 'post_attention_layernorm', mlp_in: 'pre_feedforward_layernorm', mlp_out_post: 'post_feedforward_layernorm' },
})

const soft = (c: ConfigReader, name: string, otherwise: number | undefined) => (c.has(name) ? c.maybe(name) : otherwise)

/** Reads a Gemma 1 config. */
export const gemma = (c: ConfigReader): DecoderSpec => gemmaLike(c, { family: 'gemma' })

/** Reads a Gemma 2 config: soft-capped scores and logits, every other layer with a window. */
export function gemma2(c: ConfigReader): DecoderSpec {
  const softcap = soft(c, 'attn_logit_softcapping', 50)
  const logitSoftcap = soft(c, 'final_logit_softcapping', 30)
  const spec = gemmaLike(c, {
    family: 'gemma2',
    ...sandwich(gains(c)),
    window: windowOf(c, (layer) => layer % 2 === 0),
    scale: c.number('query_pre_attn_scalar', 256) ** -0.5,
    attention: softcap ? { softcap } : {},
  })
  return { ...spec, ...(logitSoftcap ? { logitSoftcap } : {}) }
}

/** Reads a Gemma 3 text config: norms of q and k, five layers with windows to one without, each kind with its own rotation. */
export function gemma3Text(c: ConfigReader): DecoderSpec {
  c.refuseUnless('use_bidirectional_attention', false)
  const norm = gains(c)
  const { headDim } = commonSizes(c)
  const pattern = c.optionalInteger('sliding_window_pattern', '_sliding_window_pattern') ?? 6
  const window = windowOf(c, (layer) => (layer + 1) % pattern !== 0)
  // Configs of the first release have one rotation, and a base of the layers with a window.
  const nested = c.section('rope_parameters')?.section('sliding_attention') !== undefined
  const local = readRotary(new ConfigReader({ rope_theta: c.number('rope_local_base_freq', 1e4) }), { headDim })
  const [softcap, logitSoftcap] = [c.maybe('attn_logit_softcapping'), c.maybe('final_logit_softcapping')]
  const spec = gemmaLike(c, {
    family: 'gemma3_text',
    ...sandwich(norm),
    headNorm: (path) => over('head', norm(path)),
    window,
    rotary: { theta: 1e6, layerType: 'full_attention' },
    rotaryOf: (layer, own) => (window(layer) && !nested ? local : own),
    scale: c.number('query_pre_attn_scalar', 256) ** -0.5,
    attention: softcap ? { softcap } : {},
  })
  return { ...spec, ...(logitSoftcap ? { logitSoftcap } : {}) }
}

/** Sizes of Gemma 3's text model that its multimodal configs leave out. */
const textDefaults = {
  vocab_size: 262_208,
  max_position_embeddings: 131_072,
  num_attention_heads: 8,
  num_key_value_heads: 4,
  head_dim: 256,
  sliding_window: 4096,
}

/** Reads the text part of a multimodal Gemma 3 config; its vision tower is left alone. */
export function gemma3(c: ConfigReader): DecoderSpec {
  const text = c.section('text_config')
  if (!text)
    throw new ModelError(`config.json of a 'gemma3' model needs a 'text_config'; a text-only one has the model_type 'gemma3_text'.`)
  const tied = c.has('tie_word_embeddings') ? { tie_word_embeddings: c.config.tie_word_embeddings } : {}
  const spec = gemma3Text(new ConfigReader({ ...textDefaults, ...tied, ...text.config }, 'config.json → text_config'))
  const inside = (path: string) => path.replace(/^model\./, 'model.language_model.')
  const { blocks, embedding, finalNorm } = spec.modules
  return {
    ...spec,
    modules: {
      ...spec.modules,
      blocks: inside(blocks),
      ...(embedding ? { embedding: inside(embedding) } : {}),
      ...(finalNorm ? { finalNorm: inside(finalNorm) } : {}),
    },
    otherNames: (name) => [inside(name), `language_model.${name}`],
    foreign: ['vision_tower.', 'multi_modal_projector.', 'model.vision_tower.', 'model.multi_modal_projector.'],
  }
}
