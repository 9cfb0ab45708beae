/** @file The manifest of captured activations: what they are, how they were made, and which shards are finished. */
import { readdir, rm } from 'node:fs/promises'
import { join } from 'node:path'
import { FormatError, listed, UsageError } from '../base/errors.ts'
import { readJson, sizeOrKind, writeFileWhole } from '../base/files.ts'
import type { CaptureDType } from './capture-encode.ts'
import type { Cursor, Packing } from './capture-pass.ts'
import type { CorpusFacts } from './corpus.ts'

/** Format of the folders that `capture` writes. */
export const activationsFormat = 'actlens-activations/1'

/** A finished shard. */
export interface ShardRecord {
  readonly file: string
  /** Rows `from` (inclusive) to `to` (exclusive) of the whole. */
  readonly from: number
  readonly to: number
  /** Documents of its first and its last row. */
  readonly documents: readonly [first: number, last: number]
  readonly bytes: number
  readonly sha256: string
  /** Where the next shard begins in the corpus; absent after the last one. */
  readonly next?: Cursor
}

/** A captured site. */
export interface SiteRecord {
  readonly site: string
  /** `tokens`, then the axes of the site without batch and pos. */
  readonly axes: readonly string[]
  /** Sizes of the axes after `tokens`. */
  readonly shape: readonly number[]
  readonly dtype: string
  /** Tensor with a factor for each row, [tokens], where values are codes. */
  readonly scale?: string
}

/** All that decides what the shards hold. */
export interface CaptureSettings {
  readonly model: {
    readonly id: string
    readonly hash: string
    readonly family: string
    readonly layers: number
    readonly precision: string
  }
  readonly data: CorpusFacts
  readonly sites: readonly SiteRecord[]
  readonly dtype: CaptureDType
  readonly where: unknown
  readonly edits: readonly unknown[]
  readonly packing: Packing
  readonly context: number
  readonly batchTokens: number
  readonly windowTokens: number
  readonly shardTokens: number
  readonly maxTokens: number | null
}

/** `manifest.json`. */
export interface CaptureManifest extends CaptureSettings {
  readonly format: typeof activationsFormat
  /** What the tensors of a shard are, for readers without our documentation. */
  readonly layout: string
  readonly columns: Readonly<Record<string, string>>
  /** Sizes and settings of the model. */
  readonly spec: Readonly<Record<string, unknown>>
  /** Nothing in a capture is drawn at random; edits carry their own seeds. */
  readonly seed: null
  readonly versions: { readonly actlens: string; readonly runtime: string; readonly node: string }
  readonly complete: boolean
  /** Rows in all finished shards. */
  readonly tokens: number
  readonly shards: readonly ShardRecord[]
}

const manifestName = 'manifest.json'

/** Path of the manifest of a folder. */
export const manifestPath = (folder: string) => join(folder, manifestName)

/** Name of a shard. */
export const shardName = (index: number) => `activations-${String(index).padStart(5, '0')}.safetensors`

/** Writes the manifest whole. */
export function writeManifest(folder: string, manifest: CaptureManifest): Promise<void> {
  return writeFileWhole(manifestPath(folder), `${JSON.stringify(manifest, null, 2)}\n`)
}

/** Reads a manifest; refuses what is none. */
export async function readManifest(folder: string): Promise<CaptureManifest> {
  if ((await sizeOrKind(folder)) !== 'folder') throw new FormatError(`There is no folder ${folder}; name one that 'capture' has written.`)
  if ((await sizeOrKind(manifestPath(folder))) === undefined)
    throw new FormatError(
      `${folder} holds no ${manifestName}, so it holds no captured activations; name a folder that 'capture' has written.`,
    )
  const value = (await readJson(manifestPath(folder))) as Partial<CaptureManifest> | null
  if (typeof value !== 'object' || value?.format !== activationsFormat || !Array.isArray(value.shards) || !Array.isArray(value.sites))
    throw new FormatError(
      `${manifestPath(folder)} is no manifest of the format '${activationsFormat}'; name another folder, or capture into a new one.`,
    )
  return value as CaptureManifest
}

/** What writing whole leaves behind where a process was killed. */
const leftover = /^\.(manifest\.json|activations-\d+\.safetensors)\.\d+\.[0-9a-f]+\.tmp$/

/**
 * The shards that a capture may build on: none for a new folder; with `resume` those that are whole.
 * @throws UsageError where the folder is in use for something else, or holds a capture with other settings.
 */
export async function finishedShards(
  folder: string,
  settings: CaptureSettings,
  resume: boolean,
): Promise<{ shards: ShardRecord[]; complete: boolean }> {
  const kind = await sizeOrKind(folder)
  if (kind === undefined) return { shards: [], complete: false }
  if (kind !== 'folder') throw new UsageError(`${folder} is a file; give the name of a folder.`)
  const names = await readdir(folder)
  const own = names.filter((n) => leftover.test(n))
  if (names.length > 0 && !resume)
    throw new UsageError(`${folder} exists and is not empty: resume it, if it is an interrupted capture, or choose another folder.`)
  // Nobody else writes here, so what a killed process has begun is worth nothing any more.
  for (const name of own) await rm(join(folder, name), { force: true })
  if (!names.includes(manifestName)) {
    if (names.length > own.length)
      throw new UsageError(`${folder} holds other files and no capture (${listed(names, 3)}); choose another folder.`)
    return { shards: [], complete: false }
  }
  const manifest = await readManifest(folder)
  refuseOther(folder, manifest, settings)
  const shards: ShardRecord[] = []
  for (const shard of manifest.shards) {
    if ((await sizeOrKind(join(folder, shard.file))) !== shard.bytes) return { shards, complete: false }
    shards.push(shard)
  }
  return { shards, complete: manifest.complete }
}

function refuseOther(folder: string, manifest: CaptureManifest, settings: CaptureSettings): void {
  const different = (Object.keys(settings) as (keyof CaptureSettings)[]).filter(
    (key) => JSON.stringify(withoutPath(manifest[key])) !== JSON.stringify(withoutPath(settings[key])),
  )
  if (different.length > 0)
    throw new UsageError(
      `${folder} holds a capture with other settings (${different.join(', ')}), which cannot be resumed with these; give the same ones, or another folder.`,
    )
}

/** Contents decide, not where they lie: a corpus or model may have moved. */
function withoutPath(value: unknown): unknown {
  if (typeof value !== 'object' || value === null || Array.isArray(value)) return value
  const { path: _path, id: _id, ...rest } = value as Record<string, unknown>
  return rest
}
