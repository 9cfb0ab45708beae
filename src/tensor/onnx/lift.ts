/** @file Nodes of a file as rows of our op table, so that they can be differentiated. Shapes are known: the file was run before. */
import { ModelError } from '../../base/errors.ts'
import type { NDArray } from '../../base/types.ts'
import * as op from '../ops/index.ts'
import type { Tensor } from '../tensor.ts'
import type { NodeProto } from './gen/onnx_pb.ts'
import { dtypeOf } from './types.ts'

/** What a rule is given: traced inputs, and the values of those that were computed already. */
export interface LiftContext {
  readonly node: NodeProto
  readonly opset: number
  /** Traced inputs; undefined where one is left out. */
  readonly x: readonly (Tensor | undefined)[]
  /** Numbers of an input that says a shape, axes or bounds. */
  readonly numbers: (input: number) => readonly number[] | undefined
}

type Rule = (c: LiftContext) => readonly Tensor[]

const int = (c: LiftContext, name: string, otherwise: number) => Number(c.node.attribute.find((a) => a.name === name)?.i ?? otherwise)
const float = (c: LiftContext, name: string, otherwise: number) => c.node.attribute.find((a) => a.name === name)?.f ?? otherwise
const ints = (c: LiftContext, name: string) => c.node.attribute.find((a) => a.name === name)?.ints.map(Number)
const text = (c: LiftContext, name: string, otherwise: string) => {
  const found = c.node.attribute.find((a) => a.name === name)
  return found ? new TextDecoder().decode(found.s) : otherwise
}
const at = (c: LiftContext, i: number) => c.x[i] as Tensor
/** Axes that are an attribute in old operator sets and an input in new ones. */
const axesOf = (c: LiftContext, input = 1) => c.numbers(input) ?? ints(c, 'axes')

const one =
  (f: (x: Tensor) => Tensor): Rule =>
  (c) => [f(at(c, 0))]
const two =
  (f: (a: Tensor, b: Tensor) => Tensor): Rule =>
  (c) => [f(at(c, 0), at(c, 1))]
const many =
  (f: (a: Tensor, b: Tensor) => Tensor): Rule =>
  (c) => [c.x.filter((t) => t !== undefined).reduce((a, b) => f(a, b))]
const reduce =
  (f: (x: Tensor, axes?: readonly number[], keep?: boolean) => Tensor): Rule =>
  (c) => {
    const axes = axesOf(c)
    if (axes?.length === 0 && int(c, 'noop_with_empty_axes', 0) === 1) return [at(c, 0)]
    return [f(at(c, 0), axes && axes.length > 0 ? axes : undefined, int(c, 'keepdims', 1) === 1)]
  }

/** Softmax of old operator sets flattens what follows its axis. */
const normalised =
  (f: (x: Tensor, axis?: number) => Tensor): Rule =>
  (c) => {
    const x = at(c, 0)
    const axis = int(c, 'axis', c.opset < 13 ? 1 : -1)
    const last = axis === -1 || axis === x.rank - 1
    if (c.opset >= 13 || last) return [f(x, axis)]
    const flat = op.reshape(x, [product(x.shape.slice(0, axis)), product(x.shape.slice(axis))])
    return [op.reshape(f(flat, -1), x.shape)]
  }

const product = (shape: readonly (number | string)[]) => shape.reduce<number>((n, d) => n * Number(d), 1)

/** A reshape of ONNX: 0 keeps an axis, -1 takes what is left. */
function reshaped(x: Tensor, target: readonly number[], zeros: boolean): Tensor {
  return op.reshape(
    x,
    target.map((d, i) => (d === 0 && !zeros ? (x.shape[i] as number) : d)),
  )
}

