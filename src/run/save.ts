/** @file A model as a Hugging Face folder that others open. For Node only. */
import { existsSync } from 'node:fs'
import { copyFile, readFile } from 'node:fs/promises'
import { dirname, join, resolve } from 'node:path'
import { listed, ModelError, throwIfCancelled, UsageError } from '../base/errors.ts'
import { makeFolder, writeFileWhole } from '../base/files.ts'
import type { WorkOptions } from '../base/progress.ts'
import type { Config } from '../models/config.ts'
import { f32ToBf16, f32ToF16, type StoredTensor, storedTypes, type WeightStore } from '../models/formats/index.ts'
import { createSafetensorsWriter } from '../models/formats/safetensors-write.ts'
import { asPublished } from '../models/transforms/published.ts'
import { buffers } from '../models/weights.ts'
import type { Model } from './model.ts'
import { transformRecords } from './transform.ts'

/** Options of {@link Model.save}. */
export interface SaveOptions extends WorkOptions {
  /** Type of the stored numbers (default: that of the checkpoint where it is one of these for all tensors, else `f32`). */
  readonly dtype?: SaveType
  /** Bytes of weights to a file (default 5 GB). */
  readonly shardBytes?: number
}

/** What was written. */
export interface SavedModel {
  readonly folder: string
  readonly files: readonly string[]
  readonly bytes: number
  readonly dtype: SaveType
  /** What a reader should know, as sentences. */
  readonly notes: readonly string[]
}

const saveTypes = {
  f32: { dtype: 'float32', stored: 'F32', bytes: 4, of: (x: Float32Array): ArrayBufferView => x },
  f16: { dtype: 'float16', stored: 'F16', bytes: 2, of: (x: Float32Array): ArrayBufferView => f32ToF16(x) },
  bf16: { dtype: 'bfloat16', stored: 'BF16', bytes: 2, of: (x: Float32Array): ArrayBufferView => f32ToBf16(x) },
} as const

/** Types that a checkpoint can be saved in. */
export type SaveType = keyof typeof saveTypes

/** Files of a folder that say how text and images are read. */
const companions = [
  'tokenizer.json',
  'tokenizer_config.json',
  'special_tokens_map.json',
  'added_tokens.json',
  'vocab.json',
  'merges.txt',
  'tokenizer.model',
  'spiece.model',
  'vocab.txt',
  'chat_template.jinja',
  'chat_template.json',
  'generation_config.json',
  'preprocessor_config.json',
  'processor_config.json',
]

/** Name of the record of what was done to the weights. */
export const recordFile = 'actlens.json'

/** Values converted at a time. */
const chunkValues = 1 << 20

/** Writes a model as a folder; see {@link Model.save}. */
export async function saveModel(model: Model, folder: string, options: SaveOptions = {}): Promise<SavedModel> {
  if (model.edits.length > 0)
    throw new ModelError(
      `A folder holds weights, and this model has ${model.edits.length} edits (${listed(
        model.edits.map((e) => `${e.op} at ${e.site}`),
        3,
      )}). Fold them into the weights where that is exact (foldEdits), or save model.plain.`,
    )
  const { opened } = model.internals.source
  if (sourceFolders(opened.store, opened.folder).has(resolve(folder)))
    throw new UsageError(`${folder} is the folder that the model is read from; give another one.`)
  const { config, store } = await asPublished({ config: opened.config, store: opened.store, family: model.internals.source.options.family })
  const tensors = writable(model, store)
  const dtype = options.dtype ?? commonType(tensors)
  const type = saveTypes[dtype]
  if (!type) throw new UsageError(`Weights are saved as ${Object.keys(saveTypes).join(', ')}, not as '${String(dtype)}'.`)
  await makeFolder(folder)
  const files = await writeShards(folder, store, tensors, dtype, options)
  const notes: string[] = []
  const copied = opened.folder === undefined ? [] : companions.filter((name) => existsSync(join(opened.folder as string, name)))
  for (const name of copied) await copyFile(join(opened.folder as string, name), join(folder, name))
  if (model.hasTokenizer && !copied.includes('tokenizer.json'))
    notes.push(
      'The tokenizer of this model has no Hugging Face files, so none were written; give token ids, or put tokenizer.json beside the weights.',
    )
  const { transforms } = model.origin
  const record = {
    format: 'actlens.model',
    source: { id: model.origin.id, hash: await model.origin.hash() },
    transforms: await transformRecords(transforms),
  }
  await writeFileWhole(join(folder, recordFile), `${JSON.stringify(record, null, 2)}\n`)
  // Last, since a folder with a config is taken for a whole model.
  await writeFileWhole(join(folder, 'config.json'), `${configText(withType(config, type.dtype), await floatFields(opened.folder))}\n`)
  const bytes = tensors.reduce((sum, t) => sum + countOf(t) * type.bytes, 0)
  return { folder, files: [...files, ...copied, recordFile, 'config.json'], bytes, dtype, notes }
}

