/** @file Files in Node: written whole, read with sentences for errors, hashed with progress; and where our own files live. Not for the browser. */

import { createHash, randomBytes } from 'node:crypto'
import { createReadStream } from 'node:fs'
import { type FileHandle, mkdir, open, readFile, realpath, rename, rm, stat } from 'node:fs/promises'
import { homedir } from 'node:os'
import { basename, dirname, join, resolve } from 'node:path'
import { type ActlensError, FormatError, messageOf, throwIfCancelled, UsageError } from './errors.ts'
import type { WorkOptions } from './progress.ts'

/** What {@link writeFileWhole} writes: text, bytes, or pieces of bytes that need not be in memory together. */
export type FileContent = string | Uint8Array | Iterable<Uint8Array> | AsyncIterable<Uint8Array>

/** The two folders outside those a user names that we write to. */
export interface HomeFolders {
  /** What can be fetched or computed again: models. */
  readonly cache: string
  /** What cannot: runs and their records. */
  readonly data: string
}

/** The `code` of a system error (`ENOENT`), or undefined. */
export function systemCode(error: unknown): string | undefined {
  const code = error instanceof Error ? (error as NodeJS.ErrnoException).code : undefined
  return typeof code === 'string' ? code : undefined
}

const writeFailures: Readonly<Record<string, (path: string) => ActlensError>> = {
  ENOENT: (path) => new UsageError(`The folder ${dirname(path)} does not exist: create it first, or write somewhere else.`),
  ENOTDIR: (path) => new UsageError(`${dirname(path)} is not a folder: choose another place to write to.`),
  EISDIR: (path) => new UsageError(`${path} is a folder: give the name of a file.`),
  EACCES: (path) => new UsageError(`There is no permission to write ${path}: choose another place, or change its permissions.`),
  EPERM: (path) => new UsageError(`There is no permission to write ${path}: choose another place, or change its permissions.`),
  EROFS: (path) => new UsageError(`${path} is on a read-only file system: choose another place to write to.`),
  ENOSPC: (path) =>
    new FormatError(`The disk is full, so ${path} was not written and nothing was left behind: free some space and try again.`),
  EDQUOT: (path) => new FormatError(`The disk quota is used up, so ${path} was not written: free some space and try again.`),
}

/** The sentence for a failed write of `path`, with the system error as its cause. */
export function writeFailure(error: unknown, path: string): ActlensError {
  const known = writeFailures[systemCode(error) ?? '']?.(path) ?? new FormatError(`${path} could not be written: ${messageOf(error)}.`)
  known.cause = error
  return known
}

/** Makes a folder, and those above it, where they are missing; a failure is a sentence. */
export async function makeFolder(path: string): Promise<void> {
  await mkdir(path, { recursive: true }).catch((error: unknown) => {
    throw writeFailure(error, path)
  })
}

/**
 * Writes a file so that a reader sees the old content or the new, never a part: a temporary file in the same folder,
 * flushed to the disk, then renamed. On any failure the temporary file is removed and the error is a sentence.
 */
export async function writeFileWhole(path: string, content: FileContent, options: WorkOptions = {}): Promise<void> {
  throwIfCancelled(options.signal)
  // A link is written through, so that it stays a link.
  const target = await realpath(path).catch(() => resolve(path))
  const temporary = join(dirname(target), `.${basename(target)}.${process.pid}.${randomBytes(4).toString('hex')}.tmp`)
  try {
    if (await isFolder(target)) throw Object.assign(new Error('is a folder'), { code: 'EISDIR' })
    const handle = await open(temporary, 'wx')
    try {
      for await (const piece of pieces(content)) {
        throwIfCancelled(options.signal)
        await writeAll(handle, piece)
      }
      await handle.sync()
    } finally {
      await handle.close()
    }
    await renameFirmly(temporary, target)
  } catch (error) {
    // Where the folder is not one, even removing fails; the first error is the one to tell.
    await rm(temporary, { force: true }).catch(() => undefined)
    if (error instanceof SourceFailure) throw error.cause
    throw systemCode(error) === undefined ? error : writeFailure(error, path)
  }
}

/** Marks an error of whoever gives the content, so that it is not told as one of the file that is written. */
class SourceFailure extends Error {}

async function* pieces(content: FileContent): AsyncGenerator<Uint8Array> {
  if (typeof content === 'string') yield Buffer.from(content, 'utf8')
  else if (content instanceof Uint8Array) yield content
  else {
    try {
      yield* content
    } catch (cause) {
      throw new SourceFailure('', { cause })
    }
  }
}

/** Writes all bytes of a piece at the handle's position; `FileHandle.write` alone may write fewer. */
export async function writeAll(handle: FileHandle, bytes: Uint8Array): Promise<void> {
  for (let from = 0; from < bytes.byteLength; ) from += (await handle.write(bytes, from)).bytesWritten
}

