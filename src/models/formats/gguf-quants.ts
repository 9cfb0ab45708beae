/**
 * @file The block types of GGUF that need no code book: Q, K, ternary and 4-bit float quantisation, decoded to float32.
 *
 * Every product below is exact in float64 and is rounded once, when it is stored as float32; therefore the values are the
 * same bits that the reference computes in float32.
 */
import { f16Values } from './float.ts'

/** How values are packed: so many values in so many bytes, and how to decode whole blocks. */
export interface BlockFormat {
  /** Values of one block. */
  readonly values: number
  /** Bytes of one block. */
  readonly bytes: number
  /** Decodes `blocks`, a whole number of blocks, into `out`. */
  decode(blocks: Uint8Array, out: Float32Array): void
}

/** Decodes one block that starts at byte `p` into the values that start at `o`. */
type BlockDecoder = (b: Uint8Array, p: number, out: Float32Array, o: number) => void

/** A format from the decoder of one block. */
export function blocksOf(values: number, bytes: number, one: BlockDecoder): BlockFormat {
  return {
    values,
    bytes,
    decode(blocks, out) {
      for (let p = 0, o = 0; p < blocks.length; p += bytes, o += values) one(blocks, p, out, o)
    },
  }
}

/** The float16 at byte `p`. */
export function half(b: Uint8Array, p: number): number {
  return f16Values()[b[p]! | (b[p + 1]! << 8)]!
}

/** The signed 8-bit integer at byte `p`. */
export const signed = (b: Uint8Array, p: number): number => (b[p]! << 24) >> 24

const q4_0 = blocksOf(32, 18, (b, p, out, o) => {
  const d = half(b, p)
  for (let j = 0; j < 16; j++) {
    const q = b[p + 2 + j]!
    out[o + j] = d * ((q & 15) - 8)
    out[o + 16 + j] = d * ((q >> 4) - 8)
  }
})

const q4_1 = blocksOf(32, 20, (b, p, out, o) => {
  const d = half(b, p)
  const m = half(b, p + 2)
  for (let j = 0; j < 16; j++) {
    const q = b[p + 4 + j]!
    out[o + j] = d * (q & 15) + m
    out[o + 16 + j] = d * (q >> 4) + m
  }
})

const q5_0 = blocksOf(32, 22, (b, p, out, o) => {
  const d = half(b, p)
  for (let j = 0; j < 16; j++) {
    const q = b[p + 6 + j]!
    const low = (b[p + 2 + (j >> 3)]! >> (j & 7)) & 1
    const high = (b[p + 4 + (j >> 3)]! >> (j & 7)) & 1
    out[o + j] = d * (((q & 15) | (low << 4)) - 16)
    out[o + 16 + j] = d * (((q >> 4) | (high << 4)) - 16)
  }
})

const q5_1 = blocksOf(32, 24, (b, p, out, o) => {
  const d = half(b, p)
  const m = half(b, p + 2)
  for (let j = 0; j < 16; j++) {
    const q = b[p + 8 + j]!
    const low = (b[p + 4 + (j >> 3)]! >> (j & 7)) & 1
    const high = (b[p + 6 + (j >> 3)]! >> (j & 7)) & 1
    out[o + j] = d * ((q & 15) | (low << 4)) + m
    out[o + 16 + j] = d * ((q >> 4) | (high << 4)) + m
  }
})

const q8_0 = blocksOf(32, 34, (b, p, out, o) => {
  const d = half(b, p)
  for (let j = 0; j < 32; j++) out[o + j] = d * signed(b, p + 2 + j)
})

/** One bit a value: the sign of the block's scale. */
const q1_0 = blocksOf(128, 18, (b, p, out, o) => {
  const d = half(b, p)
  for (let j = 0; j < 128; j++) out[o + j] = (b[p + 2 + (j >> 3)]! >> (j & 7)) & 1 ? d : -d
})

const q2_k = blocksOf(256, 84, (b, p, out, o) => {
  const d = half(b, p + 80)
  const dmin = half(b, p + 82)
  for (let i = 0; i < 16; i++) {
    const scale = d * (b[p + i]! & 15)
    const min = dmin * (b[p + i]! >> 4)
    const from = p + 16 + (i >> 3) * 32 + (i & 1) * 16
    const shift = ((i >> 1) & 3) * 2
    for (let j = 0; j < 16; j++) out[o + i * 16 + j] = scale * ((b[from + j]! >> shift) & 3) - min
  }
})

const q3_k = blocksOf(256, 110, (b, p, out, o) => {
  const d = half(b, p + 108)
  for (let i = 0; i < 16; i++) {
    const low = (b[p + 96 + (i & 7)]! >> (i < 8 ? 0 : 4)) & 15
    const high = (b[p + 104 + (i & 3)]! >> ((i >> 2) * 2)) & 3
    const scale = d * ((low | (high << 4)) - 32)
    const column = (i & 1) * 16
    const from = p + 32 + (i >> 3) * 32 + column
    const shift = ((i >> 1) & 3) * 2
    for (let j = 0; j < 16; j++) {
      // The mask bit is set where nothing has to be subtracted.
      const above = (b[p + column + j]! >> (i >> 1)) & 1
      out[o + i * 16 + j] = scale * (((b[from + j]! >> shift) & 3) - (above ? 0 : 4))
    }
  }
})

/** The 6-bit scale (first) or minimum (second) of sub-block `i`, of the 12 bytes at `p` that Q4_K and Q5_K share. */
export function scaleAndMin(b: Uint8Array, p: number, i: number): [number, number] {
  if (i < 4) return [b[p + i]! & 63, b[p + i + 4]! & 63]
  const shared = b[p + i + 4]!
  return [(shared & 15) | ((b[p + i - 4]! >> 6) << 4), (shared >> 4) | ((b[p + i]! >> 6) << 4)]
}

