/** @file Quantiles and histograms of numbers that stream by, in fixed memory. */
import { UsageError } from '../base/errors.ts'

/** A histogram: `counts[i]` numbers lie from `edges[i]` to `edges[i + 1]`. */
export interface Histogram {
  readonly edges: Float64Array
  readonly counts: Float64Array
}

/** Buckets: all float32 numbers with the same upper 16 bits, so that a bucket is at most 1/128 as wide as its numbers are large. */
const buckets = 2 ** 16

/**
 * Counts of float32 numbers by sign, exponent and seven bits: quantiles within 0.4 % of their value, exact count, minimum and maximum.
 * Order and grouping of what is added do not matter, and sketches can be merged. Takes half a megabyte.
 */
export class QuantileSketch {
  /** Finite numbers that were added. */
  count = 0
  /** Numbers that are infinite or none. */
  notFinite = 0
  min = Number.POSITIVE_INFINITY
  max = Number.NEGATIVE_INFINITY
  private readonly counts = new Float64Array(buckets)

  /** Adds numbers. */
  add(values: Float32Array): void {
    const bits = new Uint32Array(values.buffer, values.byteOffset, values.length)
    for (let i = 0; i < bits.length; i++) {
      const value = values[i] as number
      const bucket = (bits[i] as number) >>> 16
      // Exponents of all ones are infinities and what is no number.
      if ((bucket & 0x7f80) === 0x7f80) {
        this.notFinite++
        continue
      }
      this.counts[bucket] = (this.counts[bucket] as number) + 1
      this.count++
      if (value < this.min) this.min = value
      if (value > this.max) this.max = value
    }
  }

  /** Adds what another has seen. */
  merge(other: QuantileSketch): void {
    for (let b = 0; b < buckets; b++) this.counts[b] = (this.counts[b] as number) + (other.counts[b] as number)
    this.count += other.count
    this.notFinite += other.notFinite
    this.min = Math.min(this.min, other.min)
    this.max = Math.max(this.max, other.max)
  }

  /** The number below which a share `q` of all lies. */
  quantile(q: number): number {
    if (!(q >= 0 && q <= 1)) throw new UsageError(`A quantile is a share from 0 to 1, not ${q}.`)
    if (this.count === 0) return Number.NaN
    if (q === 0) return this.min
    if (q === 1) return this.max
    const rank = q * (this.count - 1)
    let before = 0
    let last = this.max
    for (const { low, high, count } of this.ascending()) {
      if (before + count > rank) {
        const within = low + ((rank - before + 0.5) / count) * (high - low)
        return Math.min(this.max, Math.max(this.min, within))
      }
      before += count
      last = high
    }
    return last
  }

  /** Counts in `bins` bins of equal width between the smallest and the largest number; a bucket that lies in several is shared out. */
  histogram(bins: number): Histogram {
    if (!(Number.isInteger(bins) && bins > 0)) throw new UsageError(`A histogram needs a positive number of bins, not ${bins}.`)
    const [from, to] = this.count === 0 ? [0, 1] : [this.min, this.max > this.min ? this.max : this.min + 1]
    const width = (to - from) / bins
    const edges = Float64Array.from({ length: bins + 1 }, (_, i) => from + i * width)
    const counts = new Float64Array(bins)
    const binOf = (v: number) => Math.min(bins - 1, Math.max(0, Math.floor((v - from) / width)))
    for (const { low, high, count } of this.ascending()) {
      const [a, b] = [Math.max(low, from), Math.min(high, to)]
      for (let i = binOf(a); i <= binOf(b); i++) {
        const part = Math.min(b, edges[i + 1] as number) - Math.max(a, edges[i] as number)
        counts[i] = (counts[i] as number) + (b > a ? (count * Math.max(0, part)) / (b - a) : i === binOf(a) ? count : 0)
      }
    }
    return { edges, counts }
  }

  /** Buckets that hold something, from the smallest numbers to the largest. */
  private *ascending(): Generator<{ low: number; high: number; count: number }> {
    const half = buckets / 2
    for (let step = 0; step < buckets; step++) {
      // Codes of negative numbers grow with their size.
      const bucket = step < half ? buckets - 1 - step : step - half
      const count = this.counts[bucket] as number
      if (count === 0) continue
      const [small, large] = [numberAt(bucket, 0), numberAt(bucket, 0xffff)]
      yield step < half ? { low: large, high: small, count } : { low: small, high: large, count }
    }
  }
}

const bits = new Uint32Array(1)
const value = new Float32Array(bits.buffer)

function numberAt(bucket: number, rest: number): number {
  bits[0] = bucket * 0x10000 + rest
  return value[0] as number
}
