/** @file PyTorch checkpoints (`pytorch_model.bin`, `.pt`): tensors are found in place; nothing that the pickle contains is executed. */
import { FormatError } from '../../base/errors.ts'
import type { ByteSource } from './bytes.ts'
import {
  type Callable,
  Global,
  PickleCut,
  type PickleRules,
  type PickleValue,
  readPickle,
  StorageRef,
  TensorRef,
  Tuple,
} from './pickle-machine.ts'
import { openParts } from './shards.ts'
import type { MetadataValue, StoredTensor, WeightStore } from './store.ts'
import { countOf, type ElementType, elementTypes } from './stored-types.ts'
import { isContiguous, stridedSource } from './strided.ts'
import { looksLikeZip, readZip } from './zip.ts'

/**
 * Opens a checkpoint of `torch.save`: a file, an index, a folder, or sources (the shards of one checkpoint). Names of nested
 * dictionaries are joined by dots; values that are no tensors become metadata. Throws FormatError for anything but tensors.
 */
export async function openPickle(from: string | ByteSource | readonly ByteSource[]): Promise<WeightStore> {
  const layout = {
    format: 'pickle',
    single: 'pytorch_model.bin',
    index: 'pytorch_model.bin.index.json',
    endings: ['.bin', '.pt', '.pth', '.bin.index.json'],
  }
  return openParts(layout, from, readTorch)
}

/** Types of the storages that carry their type in their name. */
const storageTypes: Readonly<Record<string, ElementType>> = {
  'torch.FloatStorage': 'F32',
  'torch.DoubleStorage': 'F64',
  'torch.HalfStorage': 'F16',
  'torch.BFloat16Storage': 'BF16',
  'torch.LongStorage': 'I64',
  'torch.IntStorage': 'I32',
  'torch.ShortStorage': 'I16',
  'torch.CharStorage': 'I8',
  'torch.ByteStorage': 'U8',
  'torch.BoolStorage': 'BOOL',
}

/** Types that accompany an untyped storage. */
const dtypes: Readonly<Record<string, ElementType>> = {
  'torch.float32': 'F32',
  'torch.float64': 'F64',
  'torch.float16': 'F16',
  'torch.bfloat16': 'BF16',
  'torch.float8_e4m3fn': 'F8_E4M3',
  'torch.float8_e5m2': 'F8_E5M2',
  'torch.int64': 'I64',
  'torch.int32': 'I32',
  'torch.int16': 'I16',
  'torch.int8': 'I8',
  'torch.uint8': 'U8',
  'torch.uint16': 'U16',
  'torch.uint32': 'U32',
  'torch.uint64': 'U64',
  'torch.bool': 'BOOL',
}

const untypedStorage = 'torch.storage.UntypedStorage'

function integers(value: PickleValue | undefined): number[] | undefined {
  if (!(value instanceof Tuple)) return undefined
  const items = value.items.filter((item): item is number => typeof item === 'number' && Number.isSafeInteger(item) && item >= 0)
  return items.length === value.items.length ? items : undefined
}

/** `_rebuild_tensor_v2(storage, offset, size, stride, …)`; version 3 has the element type at 6, and `metadata` after it. */
function rebuildTensor(dtypeAt: number | undefined, metadataAt: number): Callable {
  return (args, fail) => {
    const [storage, offset] = args
    const shape = integers(args[2])
    const strides = integers(args[3])
    const dtype = dtypeAt === undefined ? undefined : args[dtypeAt]
    if (!(storage instanceof StorageRef) || typeof offset !== 'number' || !Number.isSafeInteger(offset) || offset < 0) {
      return fail('describes a tensor without a sound storage')
    }
    if (shape === undefined || strides === undefined || shape.length !== strides.length)
      return fail('describes a tensor without a sound shape')
    if (dtypeAt !== undefined && !(dtype instanceof Global)) return fail('describes a tensor without a type')
    const metadata = args[metadataAt]
    // It marks values that are to be negated or conjugated when they are read.
    if (metadata instanceof Map && metadata.size > 0) return fail('describes a tensor that must be changed when it is read')
    return new TensorRef(storage, offset, shape, strides, dtype instanceof Global ? dtype.path : undefined)
  }
}

const globals: PickleRules['globals'] = {
  ...Object.fromEntries([...Object.keys(storageTypes), ...Object.keys(dtypes), untypedStorage].map((name) => [name, undefined])),
  'collections.OrderedDict': ([pairs], fail) => {
    if (pairs === undefined) return new Map()
    if (!Array.isArray(pairs)) return fail('makes a dictionary of something that is no list')
    return new Map(
      pairs.map((pair): [PickleValue, PickleValue] => {
        const items = pair instanceof Tuple ? pair.items : Array.isArray(pair) ? pair : []
        return items.length === 2 ? [items[0]!, items[1]!] : fail('makes a dictionary of something that is no pair')
      }),
    )
  },
  'torch._utils._rebuild_tensor_v2': rebuildTensor(undefined, 6),
  'torch._utils._rebuild_tensor_v3': rebuildTensor(6, 7),
  'torch._utils._rebuild_parameter': ([data], fail) =>
    data instanceof TensorRef ? data : fail('makes a parameter of something that is no tensor'),
}

