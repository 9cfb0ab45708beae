/** @file Random numbers by counting: Philox 4×32-10 (Salmon et al. 2011), the same on every device, for every place of a tensor by itself. */
import { ShapeError } from '../../base/errors.ts'
import type { DType } from '../../base/types.ts'
import { need, one, product } from '../shape.ts'
import { type Attrs, apply1, type Dim, defineOp, type Shape, scalar, type Tensor } from '../tensor.ts'
import { bitAnd, bitXor, range, shiftRight } from './bits.ts'
import { add, cast, cos, log, mul, sin, sqrt } from './elementwise.ts'
import { concat, slice, unsqueeze } from './layout.ts'
import { constant } from './leaf.ts'
import { carriers, reshapeTo } from './like.ts'

/** Multipliers of the two halves of a round, and what the keys grow by from round to round. */
const multipliers = [0xd2511f53, 0xcd9e8d57] as const
const growth = [0x9e3779b9, 0xbb67ae85] as const
const rounds = 10

const word = (n: number) => scalar(n >>> 0, 'uint64')
const low = (x: Tensor) => bitAnd(x, word(0xffffffff))
const high = (x: Tensor) => shiftRight(x, word(32))

/** Four random words for each counter; all are 32-bit words held in uint64, so that products keep their upper half. */
export function philox(
  counter: readonly [Tensor, Tensor, Tensor, Tensor],
  key: readonly [Tensor, Tensor],
): [Tensor, Tensor, Tensor, Tensor] {
  let [a, b, c, d] = counter
  for (let i = 0; i < rounds; i++) {
    const grown = (k: 0 | 1) => low(add(key[k], word(Math.imul(growth[k], i))))
    const [p, q] = [mul(a, word(multipliers[0])), mul(c, word(multipliers[1]))]
    ;[a, b, c, d] = [bitXor(bitXor(high(q), b), grown(0)), low(q), bitXor(bitXor(high(p), d), grown(1)), low(p)]
  }
  return [a, b, c, d]
}

interface RandomAttrs {
  readonly shape: Shape
  /** Tells draws of one program with one seed apart. */
  readonly stream: number
  readonly dtype: DType
}

/** Words for a tensor of the shape: each row of the last axis counts by itself, so that a longer batch starts with the same numbers. */
function words([seed, step, ...likes]: readonly Tensor[], { shape, stream }: RandomAttrs): { rows: Dim; columns: number; words: Tensor[] } {
  const last = shape.at(-1)
  const width = typeof last === 'number' ? last : 1
  const rows = product(typeof last === 'number' ? shape.slice(0, -1) : shape)
  const columns = Math.ceil(width / 4)
  const row = unsqueeze(cast(range(rows, ...likes), 'uint64'), 1)
  const column = constant(
    'uint64',
    [1, columns],
    BigUint64Array.from({ length: columns }, (_, i) => BigInt(i)),
  )
  const place = add(mul(row, scalar(columns, 'uint64')), column)
  const [key, at] = [cast(seed as Tensor, 'uint64'), cast(step as Tensor, 'uint64')]
  // The third word tells the draws of a program apart; the step takes the fourth, and what the place leaves of the second.
  const drawn = philox([low(place), bitXor(high(place), high(at)), word(stream), low(at)], [low(key), high(key)])
  return { rows, columns, words: drawn }
}

/** Four values a counter, side by side, cut to the shape. */
function arranged(values: readonly Tensor[], columns: number, rows: Dim, shape: Shape, likes: readonly Tensor[]): Tensor {
  const last = shape.at(-1)
  const width = typeof last === 'number' ? last : 1
  const parts = width === 1 ? values.slice(0, 1) : values
  const joined = concat(
    parts.map((v) => unsqueeze(v, 2)),
    2,
  )
  const flat = reshapeTo(joined, [rows, columns * parts.length], joined)
  const cut = width === columns * parts.length ? flat : slice(flat, 1, 0, width)
  return reshapeTo(cut, shape, cut, ...likes)
}

