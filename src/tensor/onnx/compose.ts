/** @file Programs out of a file's own nodes: what is wanted is cut out, edits are spliced in, the rest stays as it is in the file. */
import { clone, create, toBinary } from '@bufbuild/protobuf'
import type { LoweredModel } from '../lower.ts'
import { order, storedBytes } from './check.ts'
import {
  type GraphProto,
  GraphProtoSchema,
  type ModelProto,
  ModelProtoSchema,
  type NodeProto,
  NodeProtoSchema,
  OperatorSetIdProtoSchema,
  type TensorProto,
  TensorProto_DataLocation,
  TensorProtoSchema,
  ValueInfoProtoSchema,
} from './gen/onnx_pb.ts'
import { readNames, renameReads } from './names.ts'
import type { OnnxFile } from './read.ts'
import type { Splice } from './splice.ts'

/** What a program of a file computes. */
export interface ComposeRequest {
  /** Names of tensors of the file, or of a splice's extra results. */
  readonly fetch: readonly string[]
  readonly splices?: readonly Splice[]
  /** Tensors of the file that are fed instead of computed, with their types. */
  readonly fed?: ReadonlyMap<string, { elemType: number; rank: number }>
}

/** A model made of a file's nodes. */
export interface Composed {
  readonly model: ModelProto
  /** The name of each fetched tensor among the outputs. */
  readonly outputs: ReadonlyMap<string, string>
  /** Names that must be fed. */
  readonly inputs: readonly string[]
}

/** Cuts a program out of a file. */
export function compose(file: OnnxFile, request: ComposeRequest): Composed {
  const splices = request.splices ?? []
  const fed = request.fed ?? new Map<string, { elemType: number; rank: number }>()
  const { nodes, renamed } = spliced(file.graph, splices)
  const extra = new Map(splices.flatMap((s) => [...s.extra]))
  const makers = new Map<string, NodeProto>()
  for (const node of nodes) for (const name of node.output) if (name !== '') makers.set(name, node)
  const held = new Map<string, TensorProto>()
  for (const t of [...file.graph.initializer, ...splices.flatMap((s) => [...s.initializers])]) held.set(t.name, t)
  const sparse = new Map(file.graph.sparseInitializer.map((s) => [s.values?.name ?? '', s]))

  const outputs = new Map<string, string>()
  const added: NodeProto[] = []
  for (const name of request.fetch) {
    const at = extra.get(name) ?? renamed.get(name) ?? name
    // An input or a weight cannot be an output under its own name.
    const direct = makers.has(at) && !fed.has(at)
    const out = direct ? at : `actlens/out/${name}`
    if (!direct) added.push(create(NodeProtoSchema, { opType: 'Identity', input: [at], output: [out] }))
    outputs.set(name, out)
  }
  const kept = new Set<NodeProto>()
  const inputs = new Set<string>()
  const weights = new Set<string>()
  const stack = [...added.flatMap((n) => n.input), ...[...outputs.values()].filter((o) => makers.has(o))]
  const seen = new Set<string>()
  for (let name = stack.pop(); name !== undefined; name = stack.pop()) {
    if (seen.has(name)) continue
    seen.add(name)
    const maker = fed.has(name) ? undefined : makers.get(name)
    if (!maker) {
      if (!fed.has(name) && (held.has(name) || sparse.has(name))) weights.add(name)
      else inputs.add(name)
      continue
    }
    if (kept.has(maker)) continue
    kept.add(maker)
    stack.push(...readNames(maker))
  }
  const declared = [...file.graph.input, ...splices.flatMap((s) => [...s.inputs])].filter((i) => inputs.has(i.name) && !fed.has(i.name))
  const graph = create(GraphProtoSchema, {
    name: file.graph.name || 'graph',
    node: [...nodes.filter((n) => kept.has(n)), ...added],
    initializer: [...weights].flatMap((n) => held.get(n) ?? []),
    sparseInitializer: [...weights].flatMap((n) => sparse.get(n) ?? []),
    input: [...declared, ...[...fed].filter(([n]) => inputs.has(n)).map(([n, t]) => typed(n, t.elemType, t.rank))],
    output: [...new Set(outputs.values())].map((name) => create(ValueInfoProtoSchema, { name })),
    quantizationAnnotation: file.graph.quantizationAnnotation,
  })
  graph.node = order(graph).map((i) => graph.node[i] as NodeProto)
  return { model: around(file.model, graph), outputs, inputs: graph.input.map((i) => i.name) }
}

