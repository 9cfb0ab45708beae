/** @file Weights in fewer bits: which matrices of a model are packed in blocks, how, and what they are to the engine. */
import { ModelError } from '../base/errors.ts'
import { type BlockLayout, dequantizeBlocks, reshape, type Tensor, transpose, type WeightRef, weight } from '../tensor/index.ts'
import {
  type BlockPacker,
  packers,
  roundedBlock,
  roundToBlocks,
  type StoredTensor,
  storedTypes,
  type WeightStore,
} from './formats/index.ts'
import type { ReadSpec, Section } from './weights.ts'

/**
 * Number format of weights; activations are float32 with all of them.
 * `f16`: matrices take two bytes a value (bfloat16 where the checkpoint has it) and are widened whenever they are used.
 * `q8`, `q4`: matrices lie in blocks of 8- or 4-bit integers with a scale each. Blocks of a GGUF file are used as they are,
 * without loss; other values are rounded to nearest in blocks of 32.
 */
export type Precision = 'f32' | 'f16' | 'q8' | 'q4'

/** All precisions. */
export const precisions: readonly Precision[] = ['f32', 'f16', 'q8', 'q4']

/**
 * What the runtime's products with packed weights compute in: 4 rounds activations to 8 bits in blocks, as llama.cpp does. On a processor
 * with AVX2, one token passes a [576, 1536] matrix of 4 bits in 84 µs so, in 270 µs at level 0 (unrounded), and in 307 µs as float32; at
 * 8 bits in 143 µs, and in 2.5 ms at level 0, where the runtime unpacks the whole matrix each time.
 */
const accuracy = 4

/** A matrix in blocks along its inputs. */
export interface BlockWeight {
  readonly name: string
  /** As the model asks for it. */
  readonly shape: readonly number[]
  readonly layout: BlockLayout
  readonly packed: WeightRef
  readonly scales: WeightRef
  readonly offsets?: WeightRef
  /** The blocks lie along the first axis of `shape`, the inputs. */
  readonly transposed: boolean
}

/** Bytes of a packed weight, scales and offsets included. */
export const blockRefs = (b: BlockWeight): WeightRef[] => [b.packed, b.scales, ...(b.offsets ? [b.offsets] : [])]

/** A packed weight as the trunk sees it: floats of the shape that it asked for, which products and look-ups use as they are packed. */
export function blockTensor(b: BlockWeight): Tensor {
  const offsets = b.offsets && weight(b.offsets)
  const matrix = dequantizeBlocks(weight(b.packed), weight(b.scales), undefined, b.layout, { offsets, accuracy })
  if (b.transposed) return transpose(matrix, [1, 0])
  return b.shape.length === 2 ? matrix : reshape(matrix, b.shape)
}

/** How a matrix enters a model. */
interface MatrixUse {
  readonly layout: 'out,in' | 'in,out'
  /** Rows are looked up, or logits computed: rounding shows most here. */
  readonly ends: boolean
}

/** The matrices of a record that may be packed, by their names in it. */
export function matricesOf(spec: object): Map<string, MatrixUse> {
  const found = new Map<string, MatrixUse>()
  const visit = (value: unknown, ends: boolean): void => {
    if (!value || typeof value !== 'object') return
    const record = value as Record<string, unknown>
    if (typeof record.weight === 'string' && (record.layout === 'out,in' || record.layout === 'in,out'))
      found.set(record.weight, { layout: record.layout, ends: ends || found.get(record.weight)?.ends === true })
    for (const [key, part] of Object.entries(record)) {
      if (key === 'embedding' && typeof part === 'string') found.set(part, { layout: 'out,in', ends: true })
      // Routers are small, and a rounded score may choose another expert.
      else if (record.kind === 'experts' && key === 'router') continue
      else if (key === 'shared') visit((part as { mlp: unknown }).mlp, false)
      else if (key === 'block') for (let l = 0; l < (record.layers as number); l++) visit((part as (l: number) => unknown)(l), false)
      else if (key === 'expert') for (let e = 0; e < (record.count as number); e++) visit((part as (e: number) => unknown)(e), false)
      else visit(part, key === 'head')
    }
  }
  visit(spec, false)
  return found
}

/** What becomes of one matrix. */
interface Packing {
  readonly tensor: StoredTensor
  readonly transposed: boolean
  readonly bits: 4 | 8
  readonly block: number
  /** How stored blocks are packed; absent where values are rounded. */
  readonly packer?: BlockPacker
}

/** Which matrices of a checkpoint are packed and how, with a sentence for each kind of treatment. */
export interface PackingPlan {
  readonly packings: readonly Packing[]
  readonly checks: readonly string[]
}

/**
 * Decides about each matrix. Blocks that a file has stay as they are; but a file without any of 4 bits is rounded to them where `q4` is asked.
 * Embedding and unembedding are never rounded to less than 8 bits.
 * @param nameOf the name in the checkpoint of a name of the record.
 * @throws ModelError where no matrix can be packed.
 */
