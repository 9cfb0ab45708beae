/** @file GGUF control vectors, as repeng, llama.cpp and EasySteer write them: the same layout, but not the same labels. */
import { FormatError, listed, UsageError } from '../base/errors.ts'
import { writeFileWhole } from '../base/files.ts'
import { type ByteSource, openFile, openGguf } from '../models/formats/index.ts'
import type { VectorRecord } from './record.ts'
import { type SteeringVector, vectorOfFile } from './vector.ts'

interface ProducerRow {
  /** What is added to N of `direction.N` to get the block at whose output the direction was measured. */
  readonly shift: number
  /** GGUF's number of the type of `layer_count`: 4 is u32, 5 is i32. */
  readonly countType: 4 | 5
  readonly doc: string
}

/** Who labels directions how. llama.cpp's loader applies `direction.N` to the output of block N, whoever made the file. */
export const ggufProducers = {
  repeng: { shift: 0, countType: 4, doc: 'direction.N is the output of block N, counted from 0, which is where llama.cpp applies it.' },
  easysteer: { shift: 0, countType: 4, doc: 'As repeng, with the keys that EasySteer adds.' },
  'llama.cpp': {
    shift: -1,
    countType: 5,
    doc: "llama.cpp's own generator: direction.N is the output of block N - 1, so that llama.cpp applies it one block later.",
  },
} as const satisfies Readonly<Record<string, ProducerRow>>

/** A program whose labels a GGUF control vector follows. */
export type GgufProducer = keyof typeof ggufProducers

/** Options of writing GGUF. */
export interface GgufWriteOptions {
  /** Whose labels to write (default `repeng`, which llama.cpp applies where they were measured). */
  readonly producer?: GgufProducer
  /** Write a `direction.0`, which repeng reads but llama.cpp refuses. */
  readonly allowLayerZero?: boolean
  /** Keep our record in a key that others skip (default true). */
  readonly record?: boolean
}

/** Options of reading GGUF. */
export interface GgufReadOptions {
  /** Whose labels the file has (default: what our record says, else where llama.cpp would apply them). */
  readonly producer?: GgufProducer
  /** Added to N of `direction.N` to get the block, instead of the producer's. */
  readonly layerShift?: number
}

const recordKey = 'controlvector.actlens'
const alignment = 32

/** Reads a GGUF control vector; directions become `resid_post.N`. */
export async function readGgufVector(path: string, options: GgufReadOptions): Promise<SteeringVector> {
  const source = await openFile(path)
  const store = await openGguf(source)
  try {
    const architecture = store.metadata.get('general.architecture')
    if (architecture !== 'controlvector')
      throw new FormatError(`${path} is a GGUF file of '${String(architecture)}', not of a control vector; load it as a model.`)
    const own = ownRecord(store.metadata.get(recordKey), path)
    const guessed = own?.producer ?? (await guessProducer(source, store.metadata.has('controlvector.easysteer')))
    const producer = options.producer === undefined ? guessed : checkProducer(options.producer)
    // A guess may name the producer, but must not move a vector: that is the reader's explicit choice.
    const known = options.producer ?? own?.producer
    const shift = checkShift(options.layerShift ?? (known ? ggufProducers[known].shift : 0))
    const directions: [string, Float32Array][] = []
    for (const { name, shape } of store.tensors.values()) {
      const label = /^direction\.(\d+)$/.exec(name)?.[1]
      if (label === undefined || shape.length !== 1)
        throw new FormatError(`${path} holds '${name}' [${shape.join(', ')}], but control vectors hold 'direction.N' of one dimension.`)
      const layer = Number(label) + shift
      if (layer < 0)
        throw new FormatError(`'${name}' in ${path} would be block ${layer} with a shift of ${shift}; give another producer or layerShift.`)
      directions.push([`resid_post.${layer}`, await store.readFloat32(name)])
    }
    if (directions.length === 0) throw new FormatError(`${path} holds no direction; it may be truncated, so fetch or write it again.`)
    if (own && own.shift === shift) return vectorOfFile(path, directions, own.record)
    const text = (key: string) => {
      const value = store.metadata.get(key)
      return typeof value === 'string' ? value : undefined
    }
    const family = text('controlvector.model_hint')
    const foreign: VectorRecord = {
      method: text('controlvector.method') ?? 'unknown',
      model: { id: family ? `a model of the family ${family}` : 'an unnamed model', ...(family ? { family } : {}) },
      sites: [],
    }
    const note = { format: 'gguf', layerShift: shift, ...(producer ? { producer } : {}) }
    return vectorOfFile(path, directions, { ...(own?.record ?? foreign), source: note })
  } finally {
    await store.close()
  }
}

/** Who wrote a file, by its marks: EasySteer's key, or the signed `layer_count` of llama.cpp. */
async function guessProducer(source: ByteSource, easysteer: boolean): Promise<GgufProducer | undefined> {
  if (easysteer) return 'easysteer'
  const head = Buffer.from(await source.read(0, Math.min(source.size, 2 ** 16)))
  const key = 'controlvector.layer_count'
  const at = head.indexOf(key)
  if (at < 0 || at + key.length + 4 > head.length) return undefined
  return head.readUInt32LE(at + key.length) === ggufProducers['llama.cpp'].countType ? 'llama.cpp' : 'repeng'
}

