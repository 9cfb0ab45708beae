/** @file Parts of requests that several routes share. */
import { z } from 'zod'

const text = z.string().max(200_000)
const ids = z.array(z.int().nonnegative()).min(1).max(100_000)
/** A name: of a model, a site, a column. */
export const siteName = z.string().min(1).max(500)
const examples = z.array(text.min(1)).min(1).max(2_000)

/** A direction by how it is made, so that a link can carry it and a restarted server can make it again. */
export const vectorRecipe = z.union([
  z.strictObject({
    /** Mean of the positive side less that of the negative one, at a site. */
    difference: z.strictObject({ positive: examples, negative: examples, site: siteName, position: z.enum(['last', 'mean']).optional() }),
  }),
  z.strictObject({
    /** The activation of one position of a text. */
    activation: z.strictObject({ text: text.optional(), ids: ids.optional(), site: siteName, position: z.int() }),
  }),
])

/** An edit as in an edits file, where a parameter may also be a {@link vectorRecipe}; its details are checked by the library, whose sentences are better. */
export const edit = z.looseObject({ op: z.string(), site: z.string(), params: z.record(z.string(), z.unknown()).optional() })

/** Which model is meant; that of the server by default. */
export const modelName = { model: siteName.optional() }

/** Edits in force. */
export const editList = z.array(edit).max(64).default([])

/** A text or its token ids. */
export const lookedText = { text: text.optional(), ids: ids.optional() }

/** A text or its token ids, and the edits under which it is looked at. */
export const looked = {
  ...modelName,
  ...lookedText,
  /** Tokens that count as prompt for edits with a `phase`; all of them by default. */
  promptLength: z.int().positive().optional(),
  edits: editList,
}
