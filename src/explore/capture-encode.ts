/** @file Element types of captured activations: how float32 values are written, and how many bytes they take. */
import { RuntimeFailure } from '../base/errors.ts'
import { bytesOf, type DType, type NDArray, type TypedArray } from '../base/types.ts'
import { bf16ToF32, f16ToF32, f32ToBf16, f32ToF16 } from '../models/formats/index.ts'

/** Element types in which activations are kept. */
export type CaptureDType = 'f32' | 'f16' | 'bf16' | 'int8'

/** One element type. */
export interface CaptureEncoding {
  readonly dtype: DType
  /** Whether each row has a float32 factor beside it, `SITE.scale` [tokens]: value = code · scale. */
  readonly scaled: boolean
  readonly make: (length: number) => TypedArray
  /** Writes values [rows, width] into `out` from element `at` on, and the rows' factors. */
  readonly write: (values: Float32Array, out: TypedArray, at: number, width: number, scales: Float32Array | undefined, site: string) => void
  /** Reads codes [rows, width] as float32. */
  readonly read: (codes: TypedArray, width: number, scales: Float32Array | undefined) => Float32Array
}

/** The element types by name. */
export const captureEncodings: Readonly<Record<CaptureDType, CaptureEncoding>> = {
  f32: {
    dtype: 'float32',
    scaled: false,
    make: (n) => new Float32Array(n),
    write: (values, out, at) => (out as Float32Array).set(values, at),
    read: (codes) => codes as Float32Array,
  },
  f16: {
    dtype: 'float16',
    scaled: false,
    make: (n) => new Uint16Array(n),
    write(values, out, at, _width, _scales, site) {
      const codes = f32ToF16(values, (out as Uint16Array).subarray(at, at + values.length))
      for (let i = 0; i < codes.length; i++)
        if (((codes[i] as number) & 0x7fff) === 0x7c00 && Number.isFinite(values[i]))
          throw new RuntimeFailure(`The value ${values[i]} at '${site}' is too large for f16; capture it as bf16 or f32.`)
    },
    read: (codes) => f16ToF32(codes as Uint16Array),
  },
  bf16: {
    dtype: 'bfloat16',
    scaled: false,
    make: (n) => new Uint16Array(n),
    write: (values, out, at) => void f32ToBf16(values, (out as Uint16Array).subarray(at, at + values.length)),
    read: (codes) => bf16ToF32(codes as Uint16Array),
  },
  int8: {
    dtype: 'int8',
    scaled: true,
    make: (n) => new Int8Array(n),
    write(values, out, at, width, scales, site) {
      for (let row = 0, start = 0; start < values.length; row++, start += width) {
        let largest = 0
        for (let i = start; i < start + width; i++) largest = Math.max(largest, Math.abs(values[i] as number))
        if (!Number.isFinite(largest))
          throw new RuntimeFailure(`A value at '${site}' is infinite or not a number, which int8 cannot hold; capture it as f32.`)
        // The factor is rounded first, so that the codes fit the number that is stored.
        const scale = Math.fround(largest / 127)
        ;(scales as Float32Array)[at / width + row] = scale
        for (let i = start; i < start + width; i++)
          out[at + i] = scale === 0 ? 0 : Math.max(-127, Math.min(127, Math.round((values[i] as number) / scale)))
      }
    },
    read(codes, width, scales) {
      const out = new Float32Array(codes.length)
      for (let i = 0; i < out.length; i++) out[i] = (codes[i] as number) * ((scales as Float32Array)[Math.floor(i / width)] as number)
      return out
    },
  },
}

/** Bytes that one position takes on disk: its values, their factor, and four int32 columns. */
export function bytesOfToken(dtype: CaptureDType, widths: readonly number[]): number {
  const { dtype: stored, scaled } = captureEncodings[dtype]
  return 16 + widths.reduce((sum, w) => sum + bytesOf(stored, w) + (scaled ? 4 : 0), 0)
}

/** Names of the int32 columns beside the activations, each [tokens], and what they hold. */
export const captureColumns = {
  tokens: 'token ids',
  document: 'place of the document in the corpus, from 0: line of the file, item of the list, row of the token file',
  position: 'position in the document',
  column: 'position in the row as the model saw it',
} as const

/** Activations of one shard, gathered until they are written. */
export class ShardBuffer {
  count = 0
  private capacity: number
  private readonly encoding: CaptureEncoding
  private readonly sites: readonly { readonly site: string; readonly width: number; readonly shape: readonly number[] }[]
  private readonly arrays = new Map<string, TypedArray>()

  constructor(dtype: CaptureDType, sites: ShardBuffer['sites'], capacity: number) {
    this.encoding = captureEncodings[dtype]
    this.sites = sites
    this.capacity = capacity
    for (const { site, width } of sites) {
      this.arrays.set(site, this.encoding.make(capacity * width))
      if (this.encoding.scaled) this.arrays.set(scaleName(site), new Float32Array(capacity))
    }
    for (const name of Object.keys(captureColumns)) this.arrays.set(name, new Int32Array(capacity))
  }

  /** Adds positions. */
  add(
    part: { readonly count: number; readonly values: ReadonlyMap<string, Float32Array> } & Readonly<
      Record<keyof typeof captureColumns, Int32Array>
    >,
  ): void {
    const needed = this.count + part.count
    if (needed > this.capacity) this.grow(Math.max(needed, Math.ceil(this.capacity * 1.5)))
    for (const { site, width } of this.sites) {
      const scales = this.arrays.get(scaleName(site)) as Float32Array | undefined
      this.encoding.write(
        part.values.get(site) as Float32Array,
        this.arrays.get(site) as TypedArray,
        this.count * width,
        width,
        scales,
        site,
      )
    }
    for (const name of Object.keys(captureColumns) as (keyof typeof captureColumns)[])
      (this.arrays.get(name) as Int32Array).set(part[name], this.count)
    this.count = needed
  }

  private grow(capacity: number): void {
    for (const [name, old] of this.arrays) {
      const grown = new (old.constructor as Float32ArrayConstructor)((old.length / this.capacity) * capacity)
      grown.set(old as Float32Array)
      this.arrays.set(name, grown)
    }
    this.capacity = capacity
  }

  /** What was added, by tensor name; sites in the order in which they were asked for, then the columns. */
  tensors(): Record<string, NDArray> {
    const out: Record<string, NDArray> = {}
    const put = (name: string, dtype: DType, rest: readonly number[], width: number) => {
      out[name] = { dtype, shape: [this.count, ...rest], data: (this.arrays.get(name) as TypedArray).subarray(0, this.count * width) }
    }
    for (const { site, shape, width } of this.sites) {
      put(site, this.encoding.dtype, shape, width)
      if (this.encoding.scaled) put(scaleName(site), 'float32', [], 1)
    }
    for (const name of Object.keys(captureColumns)) put(name, 'int32', [], 1)
    return out
  }
}

/** Tensor that holds the rows' factors of a site. */
export const scaleName = (site: string) => `${site}.scale`
