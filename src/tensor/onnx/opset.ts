/** @file Our own nodes in the operator set of a file: what is spliced into a model must be written in the version that it imports. */
import { create } from '@bufbuild/protobuf'
import { ModelError } from '../../base/errors.ts'
import {
  AttributeProtoSchema,
  AttributeProto_AttributeType as AttributeType,
  type NodeProto,
  NodeProtoSchema,
  type TensorProto,
} from './gen/onnx_pb.ts'

/** What rewriting a node may ask for. */
interface Context {
  /** Values of a constant integer input; undefined where it is computed. */
  readonly integers: (name: string) => bigint[] | undefined
  readonly fresh: () => string
  readonly constant: (values: readonly bigint[]) => string
}

/** The same node in an older version: undefined where there is no way to say it. */
type Rewrite = (node: NodeProto, context: Context) => NodeProto[] | undefined

interface Form {
  /** The version from which on the node may stand as we write it. */
  readonly since: number
  readonly older?: { readonly since: number; readonly rewrite: Rewrite }
}

const ints = (name: string, values: readonly bigint[]) =>
  create(AttributeProtoSchema, { name, type: AttributeType.INTS, ints: [...values] })
const int = (node: NodeProto, name: string) => node.attribute.find((a) => a.name === name)?.i

/** Axes that are an input in later versions and were an attribute before. */
const axesAsAttribute: Rewrite = (node, { integers }) => {
  const [x, axes] = node.input as [string, string | undefined]
  const values = axes ? integers(axes) : undefined
  if (axes && !values) return undefined
  const others = node.attribute.filter((a) => a.name !== 'noop_with_empty_axes')
  return [create(NodeProtoSchema, { ...node, input: [x], attribute: [...others, ...(values ? [ints('axes', values)] : [])] })]
}

/** The length of one axis: a part of the whole shape. */
const shapeThenSlice: Rewrite = (node, { fresh, constant }) => {
  const whole = fresh()
  const start = int(node, 'start') ?? 0n
  const end = int(node, 'end') ?? BigInt(Number.MAX_SAFE_INTEGER)
  return [
    create(NodeProtoSchema, { opType: 'Shape', input: [...node.input], output: [whole] }),
    create(NodeProtoSchema, { opType: 'Slice', input: [whole, constant([start]), constant([end])], output: [...node.output] }),
  ]
}

/** Before sums could be scattered, values were only set. */
const withoutReduction: Rewrite = (node) => {
  const reduction = node.attribute.find((a) => a.name === 'reduction')
  if (reduction && new TextDecoder().decode(reduction.s) !== 'none') return undefined
  return [create(NodeProtoSchema, { ...node, attribute: node.attribute.filter((a) => a !== reduction) })]
}

const reducing = (since: number): Form => ({ since, older: { since: 7, rewrite: axesAsAttribute } })

/** Versions of the standard operators that our lowering emits; what is not here needs the version that our programs import. */
const forms: Readonly<Record<string, Form>> = {
  ...Object.fromEntries(
    'Add Sub Mul Div Sqrt Exp Log Neg Abs Tanh Sigmoid Relu Sin Cos Reciprocal MatMul Transpose Identity Cast And Or Not Pow Concat Gather Reshape'
      .split(' ')
      .map((op) => [op, { since: 7 }]),
  ),
  ...Object.fromEntries('Max Min Expand Erf Sign Where Greater Less Equal'.split(' ').map((op) => [op, { since: 9 }])),
  ...Object.fromEntries('Slice CumSum Clip TopK GatherElements Round Range'.split(' ').map((op) => [op, { since: 11 }])),
  ...Object.fromEntries('GreaterOrEqual LessOrEqual'.split(' ').map((op) => [op, { since: 12 }])),
  ...Object.fromEntries('Softmax LogSoftmax'.split(' ').map((op) => [op, { since: 13 }])),
  LayerNormalization: { since: 17 },
  Shape: { since: 15, older: { since: 10, rewrite: (node, c) => (node.attribute.length === 0 ? [node] : shapeThenSlice(node, c)) } },
  Split: { since: 13 },
  ScatterElements: { since: 16, older: { since: 11, rewrite: withoutReduction } },
  ReduceSum: reducing(13),
  Squeeze: reducing(13),
  Unsqueeze: reducing(13),
  ReduceMean: reducing(18),
  ReduceMax: reducing(18),
  ReduceMin: reducing(18),
  ReduceProd: reducing(18),
  ReduceSumSquare: reducing(18),
  ReduceLogSumExp: reducing(18),
}

/** Version of the standard operators that our own programs import. */
const own = 21

/**
 * Rewrites emitted nodes for a file that imports an older version.
 * @throws ModelError that names the operator, where the older version cannot say it.
 */
export function atOpset(
  nodes: readonly NodeProto[],
  initializers: readonly TensorProto[],
  opset: number,
  prefix: string,
  label: string,
): { nodes: NodeProto[]; constants: { name: string; values: readonly bigint[] }[] } {
  const known = new Map(initializers.map((t) => [t.name, integersOf(t)]))
  const constants: { name: string; values: readonly bigint[] }[] = []
  let counter = 0
  const context: Context = {
    integers: (name) => known.get(name),
    fresh: () => `${prefix}o${counter++}`,
    constant: (values) => {
      const name = `${prefix}o${counter++}`
      constants.push({ name, values })
      return name
    },
  }
  const out = nodes.flatMap((node) => {
    if (node.domain !== '') return [node]
    const form = forms[node.opType] ?? { since: own }
    if (opset >= form.since) return [node]
    const older = form.older && opset >= form.older.since ? form.older.rewrite(node, context) : undefined
    if (!older)
      throw new ModelError(
        `The edit ${label} needs the operator ${node.opType} of opset ${form.since}, but the file imports opset ${opset}; write the edit in simpler operations, or export the model again with a newer opset.`,
      )
    return older
  })
  return { nodes: out, constants }
}

function integersOf(t: TensorProto): bigint[] | undefined {
  if (t.dataType !== 7) return undefined
  if (t.rawData.length === 0) return t.int64Data
  const view = new DataView(t.rawData.buffer, t.rawData.byteOffset, t.rawData.byteLength)
  return Array.from({ length: t.rawData.length / 8 }, (_, i) => view.getBigInt64(8 * i, true))
}
