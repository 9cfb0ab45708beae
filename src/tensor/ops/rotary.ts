/** @file Rotary position embedding. */
import { ShapeError } from '../../base/errors.ts'
import { need, one } from '../shape.ts'
import { type Attrs, apply1, type Dim, defineOp, shown, type Tensor } from '../tensor.ts'
import { add, cast, mul, neg, sub } from './elementwise.ts'
import { gather, scatterNd } from './indexing.ts'
import { concat, slice, unsqueeze } from './layout.ts'
import { reshapeTo, zerosLike } from './like.ts'

interface RotaryAttrs {
  readonly heads: number
  readonly interleaved: boolean
}

/** The coordinates that turn, as pairs: both of [batch, pos, head, rotary/2]; and the rest of each head. */
function pairsOf(x: Tensor, half: number, { heads, interleaved }: RotaryAttrs): { a: Tensor; b: Tensor; rest: Tensor | undefined } {
  const [batch, pos, width] = x.shape as [Dim, Dim, number]
  const headDim = width / heads
  const split = reshapeTo(x, [batch, pos, heads, headDim], x)
  const turned = slice(split, 3, 0, 2 * half)
  const rest = 2 * half === headDim ? undefined : slice(split, 3, 2 * half, headDim)
  if (!interleaved) return { a: slice(turned, 3, 0, half), b: slice(turned, 3, half, 2 * half), rest }
  return { a: slice(turned, 3, 0, 2 * half, 2), b: slice(turned, 3, 1, 2 * half, 2), rest }
}

/** Joins pairs and rest to [batch, pos, head·d_head] again. */
function joined(a: Tensor, b: Tensor, rest: Tensor | undefined, x: Tensor, { interleaved }: RotaryAttrs): Tensor {
  const turned = interleaved
    ? reshapeTo(concat([unsqueeze(a, 4), unsqueeze(b, 4)], 4), a.shape.with(3, 2 * (a.shape[3] as number)), x)
    : concat([a, b], 3)
  return reshapeTo(rest ? concat([turned, rest], 3) : turned, x.shape, x)
}

defineOp({
  name: 'rotary',
  doc: 'Turns pairs of coordinates of each head of [batch, pos, head·d_head] by the angles whose cosines and sines the tables [max_pos, rotary/2] hold at the positions.',
  infer: (inputs, attrs) => {
    const [x, positions, cos, sin] = [0, 1, 2, 3].map((i) => need('rotary', inputs, i)) as [Tensor, Tensor, Tensor, Tensor]
    const { heads } = attrs as unknown as RotaryAttrs
    const width = x.shape.at(-1)
    const half = cos.shape[1]
    if (x.rank !== 3 || typeof width !== 'number' || width % heads !== 0)
      throw new ShapeError(`'rotary' needs [batch, pos, head·d_head] with ${heads} heads, not ${shown(x.shape)}.`)
    if (cos.rank !== 2 || typeof half !== 'number' || 2 * half > width / heads || sin.shape[1] !== half)
      throw new ShapeError(`'rotary' of heads of ${width / heads} cannot use tables of shape ${shown(cos.shape)} and ${shown(sin.shape)}.`)
    if (positions.rank !== 2) throw new ShapeError(`'rotary' needs positions of shape [batch, pos], not ${shown(positions.shape)}.`)
    return one(x.dtype, x.shape)
  },
  fuses: ({ inputs: [x] }) => x?.dtype === 'float32' || x?.dtype === 'float16',
  lower: (e, [x, positions, cos, sin], node) => {
    const { heads, interleaved } = node.attrs as unknown as RotaryAttrs
    const [input, at, table] = node.inputs as [Tensor, Tensor, Tensor]
    const [wide] = at.dtype === 'int64' ? [positions] : e.emit('Cast', [positions as string], { to: 7 })
    const rotated = 2 * (table.shape[1] as number)
    const partial = rotated !== (input.shape[2] as number) / heads
    return e.emit(
      'RotaryEmbedding',
      [x as string, wide as string, cos as string, sin as string],
      { interleaved: interleaved ? 1 : 0, num_heads: heads, rotary_embedding_dim: partial ? rotated : 0 },
      { domain: 'com.microsoft' },
    )
  },
  expand: ([x, positions, cosTable, sinTable], attrs: Attrs) => {
    const settings = attrs as unknown as RotaryAttrs
    const { a, b, rest } = pairsOf(x as Tensor, (cosTable as Tensor).shape[1] as number, settings)
    const cos = unsqueeze(gather(cosTable as Tensor, positions as Tensor), 2)
    const sin = unsqueeze(gather(sinTable as Tensor, positions as Tensor), 2)
    return { outputs: [joined(sub(mul(a, cos), mul(b, sin)), add(mul(b, cos), mul(a, sin)), rest, x as Tensor, settings)] }
  },
  gradient: ({ inputs, attrs, needs }, [grad]) => {
    const [x, positions, cos, sin, g] = [...inputs, grad] as [Tensor, Tensor, Tensor, Tensor, Tensor]
    const settings = attrs as unknown as RotaryAttrs
    const ofTable = (table: Tensor, part: (from: ReturnType<typeof pairsOf>, to: ReturnType<typeof pairsOf>) => Tensor) => {
      const half = table.shape[1] as number
      const rows = part(pairsOf(x, half, settings), pairsOf(g, half, settings)).sum([2])
      return scatterNd(zerosLike(table), unsqueeze(cast(positions, 'int64'), -1), rows, { add: true })
    }
    return [
      // Turning back is turning by the negative angle.
      needs[0] ? apply1('rotary', [g, positions, cos, neg(sin)], attrs) : undefined,
      undefined,
      needs[2] ? ofTable(cos, (from, to) => add(mul(to.a, from.a), mul(to.b, from.b))) : undefined,
      needs[3] ? ofTable(sin, (from, to) => sub(mul(to.b, from.a), mul(to.a, from.b))) : undefined,
    ]
  },
})

/**
 * Rotary embedding of x [batch, pos, head·d_head] at integer positions [batch, pos], by tables [max_pos, rotary/2].
 * Pairs are neighbours when interleaved, else halves of the turned coordinates.
 */
export const rotary = (
  x: Tensor,
  positions: Tensor,
  tables: { cos: Tensor; sin: Tensor },
  options: { heads: number; interleaved?: boolean },
) => apply1('rotary', [x, positions, tables.cos, tables.sin], { heads: options.heads, interleaved: options.interleaved ?? false })
