/**
 * @file The model cache: `<cache>/models/<hash>/…` holds the files of one model under their own names, `index.json` says which
 * id means which hash. A model is fetched into `parts/…` and appears by one rename, so nothing is ever half there.
 */

import { createHash } from 'node:crypto'
import { mkdir, rm } from 'node:fs/promises'
import { join } from 'node:path'
import { FormatError, messageOf, UsageError } from '../../base/errors.ts'
import { homeFolders, readJson, renameFirmly, sizeOrKind, writeFailure, writeFileWhole } from '../../base/files.ts'
import { withLock } from './lock.ts'

/** One file of a cached model. */
export interface CachedFile {
  /** Path inside the model's folder, with `/`. */
  readonly path: string
  /** Bytes. */
  readonly size: number
  /** SHA-256 of the content. */
  readonly sha256: string
}

/** What the index knows of a cached model. */
export interface CachedModel {
  /** How a user asks for it: `npm:name@version#path` or `org/name@revision`. */
  readonly id: string
  /** Where it came from. */
  readonly kind: 'npm' | 'hub'
  /** Hash of the content: the file's SHA-256 where there is one file, else {@link hashOfFiles}. */
  readonly hash: string
  /** Files, sorted by path. */
  readonly files: readonly CachedFile[]
  /** The commit that a branch or tag meant when it was fetched. */
  readonly commit?: string
  /** When it was fetched, ISO 8601. */
  readonly fetchedAt: string
}

/** A cached model and where it lies. */
export interface LocatedModel extends CachedModel {
  /** The folder that holds its files. */
  readonly folder: string
}

/** A place where the files of a model are gathered before they become a cache entry. */
export interface Staging {
  /** The folder to put them in; files of an interrupted earlier fetch may be there. */
  readonly folder: string
  /** Makes what was gathered the cache entry of this id. */
  publish(model: Omit<CachedModel, 'id' | 'hash' | 'fetchedAt'>): Promise<LocatedModel>
}

/** The folder of the model cache: `models` in the cache folder. */
export function modelCacheFolder(): string {
  return join(homeFolders().cache, 'models')
}

/** One hash for several files: SHA-256 over lines of `sha256  path`, sorted by path; a single file's is its own SHA-256. */
export function hashOfFiles(files: readonly Pick<CachedFile, 'path' | 'sha256'>[]): string {
  const [only] = files
  if (files.length === 1 && only) return only.sha256
  const lines = [...files].sort(byPath).map((file) => `${file.sha256}  ${file.path}\n`)
  return createHash('sha256').update(lines.join('')).digest('hex')
}

const byPath = (a: { path: string }, b: { path: string }): number => (a.path < b.path ? -1 : 1)

/** Bytes of all files of a model. */
export function bytesOfModel(model: CachedModel): number {
  return model.files.reduce((sum, file) => sum + file.size, 0)
}

/** All cached models, in the order they were fetched. */
export async function listModels(root = modelCacheFolder()): Promise<CachedModel[]> {
  return (await sizeOrKind(indexPath(root))) === undefined ? [] : readIndex(root)
}

/** The cached model of this id, or undefined where it is not there or a file of it is missing or has another size. */
export async function locate(id: string, root = modelCacheFolder()): Promise<LocatedModel | undefined> {
  const model = (await listModels(root)).find((candidate) => candidate.id === id)
  if (model === undefined) return undefined
  const folder = join(root, model.hash)
  return (await isWhole(folder, model.files)) ? { ...model, folder } : undefined
}

async function isWhole(folder: string, files: readonly CachedFile[]): Promise<boolean> {
  const sizes = await Promise.all(files.map((file) => sizeOrKind(join(folder, file.path))))
  return files.every((file, i) => sizes[i] === file.size)
}

/** Removes a model, and its files where no other id shares them; false where it was not cached. Unfinished downloads go too. */
export async function removeModel(id: string, root = modelCacheFolder()): Promise<boolean> {
  return withStaging(id, root, { whenBusy: 'refuse' }, async ({ folder }) => {
    await rm(folder, { recursive: true, force: true })
    return changingIndex(root, async (models) => {
      const model = models.find((candidate) => candidate.id === id)
      if (model === undefined) return { models, result: false }
      const rest = models.filter((candidate) => candidate !== model)
      if (!rest.some((other) => other.hash === model.hash)) await discard(join(root, model.hash), root)
      return { models: rest, result: true }
    })
  })
}

