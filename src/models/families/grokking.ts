/** @file The small transformers of the grokking study: learned positions, no norms, ReLU, and blocks of attention alone in some. */
import type { ConfigReader } from '../config.ts'
import type { DecoderSpec, Linear } from '../spec.ts'
import { commonSizes } from './parts.ts'

const matrix = (weight: string, bias?: string): Linear => ({ weight, ...(bias ? { bias } : {}), layout: 'out,in' })

/** Reads the config that the shapes of such a file make. */
export function grokking(c: ConfigReader): DecoderSpec {
  const sizes = commonSizes(c)
  const count = c.integer('max_position_embeddings')
  const blocks = c.config.blocks === 'attn_blocks' ? 'attn_blocks' : 'blocks'
  const dMlp = c.optionalInteger('intermediate_size')
  return {
    family: 'grokking',
    ...sizes,
    dMlp: dMlp ?? 0,
    maxPositions: count,
    positions: { kind: 'learned', weight: 'pos_embed.W_pos', count, offset: 0 },
    embedding: 'embed.W_E',
    block: (layer) => {
      const at = (path: string) => `${blocks}.${layer}.${path}`
      return {
        residual: 'sequential',
        attention: {
          projection: { kind: 'split', q: matrix(at('attn.W_Q')), k: matrix(at('attn.W_K')), v: matrix(at('attn.W_V')) },
          output: matrix(at('attn.W_O')),
          scale: sizes.headDim ** -0.5,
        },
        mlp:
          dMlp === undefined
            ? { kind: 'none' }
            : {
                kind: 'plain',
                up: matrix(at('mlp.W_in'), at('mlp.b_in')),
                down: matrix(at('mlp.W_out'), at('mlp.b_out')),
                activation: 'relu',
              },
      }
    },
    head: matrix('unembed.W_U', c.flag('unembedding_bias', false) ? 'unembed.b_U' : undefined),
    modules: { blocks, attention: 'attn', mlp: 'mlp', embedding: 'embed', head: 'unembed' },
  }
}
