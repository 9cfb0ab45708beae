/** @file Traced edits as nodes of an ONNX file: lowered, written in the file's opset, named apart. */
import { create, fromBinary } from '@bufbuild/protobuf'
import { Rewriter, tidy, topological } from '../graph.ts'
import { lower } from '../lower.ts'
import type { Tensor } from '../tensor.ts'
import {
  type ModelProto,
  ModelProtoSchema,
  type NodeProto,
  NodeProtoSchema,
  type TensorProto,
  TensorProtoSchema,
  type ValueInfoProto,
} from './gen/onnx_pb.ts'

import { atOpset } from './opset.ts'

/** Nodes that stand between what makes a tensor and what reads it. */
export interface Splice {
  /** The tensor of the file whose readers see the result instead. */
  readonly tensor: string
  readonly nodes: readonly NodeProto[]
  readonly initializers: readonly TensorProto[]
  /** Inputs that the spliced nodes add to the model: the numbers of the edits. */
  readonly inputs: readonly ValueInfoProto[]
  /** The name by which the nodes read the value as the file makes it. */
  readonly raw: string
  /** The name of their result. */
  readonly result: string
  /** More results that may be fetched, by the caller's name. */
  readonly extra: ReadonlyMap<string, string>
}

/** What is spliced in at one tensor. */
export interface SpliceRequest {
  readonly tensor: string
  /** The traced inputs that stand for tensors of the file, by their name as an input: the value itself, and others that are read. */
  readonly reads: ReadonlyMap<string, string>
  /** Name of the traced input that stands for the value itself. */
  readonly own: string
  readonly result: Tensor
  readonly extra?: Readonly<Record<string, Tensor>>
  /** Names of what is made, apart from all others: `edit.0`. */
  readonly prefix: string
  /** For errors. */
  readonly label: string
}

/** Lowers a traced graph for a file that imports `opset`. */
export function splice(request: SpliceRequest, opset: number): Splice {
  const names = Object.keys(request.extra ?? {})
  const expander = new Rewriter({ expand: (node) => !node.op.lower || node.op.fuses?.(node) === false })
  const fetched = tidy(
    [request.result, ...names.map((n) => request.extra?.[n] as Tensor)].map((t) => expander.map(t)),
    false,
  )
  const lowered = lower(topological(fetched), fetched)
  const { graph } = fromBinary(ModelProtoSchema, lowered.bytes) as ModelProto & { graph: NonNullable<ModelProto['graph']> }
  const prefix = `actlens/${request.prefix}/`
  const raw = `${prefix}raw`
  const rename = (name: string): string => {
    if (name === '') return ''
    const read = request.reads.get(name)
    if (read !== undefined) return name === request.own ? raw : read
    return lowered.inputs.has(name) ? name : prefix + name
  }
  const renamed = graph.node.map((n) =>
    create(NodeProtoSchema, { ...n, name: '', input: n.input.map(rename), output: n.output.map(rename) }),
  )
  const initializers = graph.initializer.map((t) => create(TensorProtoSchema, { ...t, name: rename(t.name) }))
  const { nodes, constants } = atOpset(renamed, initializers, opset, prefix, request.label)
  const added = constants.map((c) =>
    create(TensorProtoSchema, { name: c.name, dims: [BigInt(c.values.length)], dataType: 7, int64Data: [...c.values] }),
  )
  return {
    tensor: request.tensor,
    nodes,
    initializers: [...initializers, ...added],
    inputs: graph.input.filter((i) => !request.reads.has(i.name)),
    raw,
    result: rename(lowered.outputs.get(fetched[0] as Tensor) as string),
    extra: new Map(names.map((n, i) => [n, rename(lowered.outputs.get(fetched[i + 1] as Tensor) as string)])),
  }
}