/** Renames, trying again for a moment where Windows refuses because a scanner or reader has the file open. */
export async function renameFirmly(from: string, to: string): Promise<void> {
  for (let attempt = 1; ; attempt++) {
    try {
      return await rename(from, to)
    } catch (error) {
      const transient = process.platform === 'win32' && ['EPERM', 'EACCES', 'EBUSY'].includes(systemCode(error) ?? '')
      if (!transient || attempt === 10) throw error
      await new Promise((done) => setTimeout(done, 20 * attempt))
    }
  }
}

async function isFolder(path: string): Promise<boolean> {
  return (await sizeOrKind(path)) === 'folder'
}

/** Bytes of a file, `folder` for a folder, undefined where there is nothing (or nothing that may be looked at). */
export async function sizeOrKind(path: string): Promise<number | 'folder' | undefined> {
  const found = await stat(path).catch(() => undefined)
  if (found === undefined) return undefined
  return found.isDirectory() ? 'folder' : found.size
}

/** The error for a file that cannot be read, as a sentence. */
export function readFailure(error: unknown, path: string): FormatError {
  const code = systemCode(error)
  const reason =
    code === 'ENOENT' || code === 'ENOTDIR'
      ? 'does not exist'
      : code === 'EISDIR'
        ? 'is a folder, not a file'
        : code === 'EACCES' || code === 'EPERM'
          ? 'may not be read: change its permissions'
          : `could not be read: ${messageOf(error)}`
  return new FormatError(`${path} ${reason}.`, { cause: error })
}

/** The value of a JSON file; a missing or malformed file is a {@link FormatError} that names it. */
export async function readJson(path: string): Promise<unknown> {
  let text: string
  try {
    text = await readFile(path, 'utf8')
  } catch (error) {
    throw readFailure(error, path)
  }
  return parseJson(text, path)
}

function parseJson(text: string, path: string): unknown {
  try {
    // Some editors put a byte-order mark first, which JSON does not allow.
    return JSON.parse(text.startsWith('\uFEFF') ? text.slice(1) : text)
  } catch (error) {
    const what = text.trim() === '' ? 'is empty' : `is not valid JSON (${messageOf(error)})`
    throw new FormatError(`${path} ${what}: it may be truncated, so fetch or write it again.`, { cause: error })
  }
}

/** SHA-256 of a file's content as 64 hexadecimal digits, read in pieces. */
export async function sha256OfFile(path: string, options: WorkOptions = {}): Promise<string> {
  throwIfCancelled(options.signal)
  const hash = createHash('sha256')
  try {
    const total = (await stat(path)).size
    const task = `hashing ${basename(path)}`
    let done = 0
    for await (const piece of createReadStream(path, { highWaterMark: 1 << 20 }) as AsyncIterable<Buffer>) {
      throwIfCancelled(options.signal)
      hash.update(piece)
      done += piece.length
      options.onProgress?.({ task, done, total, unit: 'bytes' })
    }
  } catch (error) {
    throw systemCode(error) === undefined ? error : readFailure(error, path)
  }
  return hash.digest('hex')
}

/** The surroundings that {@link homeFolders} looks at; given in tests. */
export interface Surroundings {
  readonly env: Readonly<Record<string, string | undefined>>
  readonly platform: string
  readonly home: string
}

/**
 * Our cache and data folders (not created here): inside `ACTLENS_HOME` where it is set, else where the platform keeps such
 * things: XDG folders on Linux, `~/Library` on macOS, `%LOCALAPPDATA%` on Windows.
 */
export function homeFolders(surroundings?: Surroundings): HomeFolders {
  const { env, platform, home } = surroundings ?? { env: process.env, platform: process.platform, home: homedir() }
  const own = env.ACTLENS_HOME
  if (own) return { cache: join(resolve(own), 'cache'), data: join(resolve(own), 'data') }
  if (platform === 'darwin') {
    const library = join(home, 'Library')
    return { cache: join(library, 'Caches', 'actlens'), data: join(library, 'Application Support', 'actlens') }
  }
  if (platform === 'win32') {
    const local = join(env.LOCALAPPDATA || join(home, 'AppData', 'Local'), 'actlens')
    return { cache: join(local, 'Cache'), data: join(local, 'Data') }
  }
  // The XDG specification says that a relative path is to be ignored.
  const xdg = (value: string | undefined, ...otherwise: string[]): string => (value?.startsWith('/') ? value : join(home, ...otherwise))
  return {
    cache: join(xdg(env.XDG_CACHE_HOME, '.cache'), 'actlens'),
    data: join(xdg(env.XDG_DATA_HOME, '.local', 'share'), 'actlens'),
  }
}
