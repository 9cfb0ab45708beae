/** @file The files of a model as a page has them: the embedded one, a URL, files that were chosen or dropped, a repository of the hub. */
import { FormatError, listed, ModelError, messageOf, UsageError } from '../base/errors.ts'
import { sha256 } from '../base/hash.ts'
import { type ByteSource, fromBlob } from '../models/formats/bytes.ts'
import { embedded } from '../models/hub/embedded.ts'
import { addShards, checkPath, chooseFiles, type HubFile } from '../models/hub/hub-files.ts'
import { type Expected, type FetchOptions, fetchFile } from './cache.ts'

/** What a page may load: `embedded`, a hub id (`org/name`), the URL of a file or of a folder (with a slash at its end), a File, or the files of a folder. */
export type WebSource = string | URL | File | readonly File[]

/** Options of {@link filesOf}. */
export interface SourceOptions extends FetchOptions {
  /** Where the page's server has the embedded model (default `models/embedded`, beside the page). */
  readonly embedded?: string | URL
  /** Address of the hub (default https://huggingface.co). */
  readonly hub?: string
  /** SHA-256 of the file at a URL; it is checked, and a kept file of this hash is used without asking the server. */
  readonly sha256?: string
}

/** The files of a model. */
export interface ModelFiles {
  /** The source as it would be written again. */
  readonly id: string
  /** Name of the file that is the model, where it is one file. */
  readonly main?: string
  /** Names of all files, where they are known. */
  readonly names?: readonly string[]
  /** A file by its name; undefined where there is none. */
  open(name: string): Promise<ByteSource | undefined>
  /** SHA-256 over what was opened. */
  hash(): Promise<string>
  /** What is to be said of the files that were opened. */
  notes(): readonly string[]
}

