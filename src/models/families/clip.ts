/** @file CLIP whole: both towers, their projections, the factor on the products. */
import { ConfigReader } from '../config.ts'
import type { TwoTowersSpec } from '../encoder-spec.ts'
import { clipText } from './clip-text.ts'
import { layerNorm, linear } from './parts.ts'
import { clipVision } from './vision.ts'

/** What configs leave out where it is as in the first model. */
const textDefaults = {
  vocab_size: 49_408,
  hidden_size: 512,
  intermediate_size: 2048,
  num_hidden_layers: 12,
  num_attention_heads: 8,
  max_position_embeddings: 77,
}
const visionDefaults = {
  hidden_size: 768,
  intermediate_size: 3072,
  num_hidden_layers: 12,
  num_attention_heads: 12,
  image_size: 224,
  patch_size: 32,
}

/** Reads a CLIP config. */
export function clip(c: ConfigReader): TwoTowersSpec {
  const part = (name: string, defaults: object) => new ConfigReader({ ...defaults, ...c.section(name)?.config }, `config.json → ${name}`)
  const [text, vision] = [part('text_config', textDefaults), part('vision_config', visionDefaults)]
  const end = text.optionalInteger('eos_token_id') ?? 49_407
  return {
    family: 'clip',
    text: clipText(text),
    vision: clipVision(vision),
    prefixes: { text: 'text_model.', vision: 'vision_model.' },
    width: c.optionalInteger('projection_dim') ?? 512,
    // The first configs say 2 and mean the last of the vocabulary.
    pool: end === 2 ? 'largest id' : { token: end },
    visionNorm: layerNorm('vision_model.post_layernorm', vision.number('layer_norm_eps', 1e-5)),
    textProjection: linear('text_projection'),
    visionProjection: linear('visual_projection'),
    logitScale: 'logit_scale',
  }
}
