/** @file A file whose fused attention nodes are written in simpler ops, with the names of what was inside them. */
import { create } from '@bufbuild/protobuf'
import { ModelError } from '../../base/errors.ts'
import { input } from '../ops/leaf.ts'
import type { Tensor } from '../tensor.ts'
import { fusedSites, writtenOut } from './fused-attention.ts'
import {
  type GraphProto,
  GraphProtoSchema,
  ModelProtoSchema,
  type NodeProto,
  NodeProtoSchema,
  type TensorProto,
  TensorProtoSchema,
} from './gen/onnx_pb.ts'
import type { OnnxFile } from './read.ts'
import { splice } from './splice.ts'
import type { OnnxTensor } from './types.ts'

/** The name of a tensor inside a fused node, once the node is written out. */
export const innerName = (node: NodeProto, site: (typeof fusedSites)[number]) => `actlens/in/${node.output[0]}/${site}`

/** The same file with some fused attention nodes in simpler ops; all else stays as it is. */
export function writeOut(file: OnnxFile, nodes: ReadonlySet<NodeProto>, tensors: ReadonlyMap<string, OnnxTensor>): OnnxFile {
  const opset = file.opsets.get('') ?? 21
  const initializer: TensorProto[] = [...file.graph.initializer]
  const node = file.graph.node.flatMap((n) => {
    if (!nodes.has(n)) return [n]
    const parts = partsOf(n, tensors, opset)
    initializer.push(...parts.initializers)
    return parts.nodes
  })
  const graph: GraphProto = create(GraphProtoSchema, { ...file.graph, node, initializer })
  return { ...file, graph, model: create(ModelProtoSchema, { ...file.model, graph }) }
}

function partsOf(node: NodeProto, tensors: ReadonlyMap<string, OnnxTensor>, opset: number) {
  const reads = new Map<string, string>()
  const made = writtenOut(node, tensors, (i, dims): Tensor => {
    const tensor = node.input[i] as string
    const { dtype } = tensors.get(tensor) as OnnxTensor
    if (!dtype) throw new ModelError(`The node '${node.name || node.output[0]}' reads '${tensor}', which is no array of numbers.`)
    // One tensor may be two inputs with axes of other names.
    const name = `read:${i}:${tensor}`
    reads.set(name, tensor)
    return input(name, dtype, dims)
  })
  const wanted = new Map<string, Tensor>()
  for (const [i, name] of node.output.entries()) if (name !== '' && made.outputs[i]) wanted.set(name, made.outputs[i] as Tensor)
  for (const site of fusedSites) wanted.set(innerName(node, site), made.inner[site])
  const result = node.output[0] as string
  const spliced = splice(
    {
      tensor: result,
      reads,
      own: '',
      result: wanted.get(result) as Tensor,
      extra: Object.fromEntries([...wanted].filter(([name]) => name !== result)),
      prefix: `in/${result}`,
      label: `inside '${node.name || result}'`,
    },
    opset,
  )
  const names = new Map([[spliced.result, result], ...[...spliced.extra].map(([name, from]) => [from, name] as const)])
  const renamed = (name: string) => names.get(name) ?? name
  return {
    nodes: spliced.nodes.map((n) => create(NodeProtoSchema, { ...n, input: n.input.map(renamed), output: n.output.map(renamed) })),
    initializers: spliced.initializers.map((t) => create(TensorProtoSchema, { ...t, name: renamed(t.name) })),
  }
}
