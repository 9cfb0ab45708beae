import { closeSync, ftruncateSync, mkdirSync, openSync, readdirSync, readFileSync, writeFileSync, writeSync } from 'node:fs'
import { open } from 'node:fs/promises'
import { join } from 'node:path'
import { describe, expect, it, vi } from 'vitest'
import { ShapeError, UsageError } from '../../base/errors.ts'
import type { DType, NDArray, TypedArray } from '../../base/types.ts'
import { fromBytes } from './bytes.ts'
import { decodeSafetensors, openSafetensors } from './safetensors.ts'
import { createSafetensorsWriter, encodeSafetensors, writeSafetensors } from './safetensors-write.ts'
import { bytesOfPieces, expectRefusal, hasShared, little, shared, temporaryFolder } from './testing.ts'

function array(dtype: DType, shape: number[], data: TypedArray): NDArray {
  return { dtype, shape, data }
}

const everyType: Record<string, NDArray> = {
  bool: array('bool', [3], Uint8Array.of(1, 0, 1)),
  int8: array('int8', [2], Int8Array.of(-128, 127)),
  uint8: array('uint8', [1, 1], Uint8Array.of(255)),
  int16: array('int16', [3], Int16Array.of(-32768, 0, 32767)),
  uint16: array('uint16', [1], Uint16Array.of(65535)),
  int32: array('int32', [2], Int32Array.of(-(2 ** 31), 7)),
  uint32: array('uint32', [1], Uint32Array.of(2 ** 32 - 1)),
  int64: array('int64', [2], BigInt64Array.of(-(2n ** 63n), 2n ** 63n - 1n)),
  uint64: array('uint64', [1], BigUint64Array.of(2n ** 64n - 1n)),
  float16: array('float16', [2], Uint16Array.of(0x3c00, 0x7e01)),
  bfloat16: array('bfloat16', [2], Uint16Array.of(0x3f80, 0x7fc1)),
  float32: array('float32', [2, 3], Float32Array.of(1, -0, 2.5, Infinity, 1e-40, 3)),
  float64: array('float64', [1], Float64Array.of(Math.PI)),
  scalar: array('float32', [], Float32Array.of(42)),
  empty: array('float32', [0, 4], new Float32Array(0)),
  ['__proto__']: array('uint8', [1], Uint8Array.of(9)),
  'name "with" \\ and ü': array('uint8', [1], Uint8Array.of(8)),
}

const metadata = { format: 'pt', note: 'größe "5"' }

/** A file with this header, whatever it says, and `size` bytes of data. */
function fileOf(header: unknown, size: number): Uint8Array {
  const json = typeof header === 'string' ? header : JSON.stringify(header)
  const bytes = new TextEncoder().encode(json)
  return bytesOfPieces(little(8, bytes.length), bytes, new Uint8Array(size))
}

const entry = (dtype: unknown, shape: unknown, offsets: unknown) => ({ dtype, shape, data_offsets: offsets })

