/** @file The families, by the `model_type` of their config. */
import { ModelError, nearest } from '../../base/errors.ts'
import { type Config, ConfigReader } from '../config.ts'
import type { DecoderSpec } from '../spec.ts'
import { gpt2 } from './gpt2.ts'
import { llama } from './llama.ts'

/** Readers of configs, by `model_type`. */
export const families: Readonly<Record<string, (c: ConfigReader) => DecoderSpec>> = { gpt2, llama }

/** The record of a model, from its config. */
export function specOf(config: Config): DecoderSpec {
  const type = config.model_type
  if (typeof type !== 'string')
    throw new ModelError(
      `config.json has no 'model_type', so its family is not known; known families are ${Object.keys(families).join(', ')}.`,
    )
  const read = families[type]
  if (!read) {
    const near = nearest(type, Object.keys(families))
    throw new ModelError(
      `The family '${type}' is not known; known are ${Object.keys(families).join(', ')}${near ? ` (nearest: ${near})` : ''}.`,
    )
  }
  const spec = read(new ConfigReader(config))
  if (!Number.isInteger(spec.headDim) || spec.heads % spec.kvHeads !== 0)
    throw new ModelError(
      `config.json asks for ${spec.heads} heads and ${spec.kvHeads} key-value heads of ${spec.headDim} coordinates, which do not divide evenly.`,
    )
  return spec
}
