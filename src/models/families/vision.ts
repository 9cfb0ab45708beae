/** @file Vision encoders: ViT, DeiT, DINOv2 (also with registers), and the vision towers of CLIP and SigLIP. */
import { ModelError } from '../../base/errors.ts'
import { ConfigReader } from '../config.ts'
import type { EncoderSpec, LearnedTokens, PixelInput } from '../encoder-spec.ts'
import type { AttentionSpec, BlockSpec, DenseMlp, Norm } from '../spec.ts'
import { splitProjection } from './llama.ts'
import { activations, commonSizes, layerNorm, linear } from './parts.ts'

interface Facts {
  readonly family: string
  readonly blocks: string
  readonly input: Pick<PixelInput, 'projection' | 'first' | 'positions' | 'registers'>
  readonly dMlp?: number
  readonly inputNorm?: Norm
  readonly finalNorm?: Norm
  readonly block: (at: (path: string) => string) => Omit<BlockSpec, 'residual'>
  readonly sites: Readonly<Record<string, string>>
  readonly attention: string
  readonly mlp?: string
  /** Module paths before the whole in larger models. */
  readonly prefixes: readonly string[]
  readonly foreign: readonly string[]
  readonly storedName?: EncoderSpec['storedName']
}

function visionLike(c: ConfigReader, facts: Facts): EncoderSpec {
  const { vocab: _, ...sizes } = commonSizes(new ConfigReader({ vocab_size: 1, ...c.config }))
  const [image, patch] = [c.integer('image_size'), c.integer('patch_size')]
  if (image % patch !== 0)
    throw new ModelError(`config.json asks for images of ${image} pixels in patches of ${patch}, which do not divide evenly.`)
  const input: PixelInput = { kind: 'pixels', image, patch, channels: c.optionalInteger('num_channels') ?? 3, ...facts.input }
  const extra = [...input.first, ...(input.registers ? [input.registers] : [])].reduce((n, t) => n + t.count, 0)
  return {
    family: facts.family,
    ...sizes,
    dMlp: facts.dMlp ?? sizes.dMlp,
    maxPositions: (image / patch) ** 2 + extra,
    positions: { kind: 'image' },
    input,
    ...(facts.inputNorm ? { inputNorm: facts.inputNorm } : {}),
    ...(facts.finalNorm ? { finalNorm: facts.finalNorm } : {}),
    block: (layer) => ({ residual: 'sequential', ...facts.block((path) => `${facts.blocks}.${layer}.${path}`) }),
    modules: {
      blocks: facts.blocks,
      attention: facts.attention,
      ...(facts.mlp ? { mlp: facts.mlp } : {}),
      ...(facts.finalNorm?.weight ? { finalNorm: facts.finalNorm.weight.replace(/\.weight$/, '') } : {}),
      sites: facts.sites,
    },
    otherNames: (name) => facts.prefixes.map((p) => `${p}.${name}`),
    ...(facts.storedName ? { storedName: facts.storedName } : {}),
    foreign: facts.foreign,
  }
}

const patches = (c: ConfigReader) => (c.integer('image_size') / c.integer('patch_size')) ** 2
const token = (weight: string, dModel: number): LearnedTokens => ({ weight, shape: [1, 1, dModel], count: 1 })

/** Names of parameters of ViT and its kin in memory, and those in checkpoints. */
const renamed: readonly (readonly [RegExp, string])[] = [
  [/(^|\.)layers\.(\d+)\./, '$1encoder.layer.$2.'],
  [/attention\.q_proj\./, 'attention.attention.query.'],
  [/attention\.k_proj\./, 'attention.attention.key.'],
  [/attention\.v_proj\./, 'attention.attention.value.'],
  [/attention\.o_proj\./, 'attention.output.dense.'],
]
const renamedMlp: typeof renamed = [
  [/mlp\.fc1\./, 'intermediate.dense.'],
  [/mlp\.fc2\./, 'output.dense.'],
]
const storedName = (rules: typeof renamed) => (name: string) => rules.reduce((n, [from, to]) => n.replace(from, to), name)

