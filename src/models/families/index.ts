/** @file The families, by the `model_type` of their config. */
import { ModelError } from '../../base/errors.ts'
import { type Config, ConfigReader } from '../config.ts'
import type { DecoderSpec } from '../spec.ts'
import { bloom } from './bloom.ts'
import { cohere, cohere2 } from './cohere.ts'
import { declared } from './declared.ts'
import { falcon } from './falcon.ts'
import { gemma, gemma2, gemma3, gemma3Text } from './gemma.ts'
import { gptNeo } from './gpt-neo.ts'
import { gptNeox } from './gpt-neox.ts'
import { gpt2, gptBigcode } from './gpt2.ts'
import { gptj } from './gptj.ts'
import { granite, graniteMoe, minicpm } from './granite.ts'
import { llama } from './llama.ts'
import { arcee, ernie45, exaone4, glm, glm4, helium, nemotron, seedOss, smollm3, stablelm, starcoder2 } from './llama-kin.ts'
import { ministral, mistral, mixtral } from './mistral.ts'
import { mpt } from './mpt.ts'
import { olmo, olmo2, olmo3 } from './olmo.ts'
import { opt } from './opt.ts'
import { phi, phi3 } from './phi.ts'
import { olmoe, qwen2, qwen2Moe, qwen3, qwen3Moe } from './qwen.ts'

/** Readers of configs, by `model_type`. */
export const families: Readonly<Record<string, (c: ConfigReader) => DecoderSpec>> = {
  arcee,
  bloom,
  cohere,
  cohere2,
  ernie4_5: ernie45,
  exaone4,
  falcon,
  gemma,
  gemma2,
  gemma3,
  gemma3_text: gemma3Text,
  glm,
  glm4,
  gpt2,
  gpt_bigcode: gptBigcode,
  gpt_neo: gptNeo,
  gpt_neox: gptNeox,
  gptj,
  granite,
  granitemoe: graniteMoe,
  helium,
  llama,
  minicpm,
  ministral,
  mistral,
  mixtral,
  mpt,
  nemotron,
  olmo,
  olmo2,
  olmo3,
  olmoe,
  opt,
  phi,
  phi3,
  qwen2,
  qwen2_moe: qwen2Moe,
  qwen3,
  qwen3_moe: qwen3Moe,
  seed_oss: seedOss,
  smollm3,
  stablelm,
  starcoder2,
}

/**
 * The record of a model, from its config. A family that is not listed is read by its declared facts, where they say all that is needed.
 * @throws ModelError for a family that is not known and does not declare itself, and for sizes that do not fit together.
 */
export function specOf(config: Config): DecoderSpec {
  const type = config.model_type
  const read = typeof type === 'string' && Object.hasOwn(families, type) ? families[type] : undefined
  const spec = read ? read(new ConfigReader(config)) : declared(config, Object.keys(families))
  const { heads, kvHeads, headDim, layers, vocab } = spec
  if (!Number.isInteger(headDim) || headDim < 1 || kvHeads < 1 || heads % kvHeads !== 0)
    throw new ModelError(
      `config.json asks for ${heads} heads and ${kvHeads} key-value heads of ${headDim} coordinates, which do not divide evenly.`,
    )
  if (layers < 1 || vocab < 1) throw new ModelError(`config.json asks for ${layers} layers and a vocabulary of ${vocab}; both must be at least 1.`)
  return spec
}
