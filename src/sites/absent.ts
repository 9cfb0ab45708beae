/** @file Why models lack sites, as sentences: what the table of sites says about each family. */
import type { StackView } from '../models/architecture.ts'
import { expertsOf } from '../models/spec.ts'

/** What the table asks of a record. */
export type SiteSpec = StackView

/** The block of a layer. */
export const blockOf = (s: SiteSpec, layer = 0) => s.block(layer)
/** Why a model lacks a site in a layer; undefined where it has it. */
export type Absent = (spec: SiteSpec, layer?: number) => string | undefined

/** Rotated queries and keys need a rotation. */
export const noRotary: Absent = (s, layer) =>
  blockOf(s, layer).attention.rotary
    ? undefined
    : s.positions.kind === 'rotary'
      ? `layer ${layer} of '${s.family}' does not rotate q and k; its attention knows no positions`
      : `the family '${s.family}' does not rotate q and k; its positions are ${s.positions.kind}`
/** Norms of queries or keys. */
export const noHeadNorm =
  (part: 'qNorm' | 'kNorm'): Absent =>
  (s, layer) =>
    blockOf(s, layer).attention[part] ? undefined : `the family '${s.family}' has no norm of ${part === 'qNorm' ? 'queries' : 'keys'}`
/** Routing needs experts. */
export const noExperts: Absent = (s, layer) =>
  blockOf(s, layer).mlp.kind === 'experts'
    ? undefined
    : expertsOf(s)
      ? `the MLP of layer ${layer} has no experts; other layers have`
      : `the family '${s.family}' has no experts`
/** A feed-forward network. */
export const noMlp: Absent = (s, layer) =>
  blockOf(s, layer).mlp.kind === 'none' ? `the blocks of '${s.family}' are attention alone, without an MLP` : undefined
/** Neurons of a mixture of experts have no one place. */
export const inExperts: Absent = (s, layer) =>
  noMlp(s, layer) ??
  (blockOf(s, layer).mlp.kind === 'experts'
    ? `the MLP of layer ${layer} is a mixture of experts, each with neurons of its own; read router_logits, expert_weights, expert_indices or mlp_out`
    : undefined)
/** The up projection of a gated MLP. */
export const noGate: Absent = (s, layer) =>
  inExperts(s, layer) ??
  (blockOf(s, layer).mlp.kind === 'gated' ? undefined : `the MLP of '${s.family}' has no gate; its pre-activation is mlp_pre`)
/** The inside of the norm before attention. */
export const noAttnNorm: Absent = (s, layer) =>
  blockOf(s, layer).attnNorm ? undefined : `attention of '${s.family}' reads the residual stream as it is, without a norm`
/** The inside of the norm before the MLP. */
export const noMlpNorm: Absent = (s, layer) => {
  const { mlpNorm, residual } = blockOf(s, layer)
  if (mlpNorm) return undefined
  const none = noMlp(s, layer)
  if (none) return none
  return residual === 'parallel'
    ? `attention and MLP of '${s.family}' read the same norm, whose inside is attn_in_scale and attn_in_normalized`
    : `the MLP of '${s.family}' reads the residual stream as it is, without a norm`
}
/** The inside of a norm on an output. */
export const noPostNorm =
  (part: 'attnPostNorm' | 'mlpPostNorm'): Absent =>
  (s, layer) =>
    blockOf(s, layer)[part]
      ? undefined
      : `the family '${s.family}' has no norm on the output of its ${part === 'attnPostNorm' ? 'attention' : 'MLP'}`
/** The stream between attention and MLP. */
export const noMiddle: Absent = (s, layer) =>
  blockOf(s, layer).residual === 'parallel'
    ? `attention and MLP of '${s.family}' both read resid_pre, so that there is no stream between them`
    : noMlp(s, layer)
/** Attention to another stack. */
export const noCross: Absent = (s, layer) => (blockOf(s, layer).cross ? undefined : `the blocks of '${s.family}' read no other stack`)
/** Logits need an unembedding. */
export const noHead: Absent = (s) =>
  s.head ? undefined : `'${s.family}' is an encoder without an unembedding; its output is last_hidden_state`
/** The final norm. */
export const noFinalNorm: Absent = (s) => (s.finalNorm ? undefined : `the family '${s.family}' has no final norm in this model`)