/** Attention of ViT and its kin, under their names. */
const vitAttention = (c: ConfigReader, at: (path: string) => string): AttentionSpec => {
  const bias = c.flag('qkv_bias', true)
  return {
    projection: {
      kind: 'split',
      q: linear(at('attention.attention.query'), bias),
      k: linear(at('attention.attention.key'), bias),
      v: linear(at('attention.attention.value'), bias),
    },
    output: linear(at('attention.output.dense'), true),
    scale: commonSizes(new ConfigReader({ vocab_size: 1, ...c.config })).headDim ** -0.5,
  }
}

function vitLike(c: ConfigReader, family: string, first: readonly LearnedTokens[], foreign: readonly string[]): EncoderSpec {
  const dModel = c.integer('hidden_size')
  const eps = c.number('layer_norm_eps', 1e-12)
  const activation = c.choice('hidden_act', activations, 'gelu')
  return visionLike(c, {
    family,
    blocks: 'encoder.layer',
    input: {
      projection: { weight: 'embeddings.patch_embeddings.projection.weight', bias: 'embeddings.patch_embeddings.projection.bias' },
      first,
      positions: { weight: 'embeddings.position_embeddings', shape: [1, patches(c) + first.length, dModel] },
    },
    finalNorm: layerNorm('layernorm', eps),
    block: (at) => ({
      attnNorm: layerNorm(at('layernorm_before'), eps),
      attention: vitAttention(c, at),
      mlpNorm: layerNorm(at('layernorm_after'), eps),
      mlp: { kind: 'plain', up: linear(at('intermediate.dense'), true), down: linear(at('output.dense'), true), activation },
    }),
    attention: 'attention',
    sites: { attn_in: 'layernorm_before', mlp_in: 'layernorm_after', mlp_pre: 'intermediate.dense', mlp_out: 'output.dense' },
    prefixes: [family],
    storedName: storedName([...renamed, ...renamedMlp]),
    foreign: ['pooler.', `${family}.pooler.`, 'classifier.', 'cls_classifier.', 'distillation_classifier.', 'decoder.', ...foreign],
  })
}

/** Reads a ViT config. */
export const vit = (c: ConfigReader): EncoderSpec =>
  vitLike(c, 'vit', [token('embeddings.cls_token', c.integer('hidden_size'))], ['embeddings.mask_token', 'vit.embeddings.mask_token'])

/** Reads a DeiT config: ViT with a distillation token. */
export function deit(c: ConfigReader): EncoderSpec {
  const dModel = c.integer('hidden_size')
  const first = [token('embeddings.cls_token', dModel), token('embeddings.distillation_token', dModel)]
  return vitLike(c, 'deit', first, ['embeddings.mask_token', 'deit.embeddings.mask_token'])
}

/** The gated network of the largest DINOv2: its width is two thirds of the usual, rounded up to a multiple of eight. */
const swigluWidth = (hidden: number) => Math.floor((Math.floor((hidden * 2) / 3) + 7) / 8) * 8

function dinov2Like(c: ConfigReader, family: string, registers: number): EncoderSpec {
  const dModel = c.integer('hidden_size')
  const eps = c.number('layer_norm_eps', 1e-6)
  const activation = c.choice('hidden_act', activations, 'gelu')
  const hidden = Math.trunc(dModel * c.number('mlp_ratio', 4))
  const swiglu = c.flag('use_swiglu_ffn', false)
  const mlp = (at: (path: string) => string): DenseMlp =>
    swiglu
      ? {
          kind: 'gated',
          gate: { gateUp: linear(at('mlp.weights_in'), true) },
          down: linear(at('mlp.weights_out'), true),
          activation: 'silu',
        }
      : { kind: 'plain', up: linear(at('mlp.fc1'), true), down: linear(at('mlp.fc2'), true), activation }
  return visionLike(c, {
    family,
    blocks: 'encoder.layer',
    dMlp: swiglu ? swigluWidth(hidden) : hidden,
    input: {
      projection: { weight: 'embeddings.patch_embeddings.projection.weight', bias: 'embeddings.patch_embeddings.projection.bias' },
      first: [token('embeddings.cls_token', dModel)],
      positions: { weight: 'embeddings.position_embeddings', shape: [1, patches(c) + 1, dModel] },
      ...(registers > 0 ? { registers: { weight: 'embeddings.register_tokens', shape: [1, registers, dModel], count: registers } } : {}),
    },
    finalNorm: layerNorm('layernorm', eps),
    block: (at) => ({
      attnNorm: layerNorm(at('norm1'), eps),
      attention: vitAttention(c, at),
      attnGain: at('layer_scale1.lambda1'),
      mlpNorm: layerNorm(at('norm2'), eps),
      mlp: mlp(at),
      mlpGain: at('layer_scale2.lambda1'),
    }),
    attention: 'attention',
    mlp: 'mlp',
    sites: {
      attn_in: 'norm1',
      mlp_in: 'norm2',
      attn_out_post: 'layer_scale1',
      mlp_out_post: 'layer_scale2',
      ...(swiglu ? {} : { mlp_pre: 'mlp.fc1' }),
    },
    prefixes: [family],
    storedName: storedName(renamed),
    foreign: ['embeddings.mask_token', `${family}.embeddings.mask_token`, 'classifier.'],
  })
}