interface OwnRecord {
  readonly producer: GgufProducer
  readonly shift: number
  readonly record: VectorRecord
}

function ownRecord(value: unknown, path: string): OwnRecord | undefined {
  if (value === undefined) return undefined
  try {
    const { producer, record } = JSON.parse(String(value)) as OwnRecord
    if (typeof record?.method !== 'string' || typeof record.model?.id !== 'string') throw new Error('it names no method and model')
    return { producer: checkProducer(producer), shift: ggufProducers[producer].shift, record }
  } catch (cause) {
    throw new FormatError(`The record in '${recordKey}' of ${path} is damaged: ${(cause as Error).message}; write the vector again.`, {
      cause,
    })
  }
}

function checkProducer(producer: string): GgufProducer {
  if (Object.hasOwn(ggufProducers, producer)) return producer as GgufProducer
  throw new UsageError(`There is no producer '${producer}'; known are ${Object.keys(ggufProducers).join(', ')}.`)
}

function checkShift(shift: number): number {
  if (!Number.isInteger(shift)) throw new UsageError(`layerShift must be an integer, not ${shift}.`)
  return shift
}

/** Writes a GGUF control vector whole, byte for byte as its producer would, save for our record. */
export async function writeGgufVector(path: string, vector: SteeringVector, options: GgufWriteOptions): Promise<void> {
  await writeFileWhole(path, encodeGgufVector(vector, options))
}

/** The bytes of a GGUF control vector. */
export function encodeGgufVector(vector: SteeringVector, options: GgufWriteOptions = {}): Uint8Array {
  const producer = checkProducer(options.producer ?? 'repeng')
  const { shift, countType } = ggufProducers[producer]
  const tensors = [...vector.vectors].map(([site, data]) => ({ label: layerOf(site) - shift, data }))
  const labels = tensors.map((t) => t.label)
  if (new Set(labels).size < labels.length)
    throw new UsageError(`The sites ${listed(vector.sites)} share a place, which a control vector labels once; leave one out.`)
  if (labels.includes(0) && !options.allowLayerZero)
    throw new UsageError(
      'The output of block 0 would be direction.0, which llama.cpp refuses; leave resid_post.0 out, or set allowLayerZero for readers such as repeng.',
    )
  const { method, model } = vector.record
  const pairs = [
    pair('general.architecture', 'controlvector'),
    pair('controlvector.model_hint', model.family ?? 'unknown'),
    ...(producer === 'easysteer' ? [pair('controlvector.method', method)] : []),
    Buffer.concat([text('controlvector.layer_count'), u32(countType), u32(tensors.length)]),
    ...(producer === 'easysteer'
      ? [pair('controlvector.easysteer', JSON.stringify({ version: 1, component: 'hidden_states', metadata: { mapping: [] } }))]
      : []),
    ...(options.record === false ? [] : [pair(recordKey, JSON.stringify({ producer, record: vector.record }))]),
  ]
  let offset = 0
  const infos = tensors.map(({ label, data }) => {
    const info = Buffer.concat([text(`direction.${label}`), u32(1), u64(data.length), u32(0), u64(offset)])
    offset += aligned(data.byteLength)
    return info
  })
  const header = Buffer.concat([Buffer.from('GGUF'), u32(3), u64(tensors.length), u64(pairs.length), ...pairs, ...infos])
  const bytes = new Uint8Array(aligned(header.length) + offset)
  bytes.set(header)
  let at = aligned(header.length)
  for (const { data } of tensors) {
    const view = new DataView(bytes.buffer, at)
    for (const [i, x] of data.entries()) view.setFloat32(4 * i, x, true)
    at += aligned(data.byteLength)
  }
  return bytes
}

/** The block whose output a site is: what enters block N + 1 is what leaves block N. */
function layerOf(site: string): number {
  const [name, layer] = site.split('.') as [string, string | undefined]
  if (name === 'resid_post') return Number(layer)
  if (name === 'resid_pre' && layer !== '0') return Number(layer) - 1
  throw new UsageError(`A GGUF control vector holds outputs of blocks only (resid_post.N), not '${site}'; save it as safetensors.`)
}

const aligned = (n: number) => Math.ceil(n / alignment) * alignment
const u32 = (value: number) => {
  const b = Buffer.alloc(4)
  b.writeUInt32LE(value)
  return b
}
const u64 = (value: number) => {
  const b = Buffer.alloc(8)
  b.writeBigUInt64LE(BigInt(value))
  return b
}
const text = (value: string) => {
  const b = Buffer.from(value, 'utf8')
  return Buffer.concat([u64(b.length), b])
}
/** A key with a text; 8 is GGUF's number of that type. */
const pair = (key: string, value: string) => Buffer.concat([text(key), u32(8), text(value)])