describe('safetensors in memory', () => {
  it('keeps every type, name and metadata', () => {
    const bytes = encodeSafetensors(everyType, metadata)
    const back = decodeSafetensors(bytes)
    expect(back.metadata).toEqual(metadata)
    expect(Object.keys(back.tensors).sort()).toEqual(Object.keys(everyType).sort())
    for (const [name, tensor] of Object.entries(everyType))
      expect(Object.entries(back.tensors).find(([n]) => n === name)![1]).toEqual(tensor)
  })

  it('aligns the data to 64 bytes and each tensor to its elements', () => {
    const bytes = encodeSafetensors(everyType)
    const start = 8 + Number(new DataView(bytes.buffer).getBigUint64(0, true))
    expect(start % 64).toBe(0)
    const header = JSON.parse(new TextDecoder().decode(bytes.subarray(8, start)))
    for (const [name, { data }] of Object.entries(everyType)) expect(header[name].data_offsets[0] % data.BYTES_PER_ELEMENT).toBe(0)
    expect(decodeSafetensors(encodeSafetensors({}))).toEqual({ tensors: {}, metadata: {} })
  })

  it('refuses arrays that are not what they say', () => {
    expect(() => encodeSafetensors({ a: array('float32', [3], new Float32Array(2)) })).toThrow(ShapeError)
    expect(() => encodeSafetensors({ a: array('float32', [2], new Float64Array(2)) })).toThrow(/a is said to be float32 \[2\]/)
    expect(() => encodeSafetensors({ a: array('int4', [2], new Uint8Array(1)) })).toThrow(UsageError)
    expect(() => encodeSafetensors({ a: array('uint8', [1.5], new Uint8Array(1)) })).toThrow(ShapeError)
    expect(() => encodeSafetensors({ __metadata__: everyType.bool! })).toThrow(UsageError)
    expect(() => encodeSafetensors({}, { a: 1 } as unknown as Record<string, string>)).toThrow(/strings only/)
  })

  const F32 = entry('F32', [2], [0, 8])
  const hostile: Record<string, [Uint8Array, RegExp]> = {
    'no bytes': [new Uint8Array(0), /too few/],
    'a huge header': [bytesOfPieces(little(8, 2n ** 63n), '{}'), /is not safetensors/],
    'a header beyond the file': [bytesOfPieces(little(8, 1000), '{}'), /truncated: its header needs 1000 bytes, but 2/],
    'no object': [fileOf([], 0), /does not begin with/],
    'no JSON': [fileOf('{"a":', 0), /is not JSON/],
    'no UTF-8': [bytesOfPieces(little(8, 3), '{', 0xff, '}'), /is not JSON/],
    'a repeated tensor': [fileOf(`{"a":${JSON.stringify(F32)},"\\u0061":${JSON.stringify(F32)}}`, 8), /the key a twice/],
    'a repeated field': [fileOf('{"a":{"dtype":"F32","dtype":"I32","shape":[2],"data_offsets":[0,8]}}', 8), /the key dtype twice/],
    'an unknown type': [fileOf({ a: entry('F4', [2], [0, 1]) }, 1), /a in .* has the type "F4"/],
    'a type of the prototype': [fileOf({ a: entry('toString', [2], [0, 1]) }, 1), /has the type "toString"/],
    'an unknown field': [fileOf({ a: { ...F32, strides: [1] } }, 8), /fields that safetensors does not know \(strides\)/],
    'no shape': [fileOf({ a: entry('F32', null, [0, 8]) }, 8), /has no shape/],
    'a negative size': [fileOf({ a: entry('F32', [-2], [0, 8]) }, 8), /the size -2/],
    'a size that is text': [fileOf({ a: entry('F32', ['2'], [0, 8]) }, 8), /the size "2"/],
    'an absurd shape': [fileOf({ a: entry('F32', [2 ** 31, 2 ** 31, 2 ** 31], [0, 8]) }, 8), /more elements than any file/],
    'a hidden absurd shape': [fileOf({ a: entry('F32', [2 ** 52, 2 ** 52, 0], [0, 0]) }, 0), /more elements than any file/],
    'a wrong size': [fileOf({ a: entry('F32', [3], [0, 8]) }, 8), /takes 12 bytes, but its data_offsets span 8/],
    'one offset': [fileOf({ a: entry('F32', [2], [0]) }, 8), /are no range/],
    'backward offsets': [fileOf({ a: entry('F32', [0], [8, 0]) }, 8), /are no range/],
    'fractional offsets': [fileOf({ a: entry('U8', [1], [0.5, 1.5]) }, 8), /are no range/],
    'an overlap': [fileOf({ a: F32, b: entry('U8', [4], [4, 8]) }, 8), /b overlaps a/],
    'the same bytes twice': [fileOf({ a: F32, b: F32 }, 8), /overlaps/],
    'a gap': [fileOf({ a: F32, b: entry('U8', [1], [9, 10]) }, 10), /has 1 bytes between a and b/],
    'a gap at the start': [fileOf({ a: entry('F32', [2], [4, 12]) }, 12), /has 4 bytes between the header and a/],
    'bytes at the end': [fileOf({ a: F32 }, 9), /has 1 bytes after its last tensor/],
    'data cut off': [fileOf({ a: F32 }, 7), /truncated: its tensors need 8 bytes, but 7/],
    'metadata that is no text': [fileOf({ __metadata__: { a: 1 } }, 0), /has a, which is not a string/],
    'metadata that is a list': [fileOf({ __metadata__: [] }, 0), /not an object of strings/],
    'deep nesting': [fileOf(`{"a":${'['.repeat(100_000)}${']'.repeat(100_000)}}`, 0), /does not describe the tensor a/],
  }

  it.each(Object.keys(hostile))('refuses %s, from memory and from a source alike', async (name) => {
    const [bytes, message] = hostile[name]!
    await expectRefusal(() => decodeSafetensors(bytes), message)
    await expectRefusal(openSafetensors(fromBytes(bytes)), message)
  })

  it('reads long strings in the header', () => {
    const note = '\\"x{['.repeat(500_000)
    expect(decodeSafetensors(encodeSafetensors({}, { note })).metadata.note).toBe(note)
  })

  it('keeps 8-bit floats for readers that decode them', async () => {
    const bytes = fileOf({ a: entry('F8_E4M3', [3], [0, 3]) }, 3)
    bytes.set([0x38, 0x40, 0xb8], bytes.length - 3)
    await expectRefusal(() => decodeSafetensors(bytes), /stored as F8_E4M3/)
    expect([...(await (await openSafetensors(fromBytes(bytes))).readFloat32('a'))]).toEqual([1, 2, -1])
  })
})