/** How {@link withStaging} waits for another process that is busy with the same id. */
export interface StagingOptions {
  readonly signal?: AbortSignal | undefined
  readonly onWait?: () => void
  /** `refuse`: an error instead of waiting. */
  readonly whenBusy?: 'wait' | 'refuse'
}

/** Gives the work a staging folder for this id that no other process uses meanwhile. */
export async function withStaging<T>(
  id: string,
  root: string,
  options: StagingOptions,
  work: (staging: Staging) => Promise<T>,
): Promise<T> {
  const folder = join(root, 'parts', createHash('sha256').update(id).digest('hex').slice(0, 24))
  const busy = (): void => {
    if (options.whenBusy === 'refuse') {
      throw new UsageError(`${id} is being fetched by another process: wait for it to finish, or stop it.`)
    }
    options.onWait?.()
  }
  return withLock(
    `${folder}.lock`,
    () => work({ folder, publish: (model) => publish(root, folder, { ...model, id, hash: hashOfFiles(model.files) }) }),
    { signal: options.signal, onWait: busy },
  )
}

async function publish(root: string, staging: string, entry: Omit<CachedModel, 'fetchedAt'>): Promise<LocatedModel> {
  const model: CachedModel = { ...entry, files: [...entry.files].sort(byPath), fetchedAt: new Date().toISOString() }
  const folder = join(root, model.hash)
  return changingIndex(root, async (models) => {
    if (await isWhole(folder, model.files)) {
      // Another id has the same content, and someone may be reading it.
      await rm(staging, { recursive: true, force: true })
    } else {
      await discard(folder, root)
      await renameFirmly(staging, folder).catch((error) => Promise.reject(writeFailure(error, folder)))
    }
    return { models: [...models.filter((other) => other.id !== model.id), model], result: { ...model, folder } }
  })
}

/** Takes a folder out of sight in one step, then deletes it. */
async function discard(folder: string, root: string): Promise<void> {
  if ((await sizeOrKind(folder)) === undefined) return
  const away = join(root, 'parts', `removed-${process.pid}-${Date.now()}`)
  await mkdir(join(root, 'parts'), { recursive: true })
  try {
    await renameFirmly(folder, away)
  } catch (error) {
    throw new FormatError(`${folder} could not be removed: ${messageOf(error)}. Close the programs that use this model and try again.`)
  }
  await rm(away, { recursive: true, force: true })
}

const indexPath = (root: string): string => join(root, 'index.json')

async function changingIndex<T>(
  root: string,
  change: (models: CachedModel[]) => Promise<{ models: CachedModel[]; result: T }>,
): Promise<T> {
  return withLock(join(root, 'index.lock'), async () => {
    const before = await listModels(root)
    const { models, result } = await change(before)
    if (models !== before) await writeFileWhole(indexPath(root), `${JSON.stringify({ version: 1, models }, null, 1)}\n`)
    return result
  })
}

async function readIndex(root: string): Promise<CachedModel[]> {
  const path = indexPath(root)
  const value = await readJson(path)
  const index = value as { version?: unknown; models?: unknown } | null
  if (index?.version !== 1 || !Array.isArray(index.models) || !index.models.every(isCachedModel)) {
    throw new FormatError(
      `${path} is not a model index that this version understands: delete it, and models are fetched again when needed.`,
    )
  }
  return index.models
}

function isCachedModel(value: unknown): value is CachedModel {
  const model = value as Partial<CachedModel> | null
  return (
    typeof model?.id === 'string' &&
    typeof model.hash === 'string' &&
    /^[0-9a-f]{64}$/.test(model.hash) &&
    Array.isArray(model.files) &&
    model.files.every((file) => typeof file?.path === 'string' && typeof file.size === 'number' && typeof file.sha256 === 'string')
  )
}