const rules: Readonly<Record<string, Rule>> = {
  Add: two(op.add),
  Sub: two(op.sub),
  Mul: two(op.mul),
  Div: two(op.div),
  Pow: two((a, b) => op.pow(a, op.cast(b, a.dtype))),
  Max: many(op.maximum),
  Min: many(op.minimum),
  Sum: many(op.add),
  MatMul: two((a, b) => (a.rank >= 2 && b.rank >= 2 ? op.matmul(a, b) : vectorProduct(a, b))),
  Gemm: (c) => {
    const options = { transA: int(c, 'transA', 0) === 1, transB: int(c, 'transB', 0) === 1, alpha: float(c, 'alpha', 1) }
    const y = op.matmul(at(c, 0), at(c, 1), options)
    return [c.x[2] ? op.add(y, op.mul(c.x[2], op.cast(op.constant('float32', [], [float(c, 'beta', 1)]), y.dtype))) : y]
  },
  FusedMatMul: (c) => {
    if (int(c, 'transBatchA', 0) === 1 || int(c, 'transBatchB', 0) === 1) throw refused(c, 'with its batch axes moved')
    return [
      op.matmul(at(c, 0), at(c, 1), { transA: int(c, 'transA', 0) === 1, transB: int(c, 'transB', 0) === 1, alpha: float(c, 'alpha', 1) }),
    ]
  },
  MatMulNBits: (c) => {
    const [bits, n, k, block] = ['bits', 'N', 'K', 'block_size'].map((name) => int(c, name, 4)) as [number, number, number, number]
    if (bits !== 4 && bits !== 8) throw refused(c, `with ${bits} bits`)
    if (c.x[4]) throw refused(c, 'with an order of its groups')
    const count = Math.ceil(k / block)
    const x = at(c, 0)
    // Exporters write scales and zero points flat or by rows.
    const parts = { packed: op.reshape(at(c, 1), [n, count, (block * bits) / 8]), scales: op.reshape(at(c, 2), [n, count]) }
    const zeros = c.x[3]
    if (zeros && zeros.dtype !== 'uint8') throw refused(c, `with zero points of type ${zeros.dtype}`)
    const points = zeros && op.reshape(zeros, [n, Math.ceil((count * bits) / 8)])
    const y = op.matmulBlocks(
      x.rank < 2 ? op.unsqueeze(x, 0) : x,
      parts.packed,
      parts.scales,
      points,
      { n, k, block, bits },
      { accuracy: int(c, 'accuracy_level', 0) },
    )
    const flat = x.rank < 2 ? op.squeeze(y, 0) : y
    return [c.x[5] ? op.add(flat, c.x[5]) : flat]
  },
  RotaryEmbedding: (c) => {
    const x = at(c, 0)
    const heads = int(c, 'num_heads', 0)
    const tables = { cos: at(c, 2), sin: at(c, 3) }
    if (c.node.domain !== 'com.microsoft' || x.rank !== 3) throw refused(c, 'over heads apart')
    const positions = at(c, 1).rank === 2 ? at(c, 1) : undefined
    if (!positions) throw refused(c, 'with one offset for all positions')
    const pairs = 2 * Number(tables.cos.shape[1])
    return [op.rotary(x, positions, tables, { heads: heads || Number(x.shape[2]) / pairs, interleaved: int(c, 'interleaved', 0) === 1 })]
  },
  ScatterElements: (c) => {
    if (text(c, 'reduction', 'none') !== 'none') throw refused(c, 'that adds')
    return [op.scatterElements(at(c, 0), at(c, 1), at(c, 2), int(c, 'axis', 0))]
  },
  Neg: one(op.neg),
  Exp: one(op.exp),
  Log: one(op.log),
  Sqrt: one(op.sqrt),
  Abs: one(op.abs),
  Tanh: one(op.tanh),
  Sigmoid: one(op.sigmoid),
  Relu: one(op.relu),
  Erf: one(op.erf),
  Sin: one(op.sin),
  Cos: one(op.cos),
  Reciprocal: one(op.reciprocal),
  Identity: one(op.identity),
  Dropout: one(op.identity),
  Softplus: one(op.softplus),
  LeakyRelu: (c) => [op.leakyRelu(at(c, 0), float(c, 'alpha', 0.01))],
  Elu: (c) => [op.elu(at(c, 0), float(c, 'alpha', 1))],
  HardSigmoid: (c) => [op.hardSigmoid(at(c, 0), float(c, 'alpha', 0.2), float(c, 'beta', 0.5))],
  HardSwish: one(op.hardSwish),
  Mish: one(op.mish),
  Gelu: (c) => [op.gelu(at(c, 0), text(c, 'approximate', 'none') as 'none' | 'tanh')],
  FastGelu: (c) => [op.gelu(c.x[1] ? op.add(at(c, 0), c.x[1]) : at(c, 0), 'tanh')],
  QuickGelu: (c) => [op.mul(at(c, 0), op.sigmoid(op.mul(at(c, 0), op.constant('float32', [], [float(c, 'alpha', 1.702)]))))],
  Cast: (c) => {
    const to = dtypeOf(int(c, 'to', 1))
    if (!to) throw new ModelError(`The node '${c.node.name}' casts to a type that is not known here.`)
    return [op.cast(at(c, 0), to)]
  },
  Where: (c) => [op.where(at(c, 0), at(c, 1), at(c, 2))],
  Clip: (c) => {
    const [low, high] = [c.numbers(1)?.[0], c.numbers(2)?.[0]]
    const old = (name: string, otherwise: number) => (c.opset < 11 ? float(c, name, otherwise) : otherwise)
    return [op.clip(at(c, 0), low ?? old('min', -3.4e38), high ?? old('max', 3.4e38))]
  },
  Softmax: normalised(op.softmax),
  LogSoftmax: normalised(op.logSoftmax),
  ReduceSum: reduce(op.sum),
  ReduceMean: reduce(op.mean),
  ReduceMax: reduce(op.max),
  ReduceMin: reduce(op.min),
  ReduceSumSquare: reduce(op.sumSquares),
  ReduceLogSumExp: reduce(op.logSumExp),
  LayerNormalization: (c) => {
    if (![-1, at(c, 0).rank - 1].includes(int(c, 'axis', -1))) throw refused(c, 'over more than the last axis')
    return [op.layerNorm(at(c, 0), at(c, 1), c.x[2], float(c, 'epsilon', 1e-5))]
  },
  SimplifiedLayerNormalization: (c) => [op.rmsNorm(at(c, 0), at(c, 1), float(c, 'epsilon', 1e-5))],
  RMSNormalization: (c) => [op.rmsNorm(at(c, 0), at(c, 1), float(c, 'epsilon', 1e-5))],
  SkipSimplifiedLayerNormalization: (c) => {
    const sum = c.x[3] ? op.add(op.add(at(c, 0), at(c, 1)), c.x[3]) : op.add(at(c, 0), at(c, 1))
    const y = op.rmsNorm(sum, at(c, 2), float(c, 'epsilon', 1e-5))
    return [y, y, y, sum]
  },
  Reshape: (c) => [reshaped(at(c, 0), c.numbers(1) ?? ints(c, 'shape') ?? [], int(c, 'allowzero', 0) === 1)],
  Flatten: (c) => {
    const { shape, rank } = at(c, 0)
    const axis = int(c, 'axis', 1)
    const cut = axis < 0 ? axis + rank : axis
    return [op.reshape(at(c, 0), [product(shape.slice(0, cut)), product(shape.slice(cut))])]
  },
  Transpose: (c) => [op.transpose(at(c, 0), ints(c, 'perm') ?? at(c, 0).shape.map((_, i) => at(c, 0).rank - 1 - i))],
  Unsqueeze: (c) => {
    const axes = axesOf(c) ?? []
    const rank = at(c, 0).rank + axes.length
    const sorted = axes.map((a) => (a < 0 ? a + rank : a)).sort((a, b) => a - b)
    return [sorted.reduce((t, a) => op.unsqueeze(t, a), at(c, 0))]
  },
  Squeeze: (c) => {
    const x = at(c, 0)
    const axes = axesOf(c) ?? x.shape.flatMap((d, i) => (d === 1 ? [i] : []))
    return [
      [...axes]
        .map((a) => (a < 0 ? a + x.rank : a))
        .sort((a, b) => b - a)
        .reduce((t, a) => op.squeeze(t, a), x),
    ]
  },
  Concat: (c) => [
    op.concat(
      c.x.filter((t) => t !== undefined),
      int(c, 'axis', 0),
    ),
  ],
  Expand: (c) => {
    const x = at(c, 0)
    const wanted = c.numbers(1) ?? []
    const rank = Math.max(wanted.length, x.rank)
    const from = (i: number) => (x.shape[x.rank - rank + i] as number | undefined) ?? 1
    const to = (i: number) => wanted[wanted.length - rank + i] ?? 1
    return [
      op.expand(
        x,
        Array.from({ length: rank }, (_, i) => (to(i) === 1 ? from(i) : to(i))),
        x,
      ),
    ]
  },
  Gather: (c) => {
    const [x, axis] = [at(c, 0), int(c, 'axis', 0)]
    const given = op.cast(at(c, 1), 'int64')
    const length = Number(x.shape[axis < 0 ? axis + x.rank : axis])
    const counted = op.where(op.less(given, op.constant('int64', [], [0])), op.add(given, op.constant('int64', [], [length])), given)
    return [op.gather(x, counted, axis)]
  },
  Slice: (c) => {
    const starts = c.numbers(1) ?? ints(c, 'starts') ?? []
    const ends = c.numbers(2) ?? ints(c, 'ends') ?? []
    const axes = c.numbers(3) ?? ints(c, 'axes') ?? starts.map((_, i) => i)
    const steps = c.numbers(4) ?? starts.map(() => 1)
    if (steps.some((s) => s < 1)) throw refused(c, 'with a negative step')
    return [
      starts.reduce(
        (t, start, i) => op.slice(t, axes[i] as number, start, Math.min(ends[i] as number, Number.MAX_SAFE_INTEGER), steps[i]),
        at(c, 0),
      ),
    ]
  },
  Split: (c) => {
    const x = at(c, 0)
    const axis = int(c, 'axis', 0)
    const length = Number(x.shape[axis < 0 ? axis + x.rank : axis])
    const count = c.node.output.length
    const even = Math.ceil(length / count)
    const sizes = c.numbers(1) ?? ints(c, 'split') ?? Array.from({ length: count }, (_, i) => Math.min(even, length - i * even))
    return op.split(x, axis, sizes)
  },
  Conv: (c) => {
    const spatial = at(c, 0).rank - 2
    const pads = ints(c, 'pads') ?? new Array<number>(2 * spatial).fill(0)
    if (!['NOTSET', 'VALID'].includes(text(c, 'auto_pad', 'NOTSET'))) throw refused(c, 'with automatic padding')
    if (pads.slice(0, spatial).some((p, i) => p !== pads[spatial + i])) throw refused(c, 'with padding that differs between sides')
    const settings = {
      stride: ints(c, 'strides'),
      padding: pads.slice(0, spatial),
      dilation: ints(c, 'dilations'),
      groups: int(c, 'group', 1),
    }
    return [op.conv(at(c, 0), at(c, 1), c.x[2], Object.fromEntries(Object.entries(settings).filter(([, v]) => v !== undefined)))]
  },
  GlobalAveragePool: one(op.globalAveragePool),
}

