/** @file Bulk conversions between float32 and the narrower floats, by tables and bit arithmetic; narrowing rounds to nearest, ties to even. */

const scratch = new Float32Array(1)
const scratchBits = new Uint32Array(scratch.buffer)

/** Float32 bits of a narrow float with `exponentBits` and `mantissaBits`, its sign in the top bit; `special` says what the top exponent means. */
function widen(bits: number, exponentBits: number, mantissaBits: number, special: 'ieee' | 'finite'): number {
  const bias = 2 ** (exponentBits - 1) - 1
  const top = 2 ** exponentBits - 1
  const sign = ((bits >>> (exponentBits + mantissaBits)) & 1) * 0x80000000
  const exponent = (bits >>> mantissaBits) & top
  const mantissa = bits & (2 ** mantissaBits - 1)
  const shifted = mantissa << (23 - mantissaBits)
  if (special === 'ieee' && exponent === top) return sign + 0x7f800000 + shifted
  // E4M3 "fn" has no infinities: only the code with every bit set is not a number.
  if (special === 'finite' && exponent === top && mantissa === 2 ** mantissaBits - 1) return sign + 0x7fc00000
  if (exponent > 0) return sign + (exponent - bias + 127) * 0x800000 + shifted
  scratch[0] = mantissa * 2 ** (1 - bias - mantissaBits)
  return sign + scratchBits[0]!
}

function tableOf(size: number, exponentBits: number, mantissaBits: number, special: 'ieee' | 'finite'): () => Uint32Array {
  let table: Uint32Array | undefined
  return () => {
    table ??= Uint32Array.from({ length: size }, (_, bits) => widen(bits, exponentBits, mantissaBits, special))
    return table
  }
}

const f16Bits = tableOf(65536, 5, 10, 'ieee')
const e4m3Bits = tableOf(256, 4, 3, 'finite')
const e5m2Bits = tableOf(256, 5, 2, 'ieee')
let f16Table: Float32Array | undefined

/** The float32 value of each of the 65,536 float16 codes. */
export function f16Values(): Float32Array {
  f16Table ??= new Float32Array(f16Bits().buffer)
  return f16Table
}

/** Copies through the bits, because a NaN that passes through a JavaScript number may lose its payload. */
function lookUp(codes: Uint16Array | Uint8Array, table: Uint32Array, out: Float32Array): Float32Array {
  const bits = new Uint32Array(out.buffer, out.byteOffset, codes.length)
  for (let i = 0; i < codes.length; i++) bits[i] = table[codes[i]!]!
  return out
}

/** float16 (as bits) to float32. */
export function f16ToF32(codes: Uint16Array, out: Float32Array = new Float32Array(codes.length)): Float32Array {
  return lookUp(codes, f16Bits(), out)
}

/** 8-bit floats E4M3 (the kind without infinities) to float32. */
export function f8e4m3ToF32(codes: Uint8Array, out: Float32Array = new Float32Array(codes.length)): Float32Array {
  return lookUp(codes, e4m3Bits(), out)
}

/** 8-bit floats E5M2 to float32. */
export function f8e5m2ToF32(codes: Uint8Array, out: Float32Array = new Float32Array(codes.length)): Float32Array {
  return lookUp(codes, e5m2Bits(), out)
}

/** bfloat16 (as bits) to float32. */
export function bf16ToF32(codes: Uint16Array, out: Float32Array = new Float32Array(codes.length)): Float32Array {
  const bits = new Uint32Array(out.buffer, out.byteOffset, codes.length)
  for (let i = 0; i < codes.length; i++) bits[i] = codes[i]! << 16
  return out
}

/** float32 to bfloat16 (as bits), rounded to nearest even; NaN stays NaN. */
export function f32ToBf16(values: Float32Array, out: Uint16Array = new Uint16Array(values.length)): Uint16Array {
  const bits = new Uint32Array(values.buffer, values.byteOffset, values.length)
  for (let i = 0; i < bits.length; i++) {
    const x = bits[i]!
    // Rounding could carry a NaN's mantissa to zero, which would be infinity: set the quiet bit instead.
    out[i] = (x & 0x7fffffff) > 0x7f800000 ? (x >>> 16) | 0x40 : (x + 0x7fff + ((x >>> 16) & 1)) >>> 16
  }
  return out
}

/** float32 to float16 (as bits), rounded to nearest even; what is too large becomes infinity, NaN stays NaN. */
export function f32ToF16(values: Float32Array, out: Uint16Array = new Uint16Array(values.length)): Uint16Array {
  const bits = new Uint32Array(values.buffer, values.byteOffset, values.length)
  for (let i = 0; i < bits.length; i++) {
    const x = bits[i]!
    const sign = (x >>> 16) & 0x8000
    const magnitude = x & 0x7fffffff
    if (magnitude > 0x7f800000) {
      out[i] = sign | 0x7e00 | ((magnitude >>> 13) & 0x3ff)
    } else if (magnitude >= 0x477ff000) {
      // From 65520 on the nearest float16 is infinity.
      out[i] = sign | 0x7c00
    } else if (magnitude >= 0x38800000) {
      // Normal: re-bias the exponent by −112, then round the 13 lost bits; a carry moves into the exponent by itself.
      out[i] = sign | ((magnitude - 0x38000000 + 0xfff + ((magnitude >>> 13) & 1)) >>> 13)
    } else {
      // Subnormal: adding 0.5 aligns the last bit of float32 with 2⁻²⁴, so that the hardware rounds to nearest even.
      scratchBits[0] = magnitude
      scratch[0] = scratch[0]! + 0.5
      out[i] = sign | (scratchBits[0]! - 0x3f000000)
    }
  }
  return out
}
