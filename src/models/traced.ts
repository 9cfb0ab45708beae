/** @file A model as a traced graph with marked sites. */
import type { Tensor } from '../tensor/index.ts'

/** Name of the attention op, which hides its scores and pattern. */
export const attentionOp = 'attention'

/** A site inside a composite node: it appears when the node is written out. */
export interface InnerSite {
  /** An output of the composite node. */
  readonly of: Tensor
  /** Name of the inner value. */
  readonly name: string
}

/** Inputs of a traced language model. */
export const inputNames = {
  /** int64 [batch, pos] */
  ids: 'input_ids',
  /** Index of the last valid slot of each row after this step, int32 [batch] */
  lastSlot: 'last_slot',
  /** Longest row after this step, int32 scalar */
  total: 'total',
  /** Slot of each position in the cache, int64 [batch, pos] */
  slots: 'slots',
  /** Position of each token for its embedding or rotation, int64 [batch, pos] */
  positions: 'positions',
  /** Index of the last valid position of each row within this step, int64 [batch] */
  lastIndex: 'last_index',
  /** Kind of each token where a model knows several, int64 [batch, pos] */
  types: 'token_type_ids',
} as const

/** Name of a cache input. */
export const cacheName = (part: 'keys' | 'values', layer: number) => `past_${part}.${layer}`

/** Name of the input that is added at a residual site. */
export const slotName = (site: string) => `slot:${site}`

/** Sites that have a slot, without their layer. */
export const slotSites: readonly string[] = ['resid_pre', 'resid_mid', 'resid_post']

/** A traced model: outputs, sites by canonical name, and caches by layer. */
export interface TracedModel {
  /** [batch, pos, d_vocab], or [batch, 1, d_vocab] when traced for the last position only; the last states of a model without an unembedding. */
  readonly logits: Tensor
  /** Canonical site name (`resid_post.3`) → the tensor at that place. */
  readonly sites: ReadonlyMap<string, Tensor>
  /** Canonical site name → where it would appear. */
  readonly inner: ReadonlyMap<string, InnerSite>
  /** Keys and values after this step, by layer; empty without a cache. */
  readonly caches: readonly { readonly keys: Tensor; readonly values: Tensor }[]
}

/** Choices made while tracing. */
export interface TraceOptions {
  /** Keys and values are read from and written to a cache. */
  readonly cache: boolean
  /** Rotary positions come from the input `positions` instead of being the slots. */
  readonly explicitPositions: boolean
  /** Residual sites have a place where additive edits are fed, so that none of them compiles anew. */
  readonly slots: boolean
  /** Final norm and logits only at the last valid position of each row. */
  readonly lastOnly: boolean
}

/** Collects sites while a trunk traces. */
export class SiteMarks {
  readonly sites = new Map<string, Tensor>()
  readonly inner = new Map<string, InnerSite>()

  /** Marks an inner value of a composite. */
  inside(site: string, of: Tensor, name: string): void {
    this.inner.set(site, { of, name })
  }
}
