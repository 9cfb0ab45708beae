/** @file Families that are not listed: read by the facts that their config declares, if these are all facts of the Llama layout. */
import { listed, ModelError, nearest } from '../../base/errors.ts'
import { type Config, ConfigReader } from '../config.ts'
import type { DecoderSpec } from '../spec.ts'
import { llamaLike } from './llama.ts'

/** Facts without which the numbers are not determined. */
const needed = [
  'hidden_size',
  'intermediate_size',
  'num_hidden_layers',
  'num_attention_heads',
  'vocab_size',
  'max_position_embeddings',
  'hidden_act',
  'rms_norm_eps',
]

/** Facts that the Llama layout understands besides. */
const understood = [
  'num_key_value_heads',
  'head_dim',
  'rope_theta',
  'rope_scaling',
  'rope_parameters',
  'original_max_position_embeddings',
  'partial_rotary_factor',
  'tie_word_embeddings',
  'attention_bias',
  'mlp_bias',
]

/** Fields that change no number of a forward pass. */
const harmless =
  /^(_|architectures$|auto_map$|model_type$|torch_dtype$|dtype$|transformers_version$|initializer_range$|use_cache$|is_decoder$|is_encoder_decoder$|pretraining_tp$|output_|return_|id2label$|label2id$|problem_type$|chunk_size_feed_forward$|quantization_config$)|(_token_id|_dropout|_pdrop|dropout|_prob)$/

/** Fields that may be there as long as they say `no`. */
const off = (value: unknown) => value === null || value === false || value === 0

/**
 * The record of a model of an unlisted family.
 * @throws ModelError naming the facts that are missing or not understood.
 */
export function declared(config: Config, known: readonly string[]): DecoderSpec {
  const type = config.model_type
  const missing = needed.filter((f) => config[f] === undefined || config[f] === null)
  const foreign = Object.keys(config).filter((f) => !needed.includes(f) && !understood.includes(f) && !harmless.test(f) && !off(config[f]))
  const near = typeof type === 'string' ? nearest(type, known) : undefined
  const what =
    typeof type === 'string'
      ? `The family '${type}' is not known; known are ${known.join(', ')}${near ? ` (nearest: ${near})` : ''}.`
      : `config.json has no 'model_type', so its family is not known; known families are ${known.join(', ')}.`
  if (missing.length > 0)
    throw new ModelError(
      `${what} It cannot be read by its declared facts either: ${listed(missing, 4)} ${missing.length === 1 ? 'is' : 'are'} missing in its config.`,
    )
  if (foreign.length > 0)
    throw new ModelError(
      `${what} It cannot be read by its declared facts either: its config sets ${listed(foreign, 4)}, which the Llama layout does not know.`,
    )
  const c = new ConfigReader(config)
  const bias = c.flag('attention_bias', false)
  return llamaLike(c, {
    family: String(type ?? 'unnamed'),
    qkvBias: bias,
    outputBias: bias,
    mlpBias: c.flag('mlp_bias', false),
  })
}
