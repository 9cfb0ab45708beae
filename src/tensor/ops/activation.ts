/** @file Activation functions of neural networks, one value to one value. */
import { ShapeError } from '../../base/errors.ts'
import { broadcast, need, sameShape, sameType } from '../shape.ts'
import { type Attrs, apply1, defineOp, type Node, scalar, shown, type Tensor } from '../tensor.ts'
import {
  abs,
  add,
  cast,
  div,
  equal,
  erf,
  exp,
  greater,
  less,
  log,
  maximum,
  minimum,
  mul,
  neg,
  refuseFloat64,
  relu,
  sigmoid,
  sub,
  tanh,
  where,
} from './elementwise.ts'
import { times, unbroadcast } from './like.ts'

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

/** 1 where a value is positive, else 0. */
const positive = (x: Tensor) => cast(greater(x, 0), x.dtype)

const notFloat64 = ({ inputs: [x] }: Node) => x?.dtype !== 'float64'

/** One activation function: its ONNX node where there is one, its definition, and its slope from input and result. */
interface Activation {
  readonly doc: string
  readonly onnx?: string
  /** The definition in simpler ops. */
  readonly is: (x: Tensor, a: Readonly<Record<string, number>>) => Tensor
  /** The slope; where absent, the definition is differentiated. */
  readonly slope?: (x: Tensor, y: Tensor, a: Readonly<Record<string, number>>) => Tensor
}

const seluAlpha = 1.6732632423543772
const seluScale = 1.0507009873554805

const activations: Readonly<Record<string, Activation>> = {
  leaky_relu: {
    doc: 'x where positive, else alpha·x.',
    onnx: 'LeakyRelu',
    is: (x, { alpha }) => add(maximum(x, 0), mul(minimum(x, 0), alpha as number)),
    slope: (x, _, { alpha }) => add(mul(positive(x), 1 - (alpha as number)), alpha as number),
  },
  elu: {
    doc: 'x where positive, else alpha·(exp(x) − 1).',
    onnx: 'Elu',
    is: (x, { alpha }) => add(relu(x), mul(sub(exp(minimum(x, 0)), 1), alpha as number)),
    slope: (x, y, { alpha }) => {
      const up = positive(x)
      return add(up, mul(sub(one(x), up), add(y, alpha as number)))
    },
  },
  selu: {
    doc: 'The scaled exponential linear unit of self-normalising networks.',
    onnx: 'Selu',
    is: (x) => mul(elu(x, seluAlpha), seluScale),
  },
  softplus: {
    doc: 'log(1 + exp(x)).',
    onnx: 'Softplus',
    is: (x) => add(relu(x), log(add(exp(neg(abs(x))), 1))),
    slope: (x) => sigmoid(x),
  },
  softsign: {
    doc: 'x / (1 + |x|).',
    onnx: 'Softsign',
    is: (x) => div(x, add(abs(x), 1)),
    slope: (x) => {
      const width = add(abs(x), 1)
      return div(one(x), mul(width, width))
    },
  },
  hard_sigmoid: {
    doc: 'alpha·x + beta, held between 0 and 1.',
    onnx: 'HardSigmoid',
    is: (x, { alpha, beta }) => clip(add(mul(x, alpha as number), beta as number), 0, 1),
    slope: (_, y, { alpha }) => mul(mul(positive(y), cast(less(y, 1), y.dtype)), alpha as number),
  },
  hard_swish: { doc: 'x · clip(x/6 + 1/2, 0, 1).', is: (x) => mul(x, hardSigmoid(x)) },
  mish: { doc: 'x · tanh(softplus(x)).', is: (x) => mul(x, tanh(softplus(x))) },
  log1p: {
    doc: 'log(1 + x), accurate near zero.',
    is: (x) => {
      const u = add(x, 1)
      // What rounding took from 1 + x is put back by the factor x / (u − 1).
      const kept = sub(u, 1)
      const lost = equal(kept, 0)
      return where(lost, x, mul(log(u), div(x, where(lost, one(x), kept))))
    },
    slope: (x) => div(one(x), add(x, 1)),
  },
  expm1: {
    doc: 'exp(x) − 1, accurate near zero.',
    is: (x) => {
      const u = exp(x)
      const small = less(abs(x), 0.5)
      const lost = equal(u, 1)
      const slope = where(lost, one(x), div(x, where(lost, one(x), log(where(small, u, 2)))))
      return where(small, where(lost, x, mul(sub(u, 1), slope)), sub(u, 1))
    },
    slope: (_, y) => add(y, 1),
  },
}

const numbers = (a: Attrs) => a as Readonly<Record<string, number>>

