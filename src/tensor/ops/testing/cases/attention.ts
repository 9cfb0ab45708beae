/** @file Gradient cases of attention and rotary embedding. */
import { apply1, type Tensor } from '../../../tensor.ts'
import * as op from '../../index.ts'
import type { Case, CaseInput } from '../check.ts'

const sizes = { batch: 2, pos: 3 }
const angles = Array.from({ length: 16 }, (_, i) => Math.floor(i / 4) * 10 ** (-(i % 4) / 2))
const tables: Record<string, CaseInput> = {
  cos: { shape: [4, 4], draw: angles.map(Math.cos) },
  sin: { shape: [4, 4], draw: angles.map(Math.sin) },
}

const wideTables: Record<string, CaseInput> = {
  cos: { shape: [4, 8], draw: [...angles, ...angles].map(Math.cos) },
  sin: { shape: [4, 8], draw: [...angles, ...angles].map(Math.sin) },
}

/** Causal attention with two query heads on one key-value head; of 16 coordinates it is fused, of 8 written out. */
const causal = (
  name: string,
  headDim: number,
  settings: Partial<op.AttentionAttrs>,
  extra: Readonly<Record<string, CaseInput>> = {},
  dtype: 'float32' | 'float64' = 'float32',
): Case => ({
  name,
  inputs: {
    q: { shape: ['batch', 'pos', 2 * headDim] },
    k: { shape: ['batch', 'pos', headDim] },
    v: { shape: ['batch', 'pos', headDim] },
    last: { shape: ['batch'], dtype: 'int32', draw: [2, 2] },
    total: { shape: [], dtype: 'int32', draw: [3] },
    slots: { shape: ['batch', 'pos'], dtype: 'int64', draw: [0, 1, 2, 0, 1, 2] },
    ...(headDim === 16 ? wideTables : tables),
    ...extra,
  },
  fixed: ['cos', 'sin'],
  sizes,
  dtype,
  build: (x) => {
    const t = x as Record<string, Tensor> & {
      q: Tensor
      k: Tensor
      v: Tensor
      last: Tensor
      total: Tensor
      slots: Tensor
      cos: Tensor
      sin: Tensor
    }
    return op.attention(
      {
        q: t.q,
        k: t.k,
        v: t.v,
        lastSlot: t.last,
        total: t.total,
        slots: t.slots,
        rotary: { cos: t.cos, sin: t.sin, positions: t.slots },
        ...(t.bias ? { bias: t.bias } : {}),
      },
      { heads: 2, kvHeads: 1, headDim, scale: 0.3, interleaved: false, explicitPositions: false, ...settings },
    ).z
  },
})

const turning = (name: string, heads: number, interleaved: boolean, dtype: 'float32' | 'float64'): Case => ({
  name,
  inputs: {
    x: { shape: ['batch', 'pos', heads * (16 / heads)] },
    at: { shape: ['batch', 'pos'], dtype: 'int64', draw: [0, 1, 2, 3, 3, 0] },
    ...tables,
  },
  sizes,
  dtype,
  build: ({ x, at, cos, sin }) => op.rotary(x as Tensor, at as Tensor, { cos: cos as Tensor, sin: sin as Tensor }, { heads, interleaved }),
})

/** Attention of two heads from three positions to four keys; the last key of the second row is hidden. */
const across = (name: string, dtype: 'float32' | 'float64', extra: Readonly<Record<string, CaseInput>> = {}): Case => ({
  name: `cross-attention ${name}, ${dtype}`,
  inputs: {
    q: { shape: ['batch', 'pos', 8] },
    k: { shape: ['batch', 4, 8] },
    v: { shape: ['batch', 4, 6] },
    mask: { shape: ['batch', 4], dtype: 'int32', draw: [1, 1, 1, 1, 1, 1, 0, 1] },
    ...extra,
  },
  sizes,
  dtype,
  build: (x) => {
    const { q, k, v, mask, bias } = x as Record<string, Tensor> & { q: Tensor; k: Tensor; v: Tensor }
    return op.crossAttention({ q, k, v, ...(mask ? { mask } : {}), ...(bias ? { bias } : {}) }, { heads: 2 })
  },
})

export const attentionCases: readonly Case[] = [
  ...[false, true].map(
    (probabilities): Case => ({
      name: `${probabilities ? 'probabilities' : 'scores'} hidden again after a change`,
      inputs: {
        x: { shape: ['batch', 2, 'pos', 4] },
        seen: { shape: [1, 1, 'pos', 4], dtype: 'bool', draw: [1, 0, 0, 0, 1, 1, 0, 0, 1, 1, 1, 1] },
      },
      sizes,
      build: ({ x, seen }) => {
        const mask = op.where(seen as Tensor, op.constant('float64', [], [0]), Number.NEGATIVE_INFINITY)
        const changed = op.mul(x as Tensor, x as Tensor)
        const again = apply1('hide', [changed, mask], { probabilities })
        return probabilities ? op.mul(again, again) : op.softmax(again)
      },
    }),
  ),
  causal('causal attention', 16, {}),
  causal('causal attention, written out', 8, {}, {}, 'float64'),
  causal('causal attention, interleaved pairs, window', 16, { interleaved: true, window: 2 }),
  causal('causal attention, interleaved pairs, window, soft-cap', 8, { interleaved: true, window: 2, softcap: 2 }, {}, 'float64'),
  causal('causal attention with a bias', 16, {}, { bias: { shape: [1, 2, 'pos', 'pos'] } }),
  ...(['float32', 'float64'] as const).flatMap((dtype) => [
    across('with hidden keys', dtype),
    across('with a bias', dtype, { bias: { shape: [1, 2, 'pos', 4] } }),
    turning(`rotary by halves, ${dtype}`, 2, false, dtype),
    turning(`rotary by neighbours, ${dtype}`, 2, true, dtype),
    turning(`rotary of a part of each head, ${dtype}`, 1, false, dtype),
  ]),
]
