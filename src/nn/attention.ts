/** @file Causal self-attention as it is trained: every step is a plain product, sum or softmax, so that its gradient is, too. */
import { ShapeError } from '../base/errors.ts'
import { add, constant, type Dim, matmul, reshape, softmax, type Tensor, transpose } from '../tensor/index.ts'

/** Heads of an attention. */
export interface HeadOptions {
  readonly heads: number
  /** Heads of keys and values, each shared by as many query heads; `heads` by default. */
  readonly kvHeads?: number
  /** Factor on q·k; 1/√d_head by default. */
  readonly scale?: number
}

const masks = new Map<number, Tensor>()

/** Zero where a query [row] may see a key [column], −∞ where not. */
function causalMask(length: number): Tensor {
  let mask = masks.get(length)
  if (!mask) {
    const data = new Float32Array(length * length)
    for (let q = 0; q < length; q++) data.fill(Number.NEGATIVE_INFINITY, q * length + q + 1, (q + 1) * length)
    mask = constant('float32', [length, length], data)
    masks.set(length, mask)
  }
  return mask
}

/**
 * Attention of queries [batch, pos, head·d_head] to keys and values [batch, pos, kv_head·d_head] up to their own position.
 * The engine's `attention` op masks by selection, which costs the runtime several passes more in each direction; a mask that
 * is added costs one, and nothing backward.
 */
export function causalAttention(q: Tensor, k: Tensor, v: Tensor, options: HeadOptions): Tensor {
  const { heads, kvHeads = heads } = options
  const [batch, pos, width] = q.shape as [Dim, Dim, number]
  const size = width / heads
  if (typeof pos !== 'number')
    throw new ShapeError(`Attention is trained on blocks of a known length, not '${pos}'; declare the input with a number.`)
  if (!Number.isInteger(size) || heads % kvHeads !== 0 || k.shape[2] !== kvHeads * size)
    throw new ShapeError(
      `Attention of ${heads} heads over ${kvHeads} does not fit queries of width ${width} and keys of width ${k.shape[2]}.`,
    )
  const split = (x: Tensor, n: number) => transpose(reshape(x, [batch, pos, n, size]), [0, 2, 1, 3])
  // Query heads that share a key head become rows of it.
  const grouped = (x: Tensor, columns: number) => (kvHeads === heads ? x : reshape(x, [batch, kvHeads, (heads / kvHeads) * pos, columns]))
  const scores = matmul(grouped(split(q, heads), size), split(k, kvHeads), { transB: true, alpha: options.scale ?? size ** -0.5 })
  const masked = add(kvHeads === heads ? scores : reshape(scores, [batch, heads, pos, pos]), causalMask(pos))
  const z = matmul(grouped(softmax(masked), pos), split(v, kvHeads))
  const whole = kvHeads === heads ? z : reshape(z, [batch, heads, pos, size])
  return reshape(transpose(whole, [0, 2, 1, 3]), [batch, pos, width])
}