for (const [name, { doc, onnx, is, slope }] of Object.entries(activations))
  defineOp({
    name,
    doc,
    infer: (inputs) => [need(name, inputs, 0)],
    expand: ([x], a) => ({ outputs: [is(x as Tensor, numbers(a))] }),
    ...(onnx
      ? {
          fuses: notFloat64,
          lower: (e, [x], { attrs }) =>
            e.emit(onnx, [x as string], Object.fromEntries(Object.entries(numbers(attrs)).map(([key, f]) => [key, { f }]))),
        }
      : {}),
    ...(slope
      ? {
          gradient: ({ inputs: [x], outputs: [y], attrs }, [g]) => [times(g as Tensor, slope(x as Tensor, y as Tensor, numbers(attrs)))],
        }
      : {}),
  })

defineOp({
  name: 'clip',
  doc: 'Held between two bounds; the gradient passes where the value is kept.',
  infer: (inputs, a) => {
    if (!((a.min as number) <= (a.max as number))) throw new ShapeError(`'clip' needs min ≤ max, not ${a.min} and ${a.max}.`)
    return [need('clip', inputs, 0)]
  },
  lower: (e, [x], { attrs, outputs: [y] }) => {
    const bound = (v: unknown) => (Number.isFinite(v) ? e.constant((y as Tensor).dtype, [], [v as number]) : '')
    return e.emit('Clip', [x as string, bound(attrs.min), bound(attrs.max)])
  },
  gradient: ({ inputs: [x], outputs: [y] }, [g]) => [times(g as Tensor, cast(equal(x as Tensor, y as Tensor), (g as Tensor).dtype))],
})

defineOp({
  name: 'prelu',
  doc: 'x where positive, else slope·x, with a learnt slope that broadcasts to x.',
  infer: (inputs) => {
    const [x, slope] = [need('prelu', inputs, 0), need('prelu', inputs, 1)]
    sameType('prelu', x, slope)
    if (!sameShape(broadcast(x.shape, slope.shape, 'prelu'), x.shape))
      throw new ShapeError(`'prelu' cannot spread a slope of shape ${shown(slope.shape)} over ${shown(x.shape)}.`)
    return [x]
  },
  fuses: notFloat64,
  expand: ([x, slope]) => ({ outputs: [add(maximum(x as Tensor, 0), mul(minimum(x as Tensor, 0), slope as Tensor))] }),
  lower: (e, [x, slope]) => e.emit('PRelu', [x as string, slope as string]),
  gradient: ({ inputs, needs }, [grad]) => {
    const [x, slope, g] = [...inputs, grad] as [Tensor, Tensor, Tensor]
    const up = positive(x)
    return [
      needs[0] ? times(g, add(up, mul(sub(one(x), up), slope))) : undefined,
      needs[1] ? unbroadcast(times(g, minimum(x, 0)), slope) : undefined,
    ]
  },
})

/** x·sigmoid(x). */
export const silu = (x: Tensor) => apply1('silu', [x])
/** Gaussian error linear unit, exact (erf) or by tanh. */
export const gelu = (x: Tensor, approximate: 'none' | 'tanh' = 'none') => apply1('gelu', [x], { approximate })
/** `x` where positive, else `alpha`·x. */
export const leakyRelu = (x: Tensor, alpha = 0.01) => apply1('leaky_relu', [x], { alpha })
/** `x` where positive, else `alpha`·(exp(x) − 1). */
export const elu = (x: Tensor, alpha = 1) => apply1('elu', [x], { alpha })
/** Scaled exponential linear unit. */
export const selu = (x: Tensor) => apply1('selu', [x], { alpha: seluAlpha, gamma: seluScale })
/** log(1 + exp(x)). */
export const softplus = (x: Tensor) => apply1('softplus', [x])
/** x / (1 + |x|). */
export const softsign = (x: Tensor) => apply1('softsign', [x])
/** `alpha`·x + `beta` between 0 and 1; the defaults are those of MobileNet. */
export const hardSigmoid = (x: Tensor, alpha = 1 / 6, beta = 0.5) => apply1('hard_sigmoid', [x], { alpha, beta })
/** x · hardSigmoid(x). */
export const hardSwish = (x: Tensor) => apply1('hard_swish', [x])
/** x · tanh(softplus(x)). */
export const mish = (x: Tensor) => apply1('mish', [x])
/** `x` where positive, else `slope`·x, the slope broadcast. */
export const prelu = (x: Tensor, slope: Tensor) => apply1('prelu', [x, slope])
/** log(1 + x), accurate near zero. */
export const log1p = (x: Tensor) => apply1('log1p', [x])
/** exp(x) − 1, accurate near zero. */
export const expm1 = (x: Tensor) => apply1('expm1', [x])
/** Held between `min` and `max`; either may be infinite. */
export const clip = (x: Tensor, min: number, max: number) => apply1('clip', [x], { min, max })
