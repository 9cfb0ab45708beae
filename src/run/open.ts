/** @file Opening what people have: folders, files, packages and hub models, by their contents. */
import { existsSync, readdirSync } from 'node:fs'
import { basename, dirname, extname, join } from 'node:path'
import { FormatError, listed, ModelError, UsageError } from '../base/errors.ts'
import { readJson } from '../base/files.ts'
import type { Config } from '../models/config.ts'
import { convertWeights, fingerprintOf } from '../models/convert.ts'
import { openFile, openGguf, openPickle, openSafetensors } from '../models/formats/index.ts'
import { ggufModel } from '../models/gguf-model.ts'
import { grokkingModel, looksLikeGrokking } from '../models/grokking-model.ts'
import { type FileRange, type ResolvedSource, resolveSource } from '../models/hub/index.ts'
import { llama2cModel } from '../models/llama2c-model.ts'
import { ggufTokenizer, loadHfTokenizer, parseLlama2cTokenizer, type Tokenizer } from '../models/text/index.ts'
import type { Transform } from '../models/transforms/index.ts'
import { assemble, type LoadOptions, type OpenedModel } from './load.ts'
import { Model } from './model.ts'
import { loadOnnx } from './onnx/load.ts'
import type { OnnxModel } from './onnx/model.ts'
import { recordFile } from './save.ts'
import { selfChecked } from './self-checked.ts'

/**
 * Loads a model: `embedded`, a folder, a file, a hub id, or `npm:name@version#path`. A name that ends with `.onnx` gives an
 * {@link OnnxModel}: where only a run tells the name, call {@link loadAny}, whose type says so. A folder that holds an ONNX file is refused.
 * @throws FormatError, ModelError, UsageError with what is wrong and what to do.
 */
export async function load(model: `${string}.onnx`, options?: LoadOptions): Promise<OnnxModel>
export async function load(model: string, options?: LoadOptions): Promise<Model>
export async function load(model: string, options: LoadOptions = {}): Promise<Model | OnnxModel> {
  const loaded = await loadAny(model, options)
  if (loaded instanceof Model || /\.onnx$/i.test(model)) return loaded
  await loaded.dispose()
  throw new UsageError(`${model} holds an ONNX file, which is another kind of model; load it with loadAny, or name the .onnx file itself.`)
}

/** Loads a model of which only a run tells the kind: what is an ONNX file has the `kind` 'onnx'. */
export async function loadAny(model: string, options: LoadOptions = {}): Promise<Model | OnnxModel> {
  const source = await resolveSource(model, options)
  const graph = onnxFile(source)
  if (graph) return loadOnnx(graph, { id: source.id, hash: () => source.hash() }, options)
  const opened = await open(source)
  const loaded = await assemble(opened, { ...options, convert: (store, sections) => convertWeights(store, sections, options) })
  if (options.selfCheck === false) return loaded
  const { family, precision, contextLength } = options
  return selfChecked(loaded, JSON.stringify([fingerprintOf(opened.store), { family, precision, contextLength }]), options)
}

/** The ONNX file of a source: the file itself, or the only one of a folder without other weights. */
function onnxFile({ file, folder }: ResolvedSource): string | undefined {
  if (file !== undefined) return extname(file).toLowerCase() === '.onnx' ? file : undefined
  const beside = [folder as string, join(folder as string, 'onnx')].filter((f) => existsSync(f))
  const names = beside.flatMap((f) => readdirSync(f).map((name) => join(f, name)))
  if (names.some((n) => ['.safetensors', '.bin', '.gguf'].includes(extname(n)) && !isTokenizerBin(basename(n)))) return undefined
  const graphs = names.filter((n) => extname(n) === '.onnx')
  if (graphs.length > 1)
    throw new FormatError(`${folder} holds several ONNX files (${listed(graphs.map((g) => basename(g)))}); name one of them.`)
  return graphs[0]
}

type Opener = (source: ResolvedSource, path: string) => Promise<Omit<OpenedModel, 'id' | 'hash'>>

/** How a file is opened, by its extension. */
const byExtension: Readonly<Record<string, Opener>> = {
  '.bin': openBin,
  '.data': openLlama2cModel,
  '.gguf': openGgufModel,
  '.safetensors': (_, path) => openHfFolder(dirname(path), path),
}

async function open(source: ResolvedSource): Promise<OpenedModel> {
  const parts = source.folder !== undefined ? await openFolder(source, source.folder) : await openOneFile(source, source.file as string)
  return { ...parts, id: source.id, hash: () => source.hash() }
}

async function openOneFile(source: ResolvedSource, path: string): ReturnType<Opener> {
  const opener = byExtension[extname(path).toLowerCase()]
  if (!opener) throw new FormatError(`${path} has none of the extensions that can be opened: ${Object.keys(byExtension).join(', ')}.`)
  return opener(source, path)
}

async function openFolder(source: ResolvedSource, folder: string): ReturnType<Opener> {
  if (existsSync(join(folder, 'config.json'))) return openHfFolder(folder, folder)
  const files = readdirSync(folder).filter((f) => ['.gguf', '.bin'].includes(extname(f)) && !isTokenizerBin(f))
  if (files.length === 1) return openOneFile(source, join(folder, files[0] as string))
  if (files.length === 0) throw new FormatError(`${folder} holds no config.json and no .gguf or .bin file, so there is no model in it.`)
  throw new FormatError(`${folder} holds several models (${listed(files)}); name one of the files.`)
}

