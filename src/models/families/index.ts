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

/** What a user may say instead of a family: read the config by the facts that it declares. */
const byDeclaration = 'declared'

/**
 * The record of a model, from its config.
 * @param family reads the config as another family's than it says, or as `declared` facts of the Llama layout.
 * @throws ModelError for a family that is not known, and for sizes that do not fit together.
 */
export function specOf(config: Config, family?: string): DecoderSpec {
  const spec = readerOf(config, family)(new ConfigReader(config))
  const { heads, kvHeads, headDim, layers, vocab } = spec
  if (!Number.isInteger(headDim) || headDim < 1 || kvHeads < 1 || heads % kvHeads !== 0)
    throw new ModelError(
      `config.json asks for ${heads} heads and ${kvHeads} key-value heads of ${headDim} coordinates, which do not divide evenly.`,
    )
  if (layers < 1 || vocab < 1)
    throw new ModelError(`config.json asks for ${layers} layers and a vocabulary of ${vocab}; both must be at least 1.`)
  return spec
}

function readerOf(config: Config, family: string | undefined): (c: ConfigReader) => DecoderSpec {
  const known = Object.keys(families)
  if (family === byDeclaration) return () => declared(config, known)
  const type = family ?? config.model_type
  const read = typeof type === 'string' && Object.hasOwn(families, type) ? families[type] : undefined
  if (read) return read
  // Throws where facts are missing or not understood; else it could be read, but only if somebody says so.
  declared(config, known)
  throw new ModelError(
    `The family '${String(type)}' is not known; known are ${known.join(', ')}. Its config declares all that the Llama layout needs: if that is what it is, load it with the family '${byDeclaration}' (--family ${byDeclaration} on the command line).`,
  )
}