export function planPacking(
  store: WeightStore,
  spec: ReadSpec,
  precision: 'q8' | 'q4',
  nameOf: (name: string) => string | undefined,
): PackingPlan {
  const matrices = new Map<StoredTensor, MatrixUse>()
  for (const [name, use] of matricesOf(spec)) {
    const stored = nameOf(name)
    const tensor = stored === undefined ? undefined : store.tensors.get(stored)
    if (tensor) matrices.set(tensor, { ...use, ends: use.ends || matrices.get(tensor)?.ends === true })
  }
  const whole = [...matrices].filter(
    ([t, use]) => inputsOf(t, use) % roundedBlock === 0 && (t.shape.length === 2 || use.layout === 'out,in'),
  )
  const kept = (t: StoredTensor, use: MatrixUse) => (use.layout === 'out,in' ? packers[t.type] : undefined)
  const has4 = whole.some(([t, use]) => kept(t, use)?.bits === 4)
  const packings = whole.map(([tensor, use]): Packing => {
    const packer = kept(tensor, use)
    if (packer && (packer.bits === 4 || precision === 'q8' || has4))
      return { tensor, transposed: false, bits: packer.bits, block: packer.block, packer }
    const bits = precision === 'q8' || use.ends ? 8 : 4
    return { tensor, transposed: use.layout === 'in,out', bits, block: roundedBlock }
  })
  if (packings.length === 0)
    throw new ModelError(
      `${store.name} has no matrix whose rows are whole blocks of ${roundedBlock}, so nothing can be packed; leave the precision out.`,
    )
  return { packings, checks: checksOf(packings, matrices.size - whole.length) }
}

const inputsOf = (t: StoredTensor, use: MatrixUse) => (use.layout === 'out,in' ? t.shape.at(-1) : t.shape[0]) as number

function checksOf(packings: readonly Packing[], left: number): string[] {
  const counts = (some: readonly Packing[]) => {
    const types = some.map((p) => p.tensor.type)
    return [...new Set(types)].map((type) => `${type}: ${types.filter((t) => t === type).length}`).join(', ')
  }
  const kept = packings.filter((p) => p.packer)
  const rounded = (bits: number) => packings.filter((p) => !p.packer && p.bits === bits)
  return [
    ...(kept.length > 0 ? [`${kept.length} matrices are used in the blocks of the file, without loss (${counts(kept)})`] : []),
    ...([8, 4] as const)
      .filter((bits) => rounded(bits).length > 0)
      .map(
        (bits) => `${rounded(bits).length} matrices were rounded to ${bits} bits in blocks of ${roundedBlock} (${counts(rounded(bits))})`,
      ),
    ...(left > 0 ? [`${left} matrices stay float32, since their rows are not whole blocks of ${roundedBlock}`] : []),
  ]
}

/** Values packed at a time: a multiple of all blocks. */
const CHUNK = 1 << 20

/** The sections of a packed matrix, and the weight once they have places. */
export function sectionsOf(store: WeightStore, p: Packing): { sections: Section[]; weight: (ref: RefMaker) => BlockWeight } {
  const { tensor, bits, block, transposed, packer } = p
  const { name, shape } = tensor
  const k = transposed ? (shape[0] as number) : (shape.at(-1) as number)
  const n = shape.reduce((a, b) => a * b, 1) / k
  const blocks = k / block
  const key = (part: string) => `${name}/${packer ? tensor.type : 'rounded'} ${bits} ${block} ${part}`
  // Scales are known once the values have passed, and are written after them.
  let scales = new Float32Array(0)
  let offsets = new Float32Array(0)
  async function* values(): AsyncGenerator<Uint8Array> {
    scales = new Float32Array(n * blocks)
    offsets = new Float32Array(packer?.offsets ? n * blocks : 0)
    let at = 0
    const pack = (count: number, fill: (packed: Uint8Array, scales: Float32Array, offsets: Float32Array) => void) => {
      const [packed, to] = [new Uint8Array((count * bits) / 8), at + count / block]
      fill(packed, scales.subarray(at, to), offsets.subarray(at, to))
      at = to
      return packed
    }
    if (packer) {
      const stored = storedTypes[tensor.type]
      for await (const raw of store.rawChunks(name, (CHUNK / stored.values) * stored.bytes))
        yield pack((raw.length / stored.bytes) * stored.values, (packed, s, o) => packer.pack(raw, { packed, scales: s, offsets: o }))
    } else {
      const pieces = transposed ? [turned(await store.readFloat32(name), k, n)] : store.float32Chunks(name, CHUNK)
      for await (const piece of pieces) yield pack(piece.length, (packed, s) => roundToBlocks(piece, bits, { packed, scales: s }))
    }
  }
  async function* bytesOf(numbers: () => Float32Array): AsyncGenerator<Uint8Array> {
    const { buffer, byteOffset, byteLength } = numbers()
    yield new Uint8Array(buffer, byteOffset, byteLength)
  }
  const numbers = { bytes: n * blocks * 4, of: name }
  const sections: Section[] = [
    { key: key('values'), of: name, bytes: (n * k * bits) / 8, pieces: values },
    { key: key('scales'), ...numbers, pieces: () => bytesOf(() => scales) },
    ...(packer?.offsets ? [{ key: key('offsets'), ...numbers, pieces: () => bytesOf(() => offsets) }] : []),
  ]
  return {
    sections,
    weight: (ref) => ({
      name,
      shape,
      layout: { n, k, block, bits },
      packed: ref(key('values'), 'uint8', [n, blocks, (block * bits) / 8]),
      scales: ref(key('scales'), 'float32', [n, blocks]),
      ...(packer?.offsets ? { offsets: ref(key('offsets'), 'float32', [n, blocks]) } : {}),
      transposed,
    }),
  }
}

/** Makes the reference to a section that has its place. */
export type RefMaker = (key: string, dtype: WeightRef['dtype'], shape: readonly number[]) => WeightRef

/** A matrix [rows, columns] with its axes exchanged. */
function turned(values: Float32Array, rows: number, columns: number): Float32Array {
  const out = new Float32Array(values.length)
  for (let i = 0; i < rows; i++) for (let j = 0; j < columns; j++) out[j * rows + i] = values[i * columns + j] as number
  return out
}
