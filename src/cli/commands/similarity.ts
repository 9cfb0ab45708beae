/** @file `actlens similarity`: how alike sites are, across layers and models; how many dimensions they use; maps of them. */
import { UsageError } from '../../base/errors.ts'
import type { NDArray } from '../../base/types.ts'
import {
  type CollectedPoints,
  collectPoints,
  compareCollected,
  type Geometry,
  geometryOf,
  type MeasureName,
  measures,
  type PointsOptions,
  pcaMap,
  type SimilarityTable,
  umapMap,
} from '../../explore/index.ts'
import { writeSafetensors } from '../../models/formats/index.ts'
import { describeEdits } from '../../run/edits-file.ts'
import type { Model } from '../../run/index.ts'
import type { DataEdit, Where } from '../../sites/index.ts'
import { type CommandContext, defineCommand, integer, modelArgument, type OptionRow } from '../command.ts'
import { type CorpusOptions, corpusOf, corpusOptions, defined, whereOption } from '../corpus.ts'
import { withModel } from '../model.ts'
import { checkOutput } from '../output.ts'
import { short, table } from '../table.ts'
import { versions } from '../version.ts'
import { splitPatterns } from './run.ts'

interface Options extends CorpusOptions {
  readonly sites?: readonly string[]
  readonly with?: string
  readonly withSites?: readonly string[]
  readonly measure?: MeasureName
  readonly geometry?: boolean
  readonly map?: 'pca' | 'umap'
  readonly seed?: number
  readonly maxTokens?: number
  readonly where?: Where
  readonly edits?: string
  readonly out?: string
}

const options: readonly OptionRow[] = [
  ...corpusOptions,
  { flags: '--sites <sites>', doc: "sites, aliases, patterns, separated by commas (default: 'resid_post.*')", repeat: true },
  { flags: '--with <model>', doc: 'another model, or another checkpoint, to compare with (default: the same model)' },
  { flags: '--with-sites <sites>', doc: 'sites of the second side (default: those of --sites)', repeat: true },
  {
    flags: '--measure <name>',
    doc: 'cka, cka-unbiased (fewer places than dimensions), svcca, pwcca, procrustes or rsa (default: cka)',
    choices: Object.keys(measures),
  },
  {
    flags: '--geometry',
    doc: 'for each site, how many dimensions it uses, instead of comparing sites',
    conflicts: ['with', 'withSites', 'measure', 'map'],
  },
  {
    flags: '--map <kind>',
    doc: 'coordinates of each place in the plane, instead of comparing sites',
    choices: ['pca', 'umap'],
    conflicts: ['with', 'withSites', 'measure'],
  },
  { flags: '--seed <n>', doc: 'seed of a umap (default: 0)', parse: integer(0, 2 ** 31) },
  { flags: '--max-tokens <n>', doc: 'places that are looked at (default: 1024); memory grows with their square', parse: integer(2) },
  whereOption,
  { flags: '--edits <file>', doc: 'edits file for MODEL: a JSON array of { op, site, params, where }' },
  {
    flags: '--out <file>',
    doc: 'safetensors file: similarity [first sites, second sites]; or geometry.NAME [sites]; or map.SITE [places, 2] with tokens, document, position',
  },
]

export const command = defineCommand<{ model: string }, Options>({
  name: 'similarity',
  summary: 'Says how alike sites are over a corpus: across layers, models and checkpoints; or how many dimensions they use.',
  example: "similarity embedded --data stories.jsonl --sites 'resid_post.*' --measure cka",
  arguments: [modelArgument],
  options,
  async run(context, args, options) {
    const data = corpusOf(options)
    if (options.seed !== undefined && options.map !== 'umap')
      throw new UsageError('--seed is for --map umap; nothing else is drawn at random.')
    if (options.map !== undefined && options.out === undefined)
      throw new UsageError('A map has a place for each token; give --out for its file.')
    if (options.out !== undefined) await checkOutput(options.out)
    const work = { signal: context.io.signal, onProgress: context.onProgress }
    const { maxTokens, where } = options
    const settings = { data, ...work, ...defined({ maxTokens, where }) }
    const sites = (options.sites ?? ['resid_post.*']).flatMap(splitPatterns)
    return withModel(context, args.model, options, async ({ model, edits }) => {
      const first = await collectPoints(model, { ...settings, sites })
      const record = { model, edits, sites: [...first.sites.keys()], places: first.tokens.length }
      if (options.geometry) return geometry(context, first, record, options)
      if (options.map) return map(context, first, record, { ...options, kind: options.map })
      const second = await secondSide(context, model, first, settings, sites, options)
      const found = await compareCollected(first, second, { ...work, ...defined({ measure: options.measure }) })
      if (options.out !== undefined) {
        const shape = [found.rows.length, found.columns.length]
        await write(context, options.out, { similarity: { dtype: 'float64', shape, data: found.values } }, record, {
          measure: found.measure,
          rows: found.rows,
          columns: found.columns,
          with: options.with,
        })
      }
      return { json: similarityJson(model, found, options), text: shown(found) }
    })
  },
})

