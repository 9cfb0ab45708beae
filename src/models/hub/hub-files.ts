/** @file Which files of a hub repository make up a model: its small files and one form of its weights, never all that lies there. */

import { FormatError, listed } from '../../base/errors.ts'

/** A file that a hub repository lists. */
export interface HubFile {
  /** Path in the repository. */
  readonly path: string
  /** Bytes. */
  readonly size: number
  /** SHA-256 of the content, told for large files. */
  readonly sha256?: string | undefined
  /** Git's hash of the content (SHA-1 of `blob SIZE\0` and the content), told for small files. */
  readonly gitHash?: string | undefined
}

/** Small files that describe a model, its text and its images. */
const describing =
  /^(config|generation_config|tokenizer|tokenizer_config|special_tokens_map|added_tokens|vocab|preprocessor_config|processor_config|chat_template|adapter_config)\.json$|^(merges\.txt|vocab\.txt|tokenizer\.model|spiece\.model|chat_template\.jinja)$/

/** Forms of weights, the preferred one first: an index file that names shards, else files that match. */
const forms: readonly { readonly name: string; readonly index?: string; readonly files: RegExp }[] = [
  { name: 'safetensors', index: 'model.safetensors.index.json', files: /^model\.safetensors$/ },
  { name: 'safetensors', index: 'adapter_model.safetensors.index.json', files: /^adapter_model\.safetensors$/ },
  { name: 'safetensors', files: /^[^/]+\.safetensors$/ },
  { name: 'gguf', files: /\.gguf$/ },
  { name: 'onnx', files: /^(onnx\/)?model\.onnx(_data.*|\.data)?$/ },
  { name: 'pickle', index: 'pytorch_model.bin.index.json', files: /^pytorch_model\.bin$/ },
]

/** What to fetch: files that are needed in any case, and an index file that names the weight files still to be added. */
export interface Choice {
  readonly files: readonly HubFile[]
  /** Read it, then {@link addShards}. */
  readonly index?: HubFile
}

/** Whether a file belongs to a model in a folder, for hashing local folders as hub ones. */
export function isModelFile(path: string): boolean {
  return describing.test(path) || /\.(safetensors|safetensors\.index\.json|gguf|onnx|onnx_data|bin|bin\.index\.json)$/.test(path)
}

/**
 * Chooses the files of a model. `wanted` names one weight file (or all whose path contains it, as the parts of a split GGUF file);
 * without it there must be no doubt.
 */
export function chooseFiles(repo: string, all: readonly HubFile[], wanted?: string): Choice {
  const small = all.filter((file) => describing.test(file.path))
  if (wanted !== undefined) return { files: [...small, ...named(repo, all, wanted)] }
  for (const form of forms) {
    const index = form.index === undefined ? undefined : all.find((file) => file.path === form.index)
    if (index) return { files: [...small, index], index }
    const weights = all.filter((file) => form.files.test(file.path))
    if (weights.length === 0) continue
    if (form.name === 'gguf' && !isOneModel(weights)) {
      const paths = weights.map((file) => file.path)
      throw new FormatError(
        `${repo} holds ${weights.length} GGUF files; name one of them, as in '${repo}#${paths[0]}'. They are: ${listed(paths, 20)}.`,
      )
    }
    return { files: unique([...small, ...weights]) }
  }
  throw new FormatError(
    `${repo} holds no weights in a format we read (safetensors, GGUF, ONNX, PyTorch .bin). It holds: ${listed(all.map((file) => file.path))}.`,
  )
}

function named(repo: string, all: readonly HubFile[], wanted: string): readonly HubFile[] {
  const exact = all.filter((file) => file.path === wanted)
  const weights = all.filter((file) => isModelFile(file.path) && !describing.test(file.path))
  const found = exact.length > 0 ? exact : weights.filter((file) => file.path.toLowerCase().includes(wanted.toLowerCase()))
  if (found.length === 0 || (exact.length === 0 && !isOneModel(found))) {
    const offer = (found.length === 0 ? weights : found).map((file) => file.path)
    const problem = found.length === 0 ? `no weight file named '${wanted}'` : `several weight files named like '${wanted}'`
    throw new FormatError(
      `${repo} has ${problem}. ${offer.length > 0 ? `Choose one of: ${listed(offer, 20)}.` : 'It has no weight files at all.'}`,
    )
  }
  // ONNX files may keep their values in a file beside them.
  const beside = found.flatMap((file) =>
    all.filter((other) => other.path.startsWith(file.path) && /\.onnx(_data.*|\.data)$/.test(other.path)),
  )
  return unique([...found, ...beside])
}

/** One file, or the parts `…-00001-of-00003.…` of one. */
function isOneModel(files: readonly HubFile[]): boolean {
  return new Set(files.map((file) => file.path.replace(/-\d{5}-of-\d{5}(?=\.)/, ''))).size === 1
}

function unique(files: readonly HubFile[]): HubFile[] {
  return [...new Map(files.map((file) => [file.path, file])).values()]
}

/** Adds the weight files that an index file names in its `weight_map`. */
export function addShards(repo: string, choice: Choice, all: readonly HubFile[], index: unknown): readonly HubFile[] {
  const map = (index as { weight_map?: unknown } | null)?.weight_map
  if (typeof map !== 'object' || map === null) throw new FormatError(`${choice.index?.path} of ${repo} has no 'weight_map'.`)
  const names = new Set(Object.values(map).map(String))
  const shards = all.filter((file) => names.has(file.path))
  const missing = [...names].filter((name) => !shards.some((file) => file.path === name))
  if (missing.length > 0) throw new FormatError(`${choice.index?.path} of ${repo} names files that are not there: ${listed(missing)}.`)
  return unique([...choice.files, ...shards])
}

/** Throws unless a path from a server stays inside the folder it is put in, on every platform. */
export function checkPath(path: string): void {
  const parts = path.split('/')
  const bad = parts.some((part) => part === '' || part === '.' || part === '..' || /[\\:\0]/.test(part))
  if (bad) throw new FormatError(`The server lists a file with the unsafe path '${path}', so nothing is fetched from it.`)
}
