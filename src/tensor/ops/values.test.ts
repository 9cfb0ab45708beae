import { readFileSync } from 'node:fs'
import { describe, expect, it } from 'vitest'
import type { NDArray } from '../../base/types.ts'
import { Rewriter } from '../graph.ts'
import { evaluate } from '../program.ts'
import type { Tensor } from '../tensor.ts'
import * as op from './index.ts'
import { testOptions } from './testing/check.ts'

/** What NumPy gives, made by `testing/record.py`. */
const recorded = new Map<string, { shape: number[]; values: number[] }>(
  readFileSync(new URL('./testing/recorded.ndjson', import.meta.url), 'utf8')
    .trim()
    .split('\n')
    .map((line) => JSON.parse(line) as { name: string; shape: number[]; values: number[] })
    .map((r) => [r.name, r]),
)

/** The same numbers that `record.py` starts from. */
function wave(shape: number[], seed = 0): Tensor {
  const n = shape.reduce((a, b) => a * b, 1)
  return op.constant(
    'float32',
    shape,
    Float32Array.from({ length: n }, (_, i) => 1.5 * Math.sin(0.9 * i + seed)),
  )
}

const image = wave([2, 4, 5, 4])
const line = op.constant('float32', [6], [-3, -1, -0.2, 0, 0.4, 2.5])
const tiny = op.constant('float32', [6], [1e-7, -3e-6, 1e-3, 0.5, -0.5, 3])
const int = (shape: number[], values: number[]) => op.constant('int64', shape, values)
const four = { gain: wave([4], 1), bias: wave([4], 2) }
const angles = (f: (x: number) => number) =>
  op.constant(
    'float32',
    [6, 2],
    Array.from({ length: 12 }, (_, i) => f((i >> 1) * 10 ** -(i & 1))),
  )
const tables = { cos: angles(Math.cos), sin: angles(Math.sin) }

const cases: Readonly<Record<string, () => Tensor>> = {
  conv: () =>
    op.conv(image, wave([6, 2, 2, 3], 1), wave([6], 2), {
      stride: [2, 1],
      dilation: [1, 2],
      padding: [
        [1, 0],
        [2, 1],
      ],
      groups: 2,
    }),
  conv_1d: () => op.conv(wave([1, 2, 6]), wave([3, 2, 3], 1), wave([3], 2), { padding: 1 }),
  conv_3d: () =>
    op.conv(wave([1, 1, 3, 3, 4]), wave([2, 1, 2, 2, 2], 1), wave([2], 2), { stride: [1, 2, 1], dilation: [1, 1, 2], padding: [0, 1, 0] }),
  conv_transpose: () =>
    op.convTranspose(image, wave([4, 3, 2, 3], 1), wave([6], 2), {
      stride: [2, 1],
      dilation: [1, 2],
      padding: [0, 1],
      extra: [1, 0],
      groups: 2,
    }),
  max_pool: () => op.maxPool(image, { kernel: [3, 2], stride: 2, padding: 1 }).values,
  average_pool: () => op.averagePool(image, { kernel: [3, 2], stride: 2, padding: 1 }),
  average_pool_inside: () => op.averagePool(image, { kernel: [3, 2], stride: 2, padding: 1, countPadding: false }),
  resize_nearest: () => op.resize(wave([1, 2, 3, 4]), [5, 3]),
  resize_linear: () => op.resize(wave([1, 2, 3, 4]), [5, 6], 'linear'),
  resize_aligned: () => op.resize(wave([1, 2, 3, 4]), [5, 6], 'linear', { alignCorners: true }),
  pixel_shuffle: () => op.pixelShuffle(wave([1, 8, 2, 3]), 2),
  group_norm: () => op.groupNorm(image, 2, four.gain, four.bias),
  instance_norm: () => op.instanceNorm(image, four.gain, four.bias),
  batch_norm: () => op.batchNorm(image, { ...four, mean: wave([4], 3), variance: op.abs(wave([4], 4)) }),
  batch_norm_training: () => op.batchNormTraining(image, four.gain, four.bias).y,
  cross_attention: () =>
    op.crossAttention(
      {
        q: wave([2, 3, 8]),
        k: wave([2, 4, 8], 1),
        v: wave([2, 4, 6], 2),
        mask: int([2, 4], [1, 1, 0, 1, 0, 1, 1, 1]),
        bias: wave([1, 2, 3, 4], 3),
      },
      { heads: 2 },
    ),
  rotary: () => op.rotary(wave([1, 3, 16]), int([1, 3], [0, 5, 2]), tables, { heads: 2 }),
  rotary_interleaved: () => op.rotary(wave([1, 3, 16]), int([1, 3], [0, 5, 2]), tables, { heads: 2, interleaved: true }),
  einsum: () => op.einsum('bij,bkj,k->ib', wave([2, 3, 4]), wave([2, 5, 4], 1), wave([5], 2)),
  einsum_diagonal: () => op.einsum('ii', wave([3, 3])),
  einsum_ellipsis: () => op.einsum('...ij,jk', wave([2, 2, 3, 4]), wave([4, 2], 1)),
  cumprod: () => op.cumprod(wave([2, 6]), 1),
  sort: () => op.sort(wave([2, 6])).values,
  argsort: () => op.argsort(wave([2, 6])),
  roll: () => op.roll(wave([2, 6]), 2, 1),
  tile: () => op.tile(wave([2, 3]), [2, 2]),
  pad_reflect: () => op.pad(wave([2, 4]), [1, 2], [0, 3], 'reflect'),
  pad_edge: () => op.pad(wave([2, 4]), [1, 2], [0, 3], 'edge'),
  pad_wrap: () => op.pad(wave([2, 4]), [1, 2], [0, 3], 'wrap'),
  logsumexp: () => op.logSumExp(op.mul(wave([2, 6]), 50), [1]),
  fake_quantize: () =>
    op.fakeQuantize(wave([2, 6]), op.constant('float32', [], [0.25]), op.constant('float32', [], [1]), { low: -4, high: 3 }),
  scan: () => {
    const step = ([h]: readonly Tensor[], [x]: readonly Tensor[]) => {
      const next = op.tanh(op.add(op.mul(h as Tensor, 0.5), x as Tensor))
      return { carry: [next], each: [next] }
    }
    return op.scan([op.constant('float32', [3], [0, 0, 0])], [wave([4, 3])], step).each[0] as Tensor
  },
  line_leaky_relu: () => op.leakyRelu(line, 0.1),
  line_elu: () => op.elu(line),
  line_selu: () => op.selu(line),
  line_softplus: () => op.softplus(line),
  line_softsign: () => op.softsign(line),
  line_hard_sigmoid: () => op.hardSigmoid(line),
  line_hard_swish: () => op.hardSwish(line),
  line_mish: () => op.mish(line),
  line_silu: () => op.silu(line),
  line_gelu: () => op.gelu(line),
  line_clip: () => op.clip(line, -0.5, 1),
  line_erf: () => op.erf(line),
  log1p: () => op.log1p(tiny),
  expm1: () => op.expm1(tiny),
}