/** Reads a DINOv2 config: what a module adds is scaled coordinate by coordinate. */
export const dinov2 = (c: ConfigReader): EncoderSpec => dinov2Like(c, 'dinov2', 0)

/** Reads a DINOv2 config with register tokens. */
export const dinov2WithRegisters = (c: ConfigReader): EncoderSpec =>
  dinov2Like(c, 'dinov2_with_registers', c.optionalInteger('num_register_tokens') ?? 4)

interface TowerFacts {
  readonly family: string
  readonly classToken: boolean
  readonly activation: string
  readonly inputNorm?: string
  readonly lastNorm: boolean
  readonly foreign: readonly string[]
}

function tower(whole: ConfigReader, facts: TowerFacts): EncoderSpec {
  const c = whole.section('vision_config') ?? whole
  const dModel = c.integer('hidden_size')
  const eps = c.number('layer_norm_eps', facts.lastNorm ? 1e-6 : 1e-5)
  const activation = c.choice('hidden_act', activations, facts.activation)
  const { headDim } = commonSizes(new ConfigReader({ vocab_size: 1, ...c.config }))
  return visionLike(c, {
    family: facts.family,
    blocks: 'encoder.layers',
    input: {
      projection: {
        weight: 'embeddings.patch_embedding.weight',
        ...(facts.classToken ? {} : { bias: 'embeddings.patch_embedding.bias' }),
      },
      first: facts.classToken ? [{ weight: 'embeddings.class_embedding', shape: [dModel], count: 1 }] : [],
      positions: { weight: 'embeddings.position_embedding.weight', shape: [patches(c) + (facts.classToken ? 1 : 0), dModel] },
    },
    ...(facts.inputNorm ? { inputNorm: layerNorm(facts.inputNorm, eps) } : {}),
    ...(facts.lastNorm ? { finalNorm: layerNorm('post_layernorm', eps) } : {}),
    block: (at) => ({
      attnNorm: layerNorm(at('layer_norm1'), eps),
      attention: {
        projection: splitProjection(at('self_attn'), true),
        output: linear(at('self_attn.out_proj'), true),
        scale: headDim ** -0.5,
      },
      mlpNorm: layerNorm(at('layer_norm2'), eps),
      mlp: { kind: 'plain', up: linear(at('mlp.fc1'), true), down: linear(at('mlp.fc2'), true), activation },
    }),
    attention: 'self_attn',
    mlp: 'mlp',
    sites: {
      attn_in: 'layer_norm1',
      mlp_in: 'layer_norm2',
      q: 'self_attn.q_proj',
      k: 'self_attn.k_proj',
      v: 'self_attn.v_proj',
      mlp_pre: 'mlp.fc1',
    },
    prefixes: ['vision_model'],
    foreign: [...facts.foreign, 'text_model.', 'visual_projection.', 'text_projection.', 'logit_'],
  })
}

/** Reads the vision tower of a CLIP config; the norm on its pooled output is not part of the residual stream. */
export const clipVision = (c: ConfigReader): EncoderSpec =>
  tower(c, {
    family: 'clip_vision_model',
    classToken: true,
    activation: 'quick_gelu',
    inputNorm: 'pre_layrnorm',
    lastNorm: false,
    foreign: ['post_layernorm.', 'vision_model.post_layernorm.'],
  })

/** Reads the vision tower of a SigLIP config. */
export const siglipVision = (c: ConfigReader): EncoderSpec =>
  tower(c, {
    family: 'siglip_vision_model',
    classToken: false,
    activation: 'gelu_pytorch_tanh',
    lastNorm: true,
    foreign: ['head.', 'vision_model.head.'],
  })
