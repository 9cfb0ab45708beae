/** @file Gradient cases of convolutions, pooling, resizing and norms over channels. */
import type { Tensor } from '../../../tensor.ts'
import * as op from '../../index.ts'
import type { Case } from '../check.ts'

const sizes = { n: 2, m: 5 }

const convolution = (
  name: string,
  x: readonly (number | string)[],
  w: readonly number[],
  options: op.ConvOptions & { extra?: number },
  f: 'conv' | 'convTranspose' = 'conv',
): Case => {
  const out = f === 'conv' ? (w[0] as number) : (w[1] as number) * (options.groups ?? 1)
  return {
    name: `${f === 'conv' ? 'convolution' : 'transposed convolution'} ${name}`,
    inputs: { x: { shape: x }, w: { shape: w }, b: { shape: [out] } },
    sizes,
    dtype: 'float32',
    build: ({ x, w, b }) => (f === 'conv' ? op.conv : op.convTranspose)(x as Tensor, w as Tensor, b as Tensor, options),
  }
}

const pooling = (name: string, f: (x: Tensor) => Tensor, shape: readonly (number | string)[], dtype: 'float32' | 'float64'): Case => ({
  name,
  inputs: { x: { shape, draw: 'apart' } },
  sizes,
  dtype,
  build: ({ x }) => {
    const y = f(op.mul(x as Tensor, 0.3))
    return op.mul(y, y)
  },
})

const channels = { gain: { shape: [4] }, bias: { shape: [4] } } as const

export const imageCases: readonly Case[] = [
  convolution('over one axis', ['n', 2, 5], [3, 2, 3], { padding: 1 }),
  convolution('over one named axis', ['n', 2, 'm'], [3, 2, 3], { padding: 1 }),
  convolution('over two axes with stride and dilation', ['n', 2, 6, 7], [2, 2, 2, 2], {
    stride: 2,
    dilation: [1, 2],
    padding: [[0, 1], 1],
  }),
  convolution('in groups', ['n', 4, 4, 3], [6, 2, 2, 2], { groups: 2, stride: [2, 1] }),
  convolution('of each channel by itself', ['n', 3, 4, 4], [3, 1, 3, 3], { groups: 3, padding: 1 }),
  convolution('over three axes', [1, 1, 3, 4, 3], [2, 1, 2, 2, 2], { stride: [1, 2, 1] }),
  convolution('over one axis', ['n', 2, 4], [2, 3, 3], { stride: 2, padding: 1, extra: 1 }, 'convTranspose'),
  convolution('in groups', ['n', 4, 3, 2], [4, 1, 2, 2], { groups: 2, stride: 2 }, 'convTranspose'),
  convolution('of each channel by itself, dilated', ['n', 2, 4], [2, 1, 2], { groups: 2, dilation: 2 }, 'convTranspose'),
  convolution('over three axes', [1, 1, 2, 2, 2], [1, 1, 2, 2, 1], { stride: [2, 1, 1] }, 'convTranspose'),
  {
    name: 'convolution with mirrored padding',
    inputs: { x: { shape: ['n', 1, 4] }, w: { shape: [1, 1, 3] } },
    sizes,
    dtype: 'float32',
    build: ({ x, w }) => op.convPadded(x as Tensor, w as Tensor, undefined, 'reflect', { padding: 1 }),
  },
  pooling('max pool', (x) => op.maxPool(x, { kernel: 2, stride: 1 }).values, ['n', 2, 3, 4], 'float64'),
  pooling('max pool, padded, over three axes', (x) => op.maxPool(x, { kernel: 2, padding: 1 }).values, [1, 1, 2, 3, 2], 'float64'),
  pooling('max pool over a named axis', (x) => op.maxPool(x, { kernel: 2 }).values, ['n', 2, 'm'], 'float64'),
  pooling('average pool', (x) => op.averagePool(x, { kernel: [2, 3], stride: 2 }), ['n', 2, 4, 5], 'float32'),
  pooling('average pool that counts padding', (x) => op.averagePool(x, { kernel: 3, stride: 2, padding: 1 }), ['n', 2, 5], 'float32'),
  pooling(
    'average pool that leaves padding out',
    (x) => op.averagePool(x, { kernel: 3, stride: 2, padding: 1, countPadding: false }),
    ['n', 2, 4, 4],
    'float32',
  ),
  pooling('global average and max pool', (x) => op.add(op.globalAveragePool(x), op.globalMaxPool(x)), ['n', 2, 3, 2], 'float64'),
  pooling('resize to the nearest value', (x) => op.resize(x, [5, 3]), ['n', 1, 3, 4], 'float32'),
  pooling('resize, linear', (x) => op.resize(x, [5, 2], 'linear'), ['n', 1, 3, 4], 'float32'),
  pooling('resize, linear, aligned', (x) => op.resize(x, [7], 'linear', { alignCorners: true }), ['n', 2, 4], 'float32'),
  pooling('pixel shuffle', (x) => op.pixelShuffle(x, 2), ['n', 4, 2, 1], 'float64'),
  pooling('pixel unshuffle', (x) => op.pixelUnshuffle(x, 2), ['n', 1, 4, 2], 'float64'),
  {
    name: 'group norm',
    inputs: { x: { shape: ['n', 4, 3] }, ...channels },
    sizes,
    build: ({ x, gain, bias }) => op.groupNorm(x as Tensor, 2, gain as Tensor, bias as Tensor, 1e-3),
  },
  {
    name: 'instance norm',
    inputs: { x: { shape: ['n', 4, 2, 2] }, ...channels },
    sizes,
    build: ({ x, gain, bias }) => op.instanceNorm(x as Tensor, gain as Tensor, bias as Tensor, 1e-3),
  },
  {
    name: 'batch norm by recorded statistics',
    inputs: { x: { shape: ['n', 4, 3] }, ...channels, mean: { shape: [4] }, variance: { shape: [4], draw: 'positive' } },
    sizes,
    build: ({ x, gain, bias, mean, variance }) =>
      op.batchNorm(x as Tensor, { gain: gain as Tensor, bias: bias as Tensor, mean: mean as Tensor, variance: variance as Tensor }, 1e-3),
  },
  {
    name: 'batch norm in training',
    inputs: { x: { shape: ['n', 4, 3] }, ...channels },
    sizes,
    build: ({ x, gain, bias }) => op.batchNormTraining(x as Tensor, gain as Tensor, bias as Tensor, 1e-3).y,
  },
]
