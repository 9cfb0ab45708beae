/** @file `actlens capture`: activations of a corpus, to disk. */

import { UsageError } from '../../base/errors.ts'
import { type CaptureDType, capture, captureFeatures, type Packing } from '../../explore/index.ts'
import type { Where } from '../../sites/index.ts'
import { type CommandContext, defineCommand, integer, modelArgument, number, type OptionRow, type Outcome } from '../command.ts'
import { type CorpusOptions, corpusOf, corpusOptions, defined, whereOption } from '../corpus.ts'
import { withModel } from '../model.ts'
import { checkOutput } from '../output.ts'
import { bytes, table } from '../table.ts'
import { splitPatterns } from './run.ts'

interface Options extends CorpusOptions {
  readonly sites?: readonly string[]
  readonly sae?: string
  readonly threshold?: number
  readonly out: string
  readonly dtype?: CaptureDType
  readonly maxTokens?: number
  readonly where?: Where
  readonly packing?: Packing
  readonly context?: number
  readonly batchTokens?: number
  readonly shardTokens?: number
  readonly edits?: string
  readonly resume?: boolean
}

const options: readonly OptionRow[] = [
  ...corpusOptions,
  {
    flags: '--sites <sites>',
    doc: "what to keep: sites, aliases, patterns ('resid_post.*'), separated by commas",
    repeat: true,
  },
  { flags: '--out <path>', doc: 'folder for the shards and manifest.json; with --sae, a Parquet file', required: true },
  {
    flags: '--sae <source>',
    doc: 'keep the active features of a sparse autoencoder instead of activations, in Parquet (ask it with query); --sites names its site where its file does not',
    conflicts: ['dtype', 'shardTokens', 'resume'],
  },
  { flags: '--threshold <x>', doc: 'with --sae: leave out activations of at most this size (default: 0)', parse: number },
  {
    flags: '--dtype <type>',
    doc: 'element type on disk; int8 has a factor for each position (default: f32)',
    choices: ['f32', 'f16', 'bf16', 'int8'],
  },
  { flags: '--max-tokens <n>', doc: 'positions to keep in all (default: the whole corpus)', parse: integer(1) },
  whereOption,
  { flags: '--packing <how>', doc: 'pad: a row for each document; pack: full rows (default: pad)', choices: ['pad', 'pack'] },
  { flags: '--context <n>', doc: 'longest row in tokens; longer documents are cut (default: the context of the model)', parse: integer(1) },
  { flags: '--batch-tokens <n>', doc: 'tokens in one forward pass (default: 1024)', parse: integer(1) },
  { flags: '--shard-tokens <n>', doc: 'positions in a shard (default: what 64 MiB hold)', parse: integer(1) },
  { flags: '--edits <file>', doc: 'edits file: a JSON array of { op, site, params, where }' },
  { flags: '--resume', doc: 'go on with an interrupted capture in the same folder' },
]

export const command = defineCommand<{ model: string }, Options>({
  name: 'capture',
  summary: 'Runs a model over a corpus and keeps the activations of sites on disk: safetensors shards and a manifest.',
  example: "capture embedded --data stories.jsonl --sites 'resid_post.*' --out activations --dtype f16 --max-tokens 100000",
  arguments: [modelArgument],
  options,
  async run(context, args, options) {
    const { sites: patterns, out, resume } = options
    const sites = patterns?.flatMap(splitPatterns)
    const data = corpusOf(options)
    if (options.threshold !== undefined && options.sae === undefined)
      throw new UsageError('--threshold is for the features of --sae; activations are kept whatever their size.')
    if (options.sae !== undefined) return features(context, args.model, { ...options, sae: options.sae }, sites)
    if (sites === undefined) throw new UsageError("Say what to keep: --sites 'resid_post.*', for example, or --sae.")
    return withModel(context, args.model, options, async ({ model }) => {
      const { io, onProgress } = context
      const { dtype, maxTokens, where, packing, context: length, batchTokens, shardTokens } = options
      const given = { dtype, maxTokens, where, packing, context: length, batchTokens, shardTokens, resume }
      const { manifest, captured, unfired } = await capture(model, {
        data,
        sites,
        out,
        ...defined(given),
        signal: io.signal,
        onProgress,
      })
      for (const sentence of unfired) context.warn(sentence)
      const { skipped, replaced } = manifest.data
      if (skipped > 0) context.note(`${skipped} empty documents were skipped.`)
      if (replaced > 0) context.warn(`In ${replaced} documents, characters that are none were replaced by U+FFFD.`)
      const size = manifest.shards.reduce((sum, s) => sum + s.bytes, 0)
      const { documents } = manifest.data
      return {
        json: {
          model: manifest.model.id,
          out,
          tokens: manifest.tokens,
          captured,
          documents,
          skipped,
          replaced,
          sites: manifest.sites,
          shards: manifest.shards.map((s) => s.file),
          bytes: size,
          unfired,
        },
        text: `${table(
          ['site', 'shape', 'dtype'],
          manifest.sites.map((s) => [s.site, `[${[manifest.tokens, ...s.shape].join(', ')}]`, s.dtype]),
        )}${manifest.tokens} positions of ${documents} documents in ${manifest.shards.length} shards, ${bytes(size)}, written to ${out}.\n`,
      }
    })
  },
})

/** Features of a sparse autoencoder, to Parquet. */
async function features(
  context: CommandContext,
  name: string,
  options: Options & { readonly sae: string },
  sites: readonly string[] | undefined,
): Promise<Outcome> {
  const { out, threshold, maxTokens, where, packing, context: length, batchTokens } = options
  if (sites !== undefined && sites.length > 1) throw new UsageError('An autoencoder reads one site; give one with --sites.')
  if (!out.toLowerCase().endsWith('.parquet'))
    throw new UsageError(`Features are written to Parquet: give --out a name that ends in .parquet, not ${out}.`)
  await checkOutput(out)
  const work = { signal: context.io.signal, onProgress: context.onProgress }
  const { loadSae } = await import('../../decompose/sae/load.ts')
  await using sae = await loadSae(options.sae, work)
  return withModel(context, name, options, async ({ model }) => {
    const { site } = sae.site(model, sites?.[0])
    const found = await captureFeatures(model, {
      data: corpusOf(options),
      encoder: sae,
      site,
      out,
      ...defined({ threshold, maxTokens, where, packing, context: length, batchTokens }),
      source: { sae: options.sae, kind: sae.weights.kind, features: sae.dSae },
      ...work,
    })
    return {
      json: { model: model.origin.id, site, ...found, features: sae.dSae },
      text: `${found.rows} activations of ${sae.dSae} features at ${found.places} places of ${site} (${found.active.toFixed(1)} at a place), written to ${out}.\n`,
    }
  })
}
