/** @file Gradient cases of quantised values: those whose rule is the derivative almost everywhere. */
import type { Tensor } from '../../../tensor.ts'
import * as op from '../../index.ts'
import { type Case, stream } from '../check.ts'

const next = stream(11)
const bytes = (n: number) => Array.from({ length: n }, () => Math.floor(256 * next()))
const packed = (bits: 4 | 8, zeros: boolean, k: number, offsets = false): Case => {
  const blocks = Math.ceil(k / 16)
  const layout = { n: 3, k, block: 16, bits }
  const rowBytes = Math.ceil((blocks * bits) / 8)
  return {
    name: `product with ${bits}-bit blocks${zeros ? ' and zero points' : ''}${offsets ? ' and offsets' : ''}, rows of ${k}`,
    inputs: {
      x: { shape: ['n', k], draw: 'unit' },
      w: { shape: [3, blocks, 2 * bits], dtype: 'uint8', draw: bytes(3 * blocks * 2 * bits) },
      s: { shape: [3, blocks], draw: Array.from({ length: 3 * blocks }, () => 0.1 * next() * 2 ** (4 - bits)) },
      ...(offsets ? { o: { shape: [3, blocks], draw: 'unit' as const } } : {}),
      ...(zeros ? { z: { shape: [3, rowBytes], dtype: 'uint8' as const, draw: bytes(3 * rowBytes) } } : {}),
    },
    fixed: offsets ? ['s', 'o'] : ['s'],
    sizes: { n: 2 },
    dtype: 'float32',
    build: ({ x, w, s, z, o }) => op.matmulBlocks(x as Tensor, w as Tensor, s as Tensor, z, layout, { offsets: o }),
  }
}

export const quantizedCases: readonly Case[] = [
  packed(4, false, 32),
  packed(4, true, 48),
  packed(4, true, 40),
  packed(8, false, 32),
  packed(8, true, 32),
  packed(4, false, 32, true),
  packed(8, false, 48, true),
  {
    name: 'dequantize, at the scale',
    inputs: {
      q: { shape: [2, 3], dtype: 'uint8', draw: [0, 3, 7, 200, 12, 5] },
      s: { shape: [3], draw: 'positive' },
      z: { shape: [3], dtype: 'uint8', draw: [0, 4, 2] },
    },
    dtype: 'float32',
    build: ({ q, s, z }) => op.mul(op.dequantize(q as Tensor, s as Tensor, { zeroPoint: z as Tensor, axis: 1 }), 0.02),
  },
]