const numbers = (x: NDArray) => Array.from(x.data as ArrayLike<number | bigint>, Number)
const one = async (y: Tensor, feeds: Record<string, NDArray> = {}) => (await evaluate({ y }, feeds, testOptions)).y

describe('values agree with NumPy', () => {
  it.each(Object.entries(cases))('%s', async (name, build) => {
    const expected = recorded.get(name)
    const y = await one(build())
    expect(y.shape).toEqual(expected?.shape)
    for (const [i, v] of numbers(y).entries()) {
      const e = expected?.values[i] as number
      expect(Math.abs(v - e), `${v} for ${e} at ${i}`).toBeLessThanOrEqual(
        2e-5 * Math.max(Math.abs(e), name === 'log1p' || name === 'expm1' ? 0 : 1),
      )
    }
  })

  it('every record is used', () => {
    expect([...recorded.keys()].sort()).toEqual(Object.keys(cases).sort())
  })
})

describe('attention inside a composite', () => {
  it('shows scores and probabilities, and gives the same with and without fusing', async () => {
    const q = wave([2, 3, 8])
    const mask = int([2, 3], [1, 1, 0, 1, 1, 1])
    const fused = op.crossAttention({ q, k: q, v: q, mask }, { heads: 2 })
    const rewriter = new Rewriter({ expand: (node) => node === fused.node })
    const open = rewriter.map(fused)
    const probs = rewriter.expansions.get(fused.node)?.inner?.attn_probs as Tensor
    const out = await evaluate({ fused, open, probs }, {}, testOptions)
    numbers(out.open).forEach((v, i) => {
      expect(v).toBeCloseTo(numbers(out.fused)[i] as number, 5)
    })
    expect(out.probs.shape).toEqual([2, 2, 3, 3])
    expect(numbers(out.probs)[2]).toBe(0)
  })

  it('a row without keys gives their mean, not NaN', async () => {
    const v = wave([1, 2, 4])
    const y = await one(op.crossAttention({ q: v, k: v, v, mask: int([1, 2], [0, 0]) }, { heads: 1 }))
    const [a, b] = [numbers(await one(v)), numbers(y)]
    expect(b.slice(0, 4)).toEqual([0, 1, 2, 3].map((i) => expect.closeTo(((a[i] as number) + (a[i + 4] as number)) / 2, 5)))
  })
})

