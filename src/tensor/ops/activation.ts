/** @file Activation functions of neural networks, one value to one value. */
import { need } from '../shape.ts'
import { apply1, defineOp, scalar, type Tensor } from '../tensor.ts'
import { add, erf, exp, mul, neg, refuseFloat64, sigmoid, sub, tanh } from './elementwise.ts'
import { times } from './like.ts'

const one = (x: Tensor) => scalar(1, x.dtype)

defineOp({
  name: 'silu',
  doc: 'x · sigmoid(x).',
  infer: (inputs) => [need('silu', inputs, 0)],
  // Divided, because ONNX Runtime would fuse the product back into a form that it lacks for float64.
  expand: ([x]) => ({ outputs: [(x as Tensor).div(add(exp(neg(x as Tensor)), 1))] }),
  fuses: ({ inputs: [x] }) => x?.dtype !== 'float64',
  lower: (e, [x]) => e.emit('QuickGelu', [x as string], { alpha: { f: 1 } }, { domain: 'com.microsoft' }),
  gradient: ({ inputs: [x], outputs: [y] }, [g]) => {
    const s = sigmoid(x as Tensor)
    return [times(g as Tensor, add(y as Tensor, mul(s, sub(one(s), y as Tensor))))]
  },
})

const geluTanhScale = Math.sqrt(2 / Math.PI)

defineOp({
  name: 'gelu',
  doc: 'Gaussian error linear unit; `approximate` is none (erf) or tanh.',
  infer: (inputs, a) => {
    const x = need('gelu', inputs, 0)
    if (a.approximate !== 'tanh') refuseFloat64('gelu', x)
    return [x]
  },
  expand: ([value], a) => {
    const x = value as Tensor
    const inner = a.approximate === 'tanh' ? geluTanh(x) : erf(mul(x, Math.SQRT1_2))
    return { outputs: [mul(mul(x, 0.5), add(inner, 1))] }
  },
  fuses: ({ inputs: [x] }) => x?.dtype !== 'float64',
  lower: (e, [x], node) => e.emit('Gelu', [x as string], { approximate: node.attrs.approximate as string }),
  gradient: ({ inputs: [value], attrs }, [g]) => {
    const x = value as Tensor
    if (attrs.approximate !== 'tanh') {
      const bell = exp(mul(mul(x, x), -0.5))
      return [times(g as Tensor, add(add(mul(erf(mul(x, Math.SQRT1_2)), 0.5), 0.5), mul(mul(x, bell), 1 / Math.sqrt(2 * Math.PI))))]
    }
    const t = geluTanh(x)
    const slope = mul(add(mul(mul(x, x), 3 * 0.044715), 1), 0.5 * geluTanhScale)
    return [times(g as Tensor, add(mul(add(t, 1), 0.5), mul(mul(x, slope), sub(one(t), mul(t, t)))))]
  },
})

/** The tanh inside the approximate GELU. */
function geluTanh(x: Tensor): Tensor {
  return tanh(mul(mul(x, geluTanhScale), add(mul(mul(x, x), 0.044715), 1)))
}

/** x·sigmoid(x). */
export const silu = (x: Tensor) => apply1('silu', [x])
/** Gaussian error linear unit, exact (erf) or by tanh. */
export const gelu = (x: Tensor, approximate: 'none' | 'tanh' = 'none') => apply1('gelu', [x], { approximate })
