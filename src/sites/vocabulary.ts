/** @file The vocabulary of sites: one row each; resolver, aliases, docs, `actlens sites` and tests derive from it. */
import type { ModulePaths } from '../models/spec.ts'
import {
  type Absent,
  blockOf,
  inExperts,
  noAttnNorm,
  noCross,
  noExperts,
  noFinalNorm,
  noGate,
  noHead,
  noHeadNorm,
  noMiddle,
  noMlp,
  noMlpNorm,
  noPostNorm,
  noRotary,
  type SiteSpec,
} from './absent.ts'

export type { SiteSpec } from './absent.ts'

/** Names of axes, as the field uses them; `chosen` counts the experts that a token goes to, `source` the positions of the other stack, `images` the images where a batch has others than texts, `d_embed` a space that texts and images share. */
export type AxisName =
  | 'batch'
  | 'pos'
  | 'key'
  | 'head'
  | 'kv_head'
  | 'd_model'
  | 'd_head'
  | 'd_mlp'
  | 'd_vocab'
  | 'expert'
  | 'chosen'
  | 'source'
  | 'images'
  | 'patch'
  | 'd_embed'
  | 'd_inner'
  | 'one'

/** What the table knows about a site. */
export interface SiteRow {
  readonly name: string
  /** One of these exists in every block, or one in the model. */
  readonly per: 'layer' | 'model'
  /** There is one in a model of several stacks, too, of that stack which unembeds: its name has no prefix. */
  readonly unique?: true
  /** Only stacks that name it among their extras have it. */
  readonly extra?: true
  readonly axes: readonly AxisName[]
  readonly meaning: string
  /** TransformerLens names; `{L}` stands for the layer. The first is the one shown. */
  readonly transformerLens: readonly string[]
  /** Hugging Face module paths whose output (or input, where said) this is. */
  readonly huggingFace: (m: ModulePaths) => readonly string[]
  /** Names that it has in some models only. */
  readonly more?: (spec: SiteSpec, layer?: number) => readonly string[]
  /** What one may expect to be otherwise, where a name means something else in other tools or modules. */
  readonly note?: string
  /** Why a model lacks it in a layer; undefined where it has it. */
  readonly absent?: Absent
  /** Value at places that no token fills, in results that keep the caller's padding. */
  readonly fill?: number
}

const block = (m: ModulePaths, path: string) => `${m.blocks}.{L}${path ? `.${path}` : ''}`
/** The module that a family names for a site, besides those given. */
const module =
  (site: string, ...others: ((m: ModulePaths) => string | undefined)[]) =>
  (m: ModulePaths) =>
    [m.sites?.[site], ...others.map((o) => o(m))].filter((path) => path !== undefined).map((path) => block(m, path))
const none = () => []

const perHead = (heads: 'head' | 'kv_head'): readonly AxisName[] => ['batch', 'pos', heads, 'd_head']
const residual: readonly AxisName[] = ['batch', 'pos', 'd_model']
const hidden: readonly AxisName[] = ['batch', 'pos', 'd_mlp']
const scores: readonly AxisName[] = ['batch', 'head', 'pos', 'key']
const inner: readonly AxisName[] = ['batch', 'pos', 'd_inner']
const scalePerToken: readonly AxisName[] = ['batch', 'pos', 'one']

/** Rows of sites of state spaces, one in each block. */
function stateSpace(rows: readonly (readonly [name: string, axes: readonly AxisName[], meaning: string])[]): SiteRow[] {
  return rows.map(([name, axes, meaning]) => ({
    name,
    per: 'layer',
    axes,
    meaning,
    transformerLens: [],
    huggingFace: module(name),
    absent: (s) => `the blocks of '${s.family}' are attention and feed-forward networks, not state spaces`,
  }))
}

/** Rows of sites that only some models have, once each. */
function extras(rows: readonly (readonly [name: string, axes: readonly AxisName[], meaning: string])[]): SiteRow[] {
  return rows.map(([name, axes, meaning]) => ({
    name,
    per: 'model',
    unique: true,
    extra: true,
    axes,
    meaning,
    transformerLens: [],
    huggingFace: none,
    absent: (s) => (s.extras?.includes(name) ? undefined : `'${s.family}' does not bring texts and images together in this way`),
  }))
}