describe('quantised values', () => {
  it('go to integers and back', async () => {
    const x = op.constant('float32', [2, 3], [0.24, -1, 9, 0.26, 100, -100])
    const scale = op.constant('float32', [3], [0.5, 0.25, 1])
    const zeroPoint = op.constant('uint8', [3], [10, 10, 10])
    const q = op.quantize(x, scale, 'uint8', { zeroPoint, axis: 1 })
    const back = op.dequantize(q, scale, { zeroPoint, axis: 1 })
    const out = await evaluate({ q, back, signed: op.quantize(x, op.constant('float32', [], [0.5]), 'int8') }, {}, testOptions)
    expect(numbers(out.q)).toEqual([10, 6, 19, 11, 255, 0])
    expect(numbers(out.back)).toEqual([0, -1, 9, 0.5, 61.25, -10])
    expect(numbers(out.signed)).toEqual([0, -2, 18, 1, 127, -128])
  })

  it.each([
    [4, 32, false],
    [4, 32, true],
    [4, 48, true],
    [4, 40, true],
    [8, 32, false],
    [8, 48, true],
  ] as const)(
    'of %i bits in rows of %i, zero points %s: fused, unpacked from a weight and unpacked by bits are the same',
    async (bits, k, withZeros) => {
      const [n, block] = [3, 16]
      const blocks = Math.ceil(k / block)
      const bytes = (count: number, seed: number) =>
        Uint8Array.from({ length: count }, (_, i) => (i * 37 + seed * 11 + ((i * i) % 29)) & 255)
      const rowBytes = Math.ceil((blocks * bits) / 8)
      const layout = { n, k, block, bits }
      const [packed, zeros] = [bytes(n * blocks * 2 * bits, 1), bytes(n * rowBytes, 2)]
      const scales = Float32Array.from({ length: n * blocks }, (_, i) => 0.01 * (1 + (i % 5)))
      const value = (data: Uint8Array, i: number) => (bits === 8 ? (data[i] as number) : ((data[i >> 1] as number) >> (4 * (i & 1))) & 15)
      const expected = Array.from({ length: n * k }, (_, at) => {
        const [row, column] = [Math.floor(at / k), at % k]
        const b = Math.floor(column / block)
        const zero = withZeros ? value(zeros.subarray(row * rowBytes, (row + 1) * rowBytes), b) : 2 ** (bits - 1)
        return (value(packed, row * blocks * block + column) - zero) * (scales[row * blocks + b] as number)
      })
      const stored = (name: string, dtype: 'uint8' | 'float32', shape: number[], data: Uint8Array) =>
        op.weight({ name, dtype, shape, place: { data, key: `${name}/${bits}/${k}` } })
      const weights = [
        stored('packed', 'uint8', [n, blocks, 2 * bits], packed),
        stored('scales', 'float32', [n, blocks], new Uint8Array(scales.buffer)),
        withZeros ? stored('zeros', 'uint8', [n, rowBytes], zeros) : undefined,
      ] as const
      const constants = [
        op.constant('uint8', [n, blocks, 2 * bits], packed),
        op.constant('float32', [n, blocks], scales),
        withZeros ? op.constant('uint8', [n, rowBytes], zeros) : undefined,
      ] as const
      const x = wave([2, k])
      const ids = op.constant('int64', [2], [2, 0])
      const offsets = op.constant(
        'float32',
        [n, blocks],
        Float32Array.from({ length: n * blocks }, (_, i) => 0.3 * (i % 4) - 0.5),
      )
      const whole = k % block === 0
      const outputs: Record<string, Tensor> = whole
        ? {
            rows: op.lookup(op.dequantizeBlocks(...weights, layout, { offsets }), ids),
            table: op.gather(op.dequantizeBlocks(...constants, layout, { offsets }), ids),
            moved: op.matmulBlocks(x, ...weights, layout, { offsets }),
            movedOpen: op.matmul(x, op.dequantizeBlocks(...constants, layout, { offsets }), { transB: true }),
            rounded: op.matmulBlocks(x, ...weights, layout, { offsets, accuracy: 4 }),
          }
        : {}
      const out = await evaluate(
        {
          ...outputs,
          weight: op.dequantizeBlocks(...weights, layout),
          constant: op.dequantizeBlocks(...constants, layout),
          fused: op.matmulBlocks(x, ...weights, layout),
          open: op.matmul(x, op.dequantizeBlocks(...constants, layout), { transB: true }),
        },
        {},
        testOptions,
      )
      expect(numbers(out.weight)).toEqual(expected.map((v) => expect.closeTo(v, 5)))
      expect(numbers(out.constant)).toEqual(expected.map((v) => expect.closeTo(v, 5)))
      expect(numbers(out.fused)).toEqual(numbers(out.open).map((v) => expect.closeTo(v, 4)))
      if (!whole) return
      const get = (name: string) => numbers((out as Record<string, NDArray>)[name] as NDArray)
      expect(get('rows')).toEqual(get('table').map((v) => expect.closeTo(v, 5)))
      expect(get('moved')).toEqual(get('movedOpen').map((v) => expect.closeTo(v, 4)))
      // x is rounded to 8 bits in blocks: an error of up to half a step for each value, of up to 1/127 of the largest.
      const scale = Math.max(...get('moved').map(Math.abs))
      for (const [i, v] of get('rounded').entries()) expect(Math.abs(v - (get('moved')[i] as number)) / scale).toBeLessThan(0.02)
    },
  )
})

