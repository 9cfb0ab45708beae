/** @file Files that a page has fetched, kept in the browser's private file system (OPFS): resumed where they broke off, checked, and read from there next time. */

import { CancelledError, FormatError, messageOf, throwIfCancelled } from '../base/errors.ts'
import { sha256 } from '../base/hash.ts'
import type { WorkOptions } from '../base/progress.ts'

/** What is known of a file before it is fetched. */
export interface Expected {
  /** What to call it in messages. */
  readonly name: string
  /** SHA-256 of its bytes, 64 hexadecimal digits: it is checked, and a kept file of this hash is used without asking the server. */
  readonly sha256?: string | undefined
}

/** How files are fetched and kept. */
export interface FetchOptions extends WorkOptions {
  /** Whether fetched files are kept for the next visit (default true). */
  readonly keep?: boolean
  /** Never use the network: what is not kept is an error. */
  readonly offline?: boolean
}

/** A file that was fetched, now or earlier. */
export interface Fetched {
  readonly blob: Blob
  /** Undefined where it is too large to be hashed in a browser, or the page is in no secure context. */
  readonly sha256?: string
  /** Whether it was kept from an earlier visit. */
  readonly kept: boolean
  /** Why it is not kept for the next visit. */
  readonly note?: string
}

/** What lies beside a kept file. */
interface Note {
  readonly url: string
  readonly tag: string
  /** The server had no such file when it was asked last. */
  readonly missing?: true
  /** Absent while the file is not whole. */
  readonly size?: number
  readonly sha256?: string
}

/** Name of our folder in the page's private file system. */
export const webFolder = 'actlens'
/** Browsers give no more than this in one piece, which the hash needs. */
const largestHashed = 2 ** 31 - 2

/** The folder of a file, or why there is none. */
async function folderOf(url: string): Promise<FileSystemDirectoryHandle | string> {
  const supported = globalThis.isSecureContext && 'storage' in navigator && 'createWritable' in FileSystemFileHandle.prototype
  if (!supported) return 'this page has no private file system; serve it over https, or from localhost, to a current browser'
  try {
    const root = await navigator.storage.getDirectory()
    const ours = await root.getDirectoryHandle(webFolder, { create: true })
    const files = await ours.getDirectoryHandle('files', { create: true })
    return await files.getDirectoryHandle((await sha256(url)).slice(0, 32), { create: true })
  } catch (error) {
    return `the browser refuses this page a private file system (${messageOf(error)})`
  }
}

/**
 * The file at a URL; undefined where the server says that there is none (404).
 * @throws FormatError where it cannot be fetched or its hash is another, CancelledError.
 */
export async function fetchFile(url: string, expected: Expected, options: FetchOptions = {}): Promise<Fetched | undefined> {
  throwIfCancelled(options.signal)
  const folder = options.keep === false ? 'it was asked not to' : await folderOf(url)
  if (typeof folder === 'string') {
    if (options.offline) throw new FormatError(`${expected.name} is not kept here, since ${folder}, and the network may not be used.`)
    return inMemory(url, expected, folder, options)
  }
  // Two tabs that want the same file wait for each other.
  return navigator.locks.request(`${webFolder} ${folder.name}`, async () => {
    throwIfCancelled(options.signal)
    const note = await noteIn(folder)
    const kept = note?.size !== undefined ? await fileIn(folder) : undefined
    if (note && kept && kept.size === note.size && (await holds(url, note, expected, options)))
      return { blob: kept, kept: true, ...(note.sha256 ? { sha256: note.sha256 } : {}) }
    if (options.offline && note?.missing) return undefined
    if (options.offline) throw new FormatError(`${expected.name} is not kept in this browser yet, and the network may not be used.`)
    return intoFolder(folder, url, expected, note?.size === undefined ? note : undefined, options)
  })
}

/** Whether a kept file is still the one that is wanted: by its hash, else by what the server says of its version. */
async function holds(url: string, note: Note, expected: Expected, options: FetchOptions): Promise<boolean> {
  if (expected.sha256 !== undefined) return note.sha256 === expected.sha256
  if (options.offline || note.tag === '') return true
  const response = await fetch(url, { method: 'HEAD', signal: options.signal ?? null }).catch(() => undefined)
  throwIfCancelled(options.signal)
  // Without an answer the kept file is the best there is.
  return !response?.ok || tagOf(response) === note.tag
}

const tagOf = (response: Response): string => response.headers.get('etag') ?? response.headers.get('last-modified') ?? ''

async function noteIn(folder: FileSystemDirectoryHandle): Promise<Note | undefined> {
  try {
    const handle = await folder.getFileHandle('note.json')
    return JSON.parse(await (await handle.getFile()).text()) as Note
  } catch {
    return undefined
  }
}

async function fileIn(folder: FileSystemDirectoryHandle): Promise<File | undefined> {
  return folder.getFileHandle('data').then(
    (handle) => handle.getFile(),
    () => undefined,
  )
}

async function writeNote(folder: FileSystemDirectoryHandle, note: Note): Promise<void> {
  const writable = await (await folder.getFileHandle('note.json', { create: true })).createWritable()
  await writable.write(JSON.stringify(note))
  await writable.close()
}

