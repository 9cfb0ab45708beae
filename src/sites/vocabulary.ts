/** @file The vocabulary of sites: one row each; resolver, aliases, docs, `actlens sites` and tests derive from it. */
import type { DecoderSpec, ModulePaths } from '../models/spec.ts'

/** Names of axes, as the field uses them. */
export type AxisName = 'batch' | 'pos' | 'key' | 'head' | 'kv_head' | 'd_model' | 'd_head' | 'd_mlp' | 'd_vocab' | 'one'

/** What the table knows about a site. */
export interface SiteRow {
  readonly name: string
  /** One of these exists in every block, or one in the model. */
  readonly per: 'layer' | 'model'
  readonly axes: readonly AxisName[]
  readonly meaning: string
  /** TransformerLens names; `{L}` stands for the layer. The first is the one shown. */
  readonly transformerLens: readonly string[]
  /** Hugging Face module paths whose output (or input, where said) this is. */
  readonly huggingFace: (m: ModulePaths) => readonly string[]
  /** Why a model lacks it; undefined where it has it. */
  readonly absent?: (spec: DecoderSpec) => string | undefined
  /** Value at places that no token fills, in results that keep the caller's padding. */
  readonly fill?: number
}

const block = (m: ModulePaths, path: string) => `${m.blocks}.{L}${path ? `.${path}` : ''}`
const extra = (key: string) => (m: ModulePaths) => (m.extra?.[key] ? [block(m, m.extra[key])] : [])
const none = () => []

const noRotary = (s: DecoderSpec) =>
  s.positions.kind === 'rotary' ? undefined : `the family '${s.family}' does not rotate q and k; its positions are ${s.positions.kind}`
const noGate = (s: DecoderSpec) =>
  s.block(0).mlp.kind === 'gated' ? undefined : `the MLP of '${s.family}' has no gate; its pre-activation is mlp_pre`

const perHead = (heads: 'head' | 'kv_head'): readonly AxisName[] => ['batch', 'pos', heads, 'd_head']
const residual: readonly AxisName[] = ['batch', 'pos', 'd_model']
const hidden: readonly AxisName[] = ['batch', 'pos', 'd_mlp']
const scores: readonly AxisName[] = ['batch', 'head', 'pos', 'key']
const scalePerToken: readonly AxisName[] = ['batch', 'pos', 'one']

