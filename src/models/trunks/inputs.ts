/** @file How tokens and images enter a stack, and what attention of encoders needs besides. */
import {
  add,
  cast,
  concat,
  type Dim,
  expand,
  gather,
  iota,
  lessEqual,
  lookup,
  matmul,
  mul,
  reshape,
  scalar,
  slice,
  sub,
  type Tensor,
  transpose,
  unsqueeze,
} from '../../tensor/index.ts'
import type { DistanceBias, LearnedTokens, PixelInput, StackSpec, TokenInput } from '../encoder-spec.ts'
import type { Parameters, Parts } from './parts.ts'
import { learnedIndex } from './positions.ts'

/** Residual stream of tokens [batch, pos], before the norm on it. */
export function embedTokens(
  spec: StackSpec,
  t: TokenInput,
  { ids, positions, types }: { readonly ids: Tensor; readonly positions: Tensor; readonly types?: Tensor },
  parameters: Parameters,
  parts: Parts,
): Tensor {
  let x = lookup(parameters.get(t.embedding, [t.vocab, spec.dModel]), ids)
  if (t.scale) x = mul(x, t.scale)
  x = parts.mark('embeddings', x)
  if (t.types && types) x = add(x, gather(parameters.get(t.types.weight, [t.types.count, spec.dModel]), types))
  if (spec.positions.kind !== 'learned') return x
  const { weight, count, offset } = spec.positions
  const table = parameters.get(weight, [count + offset, spec.dModel])
  return add(x, parts.mark('pos_embeddings', lookup(table, learnedIndex(positions, offset))))
}

/** Number of positions that an image takes. */
export const imagePositions = (p: PixelInput) =>
  (p.image / p.patch) ** 2 + [...p.first, ...(p.registers ? [p.registers] : [])].reduce((n, t) => n + t.count, 0)

/** Residual stream of an image [batch, channel, row, column], before the norm on it. */
export function embedPixels(spec: StackSpec, p: PixelInput, pixels: Tensor, parameters: Parameters, parts: Parts): Tensor {
  const { dModel } = spec
  const images = pixels.shape[0] as Dim
  const side = p.image / p.patch
  const wide = p.channels * p.patch ** 2
  // A patch meets every weight once, so that the convolution is a product of matrices.
  const cells = reshape(pixels, [images, p.channels, side, p.patch, side, p.patch])
  const rows = reshape(transpose(cells, [0, 2, 4, 1, 3, 5]), [images, side * side, wide])
  const kernel = reshape(parameters.get(p.projection.weight, [dModel, p.channels, p.patch, p.patch]), [dModel, wide])
  const product = matmul(rows, kernel, { transB: true })
  const patches = p.projection.bias ? add(product, parameters.get(p.projection.bias, [dModel])) : product
  const learned = (t: LearnedTokens) => {
    const stored = reshape(parameters.get(t.weight, t.shape), [1, t.count, dModel])
    return expand(stored, [images, t.count, dModel], pixels)
  }
  const x = parts.mark('embeddings', concat([...p.first.map(learned), patches], 1))
  const count = x.shape[1] as number
  const positions = expand(reshape(parameters.get(p.positions.weight, p.positions.shape), [1, count, dModel]), x.shape, x)
  const placed = add(x, parts.mark('pos_embeddings', positions))
  if (!p.registers) return placed
  const before = p.first.reduce((n, t) => n + t.count, 0)
  return concat([slice(placed, 1, 0, before), learned(p.registers), slice(placed, 1, before, count)], 1)
}

/** Which slots hold a token, bool [batch, pos], from the index of the last one in each row. */
export const filled = (slots: Tensor, lastSlot: Tensor) => lessEqual(unsqueeze(iota(slots, 1), 0), unsqueeze(cast(lastSlot, 'int64'), 1))

/**
 * Biases of distances [batch, head, query, key], for queries at slots [batch, query] and keys at 0, 1, 2 … [key].
 * @param backwards keys never come after queries, so that all classes serve the distances before them.
 */
export function distanceBias(
  b: DistanceBias,
  heads: number,
  slots: Tensor,
  keys: Tensor,
  parameters: Parameters,
  backwards: boolean,
): Tensor {
  const { contextLength } = parameters
  const values = Float32Array.from({ length: 2 * contextLength - 1 }, (_, i) => distanceClass(i - (contextLength - 1), b, backwards))
  const classes = cast(parameters.table(`distances${backwards ? '.backwards' : ''}`, [values.length], values), 'int64')
  const distance = sub(unsqueeze(unsqueeze(keys, 0), 0), unsqueeze(slots, 2))
  const table = gather(parameters.get(b.weight, [b.classes, heads]), gather(classes, add(distance, scalar(contextLength - 1, 'int64'))))
  return transpose(table, [0, 3, 1, 2])
}

/** The class of a distance key − query: near ones are classes of their own, far ones share them logarithmically (T5, arXiv 1910.10683). */
export function distanceClass(distance: number, { classes, furthest }: DistanceBias, backwards: boolean): number {
  const half = backwards ? classes : classes / 2
  const after = !backwards && distance > 0 ? half : 0
  const far = backwards ? Math.max(-distance, 0) : Math.abs(distance)
  const exact = Math.floor(half / 2)
  if (far < exact) return after + far
  // In the float32 steps of the reference, which decide at the borders of classes.
  const f = Math.fround
  const steps = f(f(f(Math.log(f(far / exact))) / f(Math.log(furthest / exact))) * (half - exact))
  return after + Math.min(exact + Math.trunc(steps), half - 1)
}
