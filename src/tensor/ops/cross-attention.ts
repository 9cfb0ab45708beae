/** @file Attention that looks everywhere: within an encoder, or from one sequence to another; fused until somebody looks inside. */
import { ShapeError } from '../../base/errors.ts'
import { need, one } from '../shape.ts'
import { apply1, type Dim, defineOp, type Expansion, scalar, shown, type Tensor } from '../tensor.ts'
import { add, cast, greater, where } from './elementwise.ts'
import { reshape, transpose, unsqueeze } from './layout.ts'
import { matmul } from './linear.ts'
import { softmax } from './reduce.ts'

interface CrossAttentionAttrs {
  readonly heads: number
  /** Factor on q·k. */
  readonly scale: number
}

/** What hidden keys get for a score: the lowest number, not -∞, so that a row without keys gives their mean instead of NaN. */
const lowest = -3.4028234663852886e38

defineOp({
  name: 'cross_attention',
  doc: 'Attention of q [batch, pos, head·d_head] over all of k and v [batch, key, …], hiding keys by a mask [batch, key], with an optional bias [batch or 1, head or 1, pos, key].',
  infer: (inputs, attrs) => {
    const [q, k, v] = [0, 1, 2].map((i) => need('cross_attention', inputs, i)) as [Tensor, Tensor, Tensor]
    const { heads } = attrs as unknown as CrossAttentionAttrs
    const [mask, bias] = [inputs[3], inputs[4]]
    const width = q.shape.at(-1)
    if (q.rank !== 3 || k.rank !== 3 || v.rank !== 3 || typeof width !== 'number' || width % heads !== 0 || k.shape[2] !== width)
      throw new ShapeError(`'cross_attention' with ${heads} heads cannot use q ${shown(q.shape)} and k ${shown(k.shape)}.`)
    const wide = v.shape[2]
    if (v.shape[1] !== k.shape[1] || typeof wide !== 'number' || wide % heads !== 0)
      throw new ShapeError(`'cross_attention' with ${heads} heads cannot use k ${shown(k.shape)} and v ${shown(v.shape)}.`)
    if (mask && (mask.rank !== 2 || mask.shape[1] !== k.shape[1] || mask.dtype !== 'int32'))
      throw new ShapeError(`'cross_attention' needs a mask int32 [batch, ${k.shape[1]}], not ${mask.dtype} ${shown(mask.shape)}.`)
    if (bias && (bias.rank !== 4 || bias.shape[3] !== k.shape[1]))
      throw new ShapeError(`'cross_attention' needs a bias [batch or 1, head or 1, pos, key], not ${shown(bias.shape)}.`)
    return one(q.dtype, [q.shape[0] as Dim, q.shape[1] as Dim, wide])
  },
  fuses: ({ inputs: [q] }) => q?.dtype === 'float32' || q?.dtype === 'float16',
  lower: (e, [q, k, v, mask, bias], { attrs }) => {
    const { heads, scale } = attrs as unknown as CrossAttentionAttrs
    return e.emit(
      'MultiHeadAttention',
      [q as string, k as string, v as string, '', mask ?? '', bias ?? ''],
      { num_heads: heads, scale: { f: scale }, mask_filter_value: { f: lowest } },
      { domain: 'com.microsoft' },
    )
  },
  expand: ([q, k, v, mask, bias], attrs): Expansion => {
    const { heads, scale } = attrs as unknown as CrossAttentionAttrs
    const split = (x: Tensor) => {
      const [batch, pos, width] = x.shape as [Dim, Dim, number]
      return transpose(reshape(x, [batch, pos, heads, width / heads]), [0, 2, 1, 3])
    }
    let scores = matmul(split(q as Tensor), split(k as Tensor), { transB: true, alpha: scale })
    if (bias) scores = add(scores, bias)
    if (mask) {
      const hidden = where(greater(mask, 0), scalar(0, scores.dtype), scores.dtype === 'float16' ? -65504 : lowest)
      scores = add(scores, unsqueeze(unsqueeze(hidden, 1), 1))
    }
    const probs = softmax(scores)
    const z = transpose(matmul(probs, split(v as Tensor)), [0, 2, 1, 3])
    const [batch, pos, , width] = z.shape as [Dim, Dim, number, number]
    return { outputs: [reshape(z, [batch, pos, heads * width])], inner: { attn_scores: scores, attn_probs: probs } }
  },
})

/**
 * Attention of q [batch, pos, head·d_head] over k [batch, key, head·d_head] and v [batch, key, head·d_value]: bidirectional
 * when all three come from one sequence, cross-attention otherwise. `mask` [batch, key] is true (or not 0) where a key may be seen.
 */
export const crossAttention = (
  inputs: { q: Tensor; k: Tensor; v: Tensor; mask?: Tensor; bias?: Tensor },
  options: { heads: number; scale?: number },
) => {
  const width = inputs.q.shape.at(-1)
  const scale = options.scale ?? (typeof width === 'number' ? 1 / Math.sqrt(width / options.heads) : 1)
  return apply1('cross_attention', [inputs.q, inputs.k, inputs.v, inputs.mask && cast(inputs.mask, 'int32'), inputs.bias], {
    heads: options.heads,
    scale,
  })
}