describe('safetensors in files', () => {
  it('writes what it reads', async () => {
    const folder = temporaryFolder()
    const path = join(folder, 'model.safetensors')
    await writeSafetensors(path, everyType, metadata)
    expect(readdirSync(folder)).toEqual(['model.safetensors'])
    for (const from of [path, folder]) {
      const store = await openSafetensors(from)
      expect(store.tensors.size).toBe(Object.keys(everyType).length)
      expect(Object.fromEntries(store.metadata)).toEqual(metadata)
      for (const [name, tensor] of Object.entries(everyType)) expect(await store.readRaw(name), name).toEqual(tensor)
      await store.close()
    }
  })

  it('writes tensor by tensor, in any order and in pieces', async () => {
    const path = join(temporaryFolder(), 'streamed.safetensors')
    const entries = [
      { name: 'flags', dtype: 'uint8', shape: [3] },
      { name: 'weights', dtype: 'float32', shape: [2, 2] },
    ] as const
    const writer = await createSafetensorsWriter(path, entries, { a: 'b' })
    await writer.write('weights', Float32Array.of(1, 2, 3))
    await writer.write('flags', Uint8Array.of(7, 8, 9))
    await writer.write('weights', Float32Array.of(4))
    await writer.finish()
    const { tensors } = decodeSafetensors(readFileSync(path))
    expect([...tensors.weights!.data]).toEqual([1, 2, 3, 4])
    expect([...tensors.flags!.data]).toEqual([7, 8, 9])
  })

  it('leaves nothing behind when data is missing, too long, unknown or given up', async () => {
    const folder = temporaryFolder()
    const path = join(folder, 'x.safetensors')
    const begin = () => createSafetensorsWriter(path, [{ name: 'a', dtype: 'uint8', shape: [2] }])
    const first = await begin()
    await first.write('a', new Uint8Array(1))
    await expect(first.finish()).rejects.toThrow(/data is missing for a/)
    await expect((await begin()).write('a', new Uint8Array(3))).rejects.toThrow(/with 2 bytes, but more came/)
    await expect((await begin()).write('b', new Uint8Array(1))).rejects.toThrow(/b was not announced/)
    const last = await begin()
    await last.abort()
    await expect(last.write('a', new Uint8Array(1))).rejects.toThrow(UsageError)
    expect(readdirSync(folder)).toEqual([])
  })

  it('keeps the old file and removes its own when the disk is full', async () => {
    const folder = temporaryFolder()
    const path = join(folder, 'x.safetensors')
    writeFileSync(path, 'old')
    const probe = await open(path)
    const handle = Object.getPrototypeOf(probe) as { write: unknown }
    await probe.close()
    const full = vi.spyOn(handle as { write: () => Promise<unknown> }, 'write')
    full.mockRejectedValueOnce(Object.assign(new Error('ENOSPC: no space left on device'), { code: 'ENOSPC' }))
    await expectRefusal(writeSafetensors(path, everyType), /The disk is full, so .*x\.safetensors was not written/)
    full.mockRestore()
    expect(readdirSync(folder)).toEqual(['x.safetensors'])
    expect(readFileSync(path, 'utf8')).toBe('old')
  })

  it('explains folders that are missing or in the way', async () => {
    const folder = temporaryFolder()
    await expect(writeSafetensors(join(folder, 'absent', 'x.safetensors'), {})).rejects.toThrow(
      /The folder .*absent does not exist: create it first/,
    )
    await expect(writeSafetensors(folder, {})).rejects.toThrow(/is a folder: give the name of a file/)
    expect(readdirSync(folder)).toEqual([])
    await expectRefusal(openSafetensors(join(folder, 'absent')), /There is no file/)
    await expectRefusal(openSafetensors(folder), /has no safetensors file; fetch model\.safetensors/)
    await expectRefusal(openSafetensors([]), /No safetensors file was given/)
  })

  it('reads far beyond 4 GiB without loading the file', async () => {
    const path = join(temporaryFolder(), 'large.safetensors')
    const size = 5 * 2 ** 30
    const header = new TextEncoder().encode(
      JSON.stringify({ big: entry('U8', [5, 2 ** 30], [0, size]), last: entry('F32', [2], [size, size + 8]) }),
    )
    const file = openSync(path, 'w')
    writeSync(file, bytesOfPieces(little(8, header.length), header))
    ftruncateSync(file, 8 + header.length + size + 8)
    writeSync(file, new Uint8Array(Float32Array.of(1.5, -2).buffer), 0, 8, 8 + header.length + size)
    closeSync(file)
    const store = await openSafetensors(path)
    expect([...(await store.readFloat32('last'))]).toEqual([1.5, -2])
    for await (const chunk of store.float32Chunks('big', 1000)) {
      expect(chunk).toHaveLength(1000)
      break
    }
    await store.close()
  })

  it.skipIf(!hasShared('goldens/llama/model.safetensors'))('reads what the reference library wrote', async () => {
    const path = shared('goldens/llama/model.safetensors')
    const store = await openSafetensors(path)
    const { tensors } = decodeSafetensors(readFileSync(path))
    expect(store.tensors.size).toBeGreaterThan(10)
    for (const name of store.tensors.keys()) expect(await store.readRaw(name)).toEqual(tensors[name])
    expect(store.get('model.embed_tokens.weight').shape).toHaveLength(2)
    await store.close()
  })
})

