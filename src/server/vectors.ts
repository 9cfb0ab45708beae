/** @file Directions made from recipes, kept by content: the same recipe gives the same vector without another pass. */
import { ModelError, UsageError } from '../base/errors.ts'
import type { Model } from '../run/model.ts'
import { meanDifference } from '../steer/index.ts'
import type { EditData, VectorRecipe } from './protocol.ts'
import { vectorRecipe } from './protocol-parts.ts'
import type { Queue } from './queue.ts'

/** Directions by canonical site. */
type Directions = ReadonlyMap<string, Float32Array>

/** Recipes whose vectors are kept. */
const kept = 64

/** Makes and keeps the vectors of one model. */
export class Vectors {
  private readonly model: Model
  private readonly cache = new Map<string, Promise<Directions>>()

  constructor(model: Model) {
    this.model = model.plain
  }

  /** The direction of a recipe, and the others that were made along with it. */
  async make(recipe: VectorRecipe, queue: Queue): Promise<{ site: string; vector: Float32Array; all: Directions }> {
    const { site } = 'difference' in recipe ? this.model.site(recipe.difference.site) : this.model.site(recipe.activation.site)
    const all = await this.cached(recipe, queue)
    return { site, vector: all.get(site) as Float32Array, all }
  }

  /** The edits with every recipe in their parameters written out. */
  async resolve(edits: readonly EditData[], queue: Queue): Promise<EditData[]> {
    return Promise.all(
      edits.map(async (edit) => {
        if (!edit.params) return edit
        const params = await Promise.all(
          Object.entries(edit.params).map(async ([key, value]) => [key, await this.param(value, edit, key, queue)] as const),
        )
        return { ...edit, params: Object.fromEntries(params) }
      }),
    )
  }

  private async param(value: unknown, edit: EditData, key: string, queue: Queue): Promise<unknown> {
    if (typeof value !== 'object' || value === null || Array.isArray(value)) return value
    const recipe = vectorRecipe.safeParse(value)
    if (!recipe.success)
      throw new UsageError(
        `The parameter '${key}' of the edit ${edit.op} at ${edit.site} must be numbers, or a recipe: { "difference": { "positive": […], "negative": […], "site": … } } or { "activation": { "text": …, "site": …, "position": … } }.`,
      )
    return (await this.make(recipe.data, queue)).vector
  }

  private cached(recipe: VectorRecipe, queue: Queue): Promise<Directions> {
    // A difference is made at all layers in one pass, so that the choice of the layer costs nothing.
    const pattern = 'difference' in recipe ? this.everyLayer(recipe.difference.site) : recipe.activation.site
    const key = JSON.stringify('difference' in recipe ? { ...recipe.difference, site: pattern } : recipe.activation)
    const found = this.cache.get(key)
    this.cache.delete(key)
    const made = found ?? queue.run(() => this.compute(recipe, pattern))
    this.cache.set(key, made)
    made.catch(() => this.cache.delete(key))
    for (const old of this.cache.keys()) if (this.cache.size > kept) this.cache.delete(old)
    return made
  }

  private everyLayer(site: string): string {
    const { row, site: canonical } = this.model.site(site)
    return row.per === 'layer' ? `${row.name}.*` : canonical
  }

  private async compute(recipe: VectorRecipe, pattern: string): Promise<Directions> {
    const { model } = this
    if ('difference' in recipe) {
      const { positive, negative, position = 'mean' } = recipe.difference
      const excludeBos = position === 'mean' && model.hasTokenizer && model.tokenizer.bos !== undefined
      return (await meanDifference(model, { positive, negative, site: pattern, position, excludeBos })).vectors
    }
    const { text, ids, site, position } = recipe.activation
    if ((text === undefined) === (ids === undefined)) throw new UsageError("A vector from an activation needs either 'text' or 'ids'.")
    const { site: canonical } = model.site(site)
    const { taps } = await model.run(text !== undefined ? text : { ids: ids as number[] }, { taps: [canonical], logits: false })
    const found = taps[canonical]
    if (!found) throw new ModelError(`'${site}' was not returned by the run; choose another site.`)
    return new Map([[canonical, found.at(0, position)]])
  }
}
