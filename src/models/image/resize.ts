/** @file Resizing as PIL does it: a filter over all pixels that fall into one, first along rows, then along columns, each rounded to bytes. */
import type { Picture } from './decode.ts'

/** How pixels are mixed, by PIL's names. */
export type Resampling = 'nearest' | 'lanczos' | 'bilinear' | 'bicubic' | 'box' | 'hamming'

interface Filter {
  /** Half its width, in pixels. */
  readonly support: number
  readonly at: (x: number) => number
}

const sinc = (x: number) => (x === 0 ? 1 : Math.sin(Math.PI * x) / (Math.PI * x))
/** Catmull–Rom's member of the cubic kernels. */
const cubic = -0.5

const filters: Readonly<Record<Exclude<Resampling, 'nearest'>, Filter>> = {
  box: { support: 0.5, at: (x) => (x > -0.5 && x <= 0.5 ? 1 : 0) },
  bilinear: { support: 1, at: (x) => Math.max(0, 1 - Math.abs(x)) },
  hamming: { support: 1, at: (x) => (Math.abs(x) >= 1 ? 0 : sinc(x) * (0.54 + 0.46 * Math.cos(Math.PI * x))) },
  bicubic: {
    support: 2,
    at: (signed) => {
      const x = Math.abs(signed)
      if (x < 1) return ((cubic + 2) * x - (cubic + 3)) * x * x + 1
      return x < 2 ? (((x - 5) * x + 8) * x - 4) * cubic : 0
    },
  },
  lanczos: { support: 3, at: (x) => (Math.abs(x) < 3 ? sinc(x) * sinc(x / 3) : 0) },
}

/** Bits behind the point of PIL's weights of bytes. */
const precision = 22

interface Weights {
  readonly from: number
  /** In units of 2⁻²². */
  readonly values: readonly number[]
}

/** What each new pixel takes of the old ones along an axis. */
function weightsOf(old: number, size: number, { support, at }: Filter): Weights[] {
  const scale = old / size
  // Growing an image mixes neighbours; shrinking it mixes all that fall together.
  const stretch = Math.max(scale, 1)
  const reach = support * stretch
  return Array.from({ length: size }, (_, i) => {
    const center = (i + 0.5) * scale
    const from = Math.max(0, Math.trunc(center - reach + 0.5))
    const to = Math.min(old, Math.trunc(center + reach + 0.5))
    const raw = Array.from({ length: to - from }, (_, k) => at((from + k - center + 0.5) / stretch))
    const sum = raw.reduce((a, b) => a + b, 0)
    return { from, values: raw.map((w) => Math.trunc((w / sum) * 2 ** precision + Math.sign(w) * 0.5)) }
  })
}

/** Mixes along one axis of [outer, axis, inner] bytes. */
function along(data: Uint8Array, outer: number, old: number, inner: number, weights: readonly Weights[]): Uint8Array {
  const size = weights.length
  const out = new Uint8Array(outer * size * inner)
  const half = 2 ** (precision - 1)
  for (let o = 0; o < outer; o++)
    for (const [i, { from, values }] of weights.entries())
      for (let c = 0; c < inner; c++) {
        let sum = half
        for (let k = 0; k < values.length; k++) sum += (data[(o * old + from + k) * inner + c] as number) * (values[k] as number)
        out[(o * size + i) * inner + c] = Math.min(255, Math.max(0, Math.floor(sum / 2 ** precision)))
      }
  return out
}

/** A picture of another size, equal to PIL's byte for byte. */
export function resize(p: Picture, width: number, height: number, how: Resampling): Picture {
  if (how === 'nearest') return nearest(p, width, height)
  const filter = filters[how]
  const rows = p.width === width ? p.data : along(p.data, p.height, p.width, 3, weightsOf(p.width, width, filter))
  const data = p.height === height ? rows : along(rows, 1, p.height, width * 3, weightsOf(p.height, height, filter))
  return { width, height, data }
}

function nearest(p: Picture, width: number, height: number): Picture {
  const data = new Uint8Array(width * height * 3)
  for (let row = 0; row < height; row++)
    for (let column = 0; column < width; column++) {
      const from = (Math.floor(((row + 0.5) * p.height) / height) * p.width + Math.floor(((column + 0.5) * p.width) / width)) * 3
      data.set(p.data.subarray(from, from + 3), (row * width + column) * 3)
    }
  return { width, height, data }
}