const hubPattern = /^([\w][\w.-]*\/[\w][\w.-]*)(?:@([\w][\w./-]*))?(?:#(.+))?$/

/** The files that a source means; nothing large is fetched yet. */
export async function filesOf(source: WebSource, options: SourceOptions): Promise<ModelFiles> {
  if (source === 'embedded') return embeddedFiles(options)
  if (typeof source !== 'string' && !(source instanceof URL)) return chosenFiles(source instanceof Blob ? [source] : source)
  const hub = typeof source === 'string' ? hubPattern.exec(source) : null
  if (hub && !/\.(gguf|bin|data|safetensors|onnx)$/i.test(hub[1] as string))
    return hubFiles({ repo: hub[1] as string, revision: hub[2], file: hub[3] }, options)
  return urlFiles(source, options)
}

/** Opens files by fetching them; remembers their hashes and what is to be said. */
class Fetcher {
  readonly hashes = new Map<string, string>()
  readonly notes: string[] = []
  private readonly options: FetchOptions

  constructor(options: FetchOptions) {
    this.options = options
  }

  async open(url: string, name: string, expected: Expected): Promise<ByteSource | undefined> {
    const fetched = await fetchFile(url, expected, this.options)
    if (!fetched) return undefined
    const { blob, sha256: hash, note } = fetched
    if (hash !== undefined) this.hashes.set(name, hash)
    else this.notes.push(`${expected.name} was not compared with a hash, which this page cannot compute`)
    if (note !== undefined) this.notes.push(note)
    return fromBlob(blob, expected.name)
  }

  hash = (): Promise<string> => hashOf(this.hashes)
}

/** One file's own hash, or a hash over the names and hashes of several. */
async function hashOf(hashes: ReadonlyMap<string, string>): Promise<string> {
  if (hashes.size === 1) return [...hashes.values()][0] as string
  const lines = [...hashes].sort(([a], [b]) => (a < b ? -1 : 1)).map(([name, hash]) => `${hash}  ${name}\n`)
  return sha256(new TextEncoder().encode(lines.join('')))
}

const absolute = (url: string | URL): string => new URL(url, globalThis.document?.baseURI ?? globalThis.location?.href).href

async function embeddedFiles(options: SourceOptions): Promise<ModelFiles> {
  const fetcher = new Fetcher(options)
  const url = absolute(options.embedded ?? 'models/embedded')
  return {
    id: 'embedded',
    main: 'embedded',
    open: async (name) => {
      const file = await fetcher.open(url, name, { name: 'the embedded model', sha256: embedded.sha256 })
      if (!file)
        throw new ModelError(
          `The server of this page does not offer the embedded model at ${url}; say where it is with the option 'embedded'.`,
        )
      return file
    },
    hash: fetcher.hash,
    notes: () => fetcher.notes,
  }
}

function urlFiles(source: string | URL, options: SourceOptions): ModelFiles {
  let url: URL
  try {
    url = new URL(absolute(source))
  } catch {
    throw new UsageError(`'${source}' is neither 'embedded', nor a hub id such as org/name, nor a URL.`)
  }
  if (!/^https?:$/.test(url.protocol) && !/^(blob|data):$/.test(url.protocol))
    throw new UsageError(`A page cannot fetch ${url.href}; give an http or https URL, or a File.`)
  const last = url.pathname.slice(url.pathname.lastIndexOf('/') + 1)
  const fetcher = new Fetcher(options)
  return {
    id: url.href,
    ...(last ? { main: decodeURIComponent(last) } : {}),
    open: (name) => {
      const at = name === decodeURIComponent(last) ? url : new URL(encodeURIComponent(name), url)
      const expected = at === url && options.sha256 ? { name, sha256: options.sha256 } : { name }
      return fetcher.open(at.href, name, expected)
    },
    hash: fetcher.hash,
    notes: () => fetcher.notes,
  }
}

function chosenFiles(files: readonly File[]): ModelFiles {
  if (files.length === 0) throw new UsageError('No file was given; choose the file of a model, or all files of its folder.')
  const byName = new Map(files.map((file) => [file.name, file]))
  const opened = new Map<string, File>()
  return {
    id: files.length === 1 ? (files[0] as File).name : listed(byName.keys(), 3),
    ...(files.length === 1 ? { main: (files[0] as File).name } : {}),
    names: [...byName.keys()],
    open: async (name) => {
      const file = byName.get(name)
      if (!file) return undefined
      opened.set(name, file)
      return fromBlob(file)
    },
    hash: async () => {
      const hashes = new Map<string, string>()
      for (const [name, file] of opened) hashes.set(name, await sha256(await file.arrayBuffer()))
      return hashOf(hashes)
    },
    notes: () => [],
  }
}

interface HubName {
  readonly repo: string
  readonly revision: string | undefined
  readonly file: string | undefined
}

async function hubFiles({ repo, revision = 'main', file }: HubName, options: SourceOptions): Promise<ModelFiles> {
  const endpoint = (options.hub ?? 'https://huggingface.co').replace(/\/+$/, '')
  const fetcher = new Fetcher(options)
  const known = await listing(endpoint, repo, revision, options)
  const choice = chooseFiles(repo, known.files, file)
  const urlOf = (path: string) => `${endpoint}/${repo}/resolve/${known.commit}/${path.split('/').map(encodeURIComponent).join('/')}`
  const open = async (name: string): Promise<ByteSource | undefined> => {
    const entry = known.files.find((f) => f.path === name)
    if (!entry) return undefined
    return fetcher.open(urlOf(name), name, { name: `${repo}/${name}`, sha256: entry.sha256 })
  }
  let { files } = choice
  if (choice.index) {
    const index = await open(choice.index.path)
    const text = index && new TextDecoder().decode(await index.read(0, index.size))
    files = addShards(repo, choice, known.files, parsed(text ?? '', choice.index.path))
  }
  const single = files.filter((f) => /\.(gguf|onnx)$/.test(f.path))
  return {
    id: `${repo}@${known.commit}${file ? `#${file}` : ''}`,
    ...(single.length === 1 ? { main: single[0]?.path as string } : {}),
    names: files.map((f) => f.path),
    open,
    hash: fetcher.hash,
    notes: () => fetcher.notes,
  }
}

/** Which files a revision of a repository has, and at which commit; kept for when there is no network. */
async function listing(
  endpoint: string,
  repo: string,
  revision: string,
  options: FetchOptions,
): Promise<{ commit: string; files: HubFile[] }> {
  const get = async (path: string): Promise<unknown> => {
    const url = `${endpoint}/api/models/${repo}/${path}`
    const fetched = await fetchFile(url, { name: `the list of files of ${repo}` }, options)
    if (!fetched) throw new FormatError(`There is no ${repo} with the revision ${revision} on ${endpoint}; check the name.`)
    return parsed(await fetched.blob.text(), url)
  }
  const { sha } = (await get(`revision/${encodeURIComponent(revision)}`)) as { sha?: unknown }
  if (typeof sha !== 'string' || !/^[0-9a-f]{7,64}$/.test(sha)) throw new FormatError(`${endpoint} did not say which commit ${repo} is at.`)
  const entries = await get(`tree/${sha}?recursive=true`)
  if (!Array.isArray(entries)) throw new FormatError(`${endpoint} did not list the files of ${repo}.`)
  const files = entries
    .filter((e) => e?.type === 'file' && typeof e.path === 'string')
    .map((e): HubFile => ({ path: e.path, size: Number(e.size), sha256: e.lfs?.oid }))
  for (const { path } of files) checkPath(path)
  return { commit: sha, files }
}

/** The value of a JSON text; `where` names it in the error. */
export function parsed(text: string, where: string): unknown {
  try {
    return JSON.parse(text)
  } catch (error) {
    throw new FormatError(`${where} is not valid JSON (${messageOf(error)}): fetch it again.`, { cause: error })
  }
}