/** A word as a float in [0, 1), by its upper 24 bits, which float32 holds exactly. */
const unit = (w: Tensor, dtype: DType) => mul(cast(shiftRight(w, word(8)), dtype), 2 ** -24)

/** Two normal values of two words (Box and Muller). */
function normalPair(a: Tensor, b: Tensor, dtype: DType): [Tensor, Tensor] {
  const radius = sqrt(mul(log(add(unit(a, dtype), 2 ** -24)), -2))
  const angle = mul(unit(b, dtype), 2 * Math.PI)
  return [mul(radius, cos(angle)), mul(radius, sin(angle))]
}

const kinds: Readonly<Record<string, readonly [string, (w: readonly Tensor[], dtype: DType) => Tensor[], DType?]>> = {
  random_bits: ['Random 32-bit words, uint32, from a seed and a step.', (w) => w.map((x) => cast(x, 'uint32')), 'uint32'],
  random_uniform: ['Random values in [0, 1) from a seed and a step.', (w, dtype) => w.map((x) => unit(x, dtype))],
  random_normal: [
    'Random values of the standard normal distribution from a seed and a step.',
    ([a, b, c, d], dtype) => [...normalPair(a as Tensor, b as Tensor, dtype), ...normalPair(c as Tensor, d as Tensor, dtype)],
  ],
}

for (const [name, [doc, values, fixed]] of Object.entries(kinds))
  defineOp({
    name,
    doc,
    infer: (inputs, attrs: Attrs) => {
      const { shape, dtype, stream } = attrs as unknown as RandomAttrs
      for (const i of [0, 1]) {
        const x = need(name, inputs, i)
        if (x.rank !== 0 || x.dtype !== 'int64')
          throw new ShapeError(`'${name}' needs its seed and step as scalars of type int64, not ${x.dtype} of rank ${x.rank}.`)
      }
      if (!Number.isInteger(stream) || stream < 0 || stream >= 2 ** 32)
        throw new ShapeError(`'${name}' needs a stream number below 2³², not ${stream}.`)
      return one(fixed ?? dtype, shape)
    },
    expand: (inputs, attrs) => {
      const a = attrs as unknown as RandomAttrs
      const drawn = words(inputs as Tensor[], a)
      // float16 could not hold the 24 bits on the way.
      const exact = a.dtype === 'float64' ? 'float64' : 'float32'
      const y = arranged(values(drawn.words, exact), drawn.columns, drawn.rows, a.shape, inputs.slice(2) as Tensor[])
      return { outputs: [cast(y, fixed ?? a.dtype)] }
    },
    gradient: 'none',
  })

/** Where random numbers come from: equal seeds, steps and streams give equal numbers, on every device. */
export interface RandomSource {
  /** int64 scalar; a number is fixed in the program. */
  readonly seed: Tensor | number
  /** int64 scalar that changes from run to run, such as the training step; 0 by default. */
  readonly step?: Tensor | number
  /** Tells several draws from one seed apart; 0 by default. */
  readonly stream?: number
}

const draw =
  (op: string) =>
  (shape: Shape, source: RandomSource, options: { dtype?: 'float32' | 'float64' | 'float16'; like?: readonly Tensor[] } = {}): Tensor => {
    const int = (x: Tensor | number) => (typeof x === 'number' ? scalar(x, 'int64') : x)
    const [first, ...more] = options.like ?? []
    const likes = first ? carriers(shape, first, ...more) : []
    return apply1(op, [int(source.seed), int(source.step ?? 0), ...likes], {
      shape,
      stream: source.stream ?? 0,
      dtype: options.dtype ?? 'float32',
    })
  }

/** Random 32-bit words of a shape, uint32; named axes are read from `like`. */
export const randomBits = draw('random_bits')
/** Random values in [0, 1) with 24 random bits each; named axes are read from `like`. */
export const randomUniform = draw('random_uniform')
/** Random values of the standard normal distribution (devices may differ in the last bit of log and cos); named axes are read from `like`. */
export const randomNormal = draw('random_normal')
