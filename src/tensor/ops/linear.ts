/** @file Matrix products. */
import { ShapeError } from '../../base/errors.ts'
import { broadcast, need, one, product, sameShape, sameType } from '../shape.ts'
import { apply1, type Dim, defineOp, shown, type Tensor } from '../tensor.ts'
import { reshapeTo, unbroadcast } from './like.ts'

interface MatmulAttrs {
  readonly transA: boolean
  readonly transB: boolean
  readonly alpha: number
}

defineOp({
  name: 'matmul',
  doc: 'Matrix product over the last two axes, the others broadcast; either side may be taken transposed, the result scaled.',
  infer: (inputs, a) => {
    const [x, y] = [need('matmul', inputs, 0), need('matmul', inputs, 1)]
    sameType('matmul', x, y)
    const bad = () =>
      new ShapeError(`'matmul' cannot multiply shapes ${shown(x.shape)}${a.transA ? 'ᵀ' : ''} and ${shown(y.shape)}${a.transB ? 'ᵀ' : ''}.`)
    if (x.rank < 2 || y.rank < 2) throw bad()
    const at = (s: readonly Dim[], i: number) => s[s.length + i] as Dim
    const [m, k] = a.transA ? [at(x.shape, -1), at(x.shape, -2)] : [at(x.shape, -2), at(x.shape, -1)]
    const [k2, n] = a.transB ? [at(y.shape, -1), at(y.shape, -2)] : [at(y.shape, -2), at(y.shape, -1)]
    if (k !== k2) throw bad()
    return one(x.dtype, [...broadcast(x.shape.slice(0, -2), y.shape.slice(0, -2), 'matmul'), m, n])
  },
  lower: (e, [x, y], { attrs: a }) =>
    a.transA || a.transB || a.alpha !== 1
      ? e.emit(
          'FusedMatMul',
          [x as string, y as string],
          { transA: a.transA ? 1 : 0, transB: a.transB ? 1 : 0, alpha: { f: a.alpha as number } },
          { domain: 'com.microsoft' },
        )
      : e.emit('MatMul', [x as string, y as string]),
  gradient: ({ inputs, attrs, needs }, [grad]) => {
    const [x, y, g] = [...inputs, grad] as [Tensor, Tensor, Tensor]
    const a = attrs as unknown as MatmulAttrs
    return [needs[0] ? leftGradient(g, x, y, a) : undefined, needs[1] ? rightGradient(g, x, y, a) : undefined]
  },
})

function leftGradient(g: Tensor, x: Tensor, y: Tensor, { transA, transB, alpha }: MatmulAttrs): Tensor {
  if (transA) return unbroadcast(matmul(y, g, { transA: transB, transB: true, alpha }), x)
  const { plain, factor } = rowFactor(g, x)
  const product = matmul(plain, y, { transB: !transB, alpha })
  return unbroadcast(factor ? product.mul(factor) : product, x)
}

function rightGradient(g: Tensor, x: Tensor, y: Tensor, { transA, transB, alpha }: MatmulAttrs): Tensor {
  const { plain, factor } = transA ? { plain: g, factor: undefined } : rowFactor(g, x)
  const scaled = factor ? x.mul(factor) : x
  // A weight meets every row of a batch: its gradient is one product over all rows, not one for each item and then a sum.
  const isWeight = y.rank === 2 && x.rank > 2 && !transA
  const [xs, gs] = isWeight ? [rows(scaled), rows(plain)] : [scaled, plain]
  const whole = transB ? matmul(gs, xs, { transA: true, transB: transA, alpha }) : matmul(xs, gs, { transA: !transA, alpha })
  return sameShape(whole.shape, y.shape) ? whole : unbroadcast(whole, y)
}

/** Takes a factor of each row out of a gradient, where the rows on the other side of the product are shorter: as with a large vocabulary. */
function rowFactor(g: Tensor, x: Tensor): { plain: Tensor; factor: Tensor | undefined } {
  const [wide, short] = [g.shape.at(-1), x.shape.at(-1)]
  const [plain, factor] = g.node.inputs
  const fits = typeof wide === 'number' && typeof short === 'number' && wide > short
  if (!fits || g.node.op.name !== 'mul' || !plain || !factor || !sameShape(plain.shape, g.shape)) return { plain: g, factor: undefined }
  const isColumn = factor.rank === g.rank && sameShape(factor.shape, g.shape.with(-1, 1)) && x.rank === g.rank
  return isColumn ? { plain, factor } : { plain: g, factor: undefined }
}

/** All axes but the last as one. */
function rows(x: Tensor): Tensor {
  const width = x.shape.at(-1) as Dim
  return reshapeTo(x, [product(x.shape.slice(0, -1)), width], x)
}

/** Matrix product over the last two axes; `alpha` scales the result. */
export const matmul = (x: Tensor, y: Tensor, options: { transA?: boolean; transB?: boolean; alpha?: number } = {}) =>
  apply1('matmul', [x, y], { transA: options.transA ?? false, transB: options.transB ?? false, alpha: options.alpha ?? 1 })
