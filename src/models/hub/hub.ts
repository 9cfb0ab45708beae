/**
 * @file Models of the Hugging Face hub, or of a mirror of it: listed through `@huggingface/hub`, fetched by our own ranged download,
 * since the library cannot continue a broken one, and verified by the hashes that the hub lists.
 */

import { createHash, type Hash } from 'node:crypto'
import { mkdir, rename, rm, statfs } from 'node:fs/promises'
import { dirname, join } from 'node:path'
import { FormatError, listed, UsageError } from '../../base/errors.ts'
import { makeFolder, readJson, sha256OfFile, sizeOrKind, writeFileWhole } from '../../base/files.ts'
import type { OnProgress, WorkOptions } from '../../base/progress.ts'
import { type CachedFile, type LocatedModel, locate, modelCacheFolder, type Staging, withStaging } from './cache.ts'
import { downloadVerified, type Patience, patiently, refused, type Verifier, WrongContent } from './download.ts'
import { addShards, checkPath, chooseFiles, type HubFile } from './hub-files.ts'

/** A model on the hub. */
export interface HubModel {
  /** `org/name`. */
  readonly repo: string
  /** Branch, tag or commit; default `main`. */
  readonly revision?: string | undefined
  /** One weight file, or a part of its name, where the repository holds several forms of the model. */
  readonly file?: string | undefined
}

/** Options of {@link fetchHubModel}; what is left out comes from the environment. */
export interface HubOptions extends WorkOptions {
  /** Never use the network; default: `HF_HUB_OFFLINE`. */
  readonly offline?: boolean | undefined
  /** Address of the hub or of a mirror; default: `HF_ENDPOINT`, else https://huggingface.co. */
  readonly endpoint?: string | undefined
  /** Access token; default: `HF_TOKEN`. */
  readonly token?: string | undefined
  /** Ask the hub whether the branch has moved although the model is cached. */
  readonly refresh?: boolean | undefined
  /** Folder of the model cache. */
  readonly cache?: string | undefined
  /** Which files are wanted, where it is not those of a model; refuses by throwing. */
  readonly choose?: ((files: readonly HubFile[]) => readonly HubFile[]) | undefined
  /** Patience with the server. */
  readonly patience?: Patience | undefined
}

/** The id of a hub model in the model cache. */
export function hubId(model: HubModel): string {
  return `${model.repo}${model.revision ? `@${model.revision}` : ''}${model.file ? `#${model.file}` : ''}`
}

/** The model from the model cache, fetched first where it is not there; resumes what an earlier call left unfinished. */
export async function fetchHubModel(model: HubModel, options: HubOptions = {}): Promise<LocatedModel> {
  const id = hubId(model)
  const root = options.cache ?? modelCacheFolder()
  const offline = options.offline ?? isSet(process.env.HF_HUB_OFFLINE)
  const cached = await locate(id, root)
  if (cached && (offline || !options.refresh)) return cached
  if (offline) {
    throw new FormatError(
      `${id} is not (or not whole) in the model cache ${root}, and offline mode is on: fetch it once with network access.`,
    )
  }
  const hub = new Hub(options)
  const onWait = (): void => options.onProgress?.({ task: `waiting for another process that fetches ${id}`, done: 0, unit: 'bytes' })
  return withStaging(id, root, { signal: options.signal, onWait }, async (staging) => {
    const meanwhile = await locate(id, root)
    if (meanwhile && !options.refresh) return meanwhile
    const commit = await hub.commitOf(model)
    if (meanwhile?.commit === commit) return meanwhile
    return fetchInto(staging, hub, model, commit, options)
  })
}

/** The files of a repository, without fetching any. */
export async function listHubFiles(model: HubModel, options: HubOptions = {}): Promise<HubFile[]> {
  return new Hub(options).filesOf(model, model.revision ?? 'main')
}

const isSet = (value: string | undefined): boolean => value !== undefined && !['', '0', 'false', 'no', 'off'].includes(value.toLowerCase())

/** One hub and how we speak with it. */
class Hub {
  readonly endpoint: string
  readonly options: HubOptions
  readonly #token: string | undefined

  constructor(options: HubOptions) {
    this.options = options
    const endpoint = options.endpoint ?? process.env.HF_ENDPOINT ?? ''
    this.endpoint = (endpoint === '' ? 'https://huggingface.co' : endpoint).replace(/\/+$/, '')
    if (!/^https?:\/\/\S+$/.test(this.endpoint) || !URL.canParse(this.endpoint)) {
      throw new UsageError(
        `The address of the hub must be a URL such as https://huggingface.co, but HF_ENDPOINT or the option is '${endpoint}'.`,
      )
    }
    this.#token = options.token ?? process.env.HF_TOKEN ?? undefined
  }

