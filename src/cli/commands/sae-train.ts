/** @file `actlens sae train` and `actlens sae eval`. */
import { join } from 'node:path'
import { UsageError } from '../../base/errors.ts'
import { makeFolder, sizeOrKind, writeFileWhole } from '../../base/files.ts'
import {
  liveRows,
  loadSae,
  type RowStream,
  type Sae,
  saeMetrics,
  sampleCorpus,
  saveSae,
  spliceScores,
  storedRows,
  type TrainingKind,
  trainSae,
} from '../../decompose/index.ts'
import { type CorpusInput, openActivations } from '../../explore/index.ts'
import { checkpointFolder } from '../../run/checkpoints.ts'
import type { Model } from '../../run/index.ts'
import type { CommandContext, Outcome } from '../command.ts'
import { withModel } from '../model.ts'
import { short, table } from '../table.ts'
import type { TextOrIds } from '../texts.ts'

/** Options of all actions; each honours its own. */
export interface SaeCommandOptions {
  readonly sae?: string
  readonly site?: string
  readonly data?: string
  readonly field?: string
  readonly text?: readonly TextOrIds[]
  readonly sample?: number
  readonly activations?: string
  readonly context?: number
  readonly maxTokens?: number
  readonly kind?: TrainingKind
  readonly width?: number
  readonly k?: number
  readonly sparsity?: number
  readonly decoder?: 'unit' | 'free'
  readonly rate?: number
  readonly batch?: number
  readonly steps?: number
  readonly seed?: number
  readonly resume?: boolean
  readonly scale?: number
  readonly latents?: readonly number[]
  readonly top?: number
  readonly neuronpedia?: string
  readonly out?: string
}

/** The options that were given, of some. */
export function given<K extends keyof SaeCommandOptions>(
  options: SaeCommandOptions,
  ...names: K[]
): { [P in K]?: NonNullable<SaeCommandOptions[P]> } {
  return Object.fromEntries(names.flatMap((n) => (options[n] === undefined ? [] : [[n, options[n]]]))) as ReturnType<typeof given<K>>
}

/** The corpus of a command. */
export function corpusOf({ data, field, text }: SaeCommandOptions): CorpusInput {
  if (data !== undefined) return { path: data, ...(field === undefined ? {} : { field }) }
  if (field !== undefined) throw new UsageError('--field says how to read --data; give --data, too.')
  if (text === undefined) throw new UsageError('There is nothing to run on: give --data or --text.')
  return text
}

/** Loads the autoencoder of a command and tells its warnings. */
export async function openSae(context: CommandContext, options: SaeCommandOptions): Promise<Sae> {
  const { threads } = context.common
  const sae = await loadSae(options.sae as string, {
    ...given(options, 'scale'),
    ...(threads === undefined ? {} : { threads }),
    signal: context.io.signal,
    onProgress: context.onProgress,
  })
  for (const sentence of sae.weights.warnings) context.warn(sentence)
  return sae
}

/** Checkpoints that are kept while training. */
const checkpointsKept = 2

