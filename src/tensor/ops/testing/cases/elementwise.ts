/** @file Gradient cases of element-wise ops and activation functions. */
import type { Tensor } from '../../../tensor.ts'
import * as op from '../../index.ts'
import type { Case, Draw } from '../check.ts'

const unary: readonly [string, (x: Tensor) => Tensor, Draw, 'float32'?][] = [
  ['neg', op.neg, 'any'],
  ['abs', op.abs, 'apart'],
  ['exp', op.exp, 'any'],
  ['log', op.log, 'positive'],
  ['sqrt', op.sqrt, 'positive'],
  ['reciprocal', op.reciprocal, 'positive'],
  ['tanh', op.tanh, 'any'],
  ['sigmoid', op.sigmoid, 'any'],
  ['relu', op.relu, 'apart'],
  ['erf', op.erf, 'any', 'float32'],
  ['sin', op.sin, 'any'],
  ['cos', op.cos, 'any'],
  ['tan', op.tan, 'unit', 'float32'],
  ['asin', op.asin, 'unit', 'float32'],
  ['acos', op.acos, 'unit', 'float32'],
  ['atan', op.atan, 'any', 'float32'],
  ['sinh', op.sinh, 'any', 'float32'],
  ['cosh', op.cosh, 'any', 'float32'],
  ['asinh', op.asinh, 'any', 'float32'],
  ['acosh', (x) => op.acosh(op.add(x, 1.5)), 'positive', 'float32'],
  ['atanh', op.atanh, 'unit', 'float32'],
  ['silu', op.silu, 'any'],
  ['gelu (erf)', (x) => op.gelu(x), 'any', 'float32'],
  ['gelu (tanh)', (x) => op.gelu(x, 'tanh'), 'any', 'float32'],
  ['gelu (tanh), written out', (x) => op.gelu(x, 'tanh'), 'any'],
  ['leaky relu', (x) => op.leakyRelu(x, 0.1), 'apart', 'float32'],
  ['leaky relu, written out', (x) => op.leakyRelu(x, 0.1), 'apart'],
  ['elu', (x) => op.elu(x, 0.7), 'apart', 'float32'],
  ['elu, written out', (x) => op.elu(x, 0.7), 'apart'],
  ['selu', op.selu, 'apart', 'float32'],
  ['selu, written out', op.selu, 'apart'],
  ['softplus', op.softplus, 'any', 'float32'],
  ['softplus, written out', op.softplus, 'apart'],
  ['softsign', op.softsign, 'apart', 'float32'],
  ['softsign, written out', op.softsign, 'apart'],
  ['hard sigmoid', (x) => op.hardSigmoid(x, 0.9), [-2, -0.2, 0.3, 0.4, 2, 3], 'float32'],
  ['hard sigmoid, written out', (x) => op.hardSigmoid(x, 0.9), [-2, -0.2, 0.3, 0.4, 2, 3]],
  ['hard swish', op.hardSwish, [-4, -2, 0.3, 1, 2, 5]],
  ['mish', op.mish, 'apart'],
  ['log1p', op.log1p, 'positive'],
  ['expm1', op.expm1, [-2, -0.4, 0.3, 0.7, 0.1, 1.2]],
  ['clip', (x) => op.clip(x, -0.5, 0.6), 'apart'],
  ['clip from below', (x) => op.clip(x, 0.25, Number.POSITIVE_INFINITY), 'apart'],
]

const binary: readonly [string, (a: Tensor, b: Tensor) => Tensor, Draw][] = [
  ['add', op.add, 'any'],
  ['sub', op.sub, 'any'],
  ['mul', op.mul, 'any'],
  ['div', op.div, 'positive'],
  ['pow', op.pow, 'positive'],
  ['minimum', op.minimum, 'apart'],
  ['maximum', op.maximum, 'apart'],
]

export const elementwiseCases: readonly Case[] = [
  ...unary.map(
    ([name, f, draw, dtype]): Case => ({
      name,
      inputs: { x: { shape: ['n', 3], draw } },
      sizes: { n: 2 },
      build: ({ x }) => f(x as Tensor),
      ...(dtype ? { dtype } : {}),
    }),
  ),
  ...binary.flatMap(([name, f, draw]): Case[] => [
    {
      name: `${name} of equal shapes`,
      inputs: { a: { shape: ['n', 3], draw }, b: { shape: ['n', 3], draw: draw === 'apart' ? [3, -3, 1, 0.5, -2, 0.1] : draw } },
      sizes: { n: 2 },
      build: ({ a, b }) => f(a as Tensor, b as Tensor),
    },
    {
      name: `${name} with the left side broadcast`,
      inputs: { a: { shape: [3, 1], draw: draw === 'apart' ? [3, -3, 0.5] : draw }, b: { shape: ['n', 1, 4], draw } },
      sizes: { n: 2 },
      build: ({ a, b }) => f(a as Tensor, b as Tensor),
    },
    {
      name: `${name} with a symbolic axis broadcast`,
      inputs: { a: { shape: ['n', 3], draw }, b: { shape: [1, 3], draw: draw === 'apart' ? [3, -3, 0.5] : draw } },
      sizes: { n: 2 },
      build: ({ a, b }) => f(a as Tensor, b as Tensor),
    },
  ]),
  { name: 'mul of a value with itself', inputs: { x: { shape: [4] } }, build: ({ x }) => op.mul(x as Tensor, x as Tensor) },
  { name: 'pow with a fixed exponent', inputs: { x: { shape: [4] } }, build: ({ x }) => op.pow(x as Tensor, 3) },
  { name: 'square', inputs: { x: { shape: [4] } }, build: ({ x }) => op.pow(x as Tensor, 2) },
  {
    name: 'where, broadcast',
    inputs: { a: { shape: ['n', 3] }, b: { shape: [3] }, c: { shape: ['n', 1], draw: 'apart' } },
    sizes: { n: 2 },
    fixed: ['c'],
    build: ({ a, b, c }) => op.where(op.greater(c as Tensor, 0), op.mul(a as Tensor, a as Tensor), b as Tensor),
  },
  ...(['float32', 'float64'] as const).map(
    (dtype): Case => ({
      name: `prelu, ${dtype}`,
      inputs: { x: { shape: ['n', 3, 2], draw: 'apart' }, slope: { shape: [3, 1] } },
      sizes: { n: 2 },
      dtype,
      build: ({ x, slope }) => op.prelu(x as Tensor, slope as Tensor),
    }),
  ),
  {
    name: 'straight through',
    inputs: { x: { shape: [4] }, y: { shape: [4] } },
    // The forward value is linear in the tensor that gets the gradient, so here the estimate is the derivative.
    build: ({ x, y }) =>
      op.straightThrough(op.mul(op.stopGradient(y as Tensor), op.add(x as Tensor, 0)), op.mul(op.stopGradient(y as Tensor), x as Tensor)),
    fixed: ['y'],
  },
  {
    name: 'custom gradient',
    inputs: { a: { shape: ['n', 2] }, b: { shape: ['n', 2] } },
    sizes: { n: 3 },
    build: ({ a, b }) =>
      op.customGradient({
        forward: (x, y) => op.mul(op.exp(x as Tensor), y as Tensor),
        backward: (g, [x, y], out) => [op.mul(g, out), op.mul(g, op.exp(x as Tensor)), y].slice(0, 2),
      })(a as Tensor, b as Tensor),
  },
  {
    name: 'cast there and back',
    inputs: { x: { shape: [4] } },
    dtype: 'float32',
    build: ({ x }) => op.cast(op.sin(op.cast(x as Tensor, 'float64')), 'float32'),
  },
]
