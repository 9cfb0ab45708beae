/** @file Loading a model in a browser tab: from the page's server, a URL, files that were chosen, or the hub, into a model value like any other. */
import { FormatError, ModelError, throwIfCancelled, UsageError } from '../base/errors.ts'
import type { Config } from '../models/config.ts'
import { type ByteSource, openGguf, openSafetensors, type WeightStore } from '../models/formats/index.ts'
import { ggufModel } from '../models/gguf-model.ts'
import { embedded } from '../models/hub/embedded.ts'
import { llama2cModel } from '../models/llama2c-model.ts'
import { ggufTokenizer, parseLlama2cTokenizer, readHfTokenizer, type Tokenizer } from '../models/text/index.ts'
import { assemble, type LoadOptions } from '../run/load.ts'
import type { Model } from '../run/model.ts'
import { getRuntime } from '../tensor/index.ts'
import type { FetchOptions } from './cache.ts'
import { filesOf, type ModelFiles, parsed, type SourceOptions, type WebSource } from './files.ts'

/** Options of {@link load} in a browser. */
export type WebLoadOptions = Omit<LoadOptions, 'stream' | 'selfCheck'> & Omit<SourceOptions, keyof FetchOptions> & FetchOptions

type Parts = { store: WeightStore; config: Config; tokenizer?: Tokenizer; images?: Config }
type Opener = (files: ModelFiles, main: string) => Promise<Parts>

/** How a model of one file is opened, by its extension. */
const byExtension: Readonly<Record<string, Opener>> = {
  gguf: openGgufModel,
  bin: openLlama2cModel,
  data: openLlama2cModel,
  safetensors: (files, main) => openHfModel(files, [main]),
  onnx: async (_, main) => {
    throw new UsageError(`${main} is an ONNX file, which only Node opens; load the checkpoint that it was made of.`)
  },
}

/**
 * Loads a model in a browser tab. Files that are fetched are kept in the browser's private file system, so that the next load asks no server for
 * the embedded model and files of the hub. `origin.checks` says what was checked, and what could not be kept.
 * @throws FormatError, ModelError, UsageError with what is wrong and what to do; CancelledError.
 */
export async function load(source: WebSource, options: WebLoadOptions = {}): Promise<Model> {
  if ('stream' in options && options.stream)
    throw new UsageError('A browser has no files to stream a model from; load one that fits into memory.')
  const runtime = await getRuntime()
  await runtime.prepare?.({ device: options.device ?? 'cpu', ...(options.threads === undefined ? {} : { threads: options.threads }) })
  const files = await filesOf(source, options)
  const parts = await open(files)
  try {
    throwIfCancelled(options.signal)
    return await assemble({ ...parts, id: files.id, hash: files.hash, checks: files.notes() }, options)
  } finally {
    await parts.store.close()
  }
}

async function open(files: ModelFiles): Promise<Parts> {
  const { main } = files
  if (files.id === 'embedded' && main) return openEmbedded(files, main)
  if (main === undefined) return openHfModel(files, undefined)
  const extension = main.slice(main.lastIndexOf('.') + 1).toLowerCase()
  const opener = byExtension[extension]
  if (!opener)
    throw new FormatError(
      `${main} has none of the extensions that can be opened: ${Object.keys(byExtension).join(', ')}; a folder ends with a slash.`,
    )
  return opener(files, main)
}

async function needed(files: ModelFiles, name: string): Promise<ByteSource> {
  const source = await files.open(name)
  if (!source) throw new FormatError(`There is no ${name} at ${files.id}; check the address.`)
  return source
}

async function openEmbedded(files: ModelFiles, main: string): Promise<Parts> {
  const file = await needed(files, main)
  const { from, to } = embedded.model
  const { store, config } = await llama2cModel(file, { offset: from, length: to - from })
  const at = embedded.tokenizer.from
  const tokenizer = parseLlama2cTokenizer(await file.read(at, file.size - at), config.vocab_size as number, 'the embedded tokenizer')
  return { store, config, tokenizer }
}

async function openLlama2cModel(files: ModelFiles, main: string): Promise<Parts> {
  const { store, config } = await llama2cModel(await needed(files, main))
  const tokens = await files.open('tokenizer.bin')
  if (!tokens) return { store, config }
  return { store, config, tokenizer: parseLlama2cTokenizer(await tokens.read(0, tokens.size), config.vocab_size as number, tokens.name) }
}

async function openGgufModel(files: ModelFiles, main: string): Promise<Parts> {
  const opened = await openGguf(await needed(files, main))
  const { config, store } = await ggufModel(opened)
  const tokenizer = opened.metadata.has('tokenizer.ggml.model') ? await ggufTokenizer(opened.metadata) : undefined
  return { store, config, ...(tokenizer ? { tokenizer } : {}) }
}

const index = 'model.safetensors.index.json'

/** A folder in the form of Hugging Face; `weights` names its weight files where they are known. */
async function openHfModel(files: ModelFiles, weights: readonly string[] | undefined): Promise<Parts> {
  const read = async (name: string): Promise<string | undefined> => {
    if (files.names && !files.names.includes(name)) return undefined
    const source = await files.open(name)
    return source && new TextDecoder().decode(await source.read(0, source.size))
  }
  const config = await read('config.json')
  if (config === undefined) throw new FormatError(`There is no config.json at ${files.id}; it must lie beside the weights.`)
  const shards = weights ?? (await weightFiles(files, read))
  const store = await openSafetensors(await Promise.all(shards.map((name) => needed(files, name))))
  const hasTokenizer = (await read('tokenizer.json')) !== undefined
  const tokenizer = hasTokenizer ? await readHfTokenizer(read, files.id) : undefined
  const images = await read('preprocessor_config.json')
  return {
    store,
    config: parsed(config, 'config.json') as Config,
    ...(tokenizer ? { tokenizer } : {}),
    ...(images ? { images: parsed(images, 'preprocessor_config.json') as Config } : {}),
  }
}

async function weightFiles(files: ModelFiles, read: (name: string) => Promise<string | undefined>): Promise<readonly string[]> {
  const listedFiles = files.names?.filter((name) => name.endsWith('.safetensors'))
  const text = await read(index)
  if (text !== undefined) {
    const map = (parsed(text, index) as { weight_map?: unknown } | null)?.weight_map
    if (typeof map !== 'object' || map === null) throw new FormatError(`${index} at ${files.id} has no 'weight_map'; fetch it again.`)
    return [...new Set(Object.values(map).map(String))]
  }
  if (listedFiles?.length === 0) throw new ModelError(`${files.id} holds no .safetensors file, the format of folders that a browser opens.`)
  return listedFiles ?? ['model.safetensors']
}
