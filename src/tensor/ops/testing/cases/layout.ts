/** @file Gradient cases of ops that move values: layout, indexing, order. */
import type { Tensor } from '../../../tensor.ts'
import * as op from '../../index.ts'
import type { Case } from '../check.ts'

const square = (x: Tensor) => op.mul(x, x)
const sizes = { n: 2, m: 3 }

const shaped = (name: string, build: (x: Tensor) => Tensor, shape: readonly (number | string)[] = ['n', 'm', 4]): Case => ({
  name,
  inputs: { x: { shape } },
  sizes,
  build: ({ x }) => build(square(x as Tensor)),
})

export const layoutCases: readonly Case[] = [
  shaped('reshape joining symbols', (x) => op.reshape(x, ['m*n', 4])),
  shaped('reshape and back', (x) => op.reshape(op.mul(op.reshape(x, [-1, 4]), 2), ['n', 'm', 4])),
  shaped('transpose', (x) => op.transpose(x, [2, 0, 1])),
  shaped('unsqueeze and squeeze', (x) => op.squeeze(op.unsqueeze(x, 1), 1)),
  shaped('slice in the middle', (x) => op.slice(x, 2, 1, 3)),
  shaped('slice from the end', (x) => op.slice(x, -1, -3, -1)),
  shaped('slice with a step', (x) => op.slice(x, 2, 1, 4, 2)),
  shaped('slice with a step over a middle axis', (x) => op.slice(x, 1, 0, Number.MAX_SAFE_INTEGER, 3), ['n', 7, 'm']),
  shaped('slice of a symbolic axis', (x) => op.slice(x, 1, 1)),
  shaped('last value of a symbolic axis', (x) => op.slice(x, 1, -1)),
  shaped('slice of a symbolic axis before its end', (x) => op.slice(x, 1, 0, -1)),
  shaped('slice backwards', (x) => op.slice(x, 2, 3, 0, -2)),
  shaped('slice backwards to the start', (x) => op.slice(x, 0, -1, Number.MIN_SAFE_INTEGER, -1)),
  shaped('flip', (x) => op.flip(x, [0, 2])),
  shaped('concat of slices', (x) => op.concat([op.slice(x, 2, 2, 4), op.slice(x, 2, 0, 1)], -1)),
  {
    name: 'concat along symbolic axes',
    inputs: { a: { shape: ['n', 2] }, b: { shape: ['m', 2] }, c: { shape: [1, 2] } },
    sizes,
    build: ({ a, b, c }) => square(op.concat([a, b, c] as Tensor[], 0)),
  },
  shaped('split', (x) => op.concat(op.split(x, 2, [1, 3]).reverse(), 2)),
  {
    name: 'expand',
    inputs: { x: { shape: [3, 1] }, like: { shape: ['n', 3, 'm'] } },
    sizes,
    fixed: ['like'],
    build: ({ x, like }) => op.expand(square(x as Tensor), ['n', 3, 'm'], like as Tensor),
  },
  {
    name: 'slice to a length',
    inputs: { x: { shape: ['n', 4] }, k: { shape: [], dtype: 'int64', draw: [3] } },
    sizes,
    build: ({ x, k }) => op.sliceTo(square(x as Tensor), 1, k as Tensor, 'k'),
  },
  { name: 'identity and cut', inputs: { x: { shape: [3] } }, build: ({ x }) => op.cut(op.identity(square(x as Tensor)), 0) },
  {
    name: 'gather rows of a table',
    inputs: { x: { shape: [5, 2] }, i: { shape: ['n', 'm'], dtype: 'int64', draw: [0, 4, 4, -1, 2, 0] } },
    sizes,
    build: ({ x, i }) => op.gather(square(x as Tensor), i as Tensor),
  },
  {
    name: 'gather along a middle axis',
    inputs: { x: { shape: ['n', 4, 2] }, i: { shape: [3], dtype: 'int32', draw: [3, 0, 3] } },
    sizes,
    build: ({ x, i }) => op.gather(square(x as Tensor), i as Tensor, 1),
  },
  {
    name: 'gather of one index',
    inputs: { x: { shape: ['n', 'm', 2] }, i: { shape: [], dtype: 'int64', draw: [-1] } },
    sizes,
    build: ({ x, i }) => op.gather(square(x as Tensor), i as Tensor, 1),
  },
  {
    name: 'gather elements',
    inputs: { x: { shape: ['n', 4] }, i: { shape: ['n', 3], dtype: 'int64', draw: [0, 0, 3, 1, 2, 1] } },
    sizes,
    build: ({ x, i }) => op.gatherElements(square(x as Tensor), i as Tensor, -1),
  },
  {
    name: 'scatter elements, set',
    inputs: { x: { shape: ['n', 4] }, i: { shape: ['n', 2], dtype: 'int64', draw: [0, 3, 1, 2] }, u: { shape: ['n', 2] } },
    sizes,
    build: ({ x, i, u }) => op.scatterElements(square(x as Tensor), i as Tensor, square(u as Tensor), 1),
  },
  {
    name: 'scatter elements, add',
    inputs: { x: { shape: ['n', 4] }, i: { shape: ['n', 2], dtype: 'int64', draw: [0, 0, 1, 2] }, u: { shape: ['n', 2] } },
    sizes,
    build: ({ x, i, u }) => op.scatterAdd(square(x as Tensor), i as Tensor, square(u as Tensor), 1),
  },
  {
    name: 'gather nd',
    inputs: { x: { shape: [3, 4, 2] }, i: { shape: ['n', 2], dtype: 'int64', draw: [0, 3, 2, 1] } },
    sizes,
    build: ({ x, i }) => op.gatherNd(square(x as Tensor), i as Tensor),
  },
  {
    name: 'gather nd with a batch axis',
    inputs: { x: { shape: ['n', 4, 2] }, i: { shape: ['n', 'm', 1], dtype: 'int64', draw: [0, 3, 2, 1, 1, 1] } },
    sizes,
    build: ({ x, i }) => op.gatherNd(square(x as Tensor), i as Tensor, 1),
  },
  {
    name: 'scatter nd, set',
    inputs: { x: { shape: [4, 'm'] }, i: { shape: ['n', 1], dtype: 'int64', draw: [3, 1] }, u: { shape: ['n', 'm'] } },
    sizes,
    build: ({ x, i, u }) => op.scatterNd(square(x as Tensor), i as Tensor, square(u as Tensor)),
  },
  {
    name: 'scatter nd, add',
    inputs: { x: { shape: [4, 'm'] }, i: { shape: ['n', 1], dtype: 'int64', draw: [1, 1] }, u: { shape: ['n', 'm'] } },
    sizes,
    build: ({ x, i, u }) => op.scatterNd(square(x as Tensor), i as Tensor, square(u as Tensor), { add: true }),
  },
  {
    name: 'gather a row for each item',
    inputs: { x: { shape: ['n', 'm', 2] }, i: { shape: ['n'], dtype: 'int64', draw: [2, 0] } },
    sizes,
    build: ({ x, i }) => op.gatherRows(square(x as Tensor), i as Tensor),
  },
  {
    name: 'top-k',
    inputs: { x: { shape: ['n', 5], draw: 'apart' } },
    sizes,
    build: ({ x }) => square(op.topK(x as Tensor, 2).values),
  },
  {
    name: 'bottom-k over the first axis',
    inputs: { x: { shape: [4, 'n'], draw: 'apart' } },
    sizes,
    build: ({ x }) => square(op.topK(x as Tensor, 3, 0, { smallest: true }).values),
  },
  {
    name: 'sort',
    inputs: { x: { shape: ['n', 4], draw: 'apart' } },
    sizes,
    build: ({ x }) => square(op.sort(x as Tensor).values),
  },
  {
    name: 'sort of a symbolic axis, descending',
    inputs: { x: { shape: ['m', 2], draw: 'apart' } },
    sizes,
    build: ({ x }) => square(op.sort(x as Tensor, 0, { descending: true }).values),
  },
]
