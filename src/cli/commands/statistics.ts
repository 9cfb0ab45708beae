/** @file `actlens statistics`: what activations of a corpus are like, without storing them. */

import { InvalidArgumentError } from 'commander'
import { UsageError } from '../../base/errors.ts'
import { meanOf } from '../../base/numbers.ts'
import type { NDArray } from '../../base/types.ts'
import { activationStatistics, type Packing, type Probing, type SiteStatistics, type TopContext } from '../../explore/index.ts'
import { writeSafetensors } from '../../models/formats/index.ts'
import { describeEdits } from '../../run/edits-file.ts'
import type { Model } from '../../run/index.ts'
import type { Where } from '../../sites/index.ts'
import { defineCommand, integer, modelArgument, type OptionRow } from '../command.ts'
import { type CorpusOptions, corpusOf, corpusOptions, defined, whereOption } from '../corpus.ts'
import { withModel } from '../model.ts'
import { checkOutput } from '../output.ts'
import { quoted, short, table } from '../table.ts'
import { versions } from '../version.ts'
import { splitPatterns } from './run.ts'

interface Neurons {
  readonly site: string
  readonly indices: readonly number[]
}

interface Options extends CorpusOptions {
  readonly sites: readonly string[]
  readonly covariance?: boolean
  readonly top?: readonly Neurons[]
  readonly keep?: number
  readonly bins?: number
  readonly maxTokens?: number
  readonly packing?: Packing
  readonly context?: number
  readonly batchTokens?: number
  readonly where?: Where
  readonly edits?: string
  readonly out?: string
}

const options: readonly OptionRow[] = [
  ...corpusOptions,
  { flags: '--sites <sites>', doc: "sites, aliases, patterns ('resid_post.*'), separated by commas", required: true, repeat: true },
  {
    flags: '--top <neurons>',
    doc: 'show the texts that activate coordinates most: SITE:N,N…, as mlp_act.3:17,42',
    repeat: true,
    parse: neuronsOf,
  },
  { flags: '--keep <n>', doc: 'texts for each coordinate of --top (default: 10)', parse: integer(1, 1000) },
  { flags: '--covariance', doc: 'keep the covariance of all pairs of coordinates, too (in --out)' },
  { flags: '--bins <n>', doc: 'bins of the histograms in --json and --out (default: 50)', parse: integer(1, 100_000) },
  { flags: '--max-tokens <n>', doc: 'positions to look at in all (default: the whole corpus)', parse: integer(1) },
  whereOption,
  { flags: '--packing <how>', doc: 'pad: a row for each document; pack: full rows (default: pad)', choices: ['pad', 'pack'] },
  { flags: '--context <n>', doc: 'longest row in tokens (default: the context of the model)', parse: integer(1) },
  { flags: '--batch-tokens <n>', doc: 'tokens in one forward pass (default: 1024)', parse: integer(1) },
  { flags: '--edits <file>', doc: 'edits file: a JSON array of { op, site, params, where }' },
  {
    flags: '--out <file>',
    doc: 'safetensors file: mean.SITE and variance.SITE [width], covariance.SITE [width, width], values.SITE.edges and .counts, norms.SITE.edges and .counts',
  },
]

/** Shares whose quantiles are told. */
const shares = [0, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1]

export const command = defineCommand<{ model: string }, Options>({
  name: 'statistics',
  summary: 'Measures activations of a corpus without storing them: moments, norms, quantiles, the texts that activate a neuron most.',
  example: "statistics embedded --data stories.jsonl --sites 'mlp_act.3' --top mlp_act.3:17,42",
  arguments: [modelArgument],
  options,
  async run(context, args, options) {
    const data = corpusOf(options)
    if (options.covariance && options.out === undefined)
      throw new UsageError('A covariance is too large to print; give --out for its file.')
    if (options.keep !== undefined && options.top === undefined)
      throw new UsageError('--keep is the number of texts of --top; give --top, too.')
    if (options.out !== undefined) await checkOutput(options.out)
    const contexts: Record<string, Probing[]> = {}
    for (const { site, indices } of options.top ?? [])
      contexts[site] = [...(contexts[site] ?? []), ...indices.map((neuron) => ({ name: String(neuron), neuron }))]
    const { covariance, keep, maxTokens, packing, context: length, batchTokens, where } = options
    return withModel(context, args.model, options, async ({ model, edits }) => {
      const found = await activationStatistics(model, {
        data,
        sites: options.sites.flatMap(splitPatterns),
        contexts,
        ...defined({ covariance, keep, maxTokens, packing, context: length, batchTokens, where }),
        signal: context.io.signal,
        onProgress: context.onProgress,
      })
      const all = [...found.values()]
      if (options.out !== undefined) {
        const record = {
          format: 'actlens-statistics-1',
          model: { id: model.origin.id, hash: await model.origin.hash(), family: model.architecture.family },
          rows: Object.fromEntries(all.map((s) => [s.site, s.count])),
          edits: describeEdits(edits),
          precision: model.precision,
          versions: await versions(),
        }
        await writeSafetensors(options.out, tensorsOf(all, options), { actlens: JSON.stringify(record) })
        context.note(`The statistics were written to ${options.out}.`)
      }
      return { json: jsonOf(model, all, options), text: shown(model, all) }
    })
  },
})

