import { describe, expect, it } from 'vitest'
import { bf16ToF32, f8e4m3ToF32, f8e5m2ToF32, f16ToF32, f32ToBf16, f32ToF16 } from './float.ts'

/** The value of a narrow float from its definition, in float64. */
function definedValue(code: number, exponentBits: number, mantissaBits: number): number {
  const bias = 2 ** (exponentBits - 1) - 1
  const sign = code >> (exponentBits + mantissaBits) ? -1 : 1
  const exponent = (code >> mantissaBits) & (2 ** exponentBits - 1)
  const fraction = (code & (2 ** mantissaBits - 1)) / 2 ** mantissaBits
  return sign * (exponent === 0 ? fraction * 2 ** (1 - bias) : (1 + fraction) * 2 ** (exponent - bias))
}

const codes16 = Uint16Array.from({ length: 65536 }, (_, i) => i)
const codes8 = Uint8Array.from({ length: 256 }, (_, i) => i)

/** Deterministic float32 values of every magnitude that matters to `smallest` … `largest`. */
function samples(count: number, smallest: number, largest: number): Float32Array {
  let state = 12345
  const random = () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0
    return state / 2 ** 32
  }
  return Float32Array.from({ length: count }, () => (random() < 0.5 ? -1 : 1) * 2 ** (smallest + random() * (largest - smallest)))
}

/** Index of the value of a sorted table nearest to x, ties to the even code. */
function nearestCode(table: Float32Array, x: number): number {
  let low = 0
  let high = table.length - 1
  while (high - low > 1) {
    const middle = (low + high) >> 1
    if (table[middle]! <= x) low = middle
    else high = middle
  }
  const below = x - table[low]!
  const above = table[high]! - x
  return below < above || (below === above && low % 2 === 0) ? low : high
}

describe('float16', () => {
  const values = f16ToF32(codes16)

  it('widens every code to its value', () => {
    for (const code of codes16) {
      const exponent = (code >> 10) & 31
      const expected = exponent < 31 ? definedValue(code, 5, 10) : code & 1023 ? Number.NaN : code >> 15 ? -Infinity : Infinity
      if (!Object.is(values[code], expected)) expect(values[code], `code ${code}`).toBe(expected)
    }
  })

  it('comes back from float32 unchanged, NaN as NaN', () => {
    const back = f32ToF16(values)
    for (const code of codes16) {
      const notANumber = (code & 0x7fff) > 0x7c00
      if (notANumber ? (back[code]! & 0x7fff) <= 0x7c00 : back[code] !== code) expect(back[code], `code ${code}`).toBe(code)
    }
  })

  it('rounds to nearest, ties to even, and overflows to infinity', () => {
    const table = values.slice(0, 0x7c00)
    const inputs = samples(20_000, -27, 15.9)
    const rounded = f32ToF16(inputs)
    inputs.forEach((x, i) => {
      const expected = nearestCode(table, Math.abs(x)) | (x < 0 ? 0x8000 : 0)
      if (rounded[i] !== expected) expect(rounded[i], `${x}`).toBe(expected)
    })
    const ties = Float32Array.from({ length: 2000 }, (_, i) => (table[i * 15]! + table[i * 15 + 1]!) / 2)
    for (const [i, code] of f32ToF16(ties).entries()) expect(code, `tie ${i}`).toBe(i % 2 === 0 ? i * 15 : i * 15 + 1)
    expect([...f32ToF16(Float32Array.of(65519, 65520, -1e30, 2 ** -25, 2 ** -25 * 1.0001))]).toEqual([0x7bff, 0x7c00, 0xfc00, 0, 1])
  })
})

describe('bfloat16', () => {
  it('comes back from float32 unchanged', () => {
    const bits = new Uint32Array(bf16ToF32(codes16).buffer)
    expect(bits).toEqual(Uint32Array.from(codes16, (code) => code * 65536))
    const back = f32ToBf16(bf16ToF32(codes16))
    for (const code of codes16) {
      const notANumber = (code & 0x7fff) > 0x7f80
      if (notANumber ? (back[code]! & 0x7fff) <= 0x7f80 : back[code] !== code) expect(back[code], `code ${code}`).toBe(code)
    }
  })

  it('rounds to nearest, ties to even', () => {
    const table = bf16ToF32(codes16.slice(0, 0x7f80))
    const inputs = samples(20_000, -140, 120)
    f32ToBf16(inputs).forEach((code, i) => {
      const expected = nearestCode(table, Math.abs(inputs[i]!)) | (inputs[i]! < 0 ? 0x8000 : 0)
      if (code !== expected) expect(code, `${inputs[i]}`).toBe(expected)
    })
    expect([...f32ToBf16(Float32Array.of(1 + 2 ** -8, 1 + 3 * 2 ** -8, 3.4e38))]).toEqual([0x3f80, 0x3f82, 0x7f80])
  })
})

describe('8-bit floats', () => {
  it('E4M3 has no infinities and one NaN', () => {
    const values = f8e4m3ToF32(codes8)
    for (const [code, x] of values.entries()) expect(x, `code ${code}`).toBe((code & 127) === 127 ? Number.NaN : definedValue(code, 4, 3))
    expect(values[0x7e]).toBe(448)
  })

  it('E5M2 is like float16 with fewer bits', () => {
    const narrow = f8e5m2ToF32(codes8)
    const wide = f16ToF32(Uint16Array.from(codes8, (code) => code << 8))
    expect(new Uint32Array(narrow.buffer)).toEqual(new Uint32Array(wide.buffer))
  })
})
