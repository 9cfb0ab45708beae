/** @file Families of encoders and encoder–decoders, by the `model_type` of their config. */
import type { ConfigReader } from '../config.ts'
import type { EncoderDecoderSpec, EncoderSpec } from '../encoder-spec.ts'
import { bart } from './bart.ts'
import { bert, distilbert, roberta } from './bert.ts'
import { clipText } from './clip-text.ts'
import { modernbert } from './modernbert.ts'
import { t5 } from './t5.ts'
import { clipVision, deit, dinov2, dinov2WithRegisters, siglipVision, vit } from './vision.ts'

/** Readers of configs of encoders. */
export const encoderFamilies: Readonly<Record<string, (c: ConfigReader) => EncoderSpec>> = {
  bert,
  clip_text_model: clipText,
  clip_vision_model: clipVision,
  deit,
  dinov2,
  dinov2_with_registers: dinov2WithRegisters,
  distilbert,
  modernbert,
  roberta,
  siglip_vision_model: siglipVision,
  vit,
  'xlm-roberta': roberta,
}

/** Readers of configs of encoder–decoders. */
export const encoderDecoderFamilies: Readonly<Record<string, (c: ConfigReader) => EncoderDecoderSpec>> = { bart, t5 }
