/** @file What a text must be, while it is written: a JSON schema, a grammar or a regular expression. */

/** What a text must be. */
export type Constraint =
  /** JSON that a schema describes. */
  | { readonly jsonSchema: unknown }
  /** A grammar in EBNF with the rule `root`. */
  | { readonly grammar: string }
  /** A regular expression that the whole text matches. */
  | { readonly regex: string }

/** Follows one text as it is written. */
export interface ConstraintMatcher {
  /** Forbids the tokens after which the text could not become a valid one. @param room tokens that may still be written, the next among them */
  mask(logits: Float32Array, room: number): Promise<void>
  /** Goes on by a token. */
  accept(token: number): void
  /** Whether the text is whole. */
  readonly ended: boolean
  /** Frees it. */
  dispose(): void
}