/** The rows, in the order in which a forward pass meets them. */
export const vocabulary: readonly SiteRow[] = [
  {
    name: 'embeddings',
    per: 'model',
    axes: residual,
    meaning: 'Token embeddings, before positions are added.',
    transformerLens: ['hook_embed', 'embed.hook_out'],
    huggingFace: (m) => [m.embedding],
  },
  {
    name: 'pos_embeddings',
    per: 'model',
    axes: residual,
    meaning: 'Learned position embeddings.',
    transformerLens: ['hook_pos_embed', 'pos_embed.hook_out'],
    huggingFace: none,
    absent: (s) =>
      s.positions.kind === 'learned' ? undefined : `positions of '${s.family}' are ${s.positions.kind}, not added to the embeddings`,
  },
  {
    name: 'resid_pre',
    per: 'layer',
    axes: residual,
    meaning: 'Residual stream as the block receives it.',
    transformerLens: ['blocks.{L}.hook_resid_pre', 'blocks.{L}.hook_in', 'blocks.{L}.ln1.hook_in'],
    huggingFace: (m) => [block(m, 'input')],
  },
  {
    name: 'attn_in_scale',
    per: 'layer',
    axes: scalePerToken,
    meaning: 'Divisor of the norm before attention: sqrt(mean square or variance + eps).',
    transformerLens: ['blocks.{L}.ln1.hook_scale'],
    huggingFace: none,
  },
  {
    name: 'attn_in_normalized',
    per: 'layer',
    axes: residual,
    meaning: 'Residual stream divided by its scale, before the gain of the norm.',
    transformerLens: ['blocks.{L}.ln1.hook_normalized'],
    huggingFace: none,
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
    huggingFace: (m) => [block(m, m.attnNorm), block(m, `${m.attention}.input`)],
  },
  {
    name: 'q',
    per: 'layer',
    axes: perHead('head'),
    meaning: 'Queries, before rotation.',
    transformerLens: ['blocks.{L}.attn.hook_q', 'blocks.{L}.attn.q.hook_out'],
    huggingFace: extra('q'),
  },
  {
    name: 'k',
    per: 'layer',
    axes: perHead('kv_head'),
    meaning: 'Keys, before rotation; with grouped heads one for each key-value head.',
    transformerLens: ['blocks.{L}.attn.hook_k', 'blocks.{L}.attn.k.hook_out'],
    huggingFace: extra('k'),
  },
  {
    name: 'v',
    per: 'layer',
    axes: perHead('kv_head'),
    meaning: 'Values; with grouped heads one for each key-value head.',
    transformerLens: ['blocks.{L}.attn.hook_v', 'blocks.{L}.attn.v.hook_out'],
    huggingFace: extra('v'),
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
    transformerLens: ['blocks.{L}.attn.hook_out', 'blocks.{L}.attn.o.hook_out'],
    huggingFace: (m) => [block(m, m.attention)],
  },
  {
    name: 'attn_out_post',
    per: 'layer',
    axes: residual,
    meaning: 'What attention adds to the residual stream (after a post-norm, where the family has one).',
    transformerLens: ['blocks.{L}.hook_attn_out'],
    huggingFace: none,
  },
  {
    name: 'resid_mid',
    per: 'layer',
    axes: residual,
    meaning: 'Residual stream between attention and MLP.',
    transformerLens: ['blocks.{L}.hook_resid_mid', 'blocks.{L}.ln2.hook_in'],
    huggingFace: none,
  },
  {
    name: 'mlp_in_scale',
    per: 'layer',
    axes: scalePerToken,
    meaning: 'Divisor of the norm before the MLP.',
    transformerLens: ['blocks.{L}.ln2.hook_scale'],
    huggingFace: none,
  },
  {
    name: 'mlp_in_normalized',
    per: 'layer',
    axes: residual,
    meaning: 'Residual stream divided by its scale, before the gain of the norm.',
    transformerLens: ['blocks.{L}.ln2.hook_normalized'],
    huggingFace: none,
  },
  {
    name: 'mlp_in',
    per: 'layer',
    axes: residual,
    meaning: 'What the MLP reads: output of the norm before it.',
    transformerLens: ['blocks.{L}.ln2.hook_out', 'blocks.{L}.mlp.hook_in', 'blocks.{L}.mlp.gate.hook_in', 'blocks.{L}.mlp.in.hook_in'],
    huggingFace: (m) => [block(m, m.mlpNorm), block(m, `${m.mlp}.input`)],
  },
  {
    name: 'mlp_pre',
    per: 'layer',
    axes: hidden,
    meaning: 'Pre-activations; in a gated MLP the gate before its activation function.',
    transformerLens: ['blocks.{L}.mlp.hook_pre', 'blocks.{L}.mlp.gate.hook_out'],
    huggingFace: extra('mlp_pre'),
  },
  {
    name: 'mlp_pre_linear',
    per: 'layer',
    axes: hidden,
    meaning: 'The up projection of a gated MLP, which the gate multiplies.',
    transformerLens: ['blocks.{L}.mlp.hook_pre_linear', 'blocks.{L}.mlp.in.hook_out'],
    huggingFace: extra('mlp_pre_linear'),
    absent: noGate,
  },
  {
    name: 'mlp_act',
    per: 'layer',
    axes: hidden,
    meaning: 'Neurons: what enters the down projection.',
    transformerLens: ['blocks.{L}.mlp.hook_post', 'blocks.{L}.mlp.out.hook_in'],
    huggingFace: none,
  },
  {
    name: 'mlp_out',
    per: 'layer',
    axes: residual,
    meaning: 'Output of the MLP module.',
    transformerLens: ['blocks.{L}.mlp.hook_out', 'blocks.{L}.mlp.out.hook_out'],
    huggingFace: (m) => [block(m, m.mlp)],
  },
  {
    name: 'mlp_out_post',
    per: 'layer',
    axes: residual,
    meaning: 'What the MLP adds to the residual stream (after a post-norm, where the family has one).',
    transformerLens: ['blocks.{L}.hook_mlp_out'],
    huggingFace: none,
  },
  {
    name: 'resid_post',
    per: 'layer',
    axes: residual,
    meaning: 'Residual stream as the block leaves it.',
    transformerLens: ['blocks.{L}.hook_resid_post', 'blocks.{L}.hook_out'],
    huggingFace: (m) => [block(m, '')],
  },
  {
    name: 'final_norm_scale',
    per: 'model',
    axes: scalePerToken,
    meaning: 'Divisor of the final norm.',
    transformerLens: ['ln_final.hook_scale'],
    huggingFace: none,
  },
  {
    name: 'final_norm_normalized',
    per: 'model',
    axes: residual,
    meaning: 'Last residual stream divided by its scale, before the gain of the final norm.',
    transformerLens: ['ln_final.hook_normalized'],
    huggingFace: none,
  },
  {
    name: 'final_norm',
    per: 'model',
    axes: residual,
    meaning: 'Output of the final norm: what the unembedding reads.',
    transformerLens: ['ln_final.hook_out', 'unembed.hook_in'],
    huggingFace: (m) => [m.finalNorm],
  },
  {
    name: 'logits',
    per: 'model',
    axes: ['batch', 'pos', 'd_vocab'],
    meaning: 'Logits of the next token.',
    transformerLens: ['logits', 'unembed.hook_out', 'hook_unembed'],
    huggingFace: (m) => [m.head],
  },
]

/** Rows by name. */
export const siteRows: ReadonlyMap<string, SiteRow> = new Map(vocabulary.map((row) => [row.name, row]))

/** The row of a canonical site (`resid_post.3` → the row of `resid_post`). */
export function rowOf(site: string): SiteRow | undefined {
  return siteRows.get(site.split('.')[0] as string)
}

/** The table of sites for the docs, in Markdown. */
export function sitesMarkdown(): string {
  const line = (r: SiteRow) =>
    `| \`${r.name}${r.per === 'layer' ? '.L' : ''}\` | ${r.axes.map((a) => (a === 'one' ? '1' : a)).join(', ')} | ${r.meaning} | ${r.transformerLens.map((n) => `\`${n.replace('{L}', 'L')}\``).join(' ')} |`
  return ['| site | axes | meaning | TransformerLens |', '|---|---|---|---|', ...vocabulary.map(line)].join('\n')
}
