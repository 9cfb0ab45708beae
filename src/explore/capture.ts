/** @file Capture: activations of any sites over a corpus, to safetensors shards with a manifest (Node). */

import { rm, rmdir } from 'node:fs/promises'
import { createRequire } from 'node:module'
import { join } from 'node:path'
import { FormatError, UsageError } from '../base/errors.ts'
import { makeFolder, writeFileWhole } from '../base/files.ts'
import { sha256 } from '../base/hash.ts'
import type { Progress } from '../base/progress.ts'
import { encodeSafetensors } from '../models/formats/index.ts'
import { describeEdits } from '../run/edits-file.ts'
import type { Model } from '../run/index.ts'
import { plainEdits } from '../sites/index.ts'
import { getRuntime } from '../tensor/index.ts'
import { freeBytes } from './capture-disk.ts'
import { bytesOfToken, type CaptureDType, captureColumns, captureEncodings, ShardBuffer, scaleName } from './capture-encode.ts'
import {
  activationsFormat,
  type CaptureManifest,
  type CaptureSettings,
  finishedShards,
  manifestPath,
  type ShardRecord,
  shardName,
  writeManifest,
} from './capture-manifest.ts'
import { keptOf, type PassPlan, type PassSettings, type PassWindow, passOver, planPass, positive, rowsOf } from './capture-pass.ts'
import { type Corpus, type CorpusInput, openCorpus, sizeOfPart } from './corpus.ts'

/** How far a capture has come. */
export interface CaptureProgress extends Progress {
  /** Bytes on disk so far, and expected in all. */
  readonly bytes: number
  readonly totalBytes: number
  readonly tokensPerSecond: number
  readonly secondsLeft: number
}

/** Options of {@link capture}. */
export interface CaptureOptions extends PassSettings {
  /** Aborting it stops after the running pass; finished shards are kept. */
  readonly signal?: AbortSignal
  readonly data: CorpusInput
  /** Folder for the shards and `manifest.json`; must be new or empty unless `resume`. */
  readonly out: string
  /** Element type on disk (default f32). int8 keeps a factor for each position: value = code · scale. */
  readonly dtype?: CaptureDType
  /** Positions in a shard at least, the last one excepted (default: what 64 MiB hold). One shard is held in memory while another is written. */
  readonly shardTokens?: number
  /** Go on with an interrupted capture; its finished shards are kept, and the rest becomes what it would have been. */
  readonly resume?: boolean
  /** Is told after each window; the capture goes on when it returns. */
  readonly onProgress?: ((progress: CaptureProgress) => void) | ((progress: CaptureProgress) => Promise<void>)
}

/** What a capture has written. */
export interface CaptureResult {
  readonly out: string
  readonly manifest: CaptureManifest
  /** Positions that this call ran the model for; fewer than `manifest.tokens` after a resume. */
  readonly captured: number
  /** Edits that held nowhere, as sentences. */
  readonly unfired: readonly string[]
}

const defaultShardBytes = 2 ** 26

/** What the tensors of a shard are, written into each manifest. */
const layout =
  'Each shard is a safetensors file. A tensor named by a canonical site holds one row for each captured position, [tokens, …axes of the site without batch and pos]; rows of all shards follow one another in the order of the corpus. The int32 columns say where each row comes from.'

/**
 * Runs a model over a corpus and writes the activations of sites to safetensors shards with a manifest. Rows stand in the order of
 * the corpus. A shard appears whole, then the manifest names it; after an interruption `resume` goes on behind the last one named,
 * and the files are byte for byte those of an uninterrupted run.
 * @throws UsageError, SiteError, FormatError before any work where something cannot be done; CancelledError keeps finished shards.
 */