export async function trainAction(context: CommandContext, name: string, options: SaeCommandOptions): Promise<Outcome> {
  const out = options.out as string
  if (options.steps === undefined && options.maxTokens === undefined && options.sample === undefined)
    throw new UsageError("Say how long to train: give --max-tokens or --steps (with --sample, the sample's tokens are taken once).")
  await makeFolder(out)
  return withModel(context, name, {}, async ({ model }) => {
    const { site } = model.site(options.site as string)
    const { signal } = context.io
    const rows = await rowsOf(context, model, site, options)
    const files = checkpointFolder(join(out, 'checkpoints'))
    if (options.resume !== true && (await files.list()).length > 0)
      throw new UsageError(`${out} holds checkpoints of a training; go on with --resume, or give another folder.`)
    const tokens = options.maxTokens ?? options.sample
    const trained = await trainSae({
      rows,
      ...given(options, 'kind', 'width', 'k', 'sparsity', 'decoder', 'rate', 'batch', 'seed'),
      ...(options.steps === undefined ? { tokens: tokens as number } : { steps: options.steps }),
      ...(context.common.threads === undefined ? {} : { threads: context.common.threads }),
      checkpoints: { files, every: 200, keep: checkpointsKept, ...(options.resume ? { resume: 'newest' } : {}) },
      place: { hook: site, model: model.origin.id },
      signal,
      onProgress: context.onProgress,
    })
    await saveSae(out, trained.weights)
    await writeFileWhole(join(out, 'curve.json'), `${JSON.stringify(trained.curve)}\n`)
    // The autoencoder is written, so that nothing is lost with them.
    for (const checkpoint of await files.list()) await files.remove(checkpoint)
    const { dIn, dSae, kind } = trained.weights
    const { last } = trained
    const figures = last && { fvu: last.fvu, l0: last.l0, dead: last.dead, loss: last.loss }
    return {
      json: { model: model.origin.id, site, kind: trained.recipe.kind, width: dSae, steps: trained.steps, last: figures, out },
      text: `${trained.recipe.kind} of ${dIn} → ${dSae} at ${site}, ${trained.steps} steps, stored as ${kind}.\n${
        figures ? table(Object.keys(figures), [Object.values(figures).map(short)]) : ''
      }Written to ${out}.\n`,
    }
  })
}

async function rowsOf(context: CommandContext, model: Model, site: string, options: SaeCommandOptions): Promise<RowStream> {
  const { signal } = context.io
  const seed = options.seed ?? 0
  if (options.activations !== undefined) {
    const store = await openActivations(options.activations)
    if (store.manifest.model.hash !== (await model.origin.hash()))
      throw new UsageError(`${options.activations} was captured from another model (${store.manifest.model.id}); capture it anew.`)
    return storedRows(store, site, seed)
  }
  const data = options.sample === undefined ? corpusOf(options) : await sampled(context, model, options.sample, seed, options.out as string)
  return liveRows(model, { data, site, seed, ...given(options, 'context'), signal })
}

/** The model's own corpus, written beside the autoencoder; one that is there already is taken again. */
async function sampled(context: CommandContext, model: Model, tokens: number, seed: number, out: string): Promise<CorpusInput> {
  const path = join(out, 'corpus.jsonl')
  if ((await sizeOrKind(path)) === undefined) {
    const rows = await sampleCorpus(model, { tokens, seed, signal: context.io.signal, onProgress: context.onProgress })
    await writeFileWhole(path, rows.map((input_ids) => `${JSON.stringify({ input_ids })}\n`).join(''))
  } else context.note(`Taking the corpus that is there: ${path}.`)
  return { path, field: 'input_ids' }
}

/** Positions that are looked at where nobody says how many. */
const defaultTokens = 16_384

export async function evalAction(context: CommandContext, name: string, options: SaeCommandOptions): Promise<Outcome> {
  const data = corpusOf(options)
  await using sae = await openSae(context, options)
  return withModel(context, name, {}, async ({ model }) => {
    const { site } = sae.site(model, options.site)
    const work = { signal: context.io.signal, onProgress: context.onProgress }
    const tokens = options.maxTokens ?? defaultTokens
    const rows = await liveRows(model, { data, site, seed: 0, ...given(options, 'context'), signal: context.io.signal })
    const { density, mean, densityHistogram, ...figures } = await saeMetrics(sae, rows, { tokens, ...work })
    const splice = await spliceScores(model, sae, { data, site, tokens, mean, ...given(options, 'context'), ...work })
    const { ce, kl, positions, ...scores } = splice
    return {
      json: { model: model.origin.id, site, sae: options.sae, ...figures, splice, densityHistogram, density: Array.from(density) },
      text: `${table(
        ['figure', 'value'],
        Object.entries({ ...figures, ...scores }).map(([n, v]) => [n, short(v)]),
      )}Next-token cross-entropy over ${positions} positions: ${Object.entries(ce)
        .map(([n, v]) => `${n} ${v.toFixed(3)}`)
        .join(', ')}; divergence: ${Object.entries(kl)
        .map(([n, v]) => `${n} ${v.toFixed(3)}`)
        .join(', ')}.\n`,
    }
  })
}
