/** @file Element-wise ops: arithmetic, comparison, selection, activation functions. */
import type { DType } from '../../base/types.ts'
import { broadcast, need, one, sameType } from '../shape.ts'
import { apply1, defineOp, scalar, type Tensor } from '../tensor.ts'

/** Unary ops that are one ONNX node: name → (ONNX op, sentence). */
const unary: Readonly<Record<string, readonly [string, string]>> = {
  neg: ['Neg', 'Negation.'],
  abs: ['Abs', 'Absolute value.'],
  exp: ['Exp', 'Exponential.'],
  log: ['Log', 'Natural logarithm.'],
  sqrt: ['Sqrt', 'Square root.'],
  reciprocal: ['Reciprocal', 'One divided by the value.'],
  tanh: ['Tanh', 'Hyperbolic tangent.'],
  sigmoid: ['Sigmoid', 'Logistic function.'],
  relu: ['Relu', 'Positive part.'],
  erf: ['Erf', 'Error function.'],
  sin: ['Sin', 'Sine.'],
  cos: ['Cos', 'Cosine.'],
  floor: ['Floor', 'Largest integer not above.'],
  ceil: ['Ceil', 'Smallest integer not below.'],
  round: ['Round', 'Nearest integer, halves to even.'],
  sign: ['Sign', 'Sign: -1, 0 or 1.'],
}

for (const [name, [onnx, doc]] of Object.entries(unary))
  defineOp({
    name,
    doc,
    infer: (inputs) => [need(name, inputs, 0)],
    lower: (e, [x]) => e.emit(onnx, [x as string]),
  })

/** Binary ops that are one ONNX node and keep the type. */
const binary: Readonly<Record<string, readonly [string, string]>> = {
  add: ['Add', 'Sum.'],
  sub: ['Sub', 'Difference.'],
  mul: ['Mul', 'Product.'],
  div: ['Div', 'Quotient.'],
  pow: ['Pow', 'Power.'],
  minimum: ['Min', 'The smaller of two values.'],
  maximum: ['Max', 'The larger of two values.'],
}

/** Comparisons and logic: one ONNX node, bool out. */
const predicates: Readonly<Record<string, readonly [string, string]>> = {
  equal: ['Equal', 'Whether two values are equal.'],
  less: ['Less', 'Whether the first value is smaller.'],
  less_equal: ['LessOrEqual', 'Whether the first value is smaller or equal.'],
  greater: ['Greater', 'Whether the first value is larger.'],
  greater_equal: ['GreaterOrEqual', 'Whether the first value is larger or equal.'],
  and: ['And', 'Both.'],
  or: ['Or', 'Either.'],
}

for (const [group, isPredicate] of [
  [binary, false],
  [predicates, true],
] as const)
  for (const [name, [onnx, doc]] of Object.entries(group))
    defineOp({
      name,
      doc,
      infer: (inputs) => {
        const [a, b] = [need(name, inputs, 0), need(name, inputs, 1)]
        sameType(name, a, b)
        return one(isPredicate ? 'bool' : a.dtype, broadcast(a.shape, b.shape, name))
      },
      lower: (e, [a, b]) => e.emit(onnx, [a as string, b as string]),
      ...(isPredicate ? { gradient: 'none' as const } : {}),
    })

defineOp({
  name: 'not',
  doc: 'Logical negation.',
  infer: (inputs) => [need('not', inputs, 0)],
  lower: (e, [x]) => e.emit('Not', [x as string]),
  gradient: 'none',
})

defineOp({
  name: 'where',
  doc: 'The second input where the first is true, else the third.',
  infer: (inputs) => {
    const [c, a, b] = [need('where', inputs, 0), need('where', inputs, 1), need('where', inputs, 2)]
    sameType('where', a, b)
    return one(a.dtype, broadcast(c.shape, broadcast(a.shape, b.shape, 'where'), 'where'))
  },
  lower: (e, [c, a, b]) => e.emit('Where', [c as string, a as string, b as string]),
})