export async function capture(model: Model, options: CaptureOptions): Promise<CaptureResult> {
  const { out, dtype = 'f32', resume = false, signal } = options
  if (!Object.hasOwn(captureEncodings, dtype))
    throw new UsageError(`There is no element type '${dtype}' for activations; choose one of ${Object.keys(captureEncodings).join(', ')}.`)
  plainEdits(model.edits)
  const plan = shardedPlan(planPass(model, options), dtype, positive('shardTokens', options.shardTokens))
  const corpus = await openCorpus(options.data, { ...(signal ? { signal } : {}) })
  const settings = await settingsOf(model, corpus, plan, dtype)
  const { shards, complete } = await finishedShards(out, settings, resume)
  const stated = await statedOf(model)
  const manifest = (done: boolean): CaptureManifest => ({
    format: activationsFormat,
    layout,
    columns: captureColumns,
    ...settings,
    ...stated,
    complete: done,
    tokens: shards.at(-1)?.to ?? 0,
    shards,
  })
  if (complete) return { out, manifest: manifest(true), captured: 0, unfired: [] }
  const expected = await expectedTokens(model, corpus, plan)
  const kept = shards.at(-1)?.to ?? 0
  const perToken = bytesOfToken(
    dtype,
    plan.sites.map((s) => s.width),
  )
  await refuseSmallDisk(out, Math.max(0, expected - kept) * perToken, plan)
  await makeFolder(out)
  await writeManifest(out, manifest(false))
  const report = reporter(options.onProgress, plan, { expected, kept, perToken })
  await report(kept, false)
  const writer = shardWriter(out, shards, () => writeManifest(out, manifest(false)))
  let unfired: readonly string[] | undefined
  let held = kept
  let buffer = new ShardBuffer(dtype, plan.sites, plan.shardTokens)
  let window: PassWindow | undefined
  try {
    const from = shards.at(-1)?.next
    for await (window of passOver(model, corpus, plan, { kept, ...(from ? { from } : {}), ...(signal ? { signal } : {}) })) {
      buffer.add(window)
      held += window.count
      unfired = unfired ? unfired.filter((s) => window?.unfired.includes(s)) : window.unfired
      await report(held, false)
      if (buffer.count < plan.shardTokens) continue
      await writer.write(buffer, window.next)
      buffer = new ShardBuffer(dtype, plan.sites, plan.shardTokens)
    }
    if (buffer.count > 0) await writer.write(buffer, undefined)
  } finally {
    // What is being written is finished also where the work was cancelled.
    await writer.end()
  }
  if (shards.length === 0) {
    // A folder that holds nothing would only stand in the way of the next attempt.
    await rm(manifestPath(out))
      .then(() => rmdir(out))
      .catch(() => undefined)
    throw new UsageError("Nothing was captured: the 'where' of the capture held at no position of the corpus; choose other positions.")
  }
  await writeManifest(out, manifest(true))
  await report(held, true)
  return { out, manifest: manifest(true), captured: held - kept, unfired: unfired ?? [] }
}

type CapturePlan = PassPlan & { readonly shardTokens: number }

function shardedPlan(plan: PassPlan, dtype: CaptureDType, wanted: number | undefined): CapturePlan {
  const perToken = bytesOfToken(
    dtype,
    plan.sites.map((s) => s.width),
  )
  const shardTokens = wanted ?? Math.max(1, Math.floor(defaultShardBytes / perToken))
  return { ...plan, windowTokens: Math.min(plan.windowTokens, shardTokens), shardTokens }
}

async function settingsOf(model: Model, corpus: Corpus, plan: CapturePlan, dtype: CaptureDType): Promise<CaptureSettings> {
  const { architecture, origin, precision } = model
  const { scaled, dtype: stored } = captureEncodings[dtype]
  const { sites, where, maxTokens, packing, context, batchTokens, windowTokens, shardTokens } = plan
  const when = where.when && { ...where.when, vector: Array.from(where.when.vector) }
  return {
    model: {
      id: origin.id,
      hash: await origin.hash(),
      family: architecture.family,
      layers: architecture.stacks.reduce((sum, s) => sum + s.layers, 0),
      precision,
    },
    data: corpus.facts,
    sites: sites.map(({ site, axes, shape }) => ({
      site,
      axes: ['tokens', ...axes.map((a) => (a === 'one' ? '1' : a))],
      shape,
      dtype: stored,
      ...(scaled ? { scale: scaleName(site) } : {}),
    })),
    dtype,
    where: { ...where, ...(when ? { when } : {}) },
    edits: describeEdits(model.edits),
    packing,
    context,
    batchTokens,
    windowTokens,
    shardTokens,
    maxTokens: maxTokens ?? null,
  }
}

