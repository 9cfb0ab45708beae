/** @file LLaVA: a vision tower, a projector of two layers, and a language model of any family. */
import { ModelError } from '../../base/errors.ts'
import { ConfigReader } from '../config.ts'
import type { EncoderSpec, ImagePrefixSpec } from '../encoder-spec.ts'
import type { DecoderSpec } from '../spec.ts'
import { activations, linear } from './parts.ts'

type Readers<Spec> = Readonly<Record<string, (c: ConfigReader) => Spec>>

/** What configs of the language model leave out where it is Llama 7B. */
const textDefaults = {
  model_type: 'llama',
  vocab_size: 32_000,
  hidden_size: 4096,
  intermediate_size: 11_008,
  num_hidden_layers: 32,
  num_attention_heads: 32,
  max_position_embeddings: 2048,
  rms_norm_eps: 1e-6,
  hidden_act: 'silu',
}

/** Reads a LLaVA config, its parts by the readers of their families. */
export function llava(c: ConfigReader, languages: Readers<DecoderSpec>, towers: Readers<EncoderSpec>): ImagePrefixSpec {
  const text = c.section('text_config')?.config ?? {}
  const defaults = (text.model_type ?? 'llama') === 'llama' ? textDefaults : {}
  const language = readPart('text_config', { ...defaults, ...text }, languages)
  const vision = readPart('vision_config', c.section('vision_config')?.config ?? {}, towers)
  if (vision.input.kind !== 'pixels') throw new ModelError(`The 'vision_config' names '${vision.family}', which reads no images.`)
  const strategy = c.choice('vision_feature_select_strategy', { default: 'default', full: 'full' }, 'default')
  const index = layerOf(c, vision.layers)
  const bias = c.flag('multimodal_projector_bias', true)
  return {
    family: 'llava',
    vision,
    language,
    prefixes: { vision: 'vision_tower.', language: 'language_model.', projector: 'multi_modal_projector.' },
    imageToken: c.integer('image_token_index', 'image_token_id'),
    layer: index,
    dropped: strategy === 'default' ? 1 : 0,
    projector: {
      first: linear('linear_1', bias),
      second: linear('linear_2', bias),
      activation: c.choice('projector_hidden_act', activations, 'gelu'),
    },
    otherNames: (name) => [
      `model.${name}`,
      name.replace(/^vision_tower\./, 'vision_tower.vision_model.'),
      name.replace(/^vision_tower\./, 'model.vision_tower.vision_model.'),
      name.replace(/^language_model\.model\./, 'model.language_model.'),
      name.replace(/^language_model\.lm_head\./, 'lm_head.'),
    ],
    foreign: ['', 'model.'].flatMap((p) =>
      ['', 'vision_model.'].flatMap((q) =>
        ['head.', ...(vision.finalNorm ? [] : ['post_layernorm.'])].map((n) => `${p}vision_tower.${q}${n}`),
      ),
    ),
  }
}

/** Number of blocks before the features; the config counts hidden states, of which the first is the input. */
function layerOf(c: ConfigReader, layers: number): number {
  const given = c.number('vision_feature_layer', -2)
  const layer = given < 0 ? layers + 1 + given : given
  if (!Number.isInteger(layer) || layer < 0 || layer > layers)
    throw new ModelError(`config.json takes features of layer ${given}, but the vision tower has ${layers}.`)
  return layer
}

function readPart<Spec>(name: string, config: Readonly<Record<string, unknown>>, readers: Readers<Spec>): Spec {
  const type = String(config.model_type)
  const read = Object.hasOwn(readers, type) ? readers[type] : undefined
  if (!read) throw new ModelError(`The '${name}' of config.json is of the family '${type}'; known are ${Object.keys(readers).join(', ')}.`)
  return read(new ConfigReader(config, `config.json → ${name}`))
}