/** ONNX's numbers for element types. */
export const onnxType: Readonly<Record<DType, number>> = {
  float32: 1,
  uint8: 2,
  int8: 3,
  uint16: 4,
  int16: 5,
  int32: 6,
  int64: 7,
  bool: 9,
  float16: 10,
  float64: 11,
  uint32: 12,
  uint64: 13,
  bfloat16: 16,
  uint4: 21,
  int4: 22,
}

defineOp({
  name: 'cast',
  doc: 'The same numbers in another element type.',
  infer: (inputs, a) => one(a.to as DType, need('cast', inputs, 0).shape),
  lower: (e, [x], node) => e.emit('Cast', [x as string], { to: onnxType[node.attrs.to as DType] }),
})

defineOp({
  name: 'silu',
  doc: 'x · sigmoid(x).',
  infer: (inputs) => [need('silu', inputs, 0)],
  expand: ([x]) => ({ outputs: [mul(x as Tensor, apply1('sigmoid', [x]))] }),
  lower: (e, [x]) => e.emit('QuickGelu', [x as string], { alpha: { f: 1 } }, { domain: 'com.microsoft' }),
})

defineOp({
  name: 'gelu',
  doc: 'Gaussian error linear unit; `approximate` is none (erf) or tanh.',
  infer: (inputs) => [need('gelu', inputs, 0)],
  expand: ([value], a) => {
    const x = value as Tensor
    const inner =
      a.approximate === 'tanh'
        ? apply1('tanh', [mul(add(x, mul(mul(mul(x, x), x), 0.044715)), Math.sqrt(2 / Math.PI))])
        : apply1('erf', [mul(x, Math.SQRT1_2)])
    return { outputs: [mul(mul(x, 0.5), add(inner, 1))] }
  },
  lower: (e, [x], node) => e.emit('Gelu', [x as string], { approximate: node.attrs.approximate as string }),
})

const pair = (op: string) => (a: Tensor, b: Tensor | number) => apply1(op, [a, typeof b === 'number' ? scalar(b, a.dtype) : b])
const single = (op: string) => (x: Tensor) => apply1(op, [x])

/** Sum, broadcast. */
export const add = pair('add')
/** Difference, broadcast. */
export const sub = pair('sub')
/** Product, broadcast. */
export const mul = pair('mul')
/** Quotient, broadcast. */
export const div = pair('div')
/** Power, broadcast. */
export const pow = pair('pow')
/** The smaller of two values, broadcast. */
export const minimum = pair('minimum')
/** The larger of two values, broadcast. */
export const maximum = pair('maximum')
/** Whether values are equal. */
export const equal = pair('equal')
/** Whether the first is smaller. */
export const less = pair('less')
/** Whether the first is smaller or equal. */
export const lessEqual = pair('less_equal')
/** Whether the first is larger. */
export const greater = pair('greater')
/** Whether the first is larger or equal. */
export const greaterEqual = pair('greater_equal')
/** Logical and. */
export const and = (a: Tensor, b: Tensor) => apply1('and', [a, b])
/** Logical or. */
export const or = (a: Tensor, b: Tensor) => apply1('or', [a, b])
/** Logical not. */
export const not = single('not')
/** Exponential. */
export const exp = single('exp')
/** Natural logarithm. */
export const log = single('log')
/** Square root. */
export const sqrt = single('sqrt')
/** Absolute value. */
export const abs = single('abs')
/** Hyperbolic tangent. */
export const tanh = single('tanh')
/** Logistic function. */
export const sigmoid = single('sigmoid')
/** Positive part. */
export const relu = single('relu')
/** Sine. */
export const sin = single('sin')
/** Cosine. */
export const cos = single('cos')
/** Reciprocal. */
export const reciprocal = single('reciprocal')
/** x · sigmoid(x). */
export const silu = single('silu')
/** Gaussian error linear unit, exact (erf) or by tanh. */
export const gelu = (x: Tensor, approximate: 'none' | 'tanh' = 'none') => apply1('gelu', [x], { approximate })
/** `a` where `condition` holds, else `b`. */
export const where = (condition: Tensor, a: Tensor, b: Tensor | number) =>
  apply1('where', [condition, a, typeof b === 'number' ? scalar(b, a.dtype) : b])
/** The same numbers in another element type. */
export const cast = (x: Tensor, to: DType) => (x.dtype === to ? x : apply1('cast', [x], { to }))
