/** @file BERT, RoBERTa and DistilBERT: norms after each sum, learned positions. */
import type { ConfigReader } from '../config.ts'
import type { EncoderSpec } from '../encoder-spec.ts'
import type { BlockSpec, ModulePaths } from '../spec.ts'
import { activations, commonSizes, layerNorm, linear } from './parts.ts'

interface Facts {
  readonly family: string
  /** Module path of the whole in checkpoints with a head. */
  readonly prefix: string
  readonly blocks: string
  /** Rows of the position table before the one of position 0. */
  readonly offset: number
  readonly types: boolean
  readonly block: (at: (path: string) => string) => Pick<BlockSpec, 'attention' | 'mlp' | 'attnSumNorm' | 'mlpSumNorm' | 'addsInside'>
  readonly modules: Pick<ModulePaths, 'attention' | 'mlp' | 'sites'>
  readonly foreign: readonly string[]
}

function bertLike(c: ConfigReader, sizes: ReturnType<typeof commonSizes>, facts: Facts): EncoderSpec {
  const eps = c.number('layer_norm_eps', 1e-12)
  const rows = c.integer('max_position_embeddings')
  c.refuseUnless('position_embedding_type', 'absolute')
  const count = rows - facts.offset
  return {
    family: facts.family,
    ...sizes,
    maxPositions: count,
    positions: { kind: 'learned', weight: 'embeddings.position_embeddings.weight', count, offset: facts.offset },
    input: {
      kind: 'tokens',
      embedding: 'embeddings.word_embeddings.weight',
      vocab: sizes.vocab,
      ...(facts.types ? { types: { weight: 'embeddings.token_type_embeddings.weight', count: c.integer('type_vocab_size') } } : {}),
    },
    inputNorm: layerNorm('embeddings.LayerNorm', eps),
    block: (layer) => ({ residual: 'sequential', ...facts.block((path) => `${facts.blocks}.${layer}.${path}`) }),
    modules: { blocks: facts.blocks, ...facts.modules },
    // Checkpoints of the first releases call gains and biases of norms gamma and beta.
    otherNames: (name) => {
      const old = name.replace(/LayerNorm\.weight$/, 'LayerNorm.gamma').replace(/LayerNorm\.bias$/, 'LayerNorm.beta')
      return [`${facts.prefix}.${name}`, `${facts.prefix}.${old}`, old]
    },
    foreign: ['pooler.', `${facts.prefix}.pooler.`, ...facts.foreign],
  }
}

function bertBlock(c: ConfigReader, headDim: number): Facts['block'] {
  const eps = c.number('layer_norm_eps', 1e-12)
  const activation = c.choice('hidden_act', activations, 'gelu')
  return (at) => ({
    attention: {
      projection: {
        kind: 'split',
        q: linear(at('attention.self.query'), true),
        k: linear(at('attention.self.key'), true),
        v: linear(at('attention.self.value'), true),
      },
      output: linear(at('attention.output.dense'), true),
      scale: headDim ** -0.5,
    },
    attnSumNorm: layerNorm(at('attention.output.LayerNorm'), eps),
    mlp: { kind: 'plain', up: linear(at('intermediate.dense'), true), down: linear(at('output.dense'), true), activation },
    mlpSumNorm: layerNorm(at('output.LayerNorm'), eps),
    addsInside: ['attn_out'],
  })
}

const bertModules: Facts['modules'] = {
  attention: 'attention',
  sites: {
    q: 'attention.self.query',
    k: 'attention.self.key',
    v: 'attention.self.value',
    attn_out_post: 'attention.output.dense',
    mlp_pre: 'intermediate.dense',
    mlp_act: 'intermediate',
    mlp_out: 'output.dense',
  },
}

/** Reads a BERT config. */
export function bert(c: ConfigReader): EncoderSpec {
  const sizes = commonSizes(c)
  return bertLike(c, sizes, {
    family: 'bert',
    prefix: 'bert',
    blocks: 'encoder.layer',
    offset: 0,
    types: true,
    block: bertBlock(c, sizes.headDim),
    modules: bertModules,
    foreign: ['cls.', 'classifier.', 'qa_outputs.'],
  })
}

/** Reads a RoBERTa config (or XLM-RoBERTa's): BERT whose positions begin after that of the padding token. */
export function roberta(c: ConfigReader): EncoderSpec {
  const sizes = commonSizes(c)
  return bertLike(c, sizes, {
    family: 'roberta',
    prefix: 'roberta',
    blocks: 'encoder.layer',
    offset: (c.optionalInteger('pad_token_id') ?? 1) + 1,
    types: true,
    block: bertBlock(c, sizes.headDim),
    modules: bertModules,
    foreign: ['lm_head.', 'classifier.', 'qa_outputs.'],
  })
}

/** Reads a DistilBERT config. */
export function distilbert(c: ConfigReader): EncoderSpec {
  const [dModel, heads] = [c.integer('dim'), c.integer('n_heads')]
  const headDim = dModel / heads
  const activation = c.choice('activation', activations, 'gelu')
  const sizes = {
    layers: c.integer('n_layers'),
    dModel,
    heads,
    kvHeads: heads,
    headDim,
    dMlp: c.integer('hidden_dim'),
    vocab: c.integer('vocab_size'),
  }
  return bertLike(c, sizes, {
    family: 'distilbert',
    prefix: 'distilbert',
    blocks: 'transformer.layer',
    offset: 0,
    types: false,
    block: (at) => ({
      attention: {
        projection: {
          kind: 'split',
          q: linear(at('attention.q_lin'), true),
          k: linear(at('attention.k_lin'), true),
          v: linear(at('attention.v_lin'), true),
        },
        output: linear(at('attention.out_lin'), true),
        scale: headDim ** -0.5,
      },
      attnSumNorm: layerNorm(at('sa_layer_norm'), 1e-12),
      mlp: { kind: 'plain', up: linear(at('ffn.lin1'), true), down: linear(at('ffn.lin2'), true), activation },
      mlpSumNorm: layerNorm(at('output_layer_norm'), 1e-12),
    }),
    modules: {
      attention: 'attention',
      mlp: 'ffn',
      sites: { q: 'attention.q_lin', k: 'attention.k_lin', v: 'attention.v_lin', mlp_pre: 'ffn.lin1' },
    },
    foreign: ['vocab_', 'pre_classifier.', 'classifier.', 'qa_outputs.'],
  })
}