/** Persistent ids are `('storage', type, key, device, length)`, and a view of a storage in old files. */
function rulesFor(name: string, storages: Map<string, StorageRef>): PickleRules {
  return {
    name,
    globals,
    persistent(id, fail) {
      const [tag, kind, key, , length, view] = id instanceof Tuple ? id.items : []
      if (tag !== 'storage' || !(kind instanceof Global) || typeof key !== 'string') return fail('refers to something that is no storage')
      if (typeof length !== 'number' || !Number.isSafeInteger(length) || length < 0)
        return fail('refers to a storage without a sound length')
      if (view !== undefined && view !== null) return fail('refers to a part of a storage')
      const storage = storages.get(key) ?? new StorageRef(kind.path, key, length)
      storages.set(key, storage)
      if (storage.kind !== kind.path || storage.length !== length) return fail(`describes the storage ${key} in two ways`)
      return storage
    },
  }
}

/** Where the bytes of a storage lie. */
type Places = ReadonlyMap<string, { readonly offset: number; readonly size: number }>

interface Part {
  readonly tensors: StoredTensor[]
  readonly metadata: ReadonlyMap<string, MetadataValue>
}

/** Largest pickle that is read: it holds names and shapes only. */
const LARGEST_PICKLE = 2 ** 28

async function readTorch(source: ByteSource): Promise<Part> {
  const first = await source.read(0, Math.min(source.size, 4))
  if (looksLikeZip(first)) return readArchive(source)
  if (first[0] === 0x80) return readLegacy(source)
  throw new FormatError(`${source.name} is no checkpoint of torch.save; check what file it is.`)
}

async function readArchive(source: ByteSource): Promise<Part> {
  const members = await readZip(source)
  const pickles = [...members.values()].filter(({ name }) => name === 'data.pkl' || name.endsWith('/data.pkl'))
  const pickle = pickles[0]
  if (pickle === undefined || pickles.length > 1) {
    throw new FormatError(
      `The archive ${source.name} has ${pickles.length} members data.pkl instead of one; check that torch.save wrote it.`,
    )
  }
  if (pickle.size > LARGEST_PICKLE)
    throw new FormatError(`The pickle in ${source.name} has ${pickle.size} bytes, of at most ${LARGEST_PICKLE}.`)
  const prefix = pickle.name.slice(0, -'data.pkl'.length)
  const order = members.get(`${prefix}byteorder`)
  if (order !== undefined && new TextDecoder().decode(await source.read(order.offset, Math.min(order.size, 16))) !== 'little') {
    throw new FormatError(`${source.name} was saved on a big-endian machine; save it again as safetensors.`)
  }
  const bytes = await source.read(pickle.offset, pickle.size)
  const storages = new Map<string, StorageRef>()
  const { value } = readPickle(bytes, 0, rulesFor(source.name, storages))
  const places = new Map([...storages.keys()].flatMap((key) => entryOf(key, members.get(`${prefix}data/${key}`))))
  return collect(value, bytes.length, source, places)
}

function entryOf<T>(key: string, place: T | undefined): [string, T][] {
  return place === undefined ? [] : [[key, place]]
}

/** The number that the first pickle of a file from before PyTorch 1.6 holds. */
const LEGACY_MAGIC = 0x1950a86a20f9469cfc6cn

/** Files from before PyTorch 1.6: five pickles (magic, version, machine, value, order of storages), then each storage after its length. */
async function readLegacy(source: ByteSource): Promise<Part> {
  for (let length = 2 ** 20; ; length *= 2) {
    const bytes = await source.read(0, Math.min(length, source.size))
    try {
      return await parseLegacy(bytes, source)
    } catch (error) {
      // Nothing says where the pickles end, so more is read until they do.
      if (!(error instanceof PickleCut) || bytes.length === source.size || length >= LARGEST_PICKLE) throw error
    }
  }
}