function neuronsOf(text: string): Neurons {
  const found = /^(.+):(\d+(?:,\d+)*)$/.exec(text)
  if (!found) throw new InvalidArgumentError('Write SITE:N,N…, as mlp_act.3:17,42.')
  return { site: found[1] as string, indices: (found[2] as string).split(',').map(Number) }
}

function tensorsOf(all: readonly SiteStatistics[], { covariance, bins = 50 }: Options): Record<string, NDArray> {
  const out: Record<string, NDArray> = {}
  const put = (name: string, data: Float64Array, shape: readonly number[] = [data.length]) => {
    out[name] = { dtype: 'float64', shape, data }
  }
  for (const { site, moments, values, norms } of all) {
    put(`mean.${site}`, moments.mean)
    put(`variance.${site}`, moments.variance)
    if (covariance) put(`covariance.${site}`, moments.covariance, [moments.width, moments.width])
    for (const [name, sketch] of Object.entries({ values, norms })) {
      const { edges, counts } = sketch.histogram(bins)
      put(`${name}.${site}.edges`, edges)
      put(`${name}.${site}.counts`, counts)
    }
  }
  return out
}

const tokenOf = (model: Model, id: number) => (model.hasTokenizer ? model.tokenizer.piece(id) : String(id))

function jsonOf(model: Model, all: readonly SiteStatistics[], { bins = 50, out }: Options) {
  const site = (s: SiteStatistics) => ({
    site: s.site,
    count: s.count,
    notFinite: s.values.notFinite,
    mean: meanOf(s.moments.mean),
    deviation: Math.sqrt(meanOf(s.moments.variance)),
    values: {
      quantiles: Object.fromEntries(shares.map((q) => [q, s.values.quantile(q)])),
      histogram: histogramOf(s.values.histogram(bins)),
    },
    norms: { quantiles: Object.fromEntries(shares.map((q) => [q, s.norms.quantile(q)])), histogram: histogramOf(s.norms.histogram(bins)) },
    top: Object.fromEntries(
      [...s.contexts].map(([name, contexts]) => [name, contexts.map((c) => ({ ...c, pieces: c.tokens.map((id) => tokenOf(model, id)) }))]),
    ),
  })
  return { model: model.origin.id, sites: all.map(site), ...(out === undefined ? {} : { out }) }
}

const histogramOf = ({ edges, counts }: { edges: Float64Array; counts: Float64Array }) => ({
  edges: Array.from(edges),
  counts: Array.from(counts),
})

function shown(model: Model, all: readonly SiteStatistics[]): string {
  const rows = all.map(({ site, count, moments, values, norms }) => [
    site,
    String(count),
    short(meanOf(moments.mean)),
    short(Math.sqrt(meanOf(moments.variance))),
    ...[0, 0.05, 0.5, 0.95, 1].map((q) => short(values.quantile(q))),
    ...[0.05, 0.5, 0.95].map((q) => short(norms.quantile(q))),
  ])
  const head = ['site', 'rows', 'mean', 'deviation', 'min', '5 %', 'median', '95 %', 'max', 'norm 5 %', 'median', '95 %']
  const contexts = all.flatMap(({ site, contexts: byName }) =>
    [...byName].map(
      ([name, found]) =>
        `\n${site}, coordinate ${name}\n${table(
          ['value', 'document', 'position', 'text'],
          found.map((c) => contextRow(model, c)),
        )}`,
    ),
  )
  return table(head, rows) + contexts.join('')
}

function contextRow(model: Model, { value, document, position, tokens, at }: TopContext): string[] {
  const text = (ids: readonly number[]) => (model.hasTokenizer ? model.tokenizer.decode([...ids]) : ids.join(' '))
  const marked = `${text(tokens.slice(0, at))}«${tokenOf(model, tokens[at] as number)}»${text(tokens.slice(at + 1))}`
  return [short(value), String(document), String(position), quoted(marked)]
}
