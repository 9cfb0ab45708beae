/** @file Saving and loading steering vectors: one table of formats. */
import { extname } from 'node:path'
import { FormatError, messageOf, UsageError } from '../base/errors.ts'
import { readJson } from '../base/files.ts'
import { openSafetensors, writeSafetensors } from '../models/formats/index.ts'
import { decodeEasySteer, type EasySteerWriteOptions, isEasySteer, writeEasySteer } from './easysteer-vector.ts'
import { type GgufReadOptions, type GgufWriteOptions, readGgufVector, writeGgufVector } from './gguf-vector.ts'
import { decodeNeuronpedia, isNeuronpedia, type NeuronpediaWriteOptions, writeNeuronpedia } from './neuronpedia-vector.ts'
import { asArray, type VectorRecord } from './record.ts'
import { type SteeringVector, vectorOfFile } from './vector.ts'

/** Formats of vector files. */
export type VectorFormat = 'safetensors' | 'gguf' | 'neuronpedia' | 'easysteer'

/** Options of {@link saveVector}; those of another format than the file's are refused. */
export interface SaveVectorOptions extends GgufWriteOptions, NeuronpediaWriteOptions, EasySteerWriteOptions {
  /** Default: by the extension; `.json` needs it. */
  readonly format?: VectorFormat
}

/** Options of {@link loadVector}; those of another format than the file's are refused. */
export interface LoadVectorOptions extends GgufReadOptions {
  /** Default: by the extension, and by what a `.json` holds. */
  readonly format?: VectorFormat
}

interface FormatRow {
  readonly doc: string
  readonly saveOptions: readonly (keyof SaveVectorOptions)[]
  readonly loadOptions: readonly (keyof LoadVectorOptions)[]
  readonly save: (path: string, vector: SteeringVector, options: SaveVectorOptions) => Promise<void>
  readonly load: (path: string, options: LoadVectorOptions) => Promise<SteeringVector>
}

/** The formats of vector files. */
export const vectorFormats: Readonly<Record<VectorFormat, FormatRow>> = {
  safetensors: {
    doc: 'Ours: one tensor for each site under its canonical name, any site, with the whole record.',
    saveOptions: [],
    loadOptions: [],
    save: writeOwn,
    load: readOwn,
  },
  gguf: {
    doc: 'Control vectors of llama.cpp, repeng and EasySteer: outputs of blocks.',
    saveOptions: ['producer', 'allowLayerZero', 'record'],
    loadOptions: ['producer', 'layerShift'],
    save: writeGgufVector,
    load: readGgufVector,
  },
  neuronpedia: {
    doc: 'The JSON with which vectors are uploaded to Neuronpedia.',
    saveOptions: ['label', 'modelId', 'strength'],
    loadOptions: [],
    save: writeNeuronpedia,
    load: async (path) => decodeNeuronpedia(await jsonOf(path, isNeuronpedia, 'Neuronpedia vector'), path),
  },
  easysteer: {
    doc: "EasySteer's SteeringSpec as JSON.",
    saveOptions: ['scale'],
    loadOptions: [],
    save: writeEasySteer,
    load: async (path) => decodeEasySteer(await jsonOf(path, isEasySteer, 'SteeringSpec of EasySteer'), path),
  },
}

const byExtension: Readonly<Record<string, VectorFormat>> = { '.safetensors': 'safetensors', '.gguf': 'gguf' }

/**
 * Writes a vector whole: by its extension as safetensors or GGUF, or in another format that `options` name.
 * @throws UsageError where the format cannot hold the vector or the path cannot be written.
 */
export async function saveVector(path: string, vector: SteeringVector, options: SaveVectorOptions = {}): Promise<void> {
  const format = options.format ?? byExtension[extname(path).toLowerCase()]
  if (format === undefined)
    throw new UsageError(`The name ${path} does not say in which format to write; end it in .safetensors or .gguf, or give a format.`)
  const row = rowOfFormat(format)
  checkOptions(options, row.saveOptions, format)
  await row.save(path, vector, options)
}

/**
 * Reads a vector, from any of the formats.
 * @throws FormatError where the file is missing, malformed, or holds no vector.
 */
export async function loadVector(path: string, options: LoadVectorOptions = {}): Promise<SteeringVector> {
  const format = options.format ?? byExtension[extname(path).toLowerCase()] ?? (await formatOfJson(path))
  const row = rowOfFormat(format)
  checkOptions(options, row.loadOptions, format)
  return row.load(path, options)
}

function rowOfFormat(format: string): FormatRow {
  if (Object.hasOwn(vectorFormats, format)) return vectorFormats[format as VectorFormat]
  throw new UsageError(`There is no vector format '${format}'; known are ${Object.keys(vectorFormats).join(', ')}.`)
}

function checkOptions(options: object, own: readonly string[], format: string): void {
  const stray = Object.entries(options).find(([key, value]) => key !== 'format' && value !== undefined && !own.includes(key))
  if (stray)
    throw new UsageError(
      `The format '${format}' has no option '${stray[0]}'; ${own.length > 0 ? `its own are ${own.join(', ')}` : 'it has none'}.`,
    )
}

async function formatOfJson(path: string): Promise<VectorFormat> {
  if (extname(path).toLowerCase() !== '.json')
    throw new UsageError(`The name ${path} does not say what the file holds; end it in .safetensors, .gguf or .json, or give a format.`)
  const value = await readJson(path)
  if (isEasySteer(value)) return 'easysteer'
  if (isNeuronpedia(value)) return 'neuronpedia'
  throw new FormatError(`${path} holds neither a Neuronpedia vector nor a SteeringSpec of EasySteer; check what file it is.`)
}

async function jsonOf(path: string, holds: (value: unknown) => boolean, what: string): Promise<unknown> {
  const value = await readJson(path)
  if (!holds(value)) throw new FormatError(`${path} holds no ${what}; check what file it is.`)
  return value
}

const marker = 'actlens.steering-vector'
const markerVersion = '1'

async function writeOwn(path: string, vector: SteeringVector): Promise<void> {
  const tensors = Object.fromEntries([...vector.vectors].map(([site, data]) => [site, asArray(data)]))
  await writeSafetensors(path, tensors, { format: marker, version: markerVersion, record: JSON.stringify(vector.record) })
}

async function readOwn(path: string): Promise<SteeringVector> {
  const store = await openSafetensors(path)
  try {
    const directions: [string, Float32Array][] = []
    for (const { name, shape } of store.tensors.values()) {
      if (shape.length !== 1) throw new FormatError(`'${name}' in ${path} has shape [${shape.join(', ')}], but a direction has one axis.`)
      directions.push([name, await store.readFloat32(name)])
    }
    return vectorOfFile(path, directions, recordOf(store.metadata.get('record'), path))
  } finally {
    await store.close()
  }
}

/** The record of a file; a file of someone else, with tensors under our names, has none. */
function recordOf(text: unknown, path: string): VectorRecord {
  if (text === undefined) return { method: 'unknown', model: { id: 'an unnamed model' }, sites: [], source: { format: 'safetensors' } }
  try {
    const record = JSON.parse(String(text)) as VectorRecord
    if (typeof record.method !== 'string' || typeof record.model?.id !== 'string') throw new Error('it names no method and model')
    return record
  } catch (cause) {
    throw new FormatError(`The record of ${path} is damaged: ${messageOf(cause)}; write the vector again.`, { cause })
  }
}
