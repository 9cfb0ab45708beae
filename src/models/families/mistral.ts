/** @file Mistral, Ministral and Mixtral: Llama with a sliding window, or with experts. */
import type { ConfigReader } from '../config.ts'
import type { DecoderSpec, DenseMlp } from '../spec.ts'
import { llamaLike } from './llama.ts'
import { activations, commonSizes, linear, stackedExpert, windowOf } from './parts.ts'

/** Reads a Mistral config; one without a word about windows has the first release's window of 4096. */
export function mistral(c: ConfigReader): DecoderSpec {
  const window = c.has('sliding_window') ? c.optionalInteger('sliding_window') : 4096
  return llamaLike(c, { family: 'mistral', window: () => window })
}

/** Reads a Ministral config, whose layers have windows by `layer_types`. */
export const ministral = (c: ConfigReader): DecoderSpec => llamaLike(c, { family: 'ministral', window: windowOf(c, () => true) })

/** Reads a Mixtral config. */
export function mixtral(c: ConfigReader): DecoderSpec {
  const { dMlp } = commonSizes(c)
  const activation = c.choice('hidden_act', activations, 'silu')
  const count = c.integer('num_local_experts')
  const stacked = c.flag('experts_stacked', false)
  const expert = (path: string): DenseMlp => ({
    kind: 'gated',
    gate: { gate: linear(`${path}.w1`), up: linear(`${path}.w3`) },
    down: linear(`${path}.w2`),
    activation,
  })
  return llamaLike(c, {
    family: 'mixtral',
    window: windowOf(c, () => true),
    block: (at) => ({
      mlp: {
        kind: 'experts',
        router: linear(at('block_sparse_moe.gate')),
        count,
        perToken: c.integer('num_experts_per_tok'),
        width: dMlp,
        normalised: true,
        expert: stacked
          ? stackedExpert(at('block_sparse_moe.experts'), activation, count)
          : (e) => expert(at(`block_sparse_moe.experts.${e}`)),
      },
    }),
    // Checkpoints say block_sparse_moe, the reference's module has been called mlp since its fifth version.
    sites: { mlp_pre: undefined, mlp_pre_linear: undefined, mlp_out: 'block_sparse_moe', router_logits: 'mlp.gate' },
  })
}