describe('refusals', () => {
  const f = (shape: (number | string)[]) => op.input('x', 'float32', shape)
  it.each<[string, () => Tensor | object, string]>([
    ['einsum with unequal lengths', () => op.einsum('ij,jk->ik', f([2, 3]), f([4, 5])), "the axis 'j' is 3 and 4"],
    ['einsum with a wrong count', () => op.einsum('ij,jk->ik', f([2, 3])), 'names 2 inputs, but 1 are given'],
    ['einsum with a new letter', () => op.einsum('ij->ik', f([2, 3])), "has 'k' in the result only"],
    [
      'conv in float64',
      () => op.conv(op.input('x', 'float64', [1, 1, 4]), op.input('w', 'float64', [1, 1, 2])),
      "has no 'conv' for float64",
    ],
    ['conv of unfitting channels', () => op.conv(f([1, 3, 4]), f([2, 2, 2])), 'in 1 groups cannot use a weight [2, 2, 2] on [1, 3, 4]'],
    ['a kernel that is too large', () => op.conv(f([1, 1, 2]), f([1, 1, 5])), 'does not fit an axis of 2'],
    ['pad of too few numbers', () => op.pad(f([2, 2]), [1], [1]), 'needs 2 whole numbers before and after'],
    ['reflection of too much', () => op.pad(f([2]), [2], [0], 'reflect'), 'has no 2 values to copy'],
    ['tile by zero', () => op.tile(f([2]), [0]), 'positive whole numbers'],
    ['pixel shuffle of odd channels', () => op.pixelShuffle(f([1, 3, 2, 2]), 2), 'cannot divide an axis of 3 in [1, 3, 2, 2] by 4'],
    ['groups that do not divide', () => op.groupNorm(f([1, 3, 2]), 2, undefined, undefined), 'cannot make 2 groups of the 3 channels'],
    ['a slice without a step', () => op.slice(f([4]), 0, 0, 4, 0), 'a step that is a whole number other than 0'],
    ['clip with bounds crossed', () => op.clip(f([4]), 2, 1), 'needs min ≤ max'],
    ['shift of signed integers', () => op.shiftLeft(op.input('x', 'int32', [2]), 1), 'needs uint8, uint32, uint64, not int32'],
    ['scan through nothing', () => op.scan([f([2])], [], (c) => ({ carry: c })), 'needs at least one tensor to go through'],
    [
      'scan that changes its state',
      () => op.scan([f([2])], [f([3, 2])], (_, [x]) => ({ carry: [op.concat([x as Tensor, x as Tensor], 0)] })),
      'must carry on float32 [2] at place 0, not float32 [4]',
    ],
    [
      'a custom gradient that reads from outside',
      () => op.customGradient({ forward: (x) => op.mul(x as Tensor, f([2])), backward: (g) => [g] })(f([2])),
      "reads 'x' from outside",
    ],
    [
      'a mask of the wrong length',
      () => op.crossAttention({ q: f([1, 2, 4]), k: f([1, 3, 4]), v: f([1, 3, 4]), mask: op.input('m', 'int32', [1, 2]) }, { heads: 1 }),
      'needs a mask int32 [batch, 3]',
    ],
    [
      'packed weights of the wrong size',
      () => op.matmulBlocks(f([2, 32]), op.input('p', 'uint8', [3, 1, 8]), f([3, 2]), undefined, { n: 3, k: 32, block: 16, bits: 4 }),
      'needs uint8 [3, 2, 8]',
    ],
  ])('%s', (_, build, sentence) => {
    expect(build).toThrow(sentence)
  })
})
