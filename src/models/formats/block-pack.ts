/**
 * @file Block types of GGUF as integers of 4 or 8 bits with a scale, and perhaps an offset, for each block: the same values,
 * laid out as matrix products take them. Only offsets are computed, in one float32 rounding.
 */
import { half, scaleAndMin, signed } from './gguf-quants.ts'
import type { StoredType } from './stored-types.ts'

/** Blocks as a product takes them: a value is scale · (q − middle of the range) + offset. */
export interface PackedBlocks {
  /** Integers of 4 bits, two to a byte, the lower half first; or of 8 bits. */
  readonly packed: Uint8Array
  /** One for each block. */
  readonly scales: Float32Array
  /** One for each block, where the type has them. */
  readonly offsets: Float32Array
}

/** How the blocks of a stored type are packed anew. */
export interface BlockPacker {
  readonly bits: 4 | 8
  /** Values to a scale. */
  readonly block: 16 | 32
  readonly offsets: boolean
  /** Packs `raw`, whole stored blocks, into arrays of just the right length. */
  pack(raw: Uint8Array, out: PackedBlocks): void
}

/** Writes the integers of one stored block, from 0 to the end of the range, and its scales and offsets from block `at` on. */
type BlockReader = (b: Uint8Array, p: number, q: Uint8Array, at: number, out: PackedBlocks) => void

/** A packer from the reader of one stored block of `bytes` bytes and `values` values. */
function packer(values: number, bytes: number, bits: 4 | 8, block: 16 | 32, offsets: boolean, read: BlockReader): BlockPacker {
  return {
    bits,
    block,
    offsets,
    pack(raw, out) {
      const q = new Uint8Array(values)
      for (let p = 0, at = 0, o = 0; p < raw.length; p += bytes, at += values / block) {
        read(raw, p, q, at, out)
        if (bits === 8) out.packed.set(q, o)
        else for (let j = 0; j < values; j += 2) out.packed[o + (j >> 1)] = q[j]! | (q[j + 1]! << 4)
        o += (values * bits) / 8
      }
    },
  }
}

/** The low halves of 16 bytes, then their high halves. */
function halves(b: Uint8Array, p: number, q: Uint8Array): void {
  for (let j = 0; j < 16; j++) {
    q[j] = b[p + j]! & 15
    q[16 + j] = b[p + j]! >> 4
  }
}

/** The fifth bits of 32 values, added to their low four, and moved so that the middle of 5 bits is that of 8. */
function fifthBits(b: Uint8Array, p: number, q: Uint8Array): void {
  for (let j = 0; j < 32; j++) q[j] = q[j]! + (((b[p + (j >> 3)]! >> (j & 7)) & 1) << 4) + 112
}

const q4_0 = packer(32, 18, 4, 32, false, (b, p, q, at, out) => {
  out.scales[at] = half(b, p)
  halves(b, p + 2, q)
})

const q4_1 = packer(32, 20, 4, 32, true, (b, p, q, at, out) => {
  const d = half(b, p)
  out.scales[at] = d
  out.offsets[at] = half(b, p + 2) + 8 * d
  halves(b, p + 4, q)
})

const q5_0 = packer(32, 22, 8, 32, false, (b, p, q, at, out) => {
  out.scales[at] = half(b, p)
  halves(b, p + 6, q)
  fifthBits(b, p + 2, q)
})

const q5_1 = packer(32, 24, 8, 32, true, (b, p, q, at, out) => {
  const d = half(b, p)
  out.scales[at] = d
  out.offsets[at] = half(b, p + 2) + 16 * d
  halves(b, p + 8, q)
  fifthBits(b, p + 4, q)
})

const q8_0 = packer(32, 34, 8, 32, false, (b, p, q, at, out) => {
  out.scales[at] = half(b, p)
  for (let j = 0; j < 32; j++) q[j] = b[p + 2 + j]! ^ 0x80
})

/** Scales and offsets of the eight blocks of Q4_K and Q5_K, whose values are scale · q − minimum. */
function superBlock(b: Uint8Array, p: number, middle: number, at: number, out: PackedBlocks): void {
  const [d, dmin] = [half(b, p), half(b, p + 2)]
  for (let i = 0; i < 8; i++) {
    const [s, m] = scaleAndMin(b, p + 4, i)
    out.scales[at + i] = d * s
    out.offsets[at + i] = middle * d * s - dmin * m
  }
}

const q4_k = packer(256, 144, 4, 32, true, (b, p, q, at, out) => {
  superBlock(b, p, 8, at, out)
  for (let i = 0; i < 8; i++) for (let j = 0; j < 32; j++) q[32 * i + j] = (b[p + 16 + (i >> 1) * 32 + j]! >> ((i & 1) * 4)) & 15
})

const q5_k = packer(256, 176, 8, 32, true, (b, p, q, at, out) => {
  superBlock(b, p, 16, at, out)
  for (let i = 0; i < 8; i++)
    for (let j = 0; j < 32; j++) {
      const low = (b[p + 48 + (i >> 1) * 32 + j]! >> ((i & 1) * 4)) & 15
      q[32 * i + j] = (low | (((b[p + 16 + j]! >> i) & 1) << 4)) + 112
    }
})

const q6_k = packer(256, 210, 8, 16, false, (b, p, q, at, out) => {
  const d = half(b, p + 208)
  for (let i = 0; i < 16; i++) {
    out.scales[at + i] = d * signed(b, p + 192 + i)
    const column = (i & 1) * 16
    const low = p + (i >> 3) * 64 + ((i >> 1) & 1) * 32 + column
    const high = p + 128 + (i >> 3) * 32 + column
    for (let j = 0; j < 16; j++)
      q[i * 16 + j] = (((b[low + j]! >> (((i >> 2) & 1) * 4)) & 15) | (((b[high + j]! >> (((i >> 1) & 3) * 2)) & 3) << 4)) + 96
  }
})

/** Types whose blocks can be used as they are. */
export const packers: Readonly<Partial<Record<StoredType, BlockPacker>>> = {
  Q4_0: q4_0,
  Q4_1: q4_1,
  Q5_0: q5_0,
  Q5_1: q5_1,
  Q8_0: q8_0,
  Q4_K: q4_k,
  Q5_K: q5_k,
  Q6_K: q6_k,
}

/** Values that {@link roundToBlocks} gives one scale. */
export const roundedBlock = 32

/**
 * Rounds values to nearest in blocks of 32, around zero: at 8 bits the largest size becomes 127 steps; at 4 bits the value of largest
 * size becomes −8 steps, as in Q4_0, so that no step is lost.
 */
export function roundToBlocks(values: Float32Array, bits: 4 | 8, out: Pick<PackedBlocks, 'packed' | 'scales'>): void {
  const [middle, top] = bits === 8 ? [128, 255] : [8, 15]
  for (let at = 0, from = 0; from < values.length; at++, from += roundedBlock) {
    let extreme = 0
    for (let j = 0; j < roundedBlock; j++) {
      const v = values[from + j]!
      if (Math.abs(v) > Math.abs(extreme)) extreme = v
    }
    const scale = Math.fround(bits === 8 ? Math.abs(extreme) / 127 : extreme / -8)
    out.scales[at] = scale
    const inverse = scale === 0 ? 0 : 1 / scale
    const step = (j: number) => Math.min(top, Math.max(0, Math.round(values[from + j]! * inverse) + middle))
    if (bits === 8) for (let j = 0; j < roundedBlock; j++) out.packed[from + j] = step(j)
    else for (let j = 0; j < roundedBlock; j += 2) out.packed[(from + j) >> 1] = step(j) | (step(j + 1) << 4)
  }
}