describe('sharded safetensors', () => {
  async function sharded(): Promise<{ folder: string; index: string }> {
    const folder = temporaryFolder()
    await writeSafetensors(
      join(folder, 'model-00001-of-00002.safetensors'),
      { a: everyType.float32!, b: everyType.bool! },
      { format: 'pt' },
    )
    await writeSafetensors(join(folder, 'model-00002-of-00002.safetensors'), { c: everyType.int64! }, { format: 'pt' })
    const index = join(folder, 'model.safetensors.index.json')
    writeIndex(index, {
      a: 'model-00001-of-00002.safetensors',
      b: 'model-00001-of-00002.safetensors',
      c: 'model-00002-of-00002.safetensors',
    })
    return { folder, index }
  }

  function writeIndex(path: string, weightMap: unknown): void {
    writeFileSync(path, JSON.stringify({ metadata: { total_size: 1 }, weight_map: weightMap }))
  }

  it('joins the shards of a folder', async () => {
    const { folder, index } = await sharded()
    for (const from of [folder, index]) {
      const store = await openSafetensors(from)
      expect([...store.tensors.keys()].sort()).toEqual(['a', 'b', 'c'])
      expect(await store.readRaw('c')).toEqual(everyType.int64)
      expect(store.metadata.get('format')).toBe('pt')
      await store.close()
    }
  })

  it('joins sources without an index', async () => {
    const parts = [fromBytes(encodeSafetensors({ a: everyType.bool! })), fromBytes(encodeSafetensors({ b: everyType.int8! }))]
    expect([...(await openSafetensors(parts)).tensors.keys()]).toEqual(['a', 'b'])
    await expectRefusal(openSafetensors([parts[0]!, parts[0]!]), /the tensor a twice/)
  })

  it('refuses an index that does not fit', async () => {
    const { folder, index } = await sharded()
    const refuse = async (weightMap: unknown, message: RegExp) => {
      writeIndex(index, weightMap)
      await expectRefusal(openSafetensors(folder), message)
    }
    await refuse(
      { a: 'model-00003-of-00003.safetensors' },
      /names model-00003-of-00003\.safetensors, which cannot be opened: .* Fetch the missing file/,
    )
    await refuse({ a: 'model-00001-of-00002.safetensors', c: 'model-00001-of-00002.safetensors' }, /says that c is in .*, but it is not/)
    await refuse({ z: 'model-00001-of-00002.safetensors' }, /says that z is in/)
    await refuse({ a: '../secret.safetensors' }, /which is no file beside the index/)
    await refuse({ a: '..' }, /which is no file beside the index/)
    await refuse({ a: 5 }, /which is no file beside the index/)
    await refuse({}, /names no tensors/)
    await refuse([], /is not an index/)
    writeFileSync(index, '{')
    await expectRefusal(openSafetensors(folder), /is not an index/)
  })

  it('asks which of several files is meant', async () => {
    const folder = temporaryFolder()
    await writeSafetensors(join(folder, 'one.safetensors'), {})
    expect((await openSafetensors(folder)).tensors.size).toBe(0)
    await writeSafetensors(join(folder, 'two.safetensors'), {})
    await expectRefusal(openSafetensors(folder), /several safetensors files \(one\.safetensors, two\.safetensors\)/)
    mkdirSync(join(folder, 'model.safetensors'))
    await expectRefusal(openSafetensors(folder), /is not a file/)
  })
})