async function parseLegacy(bytes: Uint8Array, source: ByteSource): Promise<Part> {
  const storages = new Map<string, StorageRef>()
  const rules = rulesFor(source.name, storages)
  let at = 0
  const next = (): PickleValue => {
    const { value, end } = readPickle(bytes, at, rules)
    at = end
    return value
  }
  if (next() !== LEGACY_MAGIC) throw new FormatError(`${source.name} is a pickle, but no checkpoint of torch.save; check what file it is.`)
  next()
  const machine = next()
  if (!(machine instanceof Map) || machine.get('little_endian') !== true) {
    throw new FormatError(`${source.name} was not saved on a little-endian machine; save it again as safetensors.`)
  }
  const value = next()
  const valueBytes = at
  const order = next()
  if (!Array.isArray(order)) throw new FormatError(`${source.name} does not list its storages; fetch it again.`)
  const places = new Map<string, { offset: number; size: number }>()
  for (const key of order) {
    const storage = typeof key === 'string' ? storages.get(key) : undefined
    const type = storageTypes[storage?.kind ?? '']
    if (storage === undefined || type === undefined || places.has(storage.key)) {
      throw new FormatError(`${source.name} lists the storage ${String(key)}, which its tensors do not use once; fetch it again.`)
    }
    const stored = new DataView((await source.read(at, 8)).buffer).getBigUint64(0, true)
    if (stored !== BigInt(storage.length)) {
      throw new FormatError(
        `${source.name} gives the storage ${storage.key} ${stored} elements, but its tensors expect ${storage.length}; fetch it again.`,
      )
    }
    const size = storage.length * elementTypes[type].bytes
    places.set(storage.key, { offset: at + 8, size })
    at += 8 + size
  }
  return collect(value, valueBytes, source, places)
}

/** Deeper than any checkpoint nests; a list that holds itself is deeper. */
const DEEPEST = 32

/** Walks through what the pickle made. `visits` bounds the walk: values that are shared can make it longer than the pickle, without end. */
function collect(value: PickleValue, visits: number, source: ByteSource, places: Places): Part {
  const tensors: StoredTensor[] = []
  const metadata = new Map<string, MetadataValue>()
  let left = visits
  const walk = (item: PickleValue, path: string, depth: number): void => {
    if (--left < 0 || depth > DEEPEST) throw new FormatError(`The pickle in ${source.name} is tangled; save plain tensors as safetensors.`)
    const at = (key: string) => (path === '' ? key : `${path}.${key}`)
    if (item instanceof TensorRef) tensors.push(toStored(item, path || 'tensor', source, places))
    else if (item instanceof Map) for (const [key, inner] of item) walk(inner, at(keyOf(key, source)), depth + 1)
    else if (item instanceof Tuple) item.items.forEach((inner, i) => void walk(inner, at(String(i)), depth + 1))
    else if (Array.isArray(item)) item.forEach((inner, i) => void walk(inner, at(String(i)), depth + 1))
    else if (item instanceof StorageRef) throw new FormatError(`${path} in ${source.name} is a bare storage; save tensors instead.`)
    else if (metadata.has(path)) throw new FormatError(`${path} in ${source.name} comes twice; save it again with distinct names.`)
    else metadata.set(path, item instanceof Global ? item.path : item)
  }
  walk(value, '', 0)
  return { tensors, metadata }
}

function keyOf(key: PickleValue, source: ByteSource): string {
  if (typeof key === 'string' || typeof key === 'number') return String(key)
  throw new FormatError(`A dictionary in ${source.name} has a key that is neither text nor number; save tensors under names.`)
}

function toStored(tensor: TensorRef, name: string, source: ByteSource, places: Places): StoredTensor {
  const { storage, offset, shape, strides } = tensor
  const what = `${name} in ${source.name}`
  const type = tensor.dtype === undefined ? storageTypes[storage.kind] : dtypes[tensor.dtype]
  if (type === undefined)
    throw new FormatError(`${what} has the type ${tensor.dtype ?? storage.kind}, which cannot be read; convert it in PyTorch.`)
  const place = places.get(storage.key)
  if (place === undefined)
    throw new FormatError(`${what} lies in the storage ${storage.key}, which the file does not have; fetch it again.`)
  const elementSize = elementTypes[type].bytes
  const available = Math.floor(place.size / elementSize)
  const promised = storage.kind === untypedStorage ? Math.floor(storage.length / elementSize) : storage.length
  const count = countOf(shape, what)
  const last = count === 0 ? -1 : shape.reduce((sum, size, axis) => sum + (size - 1) * strides[axis]!, offset)
  if (promised > available || !(last < available)) {
    throw new FormatError(
      `${what} reaches beyond its storage of ${available} elements: the file is truncated or malformed; fetch it again.`,
    )
  }
  if (count > available) throw new FormatError(`${what} repeats its elements (an expanded tensor); save it with .contiguous().`)
  const layout = { shape, strides, offset: place.offset + offset * elementSize, elementSize }
  const bytes = count * elementSize
  if (count === 0) return { name, type, shape, source, offset: place.offset, bytes }
  if (isContiguous(shape, strides)) return { name, type, shape, source, offset: layout.offset, bytes }
  return { name, type, shape, source: stridedSource(source, name, layout), offset: 0, bytes }
}