async function statedOf(model: Model): Promise<Pick<CaptureManifest, 'spec' | 'seed' | 'versions'>> {
  const plain = Object.entries(model.internals.record.spec).filter(([, value]) => ['string', 'number', 'boolean'].includes(typeof value))
  const { version } = createRequire(import.meta.url)('../../package.json') as { version: string }
  return {
    spec: Object.fromEntries(plain),
    seed: null,
    versions: { actlens: version, runtime: (await getRuntime()).version, node: process.version },
  }
}

/** Characters that are tokenised to estimate how many tokens a corpus has. */
const sampleCharacters = 100_000

/** Positions that will be captured: exact for a small corpus, else from a sample of its beginning; an upper bound with a condition on values. */
async function expectedTokens(model: Model, corpus: Corpus, plan: PassPlan): Promise<number> {
  const limit = plan.maxTokens ?? Number.POSITIVE_INFINITY
  let [kept, characters] = [0, 0]
  const sample: Corpus = {
    ...corpus,
    async *parts() {
      for await (const part of corpus.parts()) {
        yield part
        characters += sizeOfPart(part)
        if (characters >= sampleCharacters || kept >= limit) return
      }
    },
  }
  for await (const row of rowsOf(model, sample, plan, { document: 0, token: 0 })) kept += keptOf(plan.where, row)
  return Math.min(limit, Math.round((kept * corpus.characters) / characters))
}

async function refuseSmallDisk(out: string, bytes: number, plan: PassPlan): Promise<void> {
  // With a condition on values nobody knows how much will be kept before the model has run.
  if (plan.where.when !== undefined) return
  const free = await freeBytes(out)
  if (free !== undefined && bytes > free)
    throw new FormatError(
      `The capture needs about ${megabytes(bytes)} MB at ${out}, but ${megabytes(free)} MB are free there: capture fewer sites or tokens, choose a smaller element type (f16, int8), or another disk.`,
    )
}

const megabytes = (bytes: number) => (bytes / 1e6).toFixed(bytes < 1e8 ? 1 : 0)

function reporter(
  onProgress: CaptureOptions['onProgress'],
  plan: PassPlan,
  { expected, kept, perToken }: { expected: number; kept: number; perToken: number },
): (done: number, finished: boolean) => Promise<void> {
  const begun = performance.now()
  const { sites } = plan
  const what = sites.length === 1 ? (sites[0]?.site as string) : `${sites.length} sites`
  return async (done, finished) => {
    const total = finished ? done : Math.max(expected, done)
    const tokensPerSecond = ((done - kept) / (performance.now() - begun)) * 1000 || 0
    await onProgress?.({
      task: `capturing ${what} (${megabytes(expected * perToken)} MB)`,
      done,
      total,
      unit: 'tokens',
      bytes: done * perToken,
      totalBytes: total * perToken,
      tokensPerSecond,
      secondsLeft: tokensPerSecond > 0 ? (total - done) / tokensPerSecond : Number.POSITIVE_INFINITY,
    })
  }
}

/** Writes shards in order, one while the next is computed; each is named in the manifest once it is whole. */
function shardWriter(out: string, shards: ShardRecord[], note: () => Promise<void>) {
  let pending: Promise<void> = Promise.resolve()
  const write = async (buffer: ShardBuffer, next: ShardRecord['next']) => {
    const bytes = encodeSafetensors(buffer.tensors(), { format: activationsFormat })
    const file = shardName(shards.length)
    const from = shards.at(-1)?.to ?? 0
    const { document } = buffer.tensors()
    const documents = [document?.data[0], document?.data[buffer.count - 1]] as [number, number]
    const [hash] = await Promise.all([sha256(bytes), writeFileWhole(join(out, file), bytes)])
    shards.push({ file, from, to: from + buffer.count, documents, bytes: bytes.byteLength, sha256: hash, ...(next ? { next } : {}) })
    await note()
  }
  return {
    async write(buffer: ShardBuffer, next: ShardRecord['next']): Promise<void> {
      await pending
      pending = write(buffer, next)
      // Its failure is told by whoever waits for it next, and is no stray rejection until then.
      pending.catch(() => undefined)
    },
    end: () => pending,
  }
}
