/** @file GPT-Neo: GPT-2 with separate projections, unscaled scores, and windows in every other layer. */
import { ModelError } from '../../base/errors.ts'
import type { ConfigReader } from '../config.ts'
import type { DecoderSpec } from '../spec.ts'
import { gptHead, gptLike, learnedPositions } from './gpt.ts'
import { splitProjection } from './llama.ts'
import { linear } from './parts.ts'

/** Kinds of the layers: a list, or patterns with the number of their repetitions. */
function kinds(c: ConfigReader): readonly string[] {
  const list = c.optionalNames('attention_layers')
  if (list) return list
  const patterns = c.config.attention_types ?? [[['global', 'local'], c.integer('num_layers') / 2]]
  if (!Array.isArray(patterns) || !patterns.every((p) => Array.isArray(p) && Array.isArray(p[0]) && Number.isInteger(p[1])))
    throw new ModelError(`'attention_types' in config.json must be a list of [pattern, repetitions], not ${JSON.stringify(patterns)}.`)
  return (patterns as [string[], number][]).flatMap(([pattern, times]) => Array.from({ length: times }, () => pattern).flat())
}

/** Reads a GPT-Neo config. */
export function gptNeo(c: ConfigReader): DecoderSpec {
  const count = c.integer('max_position_embeddings')
  const window = c.optionalInteger('window_size') ?? 256
  const kindOf = kinds(c)
  return gptLike(c, {
    family: 'gpt_neo',
    maxPositions: count,
    positions: learnedPositions(count),
    activation: 'gelu_new',
    attention: (at, layer) => ({
      projection: splitProjection(at('attn.attention')),
      output: linear(at('attn.attention.out_proj'), true),
      scale: 1,
      ...(kindOf[layer] === 'local' ? { window } : {}),
    }),
    matrix: (path) => linear(path, true),
    head: gptHead(c),
    projections: { q: 'attn.attention.q_proj', k: 'attn.attention.k_proj', v: 'attn.attention.v_proj' },
  })
}
