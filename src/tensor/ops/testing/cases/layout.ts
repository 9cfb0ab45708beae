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
  // Squared before and after, so that the second derivative runs through the rule's own ops.
  build: ({ x }) => square(build(square(x as Tensor))),
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
  shaped('pad with zeros', (x) => op.pad(x, [1, 0, 2], [0, 1, 1])),
  ...(['reflect', 'edge', 'wrap'] as const).map((mode) =>
    shaped(`pad by ${mode}`, (x) => op.pad(x, [0, 1, 2], [0, 0, 3], mode), ['n', 2, 4]),
  ),
  shaped('tile', (x) => op.tile(x, [2, 1, 3])),
  shaped('roll', (x) => op.roll(x, 3, -1)),
  shaped('roll of a symbolic axis, backwards', (x) => op.roll(x, -2, 1)),
  shaped('split', (x) => op.concat(op.split(x, 2, [1, 3]).reverse(), 2)),
  {
    name: 'slot',
    inputs: { x: { shape: [2, 3] }, added: { shape: [2, 3] } },
    fixed: ['added'],
    build: ({ x }) => square(op.slot(square(x as Tensor), 'added')),
  },
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
    build: ({ x, k }) => square(op.sliceTo(square(x as Tensor), 1, k as Tensor, 'k')),
  },
  { name: 'identity and cut', inputs: { x: { shape: [3] } }, build: ({ x }) => op.cut(op.identity(square(x as Tensor)), 0) },
  ...[{}, { exclusive: true }, { reverse: true }, { exclusive: true, reverse: true }].map((options) =>
    shaped(`cumprod ${Object.keys(options).join(', ')}`, (x) => op.cumprod(x, 1, options), [2, 5]),
  ),
  shaped('cumprod of a symbolic axis', (x) => op.cumprod(x, 1), [2, 'm']),
  shaped('cumprod of a symbolic axis, exclusive, reverse', (x) => op.cumprod(x, 0, { exclusive: true, reverse: true }), ['m', 2]),
  shaped('einsum of one tensor', (x) => op.einsum('abc->ca', x)),
  {
    name: 'scan carrying a state with a shared weight',
    inputs: { h: { shape: ['n', 3] }, x: { shape: ['m', 'n', 3] }, w: { shape: [3, 3] } },
    sizes,
    build: ({ h, x, w }) => {
      const { carry, each } = op.scan([h as Tensor], [x as Tensor], ([state], [item]) => {
        const next = op.tanh(op.add(op.matmul(state as Tensor, w as Tensor), item as Tensor))
        return { carry: [next], each: [op.mul(next, item as Tensor)] }
      })
      return op.add(carry[0] as Tensor, op.sum(each[0] as Tensor, [0]))
    },
  },
  {
    name: 'scan backwards with a whole number in the state',
    inputs: { h: { shape: [2] }, k: { shape: [], dtype: 'int64', draw: [0] }, x: { shape: [4, 2] } },
    build: ({ h, k, x }) => {
      const { carry } = op.scan(
        [h as Tensor, k as Tensor],
        [x as Tensor],
        ([state, count], [item]) => ({
          carry: [
            op.sin(op.mul(op.add(state as Tensor, item as Tensor), op.add(op.cast(count as Tensor, 'float64'), 1))),
            op.add(count as Tensor, 1),
          ],
        }),
        { reverse: true },
      )
      return carry[0] as Tensor
    },
  },
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