  /** Headers for a request to this URL; the token goes to the hub itself only. */
  headers(url: string): Record<string, string> {
    const own = new URL(url).origin === new URL(this.endpoint).origin
    return { 'user-agent': 'actlens', ...(own && this.#token ? { authorization: `Bearer ${this.#token}` } : {}) }
  }

  /** The sentence for a refusal. The hub answers 401 also for what does not exist, so as not to tell which private names do. */
  refusal(model: HubModel): (status: number) => string | undefined {
    const login = this.#token
      ? 'Check that HF_TOKEN is valid and that its owner may read it (a gated model must be requested on its page).'
      : 'If it is private or gated, set HF_TOKEN to an access token.'
    return (status) => {
      if (status === 401) return `There is no ${model.repo} on ${this.endpoint}, or it may not be read. Check the name. ${login}`
      if (status === 403) return `Access is refused. ${login}`
      if (status === 404)
        return `There is no such repository, revision or file on ${this.endpoint}. Check the name${model.revision ? ' and the revision' : ''}.`
      return undefined
    }
  }

  /** A `fetch` for the library, with our headers, patience and sentences. */
  #fetch(model: HubModel): typeof fetch {
    return (input, init) => {
      const url = String(input instanceof Request ? input.url : input)
      const { signal = null, patience } = { ...this.options }
      return patiently(
        model.repo,
        async () => {
          const limit = AbortSignal.timeout(patience?.stallMs ?? 30_000)
          const headers = { ...(init?.headers as Record<string, string> | undefined), ...this.headers(url) }
          const response = await fetch(url, { ...init, headers, signal: signal ? AbortSignal.any([signal, limit]) : limit })
          if (!response.ok) throw refused(response, { what: model.repo, url, refusal: this.refusal(model) })
          return response
        },
        this.options,
      )
    }
  }

  /** The commit that the revision means now. */
  async commitOf(model: HubModel): Promise<string> {
    const { modelInfo } = await import('@huggingface/hub')
    const info = await modelInfo({
      name: model.repo,
      revision: model.revision ?? 'main',
      hubUrl: this.endpoint,
      additionalFields: ['sha'],
      fetch: this.#fetch(model),
    })
    if (!/^[0-9a-f]{7,64}$/.test(info.sha)) throw new FormatError(`${this.endpoint} did not say which commit ${hubId(model)} is at.`)
    return info.sha
  }

  async filesOf(model: HubModel, revision: string): Promise<HubFile[]> {
    const { listFiles } = await import('@huggingface/hub')
    const files: HubFile[] = []
    const repo = { type: 'model', name: model.repo } as const
    for await (const entry of listFiles({ repo, revision, recursive: true, hubUrl: this.endpoint, fetch: this.#fetch(model) })) {
      if (entry.type !== 'file') continue
      checkPath(entry.path)
      files.push({ path: entry.path, size: entry.size, sha256: entry.lfs?.oid, gitHash: entry.lfs ? undefined : entry.oid })
    }
    return files
  }

  urlOf(model: HubModel, commit: string, path: string): string {
    return `${this.endpoint}/${model.repo}/resolve/${commit}/${path.split('/').map(encodeURIComponent).join('/')}`
  }
}

async function fetchInto(staging: Staging, hub: Hub, model: HubModel, commit: string, options: HubOptions): Promise<LocatedModel> {
  await beginAt(staging.folder, commit)
  const all = await hub.filesOf(model, commit)
  const choice = options.choose ? { files: options.choose(all) } : chooseFiles(model.repo, all, model.file)
  const done: CachedFile[] = []
  const counter = new Counter(options.onProgress, choice.files)
  const get = async (file: HubFile): Promise<void> => {
    if (!done.some((other) => other.path === file.path))
      done.push(await getFile(staging.folder, hub, model, commit, file, counter, options))
  }
  let files = choice.files
  if (choice.index) {
    await get(choice.index)
    files = addShards(model.repo, choice, all, await readJson(join(staging.folder, choice.index.path)))
    counter.files = files
  }
  await checkRoom(staging.folder, files)
  for (const file of files) await get(file)
  await rm(join(staging.folder, commitMark), { force: true })
  return staging.publish({ kind: 'hub', commit, files: done })
}

const commitMark = '.commit'

/** Makes the staging folder ready for this commit; files of another commit that were left there are of no use. */
async function beginAt(folder: string, commit: string): Promise<void> {
  const mark = join(folder, commitMark)
  const before = await readJson(mark).catch(() => undefined)
  if (before !== commit) await rm(folder, { recursive: true, force: true })
  await makeFolder(folder)
  await writeFileWhole(mark, JSON.stringify(commit))
}

/** Adds the progress of the single files up. */
class Counter {
  files: readonly HubFile[]
  readonly #onProgress: OnProgress | undefined
  readonly #done = new Map<string, number>()

  constructor(onProgress: OnProgress | undefined, files: readonly HubFile[]) {
    this.#onProgress = onProgress
    this.files = files
  }

  report(path: string, bytes: number): void {
    this.#done.set(path, bytes)
    const done = [...this.#done.values()].reduce((a, b) => a + b, 0)
    this.#onProgress?.({ task: `fetching ${path}`, done, total: this.files.reduce((sum, file) => sum + file.size, 0), unit: 'bytes' })
  }
}

async function getFile(
  folder: string,
  hub: Hub,
  model: HubModel,
  commit: string,
  file: HubFile,
  counter: Counter,
  options: HubOptions,
): Promise<CachedFile> {
  const path = join(folder, file.path)
  await mkdir(dirname(path), { recursive: true })
  // An earlier call finished this one; it was verified before it got its name.
  if ((await sizeOrKind(path)) === file.size) {
    counter.report(file.path, file.size)
    return { path: file.path, size: file.size, sha256: file.sha256 ?? (await sha256OfFile(path)) }
  }
  const what = `${file.path} of ${model.repo}`
  const url = hub.urlOf(model, commit, file.path)
  const verifier = new HashVerifier(what, file)
  const { signal, patience } = options
  await downloadVerified(
    {
      url,
      part: `${path}.part`,
      size: file.size,
      what,
      headers: hub.headers(url),
      refusal: hub.refusal(model),
      patience,
      onProgress: ({ done }) => counter.report(file.path, done),
      ...(signal ? { signal } : {}),
    },
    verifier,
  )
  await rename(`${path}.part`, path)
  return { path: file.path, size: file.size, sha256: verifier.sha256 as string }
}

/** Compares the bytes with the hash that the hub lists: SHA-256 for large files, git's hash for small ones. */
class HashVerifier implements Verifier {
  sha256: string | undefined
  #sha256: Hash = createHash('sha256')
  #git: Hash = createHash('sha1')
  readonly #what: string
  readonly #file: HubFile

  constructor(what: string, file: HubFile) {
    this.#what = what
    this.#file = file
  }

  reset(): void {
    this.#sha256 = createHash('sha256')
    this.#git = createHash('sha1').update(`blob ${this.#file.size}\0`)
  }

  push(bytes: Uint8Array): undefined {
    this.#sha256.update(bytes)
    if (this.#file.gitHash !== undefined) this.#git.update(bytes)
    return undefined
  }

  verify(): void {
    this.sha256 = this.#sha256.digest('hex')
    const { sha256, gitHash } = this.#file
    const actual = sha256 !== undefined ? this.sha256 : this.#git.digest('hex')
    const expected = sha256 ?? gitHash
    if (expected === undefined)
      throw new FormatError(`The hub lists no hash for ${this.#what}, so it cannot be verified: use another mirror.`)
    if (actual !== expected) {
      const name = sha256 !== undefined ? 'SHA-256' : 'git hash'
      throw new WrongContent(
        `${this.#what} has ${name} ${actual} where the hub lists ${expected}: it was deleted. Try again, or use another mirror.`,
      )
    }
  }
}

/** Says so before fetching gigabytes that the disk cannot hold. */
async function checkRoom(folder: string, files: readonly HubFile[]): Promise<void> {
  const present = await Promise.all(
    files
      .flatMap(({ path }) => [join(folder, path), join(folder, `${path}.part`)])
      .map(async (path) => Number((await sizeOrKind(path)) ?? 0)),
  )
  const needed = files.reduce((sum, file) => sum + file.size, 0) - present.reduce((a, b) => a + b, 0)
  const disk = await statfs(folder).catch(() => undefined)
  const free = disk ? disk.bavail * disk.bsize : Number.POSITIVE_INFINITY
  if (needed > free) {
    const gigabytes = (bytes: number): string => `${(bytes / 1e9).toFixed(2)} GB`
    const largest = listed(
      [...files].sort((a, b) => b.size - a.size).map((file) => file.path),
      3,
    )
    throw new FormatError(
      `The disk has ${gigabytes(free)} free at ${folder}, but ${gigabytes(needed)} are to be fetched (${largest}): free some space, or set ACTLENS_HOME to another disk.`,
    )
  }
}
