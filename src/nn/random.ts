/** @file A stream of random numbers whose whole state can be written down and taken up again. */
import { UsageError } from '../base/errors.ts'

/** The state of a stream: four 32-bit words. */
export type RandomState = readonly [number, number, number, number]

const rotate = (x: number, k: number) => (x << k) | (x >>> (32 - k))

/** Uniform and normal numbers by xoshiro128** (Blackman and Vigna 2021), seeded by splitmix32; equal seeds give equal numbers everywhere. */
export class RandomStream {
  private words: [number, number, number, number]

  private constructor(words: RandomState) {
    this.words = [...words]
  }

  /** A stream from a seed. */
  static of(seed: number): RandomStream {
    if (!Number.isInteger(seed)) throw new UsageError(`A seed must be an integer, not ${seed}.`)
    let s = seed | 0
    const next = () => {
      s = (s + 0x9e3779b9) | 0
      let z = s ^ (s >>> 16)
      z = Math.imul(z, 0x21f0aaad)
      z = Math.imul(z ^ (z >>> 15), 0x735a2d97)
      return (z ^ (z >>> 15)) >>> 0
    }
    return new RandomStream([next(), next(), next(), next()])
  }

  /** A stream for a name, so that what is drawn for one name does not depend on how many others there are. */
  static named(seed: number, name: string): RandomStream {
    // FNV-1a.
    let hash = 0x811c9dc5
    for (let i = 0; i < name.length; i++) hash = Math.imul(hash ^ name.charCodeAt(i), 0x01000193)
    return RandomStream.of((seed ^ hash) | 0)
  }

  /** A stream that goes on where another one stood. */
  static resume(state: RandomState): RandomStream {
    return new RandomStream(state)
  }

  /** Where the stream stands. */
  get state(): RandomState {
    return [...this.words]
  }

  /** The next number in [0, 1), by 32 random bits. */
  next(): number {
    let [a, b, c, d] = this.words
    const result = Math.imul(rotate(Math.imul(b, 5), 7), 9) >>> 0
    const t = b << 9
    c ^= a
    d ^= b
    b ^= c
    a ^= d
    c ^= t
    d = rotate(d, 11)
    this.words = [a >>> 0, b >>> 0, c >>> 0, d >>> 0]
    return result / 4294967296
  }

  /** The next integer in [0, n). */
  below(n: number): number {
    return Math.floor(this.next() * n)
  }

  /** The next number of the standard normal distribution (Box and Muller; the second of the pair is let go, so that the state is the words alone). */
  normal(): number {
    const radius = Math.sqrt(-2 * Math.log(1 - this.next()))
    return radius * Math.cos(2 * Math.PI * this.next())
  }

  /** The numbers 0 … n−1 in a random order (Fisher and Yates). */
  permutation(n: number): Uint32Array {
    const order = Uint32Array.from({ length: n }, (_, i) => i)
    for (let i = n - 1; i > 0; i--) {
      const j = this.below(i + 1)
      const kept = order[i] as number
      order[i] = order[j] as number
      order[j] = kept
    }
    return order
  }
}
