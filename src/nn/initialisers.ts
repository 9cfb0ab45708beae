/** @file Values that parameters start from. Matrices are [in, out] as `linear` uses them; kernels of convolutions are [out, in, …]. */
import { ShapeError } from '../base/errors.ts'
import { sizeOf } from '../base/types.ts'
import type { RandomStream } from './random.ts'

/** Makes the first values of a parameter of a shape. */
export type Initialiser = (shape: readonly number[], random: RandomStream) => Float32Array

const filled =
  (draw: (random: RandomStream) => number): Initialiser =>
  (shape, random) => {
    const data = new Float32Array(sizeOf(shape))
    for (let i = 0; i < data.length; i++) data[i] = draw(random)
    return data
  }

/** All zeros. */
export const zeros: Initialiser = (shape) => new Float32Array(sizeOf(shape))
/** One value everywhere. */
export const constantOf =
  (value: number): Initialiser =>
  (shape) =>
    new Float32Array(sizeOf(shape)).fill(value)
/** All ones. */
export const ones: Initialiser = constantOf(1)
/** Normal values of a standard deviation and a mean. */
export const normal = (std = 1, mean = 0): Initialiser => filled((random) => mean + std * random.normal())
/** Uniform values in [low, high). */
export const uniform = (low: number, high: number): Initialiser => filled((random) => low + (high - low) * random.next())

/** Values that are there already, copied. */
export const valuesOf =
  (values: ArrayLike<number>): Initialiser =>
  (shape) => {
    if (values.length !== sizeOf(shape))
      throw new ShapeError(`A parameter of shape [${shape.join(', ')}] needs ${sizeOf(shape)} first values, not ${values.length}.`)
    return Float32Array.from(values)
  }

/** How many values each output reads and each input feeds: of a matrix [in, out], or a kernel [out, in, …]. */
function fans(shape: readonly number[]): { fanIn: number; fanOut: number } {
  if (shape.length < 2) throw new ShapeError(`Fan-in and fan-out need a matrix or a kernel, not the shape [${shape.join(', ')}].`)
  const [a, b, ...kernel] = shape as [number, number, ...number[]]
  const field = sizeOf(kernel)
  return kernel.length === 0 ? { fanIn: a, fanOut: b } : { fanIn: b * field, fanOut: a * field }
}

const scaled =
  (variance: (f: { fanIn: number; fanOut: number }) => number, kind: 'normal' | 'uniform'): Initialiser =>
  (shape, random) => {
    const std = Math.sqrt(variance(fans(shape)))
    // A uniform distribution over ±a has the standard deviation a/√3.
    const bound = std * Math.sqrt(3)
    return (kind === 'normal' ? normal(std) : uniform(-bound, bound))(shape, random)
  }

/** Variance gain²·2/(fan-in + fan-out) (Glorot and Bengio 2010). */
export const xavier = (kind: 'normal' | 'uniform' = 'uniform', gain = 1): Initialiser =>
  scaled(({ fanIn, fanOut }) => (2 * gain * gain) / (fanIn + fanOut), kind)
/** Variance gain²/fan-in; the gain √2 suits ReLU (He et al. 2015). */
export const kaiming = (kind: 'normal' | 'uniform' = 'uniform', gain = Math.SQRT2): Initialiser =>
  scaled(({ fanIn }) => (gain * gain) / fanIn, kind)

/** A matrix with orthonormal rows or columns, whichever are fewer, times a gain (Saxe et al. 2014); for a few hundred rows. */
export const orthogonal =
  (gain = 1): Initialiser =>
  (shape, random) => {
    const [rows, ...rest] = shape as [number, ...number[]]
    const columns = sizeOf(rest)
    const [few, many] = rows <= columns ? [rows, columns] : [columns, rows]
    const basis: Float64Array[] = []
    for (let i = 0; i < few; i++) {
      const v = Float64Array.from({ length: many }, () => random.normal())
      // Twice is enough to be orthogonal to the last digit (Giraud et al. 2005).
      for (let pass = 0; pass < 2; pass++)
        for (const b of basis) {
          const along = dot(v, b)
          for (let k = 0; k < many; k++) v[k] = (v[k] as number) - along * (b[k] as number)
        }
      const length = Math.sqrt(dot(v, v))
      basis.push(v.map((x) => x / length))
    }
    const at = (r: number, c: number) => (rows <= columns ? basis[r]?.[c] : basis[c]?.[r]) as number
    return Float32Array.from({ length: rows * columns }, (_, i) => gain * at(Math.floor(i / columns), i % columns))
  }

function dot(a: Float64Array, b: Float64Array): number {
  let sum = 0
  for (let i = 0; i < a.length; i++) sum += (a[i] as number) * (b[i] as number)
  return sum
}
