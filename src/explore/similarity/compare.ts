/** @file Similarity of sites: across layers, across models, across checkpoints, over the same places of a corpus. */
import { throwIfCancelled, UsageError } from '../../base/errors.ts'
import type { WorkOptions } from '../../base/progress.ts'
import type { Model } from '../../run/index.ts'
import { type PassSettings, passOver, planPass } from '../capture-pass.ts'
import { type CorpusInput, openCorpus } from '../corpus.ts'
import type { Points } from './features.ts'
import { type MeasureName, measures, type Side } from './measures.ts'

/** Places that are looked at where nobody says how many. */
const defaultTokens = 1024

/** Options of {@link collectPoints}. */
export interface PointsOptions extends PassSettings, WorkOptions {
  readonly data: CorpusInput
}

/** Activations of some sites at the same places. */
export interface CollectedPoints {
  /** By canonical site, [places, …axes of the site]. */
  readonly sites: ReadonlyMap<string, Points>
  /** Token id, document and position in it of each place. */
  readonly tokens: Int32Array
  readonly document: Int32Array
  readonly position: Int32Array
}

/** Runs a model over a corpus and keeps the activations of sites in memory, at most `maxTokens` places (default 1,024). */
export async function collectPoints(model: Model, options: PointsOptions): Promise<CollectedPoints> {
  const { data, signal, onProgress, ...settings } = options
  const plan = planPass(model, { maxTokens: defaultTokens, ...settings })
  const corpus = await openCorpus(data, { ...(signal ? { signal } : {}) })
  const parts: { values: ReadonlyMap<string, Float32Array>; origin: [Int32Array, Int32Array, Int32Array] }[] = []
  let places = 0
  for await (const window of passOver(model, corpus, plan, { ...(signal ? { signal } : {}) })) {
    parts.push({ values: window.values, origin: [window.tokens, window.document, window.position] })
    places += window.count
    onProgress?.({ task: 'reading activations', done: places, total: plan.maxTokens ?? defaultTokens, unit: 'tokens' })
  }
  const sites = new Map(
    plan.sites.map(({ site, shape, width }) => {
      const all = new Float32Array(places * width)
      let at = 0
      for (const { values } of parts) {
        const part = values.get(site) as Float32Array
        all.set(part, at)
        at += part.length
      }
      return [site, { dtype: 'float32' as const, shape: [places, ...shape], data: all }]
    }),
  )
  const column = (i: number) => Int32Array.from(parts.flatMap((p) => Array.from(p.origin[i] as Int32Array)))
  return { sites, tokens: column(0), document: column(1), position: column(2) }
}

/** How alike sites are. */
export interface SimilarityTable {
  readonly measure: MeasureName
  /** Sites of the first and of the second side. */
  readonly rows: readonly string[]
  readonly columns: readonly string[]
  /** [rows, columns] */
  readonly values: Float64Array
  /** Places that were compared. */
  readonly places: number
}

/** Compares each site of one side with each of another, over the same places. */
export async function compareCollected(
  a: CollectedPoints,
  b: CollectedPoints,
  { measure = 'cka', signal, onProgress }: { readonly measure?: MeasureName } & WorkOptions = {},
): Promise<SimilarityTable> {
  const row = Object.hasOwn(measures, measure) ? measures[measure] : undefined
  if (!row) throw new UsageError(`There is no measure '${measure}'; choose one of ${Object.keys(measures).join(', ')}.`)
  refuseOtherPlaces(a, b)
  const [rows, columns] = [[...a.sites.keys()], [...b.sites.keys()]]
  const prepare = async (side: CollectedPoints) => {
    const out: Side[] = []
    for (const points of side.sites.values()) {
      throwIfCancelled(signal)
      out.push(await row.prepare(points))
    }
    return out
  }
  const first = await prepare(a)
  const second = a === b ? first : await prepare(b)
  const values = new Float64Array(rows.length * columns.length)
  for (const [i, x] of first.entries()) {
    throwIfCancelled(signal)
    onProgress?.({ task: 'comparing sites', done: i * columns.length, total: values.length, unit: 'pairs' })
    for (const [j, y] of second.entries()) {
      const mirrored = a === b && row.symmetric && j < i
      values[i * columns.length + j] = mirrored ? (values[j * columns.length + i] as number) : await x.compare(y)
    }
  }
  return { measure, rows, columns, values, places: a.tokens.length }
}

function refuseOtherPlaces(a: CollectedPoints, b: CollectedPoints): void {
  const same = (x: Int32Array, y: Int32Array) => x.length === y.length && x.every((v, i) => v === y[i])
  if (same(a.document, b.document) && same(a.position, b.position) && same(a.tokens, b.tokens)) return
  // One place for each document is comparable whatever the tokens are: the last one has read the same text.
  const single = (side: CollectedPoints) => new Set(side.document).size === side.document.length
  if (same(a.document, b.document) && single(a) && single(b)) return
  throw new UsageError(
    'The two models read the corpus as different tokens, so places cannot be compared one by one: compare one place of each document (where: {"positions": -1}), or give token ids that both know.',
  )
}

/** Options of {@link compareSites}. */
export interface CompareOptions extends PointsOptions {
  /** Default `cka`. */
  readonly measure?: MeasureName
  /** Another model, or another checkpoint of it (default: the same model). */
  readonly with?: Model
  /** Its sites (default: those of the first). */
  readonly withSites?: string | readonly string[]
}

/** How alike the sites of a model are to each other, or to those of another model, over a corpus. */
export async function compareSites(model: Model, options: CompareOptions): Promise<SimilarityTable> {
  const { measure, with: other, withSites, ...settings } = options
  const a = await collectPoints(model, settings)
  const b = other || withSites ? await collectPoints(other ?? model, { ...settings, sites: withSites ?? settings.sites }) : a
  const { signal, onProgress } = options
  return compareCollected(a, b, { ...(measure ? { measure } : {}), ...(signal ? { signal } : {}), ...(onProgress ? { onProgress } : {}) })
}
