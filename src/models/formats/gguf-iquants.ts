/** @file The block types of GGUF that look values up in a code book: IQ quantisation, decoded to float32. */
import { grids } from './gguf-grids.ts'
import { type BlockFormat, blocksOf, half } from './gguf-quants.ts'

const word = (b: Uint8Array, p: number): number => b[p]! | (b[p + 1]! << 8)

/** Sign bits of eight values from seven stored ones: the eighth makes the number of minus signs even. */
const evenSigns = Uint8Array.from({ length: 128 }, (_, seven) => {
  let ones = 0
  for (let bits = seven; bits > 0; bits >>= 1) ones += bits & 1
  return seven | ((ones & 1) << 7)
})

/** Writes row `row` of a code book times `scale`, negated where the bits of `signs` say so. */
function put(out: Float32Array, o: number, grid: Int8Array, row: number, width: number, scale: number, signs: number): void {
  const from = row * width
  for (let j = 0; j < width; j++) {
    const value = scale * grid[from + j]!
    out[o + j] = (signs >> j) & 1 ? -value : value
  }
}

const iq2_xxs = blocksOf(256, 66, (b, p, out, o) => {
  const grid = grids('iq2xxs')
  const d = half(b, p)
  for (let i = 0; i < 8; i++) {
    const at = p + 2 + i * 8
    const packed = word(b, at + 4) | (word(b, at + 6) << 16)
    const scale = d * (0.5 + (packed >>> 28)) * 0.25
    for (let k = 0; k < 4; k++) put(out, o + i * 32 + k * 8, grid, b[at + k]!, 8, scale, evenSigns[(packed >>> (7 * k)) & 127]!)
  }
})

const iq2_xs = blocksOf(256, 74, (b, p, out, o) => {
  const grid = grids('iq2xs')
  const d = half(b, p)
  for (let i = 0; i < 32; i++) {
    const scale = d * (0.5 + ((b[p + 66 + (i >> 2)]! >> (((i >> 1) & 1) * 4)) & 15)) * 0.25
    const packed = word(b, p + 2 + i * 2)
    put(out, o + i * 8, grid, packed & 511, 8, scale, evenSigns[packed >> 9]!)
  }
})

const iq2_s = blocksOf(256, 82, (b, p, out, o) => {
  const grid = grids('iq2s')
  const d = half(b, p)
  for (let i = 0; i < 32; i++) {
    const scale = d * (0.5 + ((b[p + 74 + (i >> 2)]! >> (((i >> 1) & 1) * 4)) & 15)) * 0.25
    const high = (b[p + 66 + (i >> 2)]! >> ((i & 3) * 2)) & 3
    put(out, o + i * 8, grid, b[p + 2 + i]! | (high << 8), 8, scale, b[p + 34 + i]!)
  }
})

const iq3_xxs = blocksOf(256, 98, (b, p, out, o) => {
  const grid = grids('iq3xxs')
  const d = half(b, p)
  for (let i = 0; i < 8; i++) {
    const at = p + 66 + i * 4
    const packed = word(b, at) | (word(b, at + 2) << 16)
    const scale = d * (0.5 + (packed >>> 28)) * 0.5
    for (let k = 0; k < 8; k++) {
      const signs = evenSigns[(packed >>> (7 * (k >> 1))) & 127]! >> ((k & 1) * 4)
      put(out, o + i * 32 + k * 4, grid, b[p + 2 + i * 8 + k]!, 4, scale, signs)
    }
  }
})

const iq3_s = blocksOf(256, 110, (b, p, out, o) => {
  const grid = grids('iq3s')
  const d = half(b, p)
  for (let i = 0; i < 64; i++) {
    const scale = d * (1 + 2 * ((b[p + 106 + (i >> 4)]! >> (((i >> 3) & 1) * 4)) & 15))
    const high = (b[p + 66 + (i >> 3)]! >> (i & 7)) & 1
    put(out, o + i * 4, grid, b[p + 2 + i]! | (high << 8), 4, scale, b[p + 74 + (i >> 1)]! >> ((i & 1) * 4))
  }
})

/** IQ1 values are −1, 0 or 1, all shifted by an eighth up or down. */
function putShifted(out: Float32Array, o: number, grid: Int8Array, row: number, scale: number, down: boolean): void {
  const shift = down ? -0.125 : 0.125
  for (let j = 0; j < 8; j++) out[o + j] = scale * (grid[row * 8 + j]! + shift)
}

const iq1_s = blocksOf(256, 50, (b, p, out, o) => {
  const grid = grids('iq1s')
  const d = half(b, p)
  for (let i = 0; i < 8; i++) {
    const high = word(b, p + 34 + i * 2)
    const scale = d * (2 * ((high >> 12) & 7) + 1)
    for (let k = 0; k < 4; k++) {
      const row = b[p + 2 + i * 4 + k]! | (((high >> (3 * k)) & 7) << 8)
      putShifted(out, o + i * 32 + k * 8, grid, row, scale, high >= 0x8000)
    }
  }
})

/** Where the four parts of the float16 scale of IQ1_M are put together. */
const scaleBytes = new Uint8Array(2)

const iq1_m = blocksOf(256, 56, (b, p, out, o) => {
  const grid = grids('iq1s')
  const words = [0, 2, 4, 6].map((at) => word(b, p + 48 + at))
  scaleBytes[0] = (words[0]! >> 12) | ((words[1]! >> 12) << 4)
  scaleBytes[1] = (words[2]! >> 12) | ((words[3]! >> 12) << 4)
  const d = half(scaleBytes, 0)
  for (let i = 0; i < 32; i++) {
    const scale = d * (2 * ((words[i >> 3]! >> (3 * ((i >> 1) & 3))) & 7) + 1)
    const high = (b[p + 32 + (i >> 1)]! >> ((i & 1) * 4)) & 15
    putShifted(out, o + i * 8, grid, b[p + i]! | ((high & 7) << 8), scale, (high & 8) !== 0)
  }
})

/** The 16 levels of the 4-bit types, spaced like a normal distribution. */
const levels = Int8Array.of(-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)

function putLevels(b: Uint8Array, p: number, out: Float32Array, o: number, scale: number): void {
  for (let j = 0; j < 16; j++) {
    const q = b[p + j]!
    out[o + j] = scale * levels[q & 15]!
    out[o + 16 + j] = scale * levels[q >> 4]!
  }
}

const iq4_nl = blocksOf(32, 18, (b, p, out, o) => putLevels(b, p + 2, out, o, half(b, p)))

const iq4_xs = blocksOf(256, 136, (b, p, out, o) => {
  const d = half(b, p)
  const high = word(b, p + 2)
  for (let i = 0; i < 8; i++) {
    const low = (b[p + 4 + (i >> 1)]! >> ((i & 1) * 4)) & 15
    putLevels(b, p + 8 + i * 16, out, o + i * 32, d * ((low | (((high >> (2 * i)) & 3) << 4)) - 32))
  }
})

/** Code-book block formats by their GGUF name. */
export const iquants = {
  IQ1_S: iq1_s,
  IQ1_M: iq1_m,
  IQ2_XXS: iq2_xxs,
  IQ2_XS: iq2_xs,
  IQ2_S: iq2_s,
  IQ3_XXS: iq3_xxs,
  IQ3_S: iq3_s,
  IQ4_NL: iq4_nl,
  IQ4_XS: iq4_xs,
} as const satisfies Record<string, BlockFormat>
