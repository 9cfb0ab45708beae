/** @file GPT-Neo: GPT-2 with separate projections, unscaled scores, and windows in every other layer. */
import { ModelError } from '../../base/errors.ts'
import type { ConfigReader } from '../config.ts'
import type { DecoderSpec } from '../spec.ts'
import { splitProjection } from './llama.ts'
import { activations, commonSizes, layerNorm, linear } from './parts.ts'

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
  const eps = c.number('layer_norm_epsilon', 1e-5)
  const count = c.integer('max_position_embeddings')
  const window = c.optionalInteger('window_size') ?? 256
  const kindOf = kinds(c)
  const activation = c.choice('activation_function', activations, 'gelu_new')
  return {
    family: 'gpt_neo',
    ...commonSizes(c),
    maxPositions: count,
    positions: { kind: 'learned', weight: 'transformer.wpe.weight', count, offset: 0 },
    embedding: 'transformer.wte.weight',
    block: (layer) => {
      const at = (path: string) => `transformer.h.${layer}.${path}`
      return {
        residual: 'sequential',
        attnNorm: layerNorm(at('ln_1'), eps),
        attention: {
          projection: splitProjection(at('attn.attention')),
          output: linear(at('attn.attention.out_proj'), true),
          scale: 1,
          ...(kindOf[layer] === 'local' ? { window } : {}),
        },
        mlpNorm: layerNorm(at('ln_2'), eps),
        mlp: { kind: 'plain', up: linear(at('mlp.c_fc'), true), down: linear(at('mlp.c_proj'), true), activation },
      }
    },
    finalNorm: layerNorm('transformer.ln_f', eps),
    head: linear(c.flag('tie_word_embeddings', true) ? 'transformer.wte' : 'lm_head'),
    modules: {
      blocks: 'transformer.h',
      attention: 'attn',
      mlp: 'mlp',
      embedding: 'transformer.wte',
      finalNorm: 'transformer.ln_f',
      head: 'lm_head',
      sites: {
        attn_in: 'ln_1',
        mlp_in: 'ln_2',
        q: 'attn.attention.q_proj',
        k: 'attn.attention.k_proj',
        v: 'attn.attention.v_proj',
        mlp_pre: 'mlp.c_fc',
      },
    },
  }
}
