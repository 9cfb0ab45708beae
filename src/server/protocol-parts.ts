/** @file Parts of requests that several routes share. */
import { z } from 'zod'
import { type SteeringMethodName, steeringMethods } from '../steer/methods.ts'

const text = z.string().max(200_000)
const ids = z.array(z.int().nonnegative()).min(1).max(100_000)
/** A name: of a model, a site, a column. */
export const siteName = z.string().min(1).max(500)
const examples = z.array(text.min(1)).min(1).max(2_000)

/** A direction by how it is made, so that a link can carry it and a restarted server can make it again. */
export const vectorRecipe = z.union([
  z.strictObject({
    /** From the positive side against the negative one at a site; the difference of their means where no method is named. */
    difference: z.strictObject({
      positive: examples,
      negative: examples,
      site: siteName,
      position: z.union([z.enum(['last', 'mean']), z.int()]).optional(),
      method: z.enum(Object.keys(steeringMethods) as [SteeringMethodName]).optional(),
      /** Options that only some methods have. */
      C: z.number().positive().optional(),
      shrinkage: z.number().min(0).max(1).optional(),
      seed: z.int().optional(),
      paired: z.boolean().optional(),
      /** As long as the difference of the means at its site, so that strengths of methods compare. */
      asLong: z.boolean().optional(),
    }),
  }),
  z.strictObject({
    /** The activation of one position of a text. */
    activation: z.strictObject({ text: text.optional(), ids: ids.optional(), site: siteName, position: z.int() }),
  }),
  z.strictObject({
    /** A direction of a vector file: safetensors, GGUF, or JSON of others. */
    file: z.strictObject({ path: z.string().min(1).max(4096), site: siteName }),
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
