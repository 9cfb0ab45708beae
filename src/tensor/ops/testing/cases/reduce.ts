/** @file Gradient cases of reductions, the softmax family, matrix products and norms. */
import type { Tensor } from '../../../tensor.ts'
import * as op from '../../index.ts'
import type { Case, Draw } from '../check.ts'

const sizes = { n: 2, m: 3 }

const reductions: readonly [string, (x: Tensor, axes?: readonly number[], keepDims?: boolean) => Tensor, Draw][] = [
  ['sum', op.sum, 'any'],
  ['mean', op.mean, 'any'],
  ['sum of squares', op.sumSquares, 'any'],
  ['max', op.max, 'apart'],
  ['min', op.min, 'apart'],
  ['prod', op.prod, 'any'],
  ['logsumexp', op.logSumExp, 'any'],
]

const matmuls: readonly [string, readonly (number | string)[], readonly (number | string)[]][] = [
  ['matrices', [3, 2], [2, 4]],
  ['rows of a batch and a weight', ['n', 'm', 2], [2, 4]],
  ['two batches', ['n', 3, 2], ['n', 2, 4]],
  ['a broadcast batch', ['n', 1, 3, 2], [3, 2, 4]],
  ['a weight and a batch', [3, 2], ['n', 2, 4]],
]

const swapped = (shape: readonly (number | string)[]) => [...shape.slice(0, -2), shape.at(-1) as number, shape.at(-2) as number]

export const reduceCases: readonly Case[] = [
  ...reductions.flatMap(([name, f, draw]): Case[] =>
    [[[0, -1], false] as const, [[1], true] as const, [undefined, false] as const, [[], false] as const].map(([axes, keep]) => ({
      name: `${name} over ${axes ? `axes [${axes}]` : 'everything'}${keep ? ', kept' : ''}`,
      inputs: { x: { shape: ['n', 'm', 2], draw } },
      sizes,
      build: ({ x }) => f(op.mul(x as Tensor, 0.7), axes, keep),
    })),
  ),
  {
    name: 'product with one zero',
    inputs: { x: { shape: [4], draw: [0, 0.5, -2, 3] } },
    build: ({ x }) => op.prod(x as Tensor),
    noSecond: 'a product at a zero',
  },
  {
    name: 'product with two zeros',
    inputs: { x: { shape: [4], draw: [0, 0.5, 0, 3] } },
    build: ({ x }) => op.prod(x as Tensor),
    noSecond: 'a product at two zeros',
  },
  ...[
    { exclusive: false, reverse: false },
    { exclusive: true, reverse: false },
    { exclusive: true, reverse: true },
  ].map(
    (options): Case => ({
      name: `cumsum${options.exclusive ? ', exclusive' : ''}${options.reverse ? ', reverse' : ''}`,
      inputs: { x: { shape: [2, 'm'] } },
      sizes,
      build: ({ x }) => op.cumsum(op.mul(x as Tensor, x as Tensor), -1, options),
    }),
  ),
  ...[-1, 0].flatMap((axis): Case[] => [
    { name: `softmax over axis ${axis}`, inputs: { x: { shape: ['n', 3] } }, sizes, build: ({ x }) => op.softmax(x as Tensor, axis) },
    {
      name: `log-softmax over axis ${axis}`,
      inputs: { x: { shape: ['n', 3] } },
      sizes,
      build: ({ x }) => op.logSoftmax(x as Tensor, axis),
    },
  ]),
  ...matmuls.flatMap(([name, a, b]) =>
    [false, true].flatMap((transA) =>
      [false, true].map(
        (transB): Case => ({
          name: `matmul of ${name}${transA ? ', left transposed' : ''}${transB ? ', right transposed' : ''}`,
          inputs: { a: { shape: transA ? swapped(a) : a }, b: { shape: transB ? swapped(b) : b } },
          sizes,
          build: ({ a: left, b: right }) => op.matmul(left as Tensor, right as Tensor, { transA, transB, alpha: transA ? 0.5 : 1 }),
        }),
      ),
    ),
  ),
  ...(
    [
      ['a product of batches', 'bij,bkj->bik', ['n', 'm', 2], ['n', 4, 2]],
      ['an outer product', 'i,j->ji', ['n'], [3]],
      ['values side by side', 'bi,b->bi', ['n', 3], ['n']],
      ['axes that only one side has', 'ija,jk->k', ['n', 3, 2], [3, 4]],
      ['further axes', '...i,ij->...j', ['n', 'm', 2], [2, 3]],
      ['an implicit result', 'kj,ik', [2, 'm'], ['n', 2]],
      ['a diagonal', 'iij,j->i', [3, 3, 2], [2]],
    ] as const
  ).map(
    ([name, equation, a, b]): Case => ({
      name: `einsum of ${name}`,
      inputs: { a: { shape: a }, b: { shape: b } },
      sizes,
      build: (x) => op.einsum(equation, x.a as Tensor, x.b as Tensor),
    }),
  ),
  {
    name: 'einsum of three tensors',
    inputs: { a: { shape: ['n', 2] }, b: { shape: [2, 3] }, c: { shape: [3, 'n'] } },
    sizes,
    build: ({ a, b, c }) => op.einsum('ij,jk,ki->', a as Tensor, b as Tensor, c as Tensor),
  },
  {
    name: 'cross-entropy by gathered log-probabilities',
    inputs: { x: { shape: ['n', 3] }, i: { shape: ['n', 1], dtype: 'int64', draw: [2, 0] } },
    sizes,
    build: ({ x, i }) => op.gatherElements(op.logSoftmax(x as Tensor), i as Tensor, 1),
  },
  {
    name: 'rms norm',
    inputs: { x: { shape: ['n', 'm', 4] }, gain: { shape: [4] } },
    sizes,
    dtype: 'float32',
    build: ({ x, gain }) => op.rmsNorm(x as Tensor, gain as Tensor, 1e-3),
  },
  {
    name: 'rms norm in float64',
    inputs: { x: { shape: ['n', 4] }, gain: { shape: [4] } },
    sizes,
    build: ({ x, gain }) => op.rmsNorm(x as Tensor, gain as Tensor, 1e-3),
  },
  {
    name: 'layer norm',
    inputs: { x: { shape: ['n', 'm', 4] }, gain: { shape: [4] }, bias: { shape: [4] } },
    sizes,
    dtype: 'float32',
    build: ({ x, gain, bias }) => op.layerNorm(x as Tensor, gain as Tensor, bias as Tensor, 1e-3),
  },
  {
    name: 'layer norm without bias in float64',
    inputs: { x: { shape: ['n', 4] }, gain: { shape: [4] } },
    sizes,
    build: ({ x, gain }) => op.layerNorm(x as Tensor, gain as Tensor, undefined, 1e-3),
  },
]