function vectorProduct(a: Tensor, b: Tensor): Tensor {
  const left = a.rank === 1 ? op.unsqueeze(a, 0) : a
  const y = op.matmul(left, b.rank === 1 ? op.unsqueeze(b, 1) : b)
  const row = b.rank === 1 ? op.squeeze(y, -1) : y
  return a.rank === 1 ? op.squeeze(row, b.rank === 1 ? -1 : -2) : row
}

const refused = (c: LiftContext, why: string) =>
  new ModelError(
    `The node '${c.node.name || c.node.output[0]}' (${c.node.opType} ${why}) has no gradient rule; take the gradient at a tensor after it.`,
  )

/** Whether the operator of a node has a rule. */
export const lifts = (node: NodeProto) => ['', 'ai.onnx', 'com.microsoft'].includes(node.domain) && Object.hasOwn(rules, node.opType)

/** The outputs of a node in ops of our table. */
export function lift(
  node: NodeProto,
  opset: number,
  x: readonly (Tensor | undefined)[],
  values: ReadonlyMap<string, NDArray>,
): readonly Tensor[] {
  const numbers = (i: number) => {
    const name = node.input[i]
    const value = name ? values.get(name) : undefined
    return value && Array.from(value.data as ArrayLike<number | bigint>, Number)
  }
  return (rules[node.opType] as Rule)({ node, opset, x, numbers })
}