async function openHfFolder(folder: string, weights: string): ReturnType<Opener> {
  const configPath = join(folder, 'config.json')
  if (!existsSync(configPath) && weights.endsWith('.safetensors')) return openWithoutConfig(weights)
  if (!existsSync(configPath)) throw new FormatError(`${folder} holds no config.json; it must lie beside the weights.`)
  const config = (await readJson(configPath)) as Config
  const pickled = ['pytorch_model.bin', 'pytorch_model.bin.index.json'].some((f) => existsSync(join(folder, f)))
  const safe = ['model.safetensors', 'model.safetensors.index.json'].some((f) => existsSync(join(folder, f)))
  const store = weights === folder && !safe && pickled ? await openPickle(folder) : await openSafetensors(weights)
  const tokenizer = existsSync(join(folder, 'tokenizer.json')) ? await loadHfTokenizer(folder) : undefined
  const images = await imageConfig(folder)
  return {
    store,
    config,
    folder,
    ...(await recordedTransforms(folder)),
    ...(tokenizer ? { tokenizer } : {}),
    ...(images ? { images } : {}),
  }
}

/** What was done to the weights before they were saved, where the folder is one of ours. */
async function recordedTransforms(folder: string): Promise<Pick<OpenedModel, 'transforms' | 'checks'>> {
  const path = join(folder, recordFile)
  if (!existsSync(path)) return {}
  const record = (await readJson(path)) as { format?: unknown; transforms?: unknown }
  const sound = (t: unknown): t is Transform => typeof (t as Transform | null)?.kind === 'string'
  if (record?.format !== 'actlens.model' || !Array.isArray(record.transforms) || !record.transforms.every(sound))
    throw new FormatError(`${path} is not a record of a saved model; remove it, or save the model again.`)
  const { transforms } = record as { transforms: readonly Transform[] }
  if (transforms.length === 0) return {}
  return { transforms, checks: [`its weights were transformed before it was saved: ${transforms.map((t) => t.kind).join(', ')}`] }
}

/** The image part of a processor file, under its old or its new name. */
async function imageConfig(folder: string): Promise<Config | undefined> {
  const [old, whole] = [join(folder, 'preprocessor_config.json'), join(folder, 'processor_config.json')]
  if (existsSync(old)) return (await readJson(old)) as Config
  return existsSync(whole) ? ((await readJson(whole)) as { image_processor?: Config }).image_processor : undefined
}

/** A file of weights alone, whose names and shapes say what it is. */
async function openWithoutConfig(path: string): ReturnType<Opener> {
  const store = await openSafetensors(path)
  try {
    if (looksLikeGrokking(store)) return await grokkingModel(store)
    throw new FormatError(`${dirname(path)} holds no config.json; it must lie beside the weights.`)
  } finally {
    await store.close()
  }
}

async function openBin(source: ResolvedSource, path: string): ReturnType<Opener> {
  return existsSync(join(dirname(path), 'config.json')) && !source.range
    ? openHfFolder(dirname(path), dirname(path))
    : openLlama2cModel(source, path)
}

async function openLlama2cModel(source: ResolvedSource, path: string): ReturnType<Opener> {
  const file = await openFile(path)
  const range = source.range && { offset: source.range.from, length: (source.range.to ?? file.size) - source.range.from }
  const { store, config } = await llama2cModel(file, range)
  const place = source.tokenizer ?? tokenizerBeside(path)
  const tokenizer = place && (await readLlama2cTokenizer(place, config.vocab_size as number))
  return { store, config, ...(tokenizer ? { tokenizer } : {}) }
}

const isTokenizerBin = (name: string) => /^tok.*\.bin$/.test(name)

/** llama2.c keeps tokenizers beside models, as `tokenizer.bin` or `tok512.bin`. */
function tokenizerBeside(path: string): FileRange | undefined {
  const found = readdirSync(dirname(path)).filter(isTokenizerBin)
  if (found.length > 1)
    throw new ModelError(`${dirname(path)} holds several tokenizers (${listed(found)}); keep the model's own one beside it.`)
  return found[0] ? { file: join(dirname(path), found[0]) } : undefined
}

async function readLlama2cTokenizer(place: FileRange, vocab: number): Promise<Tokenizer> {
  const file = await openFile(place.file)
  try {
    const from = place.range?.from ?? 0
    const to = place.range?.to ?? file.size
    return parseLlama2cTokenizer(await file.read(from, to - from), vocab, place.file)
  } finally {
    await file.close()
  }
}

async function openGgufModel(_: ResolvedSource, path: string): ReturnType<Opener> {
  const opened = await openGguf(path)
  const { config, store } = await ggufModel(opened)
  const tokenizer = opened.metadata.has('tokenizer.ggml.model') ? await ggufTokenizer(opened.metadata) : undefined
  return { store, config, ...(tokenizer ? { tokenizer } : {}) }
}