const q4_k = blocksOf(256, 144, (b, p, out, o) => {
  const d = half(b, p)
  const dmin = half(b, p + 2)
  for (let i = 0; i < 8; i++) {
    const [s, m] = scaleAndMin(b, p + 4, i)
    const scale = d * s
    const min = dmin * m
    const from = p + 16 + (i >> 1) * 32
    const shift = (i & 1) * 4
    for (let j = 0; j < 32; j++) out[o + i * 32 + j] = scale * ((b[from + j]! >> shift) & 15) - min
  }
})

const q5_k = blocksOf(256, 176, (b, p, out, o) => {
  const d = half(b, p)
  const dmin = half(b, p + 2)
  for (let i = 0; i < 8; i++) {
    const [s, m] = scaleAndMin(b, p + 4, i)
    const scale = d * s
    const min = dmin * m
    const from = p + 48 + (i >> 1) * 32
    const shift = (i & 1) * 4
    for (let j = 0; j < 32; j++) {
      const high = (b[p + 16 + j]! >> i) & 1
      out[o + i * 32 + j] = scale * (((b[from + j]! >> shift) & 15) | (high << 4)) - min
    }
  }
})

const q6_k = blocksOf(256, 210, (b, p, out, o) => {
  const d = half(b, p + 208)
  for (let i = 0; i < 16; i++) {
    const scale = d * signed(b, p + 192 + i)
    const column = (i & 1) * 16
    const low = p + (i >> 3) * 64 + ((i >> 1) & 1) * 32 + column
    const lowShift = ((i >> 2) & 1) * 4
    const high = p + 128 + (i >> 3) * 32 + column
    const highShift = ((i >> 1) & 3) * 2
    for (let j = 0; j < 16; j++) {
      const q = ((b[low + j]! >> lowShift) & 15) | (((b[high + j]! >> highShift) & 3) << 4)
      out[o + i * 16 + j] = scale * (q - 32)
    }
  }
})

/** Only ever an intermediate of matrix products in llama.cpp, but a file may hold it: float32 scale, 256 values, 16 sums. */
const q8_k = blocksOf(256, 292, (b, p, out, o) => {
  const d = new DataView(b.buffer, b.byteOffset + p).getFloat32(0, true)
  for (let j = 0; j < 256; j++) out[o + j] = d * signed(b, p + 4 + j)
})

const powersOf3 = [1, 3, 9, 27, 81] as const

const tq1_0 = blocksOf(256, 54, (b, p, out, o) => {
  const d = half(b, p + 52)
  // A byte holds five base-3 digits as a fraction of 256: multiplying by 3ⁿ brings digit n to the front.
  const digits = (from: number, count: number, n: number, at: number) => {
    for (let j = 0; j < count; j++) {
      const fraction = (b[from + j]! * powersOf3[n]!) & 255
      out[at + j] = d * (((fraction * 3) >> 8) - 1)
    }
  }
  for (let n = 0; n < 5; n++) digits(p, 32, n, o + n * 32)
  for (let n = 0; n < 5; n++) digits(p + 32, 16, n, o + 160 + n * 16)
  for (let n = 0; n < 4; n++) digits(p + 48, 4, n, o + 240 + n * 4)
})

const tq2_0 = blocksOf(256, 66, (b, p, out, o) => {
  const d = half(b, p + 64)
  for (let i = 0; i < 8; i++) {
    const from = p + (i >> 2) * 32
    const shift = (i & 3) * 2
    for (let j = 0; j < 32; j++) out[o + i * 32 + j] = d * (((b[from + j]! >> shift) & 3) - 1)
  }
})

/** Twice the values of the 4-bit float E2M1; the scales below carry the other half. */
const e2m1 = Int8Array.of(0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12)

const mxfp4 = blocksOf(32, 17, (b, p, out, o) => {
  const d = 2 ** (b[p]! - 128)
  for (let j = 0; j < 16; j++) {
    const q = b[p + 1 + j]!
    out[o + j] = d * e2m1[q & 15]!
    out[o + 16 + j] = d * e2m1[q >> 4]!
  }
})

/** Half the value of an unsigned 8-bit float with 4 exponent bits; the code that would be NaN counts as zero, as in llama.cpp. */
function halfOfE4m3(x: number): number {
  if (x === 0x7f) return 0
  const exponent = (x >> 3) & 15
  const mantissa = x & 7
  return exponent === 0 ? mantissa * 2 ** -10 : (8 + mantissa) * 2 ** (exponent - 11)
}

const nvfp4 = blocksOf(64, 36, (b, p, out, o) => {
  for (let i = 0; i < 4; i++) {
    const d = halfOfE4m3(b[p + i]!)
    for (let j = 0; j < 8; j++) {
      const q = b[p + 4 + i * 8 + j]!
      out[o + i * 16 + j] = d * e2m1[q & 15]!
      out[o + i * 16 + 8 + j] = d * e2m1[q >> 4]!
    }
  }
})

/** Block formats by their GGUF name. */
export const quants = {
  Q4_0: q4_0,
  Q4_1: q4_1,
  Q5_0: q5_0,
  Q5_1: q5_1,
  Q8_0: q8_0,
  Q1_0: q1_0,
  Q2_K: q2_k,
  Q3_K: q3_k,
  Q4_K: q4_k,
  Q5_K: q5_k,
  Q6_K: q6_k,
  Q8_K: q8_k,
  TQ1_0: tq1_0,
  TQ2_0: tq2_0,
  MXFP4: mxfp4,
  NVFP4: nvfp4,
} as const satisfies Record<string, BlockFormat>