/** Fetches into the folder; what arrived before a failure stays there and is gone on with. */
async function intoFolder(
  folder: FileSystemDirectoryHandle,
  url: string,
  expected: Expected,
  part: Note | undefined,
  options: FetchOptions,
): Promise<Fetched | undefined> {
  const before = part?.tag ? ((await fileIn(folder))?.size ?? 0) : 0
  const response = await request(url, expected, options, before > 0 ? { range: `bytes=${before}-`, 'if-range': part?.tag as string } : {})
  if (response === undefined) {
    await writeNote(folder, { url, tag: '', missing: true })
    return undefined
  }
  const from = response.status === 206 ? before : 0
  const tag = tagOf(response)
  await writeNote(folder, { url, tag })
  const handle = await folder.getFileHandle('data', { create: true })
  const writable = await handle.createWritable({ keepExistingData: from > 0 })
  let at = from
  try {
    if (from > 0) await writable.seek(from)
    for await (const piece of piecesOf(response, from, expected, options)) {
      await writable.write(piece)
      at += piece.byteLength
    }
    await writable.truncate(at)
    await writable.close()
  } catch (error) {
    await writable.close().catch(() => undefined)
    if ((error as Error)?.name === 'QuotaExceededError') {
      await folder.removeEntry('data').catch(() => undefined)
      return inMemory(url, expected, 'the browser gives this page no more room', options)
    }
    throw error
  }
  const blob = await handle.getFile()
  try {
    const hash = await checkedHash(blob, expected)
    await writeNote(folder, { url, tag, size: blob.size, ...(hash ? { sha256: hash } : {}) })
    return { blob, kept: false, ...(hash ? { sha256: hash } : {}) }
  } catch (error) {
    // What has the wrong bytes is not gone on with.
    await folder.removeEntry('data').catch(() => undefined)
    throw error
  }
}

async function inMemory(url: string, expected: Expected, why: string, options: FetchOptions): Promise<Fetched | undefined> {
  const response = await request(url, expected, options, {})
  if (response === undefined) return undefined
  const parts: BlobPart[] = []
  for await (const piece of piecesOf(response, 0, expected, options)) parts.push(piece)
  const blob = new Blob(parts)
  const hash = await checkedHash(blob, expected)
  return { blob, kept: false, note: `${expected.name} is fetched again at the next visit, since ${why}`, ...(hash ? { sha256: hash } : {}) }
}

async function request(
  url: string,
  { name }: Expected,
  { signal }: FetchOptions,
  headers: Record<string, string>,
): Promise<Response | undefined> {
  let response: Response
  try {
    response = await fetch(url, { headers, signal: signal ?? null })
  } catch (error) {
    if (signal?.aborted) throw new CancelledError()
    throw new FormatError(
      `${name} could not be fetched from ${url} (${messageOf(error)}): check the connection, and that its server allows other origins (CORS).`,
      { cause: error },
    )
  }
  if (response.ok) return response
  await response.body?.cancel()
  // What was kept is longer than the file is now: from the beginning.
  if (response.status === 416) return request(url, { name }, signal ? { signal } : {}, {})
  if (response.status === 404 || response.status === 410) return undefined
  throw new FormatError(
    `${url} answers ${response.status} ${response.statusText}, so ${name} was not fetched; check the address and try again.`,
  )
}

async function* piecesOf(
  response: Response,
  from: number,
  { name }: Expected,
  { signal, onProgress }: FetchOptions,
): AsyncGenerator<Uint8Array<ArrayBuffer>> {
  // A compressed answer tells the length of what was sent, not of the file.
  const length = response.headers.has('content-encoding') ? undefined : response.headers.get('content-length')
  const total = length === null || length === undefined ? undefined : from + Number(length)
  const reader = response.body?.getReader()
  let at = from
  const tell = () => onProgress?.({ task: `fetching ${name}`, done: at, unit: 'bytes', ...(total === undefined ? {} : { total }) })
  tell()
  try {
    for (;;) {
      throwIfCancelled(signal)
      const next = await reader?.read()
      if (!next || next.done) break
      yield next.value as Uint8Array<ArrayBuffer>
      at += next.value.byteLength
      tell()
    }
  } catch (error) {
    if (signal?.aborted) throw new CancelledError()
    throw error instanceof TypeError
      ? new FormatError(`The connection broke while ${name} was fetched; load it again, and it goes on where it stopped.`, { cause: error })
      : error
  } finally {
    await reader?.cancel().catch(() => undefined)
  }
  if (total !== undefined && at !== total)
    throw new FormatError(`${name} ended after ${at} of ${total} bytes; load it again, and it goes on where it stopped.`)
}

/** The hash of a file, compared with the one that is expected. */
async function checkedHash(blob: Blob, { name, sha256: wanted }: Expected): Promise<string | undefined> {
  if (!globalThis.crypto?.subtle || blob.size > largestHashed) return undefined
  const hash = await sha256(await blob.arrayBuffer())
  if (wanted !== undefined && hash !== wanted)
    throw new FormatError(
      `What was fetched as ${name} is another file: its SHA-256 is ${hash}, not ${wanted}. Load it again, or check the address.`,
    )
  return hash
}

/** Forgets all files that were fetched for this page. */
export async function clearWebCache(): Promise<void> {
  const root = await navigator.storage.getDirectory()
  await root.removeEntry(webFolder, { recursive: true }).catch((error: unknown) => {
    if ((error as Error)?.name !== 'NotFoundError') throw error
  })
}
