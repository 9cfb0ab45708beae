/** @file The families, by the `model_type` of their config. */
import { ModelError } from '../../base/errors.ts'
import type { ModelRecord } from '../architecture.ts'
import { type Config, ConfigReader } from '../config.ts'
import type { EncoderDecoderSpec, EncoderSpec, ImagePrefixSpec, MambaSpec, TwoTowersSpec } from '../encoder-spec.ts'
import type { DecoderSpec, Stack } from '../spec.ts'
import { bloom } from './bloom.ts'
import { clip } from './clip.ts'
import { cohere, cohere2 } from './cohere.ts'
import { declared } from './declared.ts'
import { encoderDecoderFamilies, encoderFamilies } from './encoders.ts'
import { falcon } from './falcon.ts'
import { gemma, gemma2, gemma3, gemma3Text } from './gemma.ts'
import { gptNeo } from './gpt-neo.ts'
import { gptNeox } from './gpt-neox.ts'
import { gpt2, gptBigcode } from './gpt2.ts'
import { gptj } from './gptj.ts'
import { granite, graniteMoe, minicpm } from './granite.ts'
import { grokking } from './grokking.ts'
import { llama } from './llama.ts'
import { arcee, ernie45, exaone4, glm, glm4, helium, nemotron, seedOss, smollm3, stablelm, starcoder2 } from './llama-kin.ts'
import { llava } from './llava.ts'
import { mamba } from './mamba.ts'
import { ministral, mistral, mixtral } from './mistral.ts'
import { mpt } from './mpt.ts'
import { olmo, olmo2, olmo3 } from './olmo.ts'
import { opt } from './opt.ts'
import { phi, phi3 } from './phi.ts'
import { olmoe, qwen2, qwen2Moe, qwen3, qwen3Moe } from './qwen.ts'

/** Readers of configs of decoders, by `model_type`. */
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
  grokking,
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

/** Readers of configs, by kind; the stacks of a record are what its sizes are checked in. */
const readers = {
  decoder: { families, stacks: (spec: DecoderSpec) => [spec] },
  encoder: { families: encoderFamilies, stacks: (spec: EncoderSpec) => [spec] },
  'encoder-decoder': { families: encoderDecoderFamilies, stacks: (spec: EncoderDecoderSpec) => [spec.encoder, spec.decoder] },
  'two-towers': { families: { clip }, stacks: (spec: TwoTowersSpec) => [spec.text, spec.vision] },
  'state-space': { families: { mamba }, stacks: (_: MambaSpec) => [] },
  'image-prefix': {
    families: { llava: (c: ConfigReader) => llava(c, families, encoderFamilies) },
    stacks: (spec: ImagePrefixSpec) => [spec.vision, spec.language],
  },
} as const

/** The `model_type` of all families. */
export const knownFamilies: readonly string[] = Object.values(readers).flatMap((r) => Object.keys(r.families))

/**
 * The record of a model, from its config.
 * @param family reads the config as another family's than it says, or as `declared` facts of the Llama layout.
 * @throws ModelError for a family that is not known, and for sizes that do not fit together.
 */
export function recordOf(config: Config, family?: string): ModelRecord {
  const type = family ?? config.model_type
  for (const [kind, { families: rows, stacks }] of Object.entries(readers)) {
    if (typeof type !== 'string' || !Object.hasOwn(rows, type)) continue
    const spec = (rows as Readonly<Record<string, (c: ConfigReader) => ModelRecord['spec']>>)[type]?.(new ConfigReader(config))
    for (const stack of (stacks as (s: unknown) => Stack[])(spec)) checkSizes(stack)
    return { kind, spec } as ModelRecord
  }
  const facts = declared(config, knownFamilies)
  // It could be read, but only if somebody says so.
  if (family !== byDeclaration)
    throw new ModelError(
      `The family '${String(type)}' is not known; known are ${knownFamilies.join(', ')}. Its config declares all that the Llama layout needs: if that is what it is, load it with the family '${byDeclaration}' (--family ${byDeclaration} on the command line).`,
    )
  checkSizes(facts)
  return { kind: 'decoder', spec: facts }
}

/** The record of a decoder, from its config; refuses other kinds of models. */
export function specOf(config: Config, family?: string): DecoderSpec {
  const { kind, spec } = recordOf(config, family)
  if (kind !== 'decoder') throw new ModelError(`The family '${spec.family}' is of another kind (${kind}), and this works on decoders only.`)
  return spec
}

function checkSizes(stack: Stack & { readonly vocab?: number }): void {
  const { heads, kvHeads, headDim, layers, vocab = 1 } = stack
  if (!Number.isInteger(headDim) || headDim < 1 || kvHeads < 1 || heads % kvHeads !== 0)
    throw new ModelError(
      `config.json asks for ${heads} heads and ${kvHeads} key-value heads of ${headDim} coordinates, which do not divide evenly.`,
    )
  if (layers < 1 || vocab < 1)
    throw new ModelError(`config.json asks for ${layers} layers and a vocabulary of ${vocab}; both must be at least 1.`)
}
