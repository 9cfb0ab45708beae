/** @file Element-wise ops: arithmetic, functions of one value, comparison, selection. */
import { ShapeError } from '../../base/errors.ts'
import type { DType } from '../../base/types.ts'
import { constantValue } from '../graph.ts'
import { broadcast, need, one, sameType } from '../shape.ts'
import { apply1, defineOp, type GradientContext, scalar, type Tensor } from '../tensor.ts'
import { isFloat, thinned, times, unbroadcast, zerosLike } from './like.ts'

/** Gradient of a function of one value, from the gradient of its result `g`, its input `x` and its result `y`. */
export type UnaryRule = 'none' | ((g: Tensor, x: Tensor, y: Tensor) => Tensor)

/** Refuses float64 where ONNX Runtime has no kernel for it, before anything runs. */
export function refuseFloat64(op: string, x: Tensor): void {
  if (x.dtype === 'float64') throw new ShapeError(`ONNX Runtime has no '${op}' for float64; cast its input to float32.`)
}

/** The gradient entry of a row that maps one value to one value. */
export function unaryGradient(
  rule: UnaryRule,
): 'none' | ((c: GradientContext, grads: readonly (Tensor | undefined)[]) => (Tensor | undefined)[]) {
  return rule === 'none' ? 'none' : (c, [g]) => [rule(g as Tensor, c.inputs[0] as Tensor, c.outputs[0] as Tensor)]
}

/** Unary ops that are one ONNX node: name → (ONNX op, sentence, gradient, whether it is missing for float64). */
const unary: Readonly<Record<string, readonly [string, string, UnaryRule, 'no float64'?]>> = {
  neg: ['Neg', 'Negation.', (g) => g.neg()],
  abs: ['Abs', 'Absolute value.', (g, x) => times(g, sign(x))],
  exp: ['Exp', 'Exponential.', (g, _, y) => times(g, y)],
  log: ['Log', 'Natural logarithm.', (g, x) => thinned(g, x).div(x)],
  sqrt: ['Sqrt', 'Square root.', (g, _, y) => thinned(g, y).mul(0.5).div(y)],
  reciprocal: ['Reciprocal', 'One divided by the value.', (g, _, y) => times(g, y).mul(y).neg()],
  tanh: ['Tanh', 'Hyperbolic tangent.', (g, _, y) => times(g, scalar(1, y.dtype).sub(y.mul(y)))],
  sigmoid: ['Sigmoid', 'Logistic function.', (g, _, y) => times(g, y.mul(scalar(1, y.dtype).sub(y)))],
  relu: ['Relu', 'Positive part.', (g, _, y) => times(g, mask(greater(y, 0), y))],
  erf: ['Erf', 'Error function.', (g, x) => times(g, exp(x.mul(x).neg()).mul(2 / Math.sqrt(Math.PI))), 'no float64'],
  sin: ['Sin', 'Sine.', (g, x) => times(g, cos(x))],
  cos: ['Cos', 'Cosine.', (g, x) => times(g, sin(x)).neg()],
  tan: ['Tan', 'Tangent.', (g, _, y) => times(g, y.mul(y).add(1)), 'no float64'],
  asin: ['Asin', 'Inverse sine.', (g, x) => thinned(g, x).div(sqrt(scalar(1, x.dtype).sub(x.mul(x)))), 'no float64'],
  acos: [
    'Acos',
    'Inverse cosine.',
    (g, x) =>
      thinned(g, x)
        .div(sqrt(scalar(1, x.dtype).sub(x.mul(x))))
        .neg(),
    'no float64',
  ],
  atan: ['Atan', 'Inverse tangent.', (g, x) => thinned(g, x).div(x.mul(x).add(1)), 'no float64'],
  sinh: ['Sinh', 'Hyperbolic sine.', (g, x) => times(g, cosh(x)), 'no float64'],
  cosh: ['Cosh', 'Hyperbolic cosine.', (g, x) => times(g, sinh(x)), 'no float64'],
  asinh: ['Asinh', 'Inverse hyperbolic sine.', (g, x) => thinned(g, x).div(sqrt(x.mul(x).add(1))), 'no float64'],
  acosh: ['Acosh', 'Inverse hyperbolic cosine.', (g, x) => thinned(g, x).div(sqrt(x.mul(x).sub(1))), 'no float64'],
  atanh: ['Atanh', 'Inverse hyperbolic tangent.', (g, x) => thinned(g, x).div(scalar(1, x.dtype).sub(x.mul(x))), 'no float64'],
  floor: ['Floor', 'Largest integer not above.', 'none'],
  ceil: ['Ceil', 'Smallest integer not below.', 'none'],
  round: ['Round', 'Nearest integer, halves to even.', 'none'],
  sign: ['Sign', 'Sign: -1, 0 or 1.', 'none'],
}

