/** @file Directions made from recipes, kept by content: the same recipe gives the same vector without another pass. */
import { ModelError, UsageError } from '../base/errors.ts'
import type { Model } from '../run/model.ts'
import { extractVector, loadVector, SteeringVector } from '../steer/index.ts'
import type { EditData, VectorRecipe } from './protocol.ts'
import { vectorRecipe } from './protocol-parts.ts'
import type { Queue } from './queue.ts'

/** Recipes whose vectors are kept. */
const kept = 64

/** Makes and keeps the vectors of one model. */
export class Vectors {
  private readonly model: Model
  private readonly cache = new Map<string, Promise<SteeringVector>>()

  constructor(model: Model) {
    this.model = model.plain
  }

  /** The direction of a recipe, and the others that were made along with it. */
  async make(
    recipe: VectorRecipe,
    queue: Queue,
  ): Promise<{ site: string; vector: Float32Array; all: ReadonlyMap<string, Float32Array>; made: SteeringVector }> {
    const { site } = this.model.site(siteOf(recipe))
    const made = await this.cached(recipe, queue)
    return { site, vector: made.at(site), all: made.vectors, made }
  }

  /** The vector that an edit adds, with its record; undefined where it adds none. */
  async steering({ params, site }: EditData, queue: Queue): Promise<SteeringVector | undefined> {
    const { vector } = params ?? {}
    const at = this.model.site(site).site
    if (Array.isArray(vector)) return new SteeringVector([[at, vector as number[]]], this.record('unknown', [at]))
    const recipe = vectorRecipe.safeParse(vector)
    if (!recipe.success) return undefined
    const { site: source, made } = await this.make(recipe.data, queue)
    // A direction may be added at another site than it was read from.
    return source === at ? made.only([at]) : new SteeringVector([[at, made.at(source)]], made.record)
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
        `The parameter '${key}' of the edit ${edit.op} at ${edit.site} must be numbers, or a recipe: { "difference": { "positive": […], "negative": […], "site": … } }, { "activation": { "text": …, "site": …, "position": … } } or { "file": { "path": …, "site": … } }.`,
      )
    return (await this.make(recipe.data, queue)).vector
  }

  private cached(recipe: VectorRecipe, queue: Queue): Promise<SteeringVector> {
    // A difference is made at all layers in one pass, so that the choice of the layer costs nothing; a file holds all of its sites.
    const key = JSON.stringify(
      'difference' in recipe
        ? { ...recipe.difference, site: this.everyLayer(recipe.difference.site) }
        : 'file' in recipe
          ? recipe.file.path
          : recipe.activation,
    )
    const found = this.cache.get(key)
    this.cache.delete(key)
    const made = found ?? queue.run(() => this.compute(recipe))
    this.cache.set(key, made)
    made.catch(() => this.cache.delete(key))
    for (const old of this.cache.keys()) if (this.cache.size > kept) this.cache.delete(old)
    return made
  }

  private everyLayer(site: string): string {
    const { row, site: canonical } = this.model.site(site)
    return row.per === 'layer' ? `${row.name}.*` : canonical
  }

  private record(method: string, sites: readonly string[]) {
    return { method, model: { id: this.model.origin.id }, sites }
  }

  private compute(recipe: VectorRecipe): Promise<SteeringVector> {
    if ('difference' in recipe) return this.extracted(recipe.difference)
    if ('file' in recipe) return loadVector(recipe.file.path)
    return this.activation(recipe.activation)
  }

  private async extracted({ asLong, ...recipe }: Extract<VectorRecipe, { difference: unknown }>['difference']): Promise<SteeringVector> {
    const { model } = this
    const { position = 'mean', site, ...rest } = recipe
    const options = Object.fromEntries(Object.entries(rest).filter(([, v]) => v !== undefined)) as typeof rest
    const excludeBos = position === 'mean' && model.hasTokenizer && model.tokenizer.bos !== undefined
    const shared = { position, excludeBos, site: this.everyLayer(site) }
    const made = await extractVector(model, { ...options, ...shared } as Parameters<typeof extractVector>[1])
    if (!asLong) return made
    const { positive, negative } = rest
    const { norms } = await extractVector(model, { positive, negative, ...shared })
    return made.sites.map((s) => made.only([s]).normalized(norms.get(s) as number)).reduce((a, b) => a.plus(b))
  }

  private async activation({ text, ids, site, position }: Extract<VectorRecipe, { activation: unknown }>['activation']) {
    if ((text === undefined) === (ids === undefined)) throw new UsageError("A vector from an activation needs either 'text' or 'ids'.")
    const { model } = this
    const { site: canonical } = model.site(site)
    const { taps } = await model.run(text !== undefined ? text : { ids: ids as number[] }, { taps: [canonical], logits: false })
    const found = taps[canonical]
    if (!found) throw new ModelError(`'${site}' was not returned by the run; choose another site.`)
    return new SteeringVector([[canonical, found.at(0, position)]], this.record('activation', [canonical]))
  }
}

const siteOf = (recipe: VectorRecipe) =>
  'difference' in recipe ? recipe.difference.site : 'file' in recipe ? recipe.file.site : recipe.activation.site
