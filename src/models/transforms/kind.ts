/** @file What a transform of weights is: a value that says what is done, and the row of its kind that does it. */
import type { Draft } from './draft.ts'

/** What is done to the weights of a model, as data; `record` is what its inverse needs, known once it was applied. */
export interface Transform<Params = Readonly<Record<string, unknown>>> {
  /** A key of `transformKinds`. */
  readonly kind: string
  readonly params: Params
  readonly record?: Readonly<Record<string, unknown>>
  /** It is undone instead of done. */
  readonly inverse?: true
}

/** A row of the table of kinds. */
export interface TransformKind<Params = never> {
  /** One sentence for people. */
  readonly doc: string
  /** Whether logits stay as they were, up to rounding; for `unembedding` up to a constant at each position. */
  readonly keeps: 'logits' | 'probabilities' | 'nothing'
  /** Params that must be given. */
  readonly params: readonly string[]
  readonly optional?: readonly string[]
  /** Changes a draft; returns what the inverse needs. Throws ModelError where the family cannot have it. */
  readonly apply: (draft: Draft, params: Params) => Promise<Readonly<Record<string, unknown>>> | Readonly<Record<string, unknown>>
  /** Undoes it, from its record; absent where something is lost. */
  readonly undo?: (draft: Draft, params: Params, record: Readonly<Record<string, unknown>>) => Promise<void> | void
}

/** Types a row of the table by its params. */
export const kind = <Params>(row: TransformKind<Params>): TransformKind<Params> => row