for (const [name, [onnx, doc, rule, missing]] of Object.entries(unary))
  defineOp({
    name,
    doc,
    infer: (inputs) => {
      const x = need(name, inputs, 0)
      if (missing) refuseFloat64(name, x)
      return [x]
    },
    lower: (e, [x]) => e.emit(onnx, [x as string]),
    gradient: unaryGradient(rule),
  })

/** Gradients of a function of two values, in the shape of the result: broadcasting is undone after them, and then `last` applied. */
interface BinaryRule {
  readonly a: PartialRule
  readonly b: PartialRule
  readonly lastB?: (g: Tensor) => Tensor
}
type PartialRule = (g: Tensor, a: Tensor, b: Tensor, y: Tensor) => Tensor

/** 1 where a condition holds, else 0. Multiplying by it is several times faster than `where` in ONNX Runtime. */
const mask = (condition: Tensor, like: Tensor) => cast(condition, like.dtype)

/** The gradient where mine is the chosen value; half of it where both are equal. */
const chosen = (g: Tensor, mine: Tensor, other: Tensor, isMine: (a: Tensor, b: Tensor) => Tensor) =>
  times(
    g,
    mask(isMine(mine, other), g)
      .add(mask(not(isMine(other, mine)), g))
      .mul(0.5),
  )

/** Binary ops that are one ONNX node and keep the type. */
const binary: Readonly<Record<string, readonly [string, string, BinaryRule]>> = {
  add: ['Add', 'Sum.', { a: (g) => g, b: (g) => g }],
  sub: ['Sub', 'Difference.', { a: (g) => g, b: (g) => g, lastB: (g) => g.neg() }],
  mul: ['Mul', 'Product.', { a: (g, _, b) => times(g, b), b: (g, a) => times(g, a) }],
  div: ['Div', 'Quotient.', { a: (g, _, b) => thinned(g, b).div(b), b: (g, _, b, y) => times(g, y).div(b), lastB: (g) => g.neg() }],
  pow: ['Pow', 'Power.', { a: (g, a, b) => times(g, powerSlope(a, b)), b: (g, a, _, y) => times(g, y.mul(safeLog(a))) }],
  minimum: ['Min', 'The smaller of two values.', { a: (g, a, b) => chosen(g, a, b, less), b: (g, a, b) => chosen(g, b, a, less) }],
  maximum: ['Max', 'The larger of two values.', { a: (g, a, b) => chosen(g, a, b, greater), b: (g, a, b) => chosen(g, b, a, greater) }],
}

/** b·a^(b-1), zero where b is zero. */
function powerSlope(a: Tensor, b: Tensor): Tensor {
  const exponent = constantValue(b)
  if (exponent?.data.length === 1) {
    const n = Number(exponent.data[0])
    if (n === 0) return zerosLike(a)
    return n === 1 ? scalar(1, a.dtype).add(zerosLike(a)) : n === 2 ? a.mul(2) : pow(a, n - 1).mul(n)
  }
  return where(equal(b, 0), zerosLike(b), pow(a, b.sub(1)).mul(b))
}

/** log a, zero where a is not positive: there the power has no slope in its exponent. */
function safeLog(a: Tensor): Tensor {
  const positive = greater(a, 0)
  return where(positive, log(where(positive, a, 1)), 0)
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
  xor: ['Xor', 'Exactly one.'],
}

