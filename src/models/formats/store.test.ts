import { describe, expect, it } from 'vitest'
import { UsageError } from '../../base/errors.ts'
import { fromBytes } from './bytes.ts'
import { type StoredTensor, WeightStore } from './store.ts'
import { type StoredType, storedBytes, storedTypes } from './stored-types.ts'
import { expectRefusal, rawBytes } from './testing.ts'

const numbers = Float32Array.from({ length: 1000 }, (_, i) => i / 8)
const source = fromBytes(rawBytes(numbers), 'numbers')

function tensor(name: string, type: StoredType, shape: number[], more: Partial<StoredTensor> = {}): StoredTensor {
  return { name, type, shape, source, offset: 0, bytes: storedBytes(type, shape, name), ...more }
}

function storeOf(...tensors: StoredTensor[]): WeightStore {
  return new WeightStore({ format: 'test', name: 'numbers', tensors, sources: [source] })
}

async function chunksOf(store: WeightStore, name: string, size: number): Promise<number[][]> {
  const chunks: number[][] = []
  for await (const chunk of store.float32Chunks(name, size)) chunks.push([...chunk])
  return chunks
}

describe('WeightStore', () => {
  it('finds tensors and suggests the nearest name', async () => {
    const store = storeOf(tensor('model.norm.weight', 'F32', [10]), tensor('model.embed.weight', 'F32', [20]))
    expect(store.has('model.norm.weight')).toBe(true)
    expect(store.has('model.nrm.weight')).toBe(false)
    await expectRefusal(() => store.get('model.nrm.weight'), /numbers has no tensor model\.nrm\.weight; did you mean model\.norm\.weight\?/)
    await expectRefusal(() => store.get('something entirely else'), /its 2 tensors have other names\./)
    expect((await store.readFloat32('model.norm.weight')).length).toBe(10)
    expect(await store.readRawBytes('model.norm.weight')).toHaveLength(40)
  })

  it('gives chunks of whole blocks, all values in order', async () => {
    const store = storeOf(tensor('f32', 'F32', [100]), tensor('q8', 'Q8_0', [3, 64]), tensor('none', 'F16', [0, 5]))
    expect((await chunksOf(store, 'f32', 30)).map((c) => c.length)).toEqual([30, 30, 30, 10])
    expect((await chunksOf(store, 'f32', 30)).flat()).toEqual([...numbers.subarray(0, 100)])
    expect((await chunksOf(store, 'q8', 70)).map((c) => c.length)).toEqual([64, 64, 64])
    expect((await chunksOf(store, 'q8', 1)).map((c) => c.length)).toEqual(Array(6).fill(32))
    expect((await chunksOf(store, 'q8', 70)).flat()).toEqual([...(await store.readFloat32('q8'))])
    expect(await chunksOf(store, 'none', 3)).toEqual([])
    expect(await store.readFloat32('none')).toHaveLength(0)
    await expect(chunksOf(store, 'f32', 0)).rejects.toThrow(UsageError)
  })

  it('reads every element type as float32', async () => {
    const values = [0, 1, 2, 100]
    const arrays: Partial<Record<StoredType, ArrayBufferView>> = {
      F64: Float64Array.from(values),
      I8: Int8Array.from(values),
      U8: Uint8Array.from(values),
      I16: Int16Array.from(values),
      U16: Uint16Array.from(values),
      I32: Int32Array.from(values),
      U32: Uint32Array.from(values),
      I64: BigInt64Array.from(values, BigInt),
      U64: BigUint64Array.from(values, BigInt),
      F16: Uint16Array.of(0, 0x3c00, 0x4000, 0x5640),
      BF16: Uint16Array.of(0, 0x3f80, 0x4000, 0x42c8),
      F8_E4M3: Uint8Array.of(0, 0x38, 0x40, 0x6c),
    }
    for (const [type, array] of Object.entries(arrays) as [StoredType, ArrayBufferView][]) {
      const bytes = fromBytes(rawBytes(array))
      const store = storeOf(tensor('x', type, [2, 2], { source: bytes }))
      const expected = type === 'F8_E4M3' ? [0, 1, 2, 96] : values
      expect([...(await store.readFloat32('x'))], type).toEqual(expected)
      if (type !== 'F8_E4M3') expect((await store.readRaw('x')).data, type).toEqual(array)
    }
  })

  it('refuses to call packed values an array', async () => {
    const store = storeOf(tensor('q', 'Q4_0', [32]), tensor('f8', 'F8_E5M2', [4]))
    await expectRefusal(store.readRaw('q'), /q in numbers is stored as Q4_0, .* readFloat32/)
    await expectRefusal(store.readRaw('f8'), /F8_E5M2/)
  })

  it('refuses what cannot be', async () => {
    await expectRefusal(() => storeOf(tensor('a', 'F32', [1]), tensor('a', 'F32', [1])), /the tensor a twice/)
    await expectRefusal(() => storeOf(tensor('a', 'F32', [1001])), /has 4000 bytes/)
    await expectRefusal(() => storeOf(tensor('a', 'F32', [10], { bytes: 44 })), /takes 40 bytes, but it has 44/)
    await expectRefusal(() => storeOf(tensor('a', 'F32', [10], { offset: -4 })), /cannot be read/)
    await expectRefusal(() => storedBytes('F32', [2 ** 30, 2 ** 30], 'a'), /more elements than any file/)
    await expectRefusal(() => storedBytes('F32', [0, 2 ** 40, 2 ** 40], 'a'), /more elements than any file/)
    await expectRefusal(() => storedBytes('F64', [2 ** 52], 'a'), /more bytes than any file/)
    await expectRefusal(() => storedBytes('F32', [1.5], 'a'), /the size 1\.5/)
    await expectRefusal(() => storedBytes('Q4_0', [48], 'a'), /rows of 48 values, but Q4_0 packs 32/)
    expect(storedBytes('Q6_K', [2, 512], 'a')).toBe(4 * storedTypes.Q6_K.bytes)
    expect(storedBytes('F16', [], 'a')).toBe(2)
  })
})
