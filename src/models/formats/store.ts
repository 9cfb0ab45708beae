/** @file The tensors of a checkpoint, whatever its format: found by name, read by range, decoded on demand. */
import { FormatError, nearest, UsageError } from '../../base/errors.ts'
import type { NDArray } from '../../base/types.ts'
import { allocate, type ByteSource, checkRange } from './bytes.ts'
import { countOf, isElementType, type StoredType, storedBytes, storedTypes, viewOf } from './stored-types.ts'

/** A tensor that lies in a file: `bytes` bytes at `offset` of `source`, in row-major order. */
export interface StoredTensor {
  readonly name: string
  readonly type: StoredType
  readonly shape: readonly number[]
  readonly source: ByteSource
  readonly offset: number
  readonly bytes: number
}

/** A value of a checkpoint's metadata. */
export type MetadataValue = string | number | bigint | boolean | null | readonly MetadataValue[]

/** What a format reader has found in a file. */
export interface WeightStoreContents {
  /** Short name of the format: `safetensors`, `gguf`, `llama2c`, `pickle`. */
  readonly format: string
  /** What to call the checkpoint in a message: its path. */
  readonly name: string
  readonly tensors: Iterable<StoredTensor>
  readonly metadata?: Iterable<readonly [string, MetadataValue]>
  /** The sources to close with the store. */
  readonly sources: Iterable<ByteSource>
}

/** Bytes that a decoder reads at once: they stay in the processor's cache until they are decoded, and a read costs little beside them. */
const CHUNK_BYTES = 2 ** 20

/** The named tensors of a checkpoint; nothing is loaded before it is asked for. */
export class WeightStore {
  readonly format: string
  readonly name: string
  readonly tensors: ReadonlyMap<string, StoredTensor>
  readonly metadata: ReadonlyMap<string, MetadataValue>
  private readonly sources: readonly ByteSource[]

  /** Throws FormatError where a name comes twice or a tensor lies outside its source. */
  constructor({ format, name, tensors, metadata = [], sources }: WeightStoreContents) {
    const byName = new Map<string, StoredTensor>()
    for (const tensor of tensors) {
      if (byName.has(tensor.name)) throw new FormatError(`${name} holds the tensor ${tensor.name} twice; fetch it again.`)
      const expected = storedBytes(tensor.type, tensor.shape, `${tensor.name} in ${name}`)
      if (expected !== tensor.bytes) {
        throw new FormatError(
          `${tensor.name} in ${name} is ${tensor.type} [${tensor.shape.join(', ')}], which takes ${expected} bytes, but it has ${tensor.bytes}; fetch the file again.`,
        )
      }
      checkRange(tensor.source, tensor.offset, tensor.bytes)
      byName.set(tensor.name, tensor)
    }
    this.format = format
    this.name = name
    this.tensors = byName
    this.metadata = new Map(metadata)
    this.sources = [...new Set(sources)]
  }

  /** Whether there is a tensor of this name. */
  has(name: string): boolean {
    return this.tensors.has(name)
  }

  /** The tensor of this name, not yet loaded; throws FormatError with the nearest name where there is none. */
  get(name: string): StoredTensor {
    const tensor = this.tensors.get(name)
    if (tensor) return tensor
    const near = nearest(name, this.tensors.keys())
    const hint = near === undefined ? `its ${this.tensors.size} tensors have other names.` : `did you mean ${near}?`
    throw new FormatError(`${this.name} has no tensor ${name}; ${hint}`)
  }

  /** The bytes of a tensor exactly as the file has them, packed blocks included. */
  async readRawBytes(name: string): Promise<Uint8Array<ArrayBuffer>> {
    const { source, offset, bytes } = this.get(name)
    return source.read(offset, bytes)
  }

  /** A tensor in its own element type; throws FormatError for packed types and 8-bit floats, which have none in memory. */
  async readRaw(name: string): Promise<NDArray> {
    const { type, shape } = this.get(name)
    if (isElementType(type)) {
      const { dtype, data } = viewOf(type, await this.readRawBytes(name))
      if (dtype !== undefined) return { dtype, shape: [...shape], data }
    }
    throw new FormatError(
      `${name} in ${this.name} is stored as ${type}, which has no element type in memory; read it with readFloat32, or its bytes with readRawBytes.`,
    )
  }

  /** A tensor of any type as float32, in row-major order. */
  async readFloat32(name: string): Promise<Float32Array<ArrayBuffer>> {
    const { type, shape } = this.get(name)
    // The bytes of float32 are the values already.
    if (type === 'F32') return new Float32Array((await this.readRawBytes(name)).buffer)
    const { values, bytes, decode } = storedTypes[type]
    const out = new Float32Array(allocate(countOf(shape, name) * 4, `${name} as float32`).buffer)
    let done = 0
    for await (const raw of this.rawChunks(name, Math.floor(CHUNK_BYTES / bytes) * bytes)) {
      const next = done + (raw.length / bytes) * values
      decode(raw, out.subarray(done, next))
      done = next
    }
    return out
  }

  /**
   * A tensor of any type as float32, piece by piece in row-major order, so that a huge tensor passes through little memory.
   * Every piece but the last has `elementsPerChunk` elements, rounded down to whole blocks of the type, but at least one block.
   */
  async *float32Chunks(name: string, elementsPerChunk: number): AsyncGenerator<Float32Array<ArrayBuffer>, void, undefined> {
    if (!Number.isSafeInteger(elementsPerChunk) || elementsPerChunk < 1) {
      throw new UsageError(`elementsPerChunk is ${elementsPerChunk}; give a whole number from 1.`)
    }
    const { values, bytes, decode } = storedTypes[this.get(name).type]
    for await (const raw of this.rawChunks(name, Math.max(1, Math.floor(elementsPerChunk / values)) * bytes)) {
      const out = new Float32Array((raw.length / bytes) * values)
      decode(raw, out)
      yield out
    }
  }

  /** The stored bytes of a tensor, piece by piece: `step` bytes each, but the last. */
  async *rawChunks(name: string, step: number): AsyncGenerator<Uint8Array<ArrayBuffer>, void, undefined> {
    const { source, offset, bytes } = this.get(name)
    for (let at = 0; at < bytes; at += step) yield await source.read(offset + at, Math.min(step, bytes - at))
  }

  /** Closes the files; tensors that were read stay valid. */
  async close(): Promise<void> {
    for (const source of this.sources) await source.close()
  }
}

/** Runs `open`; where it fails, closes the sources that were opened on the way. */
export async function closingOnFailure<T>(sources: readonly ByteSource[], open: () => Promise<T> | T): Promise<T> {
  try {
    return await open()
  } catch (error) {
    for (const source of sources) await source.close()
    throw error
  }
}
