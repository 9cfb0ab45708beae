import { readFileSync } from 'node:fs'
import { describe, expect, it } from 'vitest'
import { randomStream } from '../sampling.ts'
import { type BlockPacker, type PackedBlocks, packers, roundedBlock, roundToBlocks } from './block-pack.ts'
import { openGguf } from './gguf.ts'
import { openSafetensors } from './safetensors.ts'
import { type StoredType, storedTypes } from './stored-types.ts'
import { hasShared, shared } from './testing.ts'

/** The values that packed blocks mean, by their definition. */
function unpacked(out: PackedBlocks, bits: 4 | 8, block: number): Float64Array {
  const values = new Float64Array((out.packed.length * 8) / bits)
  for (let i = 0; i < values.length; i++) {
    const q = bits === 8 ? (out.packed[i] as number) : ((out.packed[i >> 1] as number) >> (4 * (i & 1))) & 15
    const b = Math.floor(i / block)
    values[i] = (q - 2 ** (bits - 1)) * (out.scales[b] as number) + (out.offsets[b] ?? -0)
  }
  return values
}

const room = (count: number, p: Pick<BlockPacker, 'bits' | 'block' | 'offsets'>): PackedBlocks => ({
  packed: new Uint8Array((count * p.bits) / 8),
  scales: new Float32Array(count / p.block),
  offsets: new Float32Array(p.offsets ? count / p.block : 0),
})

/** Largest difference from the values of the file, in units of the largest value of a row of 256. */
function worst(ours: Float64Array, theirs: Float32Array): number {
  let error = 0
  for (let from = 0; from < theirs.length; from += 256) {
    const row = theirs.subarray(from, from + 256)
    const top = row.reduce((t, v) => Math.max(t, Math.abs(v)), 0)
    for (const [i, v] of row.entries()) if (v !== ours[from + i]) error = Math.max(error, Math.abs(v - (ours[from + i] as number)) / top)
  }
  return error
}

const types = Object.keys(packers) as StoredType[]

describe.skipIf(!hasShared('goldens/gguf-quants')).each(types)('recorded blocks of %s', (type) => {
  it('keep their values', async () => {
    const [store, expected] = [
      await openGguf(shared(`goldens/gguf-quants/${type}.gguf`)),
      await openSafetensors(shared(`goldens/gguf-quants/${type}.safetensors`)),
    ]
    const index = JSON.parse(readFileSync(shared('goldens/gguf-quants/index.json'), 'utf8'))
    const packer = packers[type] as BlockPacker
    for (const name of Object.keys(index.types[type].tensors)) {
      const values = await expected.readFloat32(name)
      const out = room(values.length, packer)
      packer.pack(await store.readRawBytes(name), out)
      // Without offsets a value is one product, in float32 as in the reference; offsets are rounded once more.
      const ours = unpacked(out, packer.bits, packer.block)
      if (packer.offsets) expect(worst(ours, values), name).toBeLessThan(2e-7)
      else expect(Float32Array.from(ours), name).toEqual(values)
    }
    await store.close()
    await expected.close()
  })
})

describe.each(types)('blocks of %s', (type) => {
  it('mean what the decoder reads from random bytes', () => {
    const packer = packers[type] as BlockPacker
    const format = storedTypes[type]
    const random = randomStream(3)
    const count = format.values * 24
    const raw = Uint8Array.from({ length: (count / format.values) * format.bytes }, () => Math.floor(256 * random()))
    // Exponents that mean infinity or NaN do not occur in files.
    const decoded = new Float32Array(count)
    format.decode(raw, decoded)
    const out = room(count, packer)
    packer.pack(raw, out)
    const ours = unpacked(out, packer.bits, packer.block)
    let compared = 0
    for (let b = 0; b < count; b += 32) {
      const block = decoded.subarray(b, b + 32)
      const top = block.reduce((t, v) => Math.max(t, Math.abs(v)), 0)
      if (!Number.isFinite(top)) continue
      const scale = Math.max(top, ...out.offsets.subarray(b / packer.block, b / packer.block + 1).map(Math.abs))
      for (const [i, v] of block.entries()) expect(Math.abs(v - (ours[b + i] as number))).toBeLessThanOrEqual(3e-7 * scale)
      compared++
    }
    expect(compared).toBeGreaterThan(10)
  })
})

describe('rounding to blocks', () => {
  it.each([4, 8] as const)('of %i bits is off by half a step at most, and keeps the value of largest size', (bits) => {
    const random = randomStream(5)
    const values = Float32Array.from({ length: 40 * roundedBlock }, (_, i) => (random() * 2 - 1) * 10 ** ((i % 7) - 3))
    values.fill(0, 64, 96)
    const out = room(values.length, { bits, block: 32, offsets: false })
    roundToBlocks(values, bits, out)
    const back = unpacked(out, bits, roundedBlock)
    for (let b = 0; b < values.length / 32; b++) {
      const step = Math.abs(out.scales[b] as number)
      const block = values.subarray(32 * b, 32 * b + 32)
      const top = block.reduce((t, v) => (Math.abs(v) > Math.abs(t) ? v : t), 0)
      expect(back[32 * b + block.indexOf(top)]).toBeCloseTo(top, 4)
      for (const [i, v] of block.entries()) {
        // At 4 bits the side opposite to the largest value ends one step earlier.
        const edge = bits === 4 && Math.sign(v) !== Math.sign(top) && Math.abs(v) > 7 * step
        expect(Math.abs(v - (back[32 * b + i] as number))).toBeLessThanOrEqual((edge ? 1 : 0.5) * step * 1.0001)
      }
    }
    expect(back.slice(64, 96).every((v) => v === 0)).toBe(true)
  })
})
