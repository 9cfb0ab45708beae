/** @file Products with few active features, which read only the rows that are active. */
import {
  add,
  customGradient,
  type Dim,
  expand,
  gather,
  matmul,
  neg,
  reshape,
  scalar,
  scan,
  scatterElements,
  squeeze,
  sub,
  sum,
  type Tensor,
  unsqueeze,
} from '../tensor/index.ts'

/** Values of gathered rows that are worked on at once, so that they stay in the processor's cache. */
const gatheredValues = 1 << 18

/** Rows at once: a divisor of all of them. */
function rowsAtOnce(rows: Dim, width: number): number | undefined {
  if (typeof rows !== 'number') return undefined
  for (let r = Math.min(rows, Math.floor(gatheredValues / width)); r >= 1; r--) if (rows % r === 0) return r
  return undefined
}

/** Goes through the rows of some tensors in pieces; `step` makes one tensor of each piece. */
function byPieces(xs: readonly Tensor[], width: number, step: (pieces: readonly Tensor[]) => Tensor): Tensor {
  const rows = (xs[0] as Tensor).shape[0] as Dim
  const r = rowsAtOnce(rows, width)
  if (r === undefined || typeof rows !== 'number' || r === rows) return step(xs)
  const split = xs.map((x) => reshape(x, [rows / r, r, ...x.shape.slice(1)]))
  const { each } = scan([], split, (_, pieces) => ({ carry: [], each: [step(pieces)] }))
  const y = each[0] as Tensor
  return reshape(y, [rows, ...y.shape.slice(2)])
}

/** Values of the gathered rows of one item. */
const gatheredWidth = (indices: Tensor, decoder: Tensor) => (indices.shape[1] as number) * (decoder.shape[1] as number)

const decode = customGradient({
  forward: (values, indices, decoder) => {
    const [v, i, d] = [values, indices, decoder] as [Tensor, Tensor, Tensor]
    return byPieces([v, i], gatheredWidth(i, d), ([v, i]) => squeeze(matmul(unsqueeze(v as Tensor, 1), gather(d, i as Tensor)), 1))
  },
  backward: (g, [values, indices, decoder]) => {
    const [v, i, d] = [values, indices, decoder] as [Tensor, Tensor, Tensor]
    const ofValues = byPieces([g, i], gatheredWidth(i, d), ([g, i]) =>
      squeeze(matmul(unsqueeze(g as Tensor, 1), gather(d, i as Tensor), { transB: true }), 1),
    )
    // A feature is active in many items, and adding up rows under repeated indices takes longer than the whole dense product.
    const rows = v.shape[0] as Dim
    const dense = scatterElements(expand(scalar(0), [rows, d.shape[0] as Dim], v), i, v, 1)
    return [ofValues, undefined, matmul(dense, g, { transA: true })]
  },
})

/**
 * For each row of `values` and `indices` [n, k] (int64), the sum of `values` times those rows of `decoder` [feature, width]:
 * [n, width]. The gathered rows are made piece by piece, never all together.
 */
export function sparseDecode(values: Tensor, indices: Tensor, decoder: Tensor): Tensor {
  return decode(values, indices, decoder)
}

const encodeWith = customGradient({
  forward: (x, encoder, bias, centre) => {
    const [input, w, b, c] = [x, encoder, bias, centre] as [Tensor, Tensor, Tensor, Tensor]
    return add(matmul(sub(input, c), w), b)
  },
  backward: (g, [x, encoder, , centre]) => {
    const [input, w, c] = [x, encoder, centre] as [Tensor, Tensor, Tensor]
    const total = sum(g, [0])
    return [
      matmul(g, w, { transB: true }),
      matmul(sub(input, c), g, { transA: true }),
      total,
      neg(squeeze(matmul(unsqueeze(total, 0), w, { transB: true }), 0)),
    ]
  },
})

/**
 * Pre-activations (x − b_dec)·W_enc + b_enc of an autoencoder for x [n, width]: [n, feature]. The gradient of b_dec [width] costs a product with one
 * vector instead of one with the whole batch.
 */
export function encode(
  x: Tensor,
  weights: { readonly encoder: Tensor; readonly encoderBias: Tensor; readonly decoderBias: Tensor },
): Tensor {
  return encodeWith(x, weights.encoder, weights.encoderBias, weights.decoderBias)
}