const inferBinary = (name: string, to?: DType) => (inputs: readonly (Tensor | undefined)[]) => {
  const [a, b] = [need(name, inputs, 0), need(name, inputs, 1)]
  sameType(name, a, b)
  return one(to ?? a.dtype, broadcast(a.shape, b.shape, name))
}

for (const [name, [onnx, doc, rule]] of Object.entries(binary))
  defineOp({
    name,
    doc,
    infer: inferBinary(name),
    lower: (e, [a, b]) => e.emit(onnx, [a as string, b as string]),
    gradient: ({ inputs, outputs, needs }, [grad]) => {
      const [a, b, g, y] = [...inputs, grad, ...outputs] as [Tensor, Tensor, Tensor, Tensor]
      const last = rule.lastB ?? ((t: Tensor) => t)
      return [needs[0] ? unbroadcast(rule.a(g, a, b, y), a) : undefined, needs[1] ? last(unbroadcast(rule.b(g, a, b, y), b)) : undefined]
    },
  })

for (const [name, [onnx, doc]] of Object.entries(predicates))
  defineOp({
    name,
    doc,
    infer: inferBinary(name, 'bool'),
    lower: (e, [a, b]) => e.emit(onnx, [a as string, b as string]),
    gradient: 'none',
  })

for (const [name, onnx, doc] of [
  ['is_nan', 'IsNaN', 'Whether the value is not a number.'],
  ['is_inf', 'IsInf', 'Whether the value is infinite.'],
] as const)
  defineOp({
    name,
    doc,
    infer: (inputs) => one('bool', need(name, inputs, 0).shape),
    lower: (e, [x]) => e.emit(onnx, [x as string]),
    gradient: 'none',
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
  gradient: ({ inputs, needs }, [grad]) => {
    const [c, a, b, g] = [...inputs, grad] as [Tensor, Tensor, Tensor, Tensor]
    const none = scalar(0, g.dtype)
    return [undefined, needs[1] ? unbroadcast(where(c, g, none), a) : undefined, needs[2] ? unbroadcast(where(c, none, g), b) : undefined]
  },
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
  gradient: ({ inputs: [x] }, [g]) => [isFloat((x as Tensor).dtype) ? cast(g as Tensor, (x as Tensor).dtype) : undefined],
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
/** Logical exclusive or. */
export const xor = (a: Tensor, b: Tensor) => apply1('xor', [a, b])
/** Logical not. */
export const not = single('not')
/** Whether a value is not a number. */
export const isNan = single('is_nan')
/** Whether a value is infinite. */
export const isInf = single('is_inf')
/** Negation. */
export const neg = single('neg')
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
/** Error function. */
export const erf = single('erf')
/** Sine. */
export const sin = single('sin')
/** Cosine. */
export const cos = single('cos')
/** Tangent. */
export const tan = single('tan')
/** Inverse sine. */
export const asin = single('asin')
/** Inverse cosine. */
export const acos = single('acos')
/** Inverse tangent. */
export const atan = single('atan')
/** Hyperbolic sine. */
export const sinh = single('sinh')
/** Hyperbolic cosine. */
export const cosh = single('cosh')
/** Inverse hyperbolic sine. */
export const asinh = single('asinh')
/** Inverse hyperbolic cosine. */
export const acosh = single('acosh')
/** Inverse hyperbolic tangent. */
export const atanh = single('atanh')
/** Largest integer not above. */
export const floor = single('floor')
/** Smallest integer not below. */
export const ceil = single('ceil')
/** Nearest integer, halves to even. */
export const round = single('round')
/** Sign: -1, 0 or 1. */
export const sign = single('sign')
/** Reciprocal. */
export const reciprocal = single('reciprocal')
/** `a` where `condition` holds, else `b`. */
export const where = (condition: Tensor, a: Tensor, b: Tensor | number) =>
  apply1('where', [condition, a, typeof b === 'number' ? scalar(b, a.dtype) : b])
/** The same numbers in another element type. */
export const cast = (x: Tensor, to: DType) => (x.dtype === to ? x : apply1('cast', [x], { to }))