/** Folders that the weights are read from, which must not be written into while they are. */
function sourceFolders(store: WeightStore, folder: string | undefined): Set<string> {
  const paths = [...store.tensors.values()]
    .flatMap((t) => [t.source, ...(t.source.basis ?? [])])
    .map((s) => dirname(resolve(s.path ?? s.name)))
  return new Set(folder === undefined ? paths : [...paths, resolve(folder)])
}

const countOf = (t: StoredTensor) => t.shape.reduce((p, n) => p * n, 1)

/** The config says which type the weights have, under the name that it uses. */
function withType(config: Config, dtype: string): Config {
  const { torch_dtype: old, dtype: recent, quantization_config: _, ...rest } = config
  return { ...rest, ...(old !== undefined || recent === undefined ? { torch_dtype: dtype } : { dtype }) }
}

/** Names of fields that a folder's own config writes as fractions: transformers refuses 3 where it wants 3.0, which JSON.parse does not tell apart. */
async function floatFields(folder: string | undefined): Promise<ReadonlySet<string>> {
  if (folder === undefined) return new Set()
  const text = await readFile(join(folder, 'config.json'), 'utf8')
  return new Set([...text.matchAll(/"([^"\\]+)"\s*:\s*-?\d+(?:\.\d+|(?:\.\d+)?[eE][+-]?\d+)/g)].map((m) => m[1] as string))
}

/** A config as JSON, with `.0` behind whole numbers of the given fields. */
const configText = (config: Config, floats: ReadonlySet<string>) =>
  JSON.stringify(config, null, 2).replace(/"([^"\\]+)": (-?\d+)(?=[,\n])/g, (all, name: string) => (floats.has(name) ? `${all}.0` : all))

/** Tensors that belong into the folder: no buffers, no copy of tied weights, nothing of another model. */
function writable(model: Model, store: WeightStore): StoredTensor[] {
  const { head, embedding } = model.architecture.read
  const tied = head !== undefined && head.weight === embedding
  return [...store.tensors.values()].filter(
    (t) =>
      !buffers.some((b) => b.test(t.name)) &&
      !(tied && t.name === 'lm_head.weight') &&
      !(/^(I|U|BOOL)/.test(t.type) && !/^IQ/.test(t.type)),
  )
}

function commonType(tensors: readonly StoredTensor[]): SaveType {
  const types = new Set(tensors.map((t) => t.type))
  const found = (Object.keys(saveTypes) as SaveType[]).find((s) => types.size === 1 && types.has(saveTypes[s].stored))
  return found ?? 'f32'
}

async function writeShards(
  folder: string,
  store: WeightStore,
  tensors: readonly StoredTensor[],
  saved: SaveType,
  { shardBytes = 5e9, signal, onProgress }: SaveOptions,
): Promise<string[]> {
  const type = saveTypes[saved]
  const sizeOf = (t: StoredTensor) => countOf(t) * type.bytes
  const shards: StoredTensor[][] = []
  let room = 0
  for (const t of tensors) {
    if (shards.length === 0 || sizeOf(t) > room) {
      shards.push([])
      room = shardBytes
    }
    shards.at(-1)?.push(t)
    room -= sizeOf(t)
  }
  const pad = (n: number) => String(n).padStart(5, '0')
  const names = shards.map((_, i) =>
    shards.length === 1 ? 'model.safetensors' : `model-${pad(i + 1)}-of-${pad(shards.length)}.safetensors`,
  )
  const total = tensors.reduce((sum, t) => sum + sizeOf(t), 0)
  let done = 0
  for (const [i, shard] of shards.entries()) {
    const entries = shard.map(({ name, shape }) => ({ name, shape, dtype: type.dtype }))
    const writer = await createSafetensorsWriter(join(folder, names[i] as string), entries, { format: 'pt' })
    try {
      for (const t of shard) {
        // Bytes that are in the type already are copied as they lie.
        const same = t.type === type.stored
        const { values, bytes } = storedTypes[t.type]
        const pieces = same
          ? store.rawChunks(t.name, chunkValues * bytes)
          : store.float32Chunks(t.name, Math.floor(chunkValues / values) * values)
        for await (const piece of pieces) {
          throwIfCancelled(signal)
          const data = same ? piece : type.of(checkedFor(saved, piece as Float32Array, t.name))
          await writer.write(t.name, data)
          done += data.byteLength
          onProgress?.({ task: 'writing weights', done, total, unit: 'bytes' })
        }
      }
      await writer.finish()
    } catch (error) {
      await writer.abort()
      throw error
    }
  }
  if (shards.length === 1) return names
  const weight_map = Object.fromEntries(shards.flatMap((shard, i) => shard.map((t) => [t.name, names[i]])))
  const index = 'model.safetensors.index.json'
  await writeFileWhole(join(folder, index), `${JSON.stringify({ metadata: { total_size: total }, weight_map }, null, 2)}\n`)
  return [...names, index]
}

function checkedFor(saved: SaveType, values: Float32Array, name: string): Float32Array {
  if (saved !== 'f16') return values
  const top = values.reduce((most, v) => Math.max(most, Math.abs(v)), 0)
  if (top >= 65520) throw new ModelError(`'${name}' holds ${top}, which float16 cannot; save as bf16 or f32.`)
  return values
}