/** The declaration of a tensor of a rank with axes of any length. */
export function typed(name: string, elemType: number, rank: number) {
  const dim = Array.from({ length: rank }, (_, i) => ({ value: { case: 'dimParam' as const, value: `${name}:${i}` } }))
  return create(ValueInfoProtoSchema, { name, type: { value: { case: 'tensorType', value: { elemType, shape: { dim } } } } })
}

/** A model with another graph: functions and operator sets as in the file, and what our own nodes import. */
function around(model: ModelProto, graph: GraphProto): ModelProto {
  const imports = [...model.opsetImport]
  if (!imports.some((o) => o.domain === 'com.microsoft'))
    imports.push(create(OperatorSetIdProtoSchema, { domain: 'com.microsoft', version: 1n }))
  return create(ModelProtoSchema, {
    // Weights that are no inputs are allowed from version 4 of the format on, functions from 8.
    irVersion: model.irVersion < 8n ? 8n : model.irVersion,
    producerName: model.producerName,
    opsetImport: imports,
    functions: model.functions,
    metadataProps: model.metadataProps,
    graph,
  })
}

/** The nodes of a graph with all splices made; what splices at inputs and weights renamed. */
function spliced(graph: GraphProto, splices: readonly Splice[]): { nodes: NodeProto[]; renamed: Map<string, string> } {
  const made = new Map<string, Splice>(splices.map((s) => [s.tensor, s]))
  const renamed = new Map<string, string>()
  if (made.size === 0) return { nodes: graph.node, renamed }
  const produced = new Set<string>()
  let nodes = graph.node.map((node) => {
    if (!node.output.some((o) => made.has(o))) return node
    for (const o of node.output) if (made.has(o)) produced.add(o)
    return create(NodeProtoSchema, { ...node, output: node.output.map((o) => made.get(o)?.raw ?? o) })
  })
  const added: NodeProto[] = []
  for (const s of splices) {
    const leaf = !produced.has(s.tensor)
    const to = leaf ? `actlens/edited/${s.tensor}` : s.tensor
    if (leaf) {
      renamed.set(s.tensor, to)
      nodes = nodes.map((node) => {
        if (!readNames(node).has(s.tensor)) return node
        const copy = clone(NodeProtoSchema, node)
        renameReads(copy, s.tensor, to)
        return copy
      })
      added.push(create(NodeProtoSchema, { opType: 'Identity', input: [s.tensor], output: [s.raw] }))
    }
    added.push(...s.nodes, create(NodeProtoSchema, { opType: 'Identity', input: [s.result], output: [to] }))
  }
  return { nodes: [...nodes, ...added], renamed }
}

/** Weights of more bytes than this are handed to the runtime beside the model, so that no program copies them. */
const inlineBytes = 4096

/** The bytes of a model, its large weights apart. `filesUsed`: the runtime takes external data all from files or all from memory. */
export function encode(model: ModelProto, filesUsed: boolean): LoweredModel {
  const memory = new Map<string, Uint8Array>()
  let weightBytes = 0
  const { graph } = model
  const initializer = graph?.initializer.map((t) => {
    weightBytes += storedBytes(t) ?? 0
    if (filesUsed || t.rawData.length <= inlineBytes || t.dataLocation === TensorProto_DataLocation.EXTERNAL) return t
    const key = `weights/${t.name}`
    memory.set(key, t.rawData)
    return apart(t, key)
  })
  const bytes = toBinary(
    ModelProtoSchema,
    graph && initializer ? create(ModelProtoSchema, { ...model, graph: create(GraphProtoSchema, { ...graph, initializer }) }) : model,
  )
  return { bytes, inputs: new Map(), outputs: new Map(), memory, weightBytes, files: [] }
}

function apart(t: TensorProto, location: string): TensorProto {
  const entries = { location, offset: '0', length: String(t.rawData.length) }
  return create(TensorProtoSchema, {
    name: t.name,
    dims: t.dims,
    dataType: t.dataType,
    dataLocation: TensorProto_DataLocation.EXTERNAL,
    externalData: Object.entries(entries).map(([key, value]) => ({ key, value })),
  })
}