/** The rows, in the order in which a forward pass meets them. */
export const vocabulary: readonly SiteRow[] = [
  {
    name: 'embeddings',
    per: 'model',
    axes: residual,
    meaning: 'Token embeddings, before positions are added.',
    note: "After the family's factor or projection, where it has one (Gemma, Granite, OPT-350M); before the norm that BLOOM puts on them.",
    transformerLens: ['hook_embed', 'embed.hook_out'],
    huggingFace: (m) => (m.embedding ? [m.embedding] : []),
  },
  {
    name: 'pos_embeddings',
    per: 'model',
    axes: residual,
    meaning: 'Learned position embeddings.',
    transformerLens: ['hook_pos_embed', 'pos_embed.hook_out'],
    huggingFace: none,
    absent: (s) =>
      s.positions.kind === 'learned' || s.positions.kind === 'image'
        ? undefined
        : `positions of '${s.family}' are ${s.positions.kind}, not added to the embeddings`,
  },
  {
    name: 'resid_pre',
    per: 'layer',
    axes: residual,
    meaning: 'Residual stream as the block receives it.',
    transformerLens: ['blocks.{L}.hook_resid_pre', 'blocks.{L}.hook_in', 'blocks.{L}.ln1.hook_in'],
    huggingFace: (m) => [block(m, 'input')],
    more: (s, layer) => (blockOf(s, layer).residual === 'parallel' && blockOf(s, layer).mlpNorm ? ['blocks.{L}.ln2.hook_in'] : []),
  },
  {
    name: 'attn_in_scale',
    per: 'layer',
    axes: scalePerToken,
    meaning: 'Divisor of the norm before attention: sqrt(mean square or variance + eps).',
    transformerLens: ['blocks.{L}.ln1.hook_scale'],
    huggingFace: none,
    absent: noAttnNorm,
  },
  {
    name: 'attn_in_normalized',
    per: 'layer',
    axes: residual,
    meaning: 'Residual stream divided by its scale, before the gain of the norm.',
    transformerLens: ['blocks.{L}.ln1.hook_normalized'],
    huggingFace: none,
    absent: noAttnNorm,
  },
  {
    name: 'attn_in',
    per: 'layer',
    axes: residual,
    meaning: 'What attention reads: output of the norm before it.',
    transformerLens: [
      'blocks.{L}.ln1.hook_out',
      'blocks.{L}.attn.hook_in',
      'blocks.{L}.attn.q.hook_in',
      'blocks.{L}.attn.k.hook_in',
      'blocks.{L}.attn.v.hook_in',
    ],
    huggingFace: module('attn_in', (m) => `${m.attention}.input`),
  },
  {
    name: 'q',
    per: 'layer',
    axes: perHead('head'),
    meaning: 'Queries, before rotation.',
    transformerLens: ['blocks.{L}.attn.hook_q', 'blocks.{L}.attn.q.hook_out'],
    huggingFace: module('q'),
  },
  {
    name: 'k',
    per: 'layer',
    axes: perHead('kv_head'),
    meaning: 'Keys, before rotation; with grouped heads one for each key-value head.',
    transformerLens: ['blocks.{L}.attn.hook_k', 'blocks.{L}.attn.k.hook_out'],
    huggingFace: module('k'),
  },
  {
    name: 'v',
    per: 'layer',
    axes: perHead('kv_head'),
    meaning: 'Values; with grouped heads one for each key-value head.',
    transformerLens: ['blocks.{L}.attn.hook_v', 'blocks.{L}.attn.v.hook_out'],
    huggingFace: module('v'),
  },
  {
    name: 'q_norm_in',
    per: 'layer',
    axes: perHead('head'),
    meaning: 'Queries as their norm receives them: the same as q.',
    transformerLens: ['blocks.{L}.attn.q_norm.hook_in'],
    huggingFace: none,
    absent: noHeadNorm('qNorm'),
  },
  {
    name: 'q_norm_out',
    per: 'layer',
    axes: perHead('head'),
    meaning: 'Queries after their norm, before rotation.',
    transformerLens: ['blocks.{L}.attn.q_norm.hook_out'],
    huggingFace: module('q_norm_out'),
    absent: noHeadNorm('qNorm'),
  },
  {
    name: 'k_norm_in',
    per: 'layer',
    axes: perHead('kv_head'),
    meaning: 'Keys as their norm receives them: the same as k.',
    transformerLens: ['blocks.{L}.attn.k_norm.hook_in'],
    huggingFace: none,
    absent: noHeadNorm('kNorm'),
  },
  {
    name: 'k_norm_out',
    per: 'layer',
    axes: perHead('kv_head'),
    meaning: 'Keys after their norm, before rotation.',
    transformerLens: ['blocks.{L}.attn.k_norm.hook_out'],
    huggingFace: module('k_norm_out'),
    absent: noHeadNorm('kNorm'),
  },
  {
    name: 'q_rot',
    per: 'layer',
    axes: perHead('head'),
    meaning: 'Queries after rotation.',
    transformerLens: ['blocks.{L}.attn.hook_rot_q'],
    huggingFace: none,
    absent: noRotary,
  },
  {
    name: 'k_rot',
    per: 'layer',
    axes: perHead('kv_head'),
    meaning: 'Keys after rotation.',
    transformerLens: ['blocks.{L}.attn.hook_rot_k'],
    huggingFace: none,
    absent: noRotary,
  },
  {
    name: 'attn_scores',
    per: 'layer',
    axes: scores,
    meaning: 'Scaled (and capped) products of queries and keys, -inf where a query may not look.',
    transformerLens: ['blocks.{L}.attn.hook_attn_scores'],
    huggingFace: none,
    fill: Number.NEGATIVE_INFINITY,
  },
  {
    name: 'attn_probs',
    per: 'layer',
    axes: scores,
    meaning: 'Attention pattern: softmax of the scores over keys.',
    transformerLens: ['blocks.{L}.attn.hook_pattern'],
    huggingFace: none,
  },
  {
    name: 'z',
    per: 'layer',
    axes: perHead('head'),
    meaning: 'Values mixed by the pattern, for each head, before the output projection.',
    transformerLens: ['blocks.{L}.attn.hook_z', 'blocks.{L}.attn.o.hook_in'],
    huggingFace: none,
  },
  {
    name: 'attn_out',
    per: 'layer',
    axes: residual,
    meaning: 'Output of the attention module.',
    note: 'In BLOOM the module adds the residual stream itself, so that it is part of its output; what attention alone adds is attn_out_post.',
    transformerLens: ['blocks.{L}.attn.hook_out', 'blocks.{L}.attn.o.hook_out', 'blocks.{L}.ln1_post.hook_in'],
    huggingFace: module('attn_out', (m) => m.attention),
  },
  {
    name: 'attn_out_post_scale',
    per: 'layer',
    axes: scalePerToken,
    meaning: 'Divisor of the norm on the output of attention.',
    transformerLens: ['blocks.{L}.ln1_post.hook_scale'],
    huggingFace: none,
    absent: noPostNorm('attnPostNorm'),
  },
  {
    name: 'attn_out_post_normalized',
    per: 'layer',
    axes: residual,
    meaning: 'Output of attention divided by its scale, before the gain of the norm.',
    transformerLens: ['blocks.{L}.ln1_post.hook_normalized'],
    huggingFace: none,
    absent: noPostNorm('attnPostNorm'),
  },
  {
    name: 'attn_out_post',
    per: 'layer',
    axes: residual,
    meaning: 'What attention adds to the residual stream (after a post-norm and a factor, where the family has them).',
    transformerLens: ['blocks.{L}.hook_attn_out', 'blocks.{L}.ln1_post.hook_out'],
    huggingFace: module('attn_out_post'),
  },
  {
    name: 'resid_mid',
    per: 'layer',
    axes: residual,
    meaning: 'Residual stream between attention and MLP.',
    transformerLens: ['blocks.{L}.hook_resid_mid', 'blocks.{L}.ln2.hook_in'],
    huggingFace: none,
    absent: noMiddle,
  },
  {
    name: 'cross_attn_in',
    per: 'layer',
    axes: residual,
    meaning: 'What attention to the other stack reads with its queries: output of the norm before it.',
    transformerLens: [],
    huggingFace: none,
    absent: noCross,
  },
  {
    name: 'cross_q',
    per: 'layer',
    axes: perHead('head'),
    meaning: 'Queries to the other stack.',
    transformerLens: ['blocks.{L}.cross_attn.hook_q'],
    huggingFace: none,
    absent: noCross,
  },
  {
    name: 'cross_k',
    per: 'layer',
    axes: ['batch', 'source', 'kv_head', 'd_head'],
    meaning: 'Keys of the other stack.',
    transformerLens: ['blocks.{L}.cross_attn.hook_k'],
    huggingFace: none,
    absent: noCross,
  },
  {
    name: 'cross_v',
    per: 'layer',
    axes: ['batch', 'source', 'kv_head', 'd_head'],
    meaning: 'Values of the other stack.',
    transformerLens: ['blocks.{L}.cross_attn.hook_v'],
    huggingFace: none,
    absent: noCross,
  },
  {
    name: 'cross_attn_scores',
    per: 'layer',
    axes: ['batch', 'head', 'pos', 'source'],
    meaning: 'Scaled products of queries and keys of the other stack; the lowest number where a key is hidden.',
    transformerLens: ['blocks.{L}.cross_attn.hook_attn_scores'],
    huggingFace: none,
    absent: noCross,
  },
  {
    name: 'cross_attn_probs',
    per: 'layer',
    axes: ['batch', 'head', 'pos', 'source'],
    meaning: 'Attention pattern over the other stack.',
    transformerLens: ['blocks.{L}.cross_attn.hook_pattern'],
    huggingFace: none,
    absent: noCross,
  },
  {
    name: 'cross_z',
    per: 'layer',
    axes: perHead('head'),
    meaning: 'Values of the other stack mixed by the pattern, for each head.',
    transformerLens: ['blocks.{L}.cross_attn.hook_z'],
    huggingFace: none,
    absent: noCross,
  },
  {
    name: 'cross_attn_out',
    per: 'layer',
    axes: residual,
    meaning: 'What attention to the other stack adds to the residual stream.',
    transformerLens: ['blocks.{L}.hook_cross_attn_out'],
    huggingFace: none,
    absent: noCross,
  },
  {
    name: 'resid_mid_cross',
    per: 'layer',
    axes: residual,
    meaning: 'Residual stream between attention to the other stack and MLP.',
    transformerLens: ['blocks.{L}.hook_resid_mid_cross'],
    huggingFace: none,
    absent: noCross,
  },
  {
    name: 'mlp_in_scale',
    per: 'layer',
    axes: scalePerToken,
    meaning: 'Divisor of the norm before the MLP.',
    transformerLens: ['blocks.{L}.ln2.hook_scale'],
    huggingFace: none,
    absent: noMlpNorm,
  },
  {
    name: 'mlp_in_normalized',
    per: 'layer',
    axes: residual,
    meaning: 'Residual stream divided by its scale, before the gain of the norm.',
    transformerLens: ['blocks.{L}.ln2.hook_normalized'],
    huggingFace: none,
    absent: noMlpNorm,
  },
  {
    name: 'mlp_in',
    per: 'layer',
    axes: residual,
    meaning: 'What the MLP reads: output of the norm before it.',
    transformerLens: ['blocks.{L}.ln2.hook_out', 'blocks.{L}.mlp.hook_in', 'blocks.{L}.mlp.gate.hook_in', 'blocks.{L}.mlp.in.hook_in'],
    huggingFace: module('mlp_in', (m) => m.mlp && `${m.mlp}.input`),
    absent: noMlp,
  },
  {
    name: 'router_logits',
    per: 'layer',
    axes: ['batch', 'pos', 'expert'],
    meaning: 'Scores by which the router chooses among the experts.',
    transformerLens: ['blocks.{L}.mlp.gate.hook_router_logits'],
    huggingFace: module('router_logits'),
    absent: noExperts,
  },
  {
    name: 'expert_weights',
    per: 'layer',
    axes: ['batch', 'pos', 'chosen'],
    meaning: 'Weights of the chosen experts, the largest first.',
    transformerLens: [],
    huggingFace: none,
    absent: noExperts,
  },
  {
    name: 'expert_indices',
    per: 'layer',
    axes: ['batch', 'pos', 'chosen'],
    meaning: 'Numbers of the chosen experts, in the order of their weights.',
    transformerLens: [],
    huggingFace: none,
    note: 'Numbers are given as floating-point values like those of every site; an edit may set others.',
    absent: noExperts,
  },
  {
    name: 'mlp_pre',
    per: 'layer',
    axes: hidden,
    meaning: 'Pre-activations; in a gated MLP the gate before its activation function.',
    transformerLens: ['blocks.{L}.mlp.hook_pre', 'blocks.{L}.mlp.gate.hook_out'],
    more: (s, layer) => (blockOf(s, layer).mlp.kind === 'plain' ? ['blocks.{L}.mlp.in.hook_out'] : []),
    huggingFace: module('mlp_pre'),
    absent: inExperts,
  },
  {
    name: 'mlp_pre_linear',
    per: 'layer',
    axes: hidden,
    meaning: 'The up projection of a gated MLP, which the gate multiplies.',
    transformerLens: ['blocks.{L}.mlp.hook_pre_linear', 'blocks.{L}.mlp.in.hook_out'],
    huggingFace: module('mlp_pre_linear'),
    absent: noGate,
  },
  {
    name: 'mlp_act',
    per: 'layer',
    axes: hidden,
    meaning: 'Neurons: what enters the down projection.',
    transformerLens: ['blocks.{L}.mlp.hook_post', 'blocks.{L}.mlp.out.hook_in'],
    huggingFace: none,
    absent: inExperts,
  },
  {
    name: 'mlp_out',
    per: 'layer',
    axes: residual,
    meaning: 'Output of the MLP module.',
    note: 'In BLOOM and MPT the module adds the residual stream itself, so that it is part of its output; what the MLP alone adds is mlp_out_post.',
    transformerLens: ['blocks.{L}.mlp.hook_out', 'blocks.{L}.mlp.out.hook_out', 'blocks.{L}.ln2_post.hook_in'],
    huggingFace: module('mlp_out', (m) => m.mlp),
    absent: noMlp,
  },
  {
    name: 'mlp_out_post_scale',
    per: 'layer',
    axes: scalePerToken,
    meaning: 'Divisor of the norm on the output of the MLP.',
    transformerLens: ['blocks.{L}.ln2_post.hook_scale'],
    huggingFace: none,
    absent: noPostNorm('mlpPostNorm'),
  },
  {
    name: 'mlp_out_post_normalized',
    per: 'layer',
    axes: residual,
    meaning: 'Output of the MLP divided by its scale, before the gain of the norm.',
    transformerLens: ['blocks.{L}.ln2_post.hook_normalized'],
    huggingFace: none,
    absent: noPostNorm('mlpPostNorm'),
  },
  {
    name: 'mlp_out_post',
    per: 'layer',
    axes: residual,
    meaning: 'What the MLP adds to the residual stream (after a post-norm and a factor, where the family has them).',
    transformerLens: ['blocks.{L}.hook_mlp_out', 'blocks.{L}.ln2_post.hook_out'],
    huggingFace: module('mlp_out_post'),
    absent: noMlp,
  },
  ...stateSpace([
    ['mixer_in', residual, 'What the state space of a block reads: output of the norm before it.'],
    ['mixer_gate', inner, 'Gate on what the states give, before its activation function.'],
    ['ssm_in', inner, 'What enters the states: after the convolution along the tokens and its activation function.'],
    ['ssm_step', inner, 'Step size of each channel at each token.'],
    ['ssm_out', inner, 'What the states give, after the gate: what enters the output projection.'],
    ['mixer_out', residual, 'What the state space of a block adds to the residual stream.'],
  ]),
  {
    name: 'resid_post',
    per: 'layer',
    axes: residual,
    meaning: 'Residual stream as the block leaves it.',
    transformerLens: ['blocks.{L}.hook_resid_post', 'blocks.{L}.hook_out'],
    huggingFace: (m) => [block(m, '')],
    more: (s, layer) => (layer === s.layers - 1 ? ['ln_final.hook_in'] : []),
  },
  {
    name: 'final_norm_scale',
    per: 'model',
    axes: scalePerToken,
    meaning: 'Divisor of the final norm.',
    transformerLens: ['ln_final.hook_scale'],
    huggingFace: none,
    absent: noFinalNorm,
  },
  {
    name: 'final_norm_normalized',
    per: 'model',
    axes: residual,
    meaning: 'Last residual stream divided by its scale, before the gain of the final norm.',
    transformerLens: ['ln_final.hook_normalized'],
    huggingFace: none,
    absent: noFinalNorm,
  },
  {
    name: 'final_norm',
    per: 'model',
    axes: residual,
    meaning: 'Output of the final norm: what the unembedding reads.',
    transformerLens: ['ln_final.hook_out', 'unembed.hook_in'],
    huggingFace: (m) => (m.finalNorm ? [m.finalNorm] : []),
    absent: noFinalNorm,
  },
  {
    name: 'last_hidden_state',
    per: 'model',
    axes: residual,
    meaning: 'Output of an encoder: its last residual stream, after the final norm where it has one.',
    transformerLens: [],
    huggingFace: none,
    absent: (s) => (s.head ? `'${s.family}' unembeds its last residual stream; read final_norm or logits` : undefined),
  },
  ...extras([
    [
      'image_features',
      ['images', 'patch', 'd_model'],
      'Features of images, as the language model gets them in the places of their tokens.',
    ],
    ['text_embeds', ['batch', 'd_embed'], 'Texts in the space that they share with images, of length one.'],
    ['image_embeds', ['images', 'd_embed'], 'Images in the space that they share with texts, of length one.'],
    ['logits_per_image', ['images', 'batch'], 'Scaled products of every image with every text.'],
  ]),
  {
    name: 'logits_pre',
    per: 'model',
    unique: true,
    axes: ['batch', 'pos', 'd_vocab'],
    meaning: 'Output of the unembedding, before a factor and a soft-cap, where the family has them; else the same as logits.',
    transformerLens: ['unembed.hook_out', 'hook_unembed'],
    huggingFace: (m) => (m.head ? [m.head] : []),
    absent: noHead,
  },
  {
    name: 'logits',
    per: 'model',
    unique: true,
    axes: ['batch', 'pos', 'd_vocab'],
    meaning: 'Logits of the next token.',
    transformerLens: ['logits'],
    huggingFace: none,
    absent: noHead,
  },
]

/** Rows by name. */
export const siteRows: ReadonlyMap<string, SiteRow> = new Map(vocabulary.map((row) => [row.name, row]))

/** The row of a canonical site (`resid_post.3` → the row of `resid_post`). */
export function rowOf(site: string): SiteRow | undefined {
  return siteRows.get(site.replace(/^(encoder|decoder|text|vision)\./, '').split('.')[0] as string)
}

/** The table of sites for the docs, in Markdown. */
export function sitesMarkdown(): string {
  const line = (r: SiteRow) =>
    `| \`${r.name}${r.per === 'layer' ? '.L' : ''}\` | ${r.axes.map((a) => (a === 'one' ? '1' : a)).join(', ')} | ${r.meaning}${r.note ? ` ${r.note}` : ''} | ${r.transformerLens.map((n) => `\`${n.replace('{L}', 'L')}\``).join(' ')} |`
  return ['| site | axes | meaning | TransformerLens |', '|---|---|---|---|', ...vocabulary.map(line)].join('\n')
}
