/** @file Llama 1 to 3.2, and the layout that Mistral, Qwen, Gemma, OLMo, SmolLM3, Granite and others share with it. */
import type { ConfigReader } from '../config.ts'
import { longestContext, type RotaryFacts, readRotary } from '../rope.ts'
import type { BlockSpec, DecoderSpec, DenseMlp, HeadNorm, Linear, Mlp, Norm, Projection, Rotary } from '../spec.ts'
import { activations, commonSizes, gated, linear, rms } from './parts.ts'

/** What tells one family of the Llama layout from another; what is left out is as in Llama. */
export interface LlamaFacts {
  readonly family: string
  readonly qkvBias?: boolean
  /** Projections at the path of the attention (default separate ones). */
  readonly projection?: (path: string) => Projection
  /** Module name of the output projection (default `o_proj`). */
  readonly outputName?: string
  readonly outputBias?: boolean
  readonly mlpBias?: boolean
  /** The norm at a module path. */
  readonly norm?: (path: string) => Norm
  /** Norms of queries and keys, at a module path of the attention. */
  readonly headNorm?: (path: string) => HeadNorm
  /** Their module names (default `q_norm`, `k_norm`). */
  readonly headNormNames?: readonly [string, string]
  readonly rotary?: Omit<RotaryFacts, 'headDim'>
  /** How a layer rotates, where they differ; undefined where it does not. */
  readonly rotaryOf?: (layer: number, rotary: Rotary) => Rotary | undefined
  readonly window?: (layer: number) => number | undefined
  /** Factor on q·k (default 1/sqrt(d_head)). */
  readonly scale?: number
  /** The MLP of a layer, at its module path (default gated). */
  readonly mlp?: (path: string, layer: number) => Mlp
  readonly activation?: string
  readonly tied?: boolean
  /** Changes of a block, given its layer and path. */
  readonly block?: (at: (path: string) => string, layer: number) => Partial<BlockSpec>
  readonly attention?: Partial<BlockSpec['attention']>
  /** Module names of the sites where they are not Llama's. */
  readonly sites?: Readonly<Record<string, string | undefined>>
}

/** Reads a config of the Llama layout. */
export function llamaLike(c: ConfigReader, facts: LlamaFacts): DecoderSpec {
  const sizes = commonSizes(c)
  const { headDim } = sizes
  const eps = c.maybe('rms_norm_eps', 'layer_norm_eps', 'norm_eps', 'norm_epsilon', 'layer_norm_epsilon') ?? 1e-6
  const norm = facts.norm ?? ((path: string) => rms(path, eps))
  const rotary = readRotary(c, { headDim, interleaved: c.flag('rope_interleaved', false), ...facts.rotary })
  const byLayer = rotaryByLayer(c, { headDim, ...facts.rotary })
  const activation = c.choice('hidden_act', activations, facts.activation ?? 'silu')
  const mlp = facts.mlp ?? ((path: string): DenseMlp => gated(path, activation, facts.mlpBias))
  const [qName, kName] = facts.headNormNames ?? ['q_norm', 'k_norm']
  return {
    family: facts.family,
    ...sizes,
    maxPositions: longestContext(c.integer('max_position_embeddings'), rotary),
    positions: { kind: 'rotary', ...rotary },
    embedding: 'model.embed_tokens.weight',
    block: (layer) => {
      const at = (path: string) => `model.layers.${layer}.${path}`
      const window = facts.window?.(layer)
      const own = byLayer(layer) ?? rotary
      const turned = facts.rotaryOf ? facts.rotaryOf(layer, own) : own
      return {
        residual: 'sequential',
        attnNorm: norm(at('input_layernorm')),
        attention: {
          projection: facts.projection?.(at('self_attn')) ?? splitProjection(at('self_attn'), facts.qkvBias),
          output: linear(at(`self_attn.${facts.outputName ?? 'o_proj'}`), facts.outputBias),
          scale: facts.scale ?? headDim ** -0.5,
          ...(turned ? { rotary: turned } : {}),
          ...(window ? { window } : {}),
          ...(facts.headNorm ? { qNorm: facts.headNorm(at(`self_attn.${qName}`)), kNorm: facts.headNorm(at(`self_attn.${kName}`)) } : {}),
          ...facts.attention,
        },
        mlpNorm: norm(at('post_attention_layernorm')),
        mlp: mlp(at('mlp'), layer),
        ...facts.block?.(at, layer),
      }
    },
    finalNorm: norm('model.norm'),
    head: head(c, facts.tied ?? false),
    modules: {
      blocks: 'model.layers',
      attention: 'self_attn',
      mlp: 'mlp',
      embedding: 'model.embed_tokens',
      finalNorm: 'model.norm',
      head: 'lm_head',
      sites: modules({
        attn_in: 'input_layernorm',
        mlp_in: 'post_attention_layernorm',
        q: 'self_attn.q_proj',
        k: 'self_attn.k_proj',
        v: 'self_attn.v_proj',
        q_norm_out: facts.headNorm && `self_attn.${qName}`,
        k_norm_out: facts.headNorm && `self_attn.${kName}`,
        mlp_pre: 'mlp.gate_proj',
        mlp_pre_linear: 'mlp.up_proj',
        ...facts.sites,
      }),
    },
  }
}

/** The rotation of each layer, where the config has one for each kind of layer. */
function rotaryByLayer(c: ConfigReader, facts: RotaryFacts): (layer: number) => Rotary | undefined {
  const types = c.optionalNames('layer_types')
  const kinds = c.section('rope_parameters')
  const known = new Map<string, Rotary>()
  for (const type of new Set(types)) if (kinds?.section(type)) known.set(type, readRotary(c, { ...facts, layerType: type }))
  return (layer) => known.get(types?.[layer] ?? '')
}

/** Separate projections of q, k and v at a module path. */
export const splitProjection = (path: string, bias = false): Projection => ({
  kind: 'split',
  q: linear(`${path}.q_proj`, bias),
  k: linear(`${path}.k_proj`, bias),
  v: linear(`${path}.v_proj`, bias),
})

/** The unembedding `lm_head`, or the embedding where they are tied. */
export const head = (c: ConfigReader, tied: boolean, bias = false): Linear => ({
  ...linear('lm_head', bias),
  ...(c.flag('tie_word_embeddings', tied) ? { weight: 'model.embed_tokens.weight' } : {}),
})

/** The entries that are there. */
export const modules = (entries: Readonly<Record<string, string | undefined>>): Readonly<Record<string, string>> =>
  Object.fromEntries(Object.entries(entries).filter((e): e is [string, string] => e[1] !== undefined))

/** Reads a Llama config. */
export const llama = (c: ConfigReader): DecoderSpec => {
  const bias = c.flag('attention_bias', false)
  return llamaLike(c, { family: 'llama', qkvBias: bias, outputBias: bias, mlpBias: c.flag('mlp_bias', false) })
}
