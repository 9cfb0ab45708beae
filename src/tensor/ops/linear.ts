/** @file Matrix products. */
import { ShapeError } from '../../base/errors.ts'
import { broadcast, need, one, sameType } from '../shape.ts'
import { apply1, type Dim, defineOp, shown, type Tensor } from '../tensor.ts'

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
})

/** Matrix product over the last two axes; `alpha` scales the result. */
export const matmul = (x: Tensor, y: Tensor, options: { transA?: boolean; transB?: boolean; alpha?: number } = {}) =>
  apply1('matmul', [x, y], { transA: options.transA ?? false, transB: options.transB ?? false, alpha: options.alpha ?? 1 })
