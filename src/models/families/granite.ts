/** @file Granite and MiniCPM: Llama with factors on embeddings, scores, residual contributions and logits. */
import type { ConfigReader } from '../config.ts'
import type { DecoderSpec, Linear } from '../spec.ts'
import { type LlamaFacts, llamaLike } from './llama.ts'
import { activations, commonSizes, linear, stackedExpert } from './parts.ts'

/** Factors that the reference applies outside of its modules. */
function withScales(spec: DecoderSpec, embeddingScale: number, logitScale: number): DecoderSpec {
  const { embedding: _, ...modules } = spec.modules
  return { ...spec, embeddingScale, logitScale, modules }
}

function graniteLike(c: ConfigReader, facts: LlamaFacts): DecoderSpec {
  const bias = c.flag('attention_bias', false)
  const multiplier = c.number('residual_multiplier', 1)
  const spec = llamaLike(c, {
    qkvBias: bias,
    outputBias: bias,
    mlpBias: c.flag('mlp_bias', false),
    scale: c.number('attention_multiplier', 1),
    ...facts,
    block: (at, layer) => ({ multiplier, ...facts.block?.(at, layer) }),
  })
  return withScales(spec, c.number('embedding_multiplier', 1), 1 / c.number('logits_scaling', 1))
}

/** Reads a Granite config. */
export const granite = (c: ConfigReader): DecoderSpec => graniteLike(c, { family: 'granite' })

/** Reads a Granite config with experts, whose matrices are stacked. */
export function graniteMoe(c: ConfigReader): DecoderSpec {
  const count = c.integer('num_local_experts')
  const activation = c.choice('hidden_act', activations, 'silu')
  const split = c.flag('experts_stacked', false)
  const item = (weight: string, at: number): Linear => ({ weight, layout: 'out,in', item: { at, of: count } })
  const spec = graniteLike(c, {
    family: 'granitemoe',
    block: (at) => ({
      mlp: {
        kind: 'experts',
        router: linear(at('block_sparse_moe.router.layer')),
        count,
        perToken: c.integer('num_experts_per_tok'),
        width: commonSizes(c).dMlp,
        normalised: true,
        expert: split
          ? stackedExpert(at('block_sparse_moe.experts'), activation, count)
          : (e) => ({
              kind: 'gated',
              gate: { gateUp: item(at('block_sparse_moe.input_linear.weight'), e) },
              down: item(at('block_sparse_moe.output_linear.weight'), e),
              activation,
            }),
      },
    }),
    sites: { mlp_pre: undefined, mlp_pre_linear: undefined, router_logits: 'block_sparse_moe.router.layer' },
  })
  return { ...spec, modules: { ...spec.modules, mlp: 'block_sparse_moe' } }
}

/** Reads a MiniCPM config (openbmb's 1B, 2B and 4): the factors come from μP. */
export function minicpm(c: ConfigReader): DecoderSpec {
  const { layers, dModel } = commonSizes(c)
  const multiplier = c.number('scale_depth', 1) / Math.sqrt(layers)
  const spec = llamaLike(c, { family: 'minicpm', tied: true, qkvBias: c.flag('attention_bias', false), block: () => ({ multiplier }) })
  return withScales(spec, c.number('scale_emb', 1), (c.optionalInteger('dim_model_base') ?? dModel) / dModel)
}