async function secondSide(
  context: CommandContext,
  model: Model,
  first: CollectedPoints,
  settings: Omit<PointsOptions, 'sites'>,
  sites: readonly string[],
  options: Options,
): Promise<CollectedPoints> {
  if (options.with === undefined && options.withSites === undefined) return first
  const wanted = { ...settings, sites: options.withSites?.flatMap(splitPatterns) ?? sites }
  if (options.with === undefined) return collectPoints(model, wanted)
  return withModel(context, options.with, {}, ({ model: other }) => collectPoints(other, wanted))
}

interface RecordOf {
  readonly model: Model
  readonly edits: readonly DataEdit[]
  readonly sites: readonly string[]
  readonly places: number
}

async function write(context: CommandContext, out: string, tensors: Record<string, NDArray>, of: RecordOf, more: object): Promise<void> {
  const { model, edits, places } = of
  const record = {
    format: 'actlens-similarity-1',
    model: { id: model.origin.id, hash: await model.origin.hash(), family: model.architecture.family },
    places,
    ...more,
    edits: describeEdits(edits),
    precision: model.precision,
    versions: await versions(),
  }
  await writeSafetensors(out, tensors, { actlens: JSON.stringify(record) })
  context.note(`The result was written to ${out}.`)
}

function similarityJson(model: Model, found: SimilarityTable, { with: other, out }: Options) {
  const { measure, rows, columns, values, places } = found
  const matrix = rows.map((_, i) => Array.from(values.subarray(i * columns.length, (i + 1) * columns.length)))
  return {
    model: model.origin.id,
    with: other ?? model.origin.id,
    measure,
    places,
    rows,
    columns,
    values: matrix,
    ...(out === undefined ? {} : { out }),
  }
}

function shown({ measure, rows, columns, values, places }: SimilarityTable): string {
  const body = rows.map((row, i) => [row, ...columns.map((_, j) => (values[i * columns.length + j] as number).toFixed(3))])
  return `${table([measure, ...columns], body)}${places} places.\n`
}

const geometryColumns: readonly (readonly [keyof Geometry, string])[] = [
  ['width', 'width'],
  ['twoNearest', 'two-nn'],
  ['likelihood', 'likelihood'],
  ['participationRatio', 'participation'],
  ['effectiveRank', 'effective rank'],
  ['meanCosine', 'mean cosine'],
]

async function geometry(context: CommandContext, points: CollectedPoints, of: RecordOf, { out }: Options) {
  const found: [string, Geometry][] = []
  for (const [site, x] of points.sites) {
    context.onProgress({ task: 'measuring sites', done: found.length, total: points.sites.size, unit: 'sites' })
    found.push([site, await geometryOf(x, { signal: context.io.signal })])
  }
  if (out !== undefined) {
    const column = (name: keyof Geometry) => Float64Array.from(found, ([, g]) => g[name] ?? Number.NaN)
    const tensors = geometryColumns.map(([name]) => [`geometry.${name}`, { dtype: 'float64', shape: [found.length], data: column(name) }])
    await write(context, out, Object.fromEntries(tensors) as Record<string, NDArray>, of, { sites: of.sites })
  }
  const rows = found.map(([site, g]) => [site, ...geometryColumns.map(([name]) => (g[name] === undefined ? '' : short(g[name] as number)))])
  return {
    json: { model: of.model.origin.id, places: of.places, sites: Object.fromEntries(found), ...(out === undefined ? {} : { out }) },
    text: `${table(['site', ...geometryColumns.map(([, head]) => head)], rows)}${of.places} places.\n`,
  }
}

async function map(
  context: CommandContext,
  points: CollectedPoints,
  of: RecordOf,
  { kind, seed = 0, out }: Options & { kind: 'pca' | 'umap' },
) {
  const tensors: Record<string, NDArray> = {}
  const explained: Record<string, readonly number[]> = {}
  for (const [site, x] of points.sites) {
    const found = kind === 'pca' ? await pcaMap(x) : await umapMap(x, { seed, signal: context.io.signal, onProgress: context.onProgress })
    tensors[`map.${site}`] = found.coordinates
    if (found.explained) explained[site] = Array.from(found.explained)
  }
  for (const name of ['tokens', 'document', 'position'] as const) tensors[name] = { dtype: 'int32', shape: [of.places], data: points[name] }
  await write(context, out as string, tensors, of, { map: kind, ...(kind === 'umap' ? { seed } : { explained }) })
  const shares = Object.entries(explained).map(([site, share]) => [site, ...share.map((s) => `${(100 * s).toFixed(1)} %`)])
  return {
    json: { model: of.model.origin.id, map: kind, places: of.places, sites: of.sites, ...(kind === 'pca' ? { explained } : { seed }), out },
    text: shares.length > 0 ? table(['variance', 'axis 1', 'axis 2'], shares) : `${of.sites.length} maps of ${of.places} places.\n`,
  }
}
