/** @file Reading ONNX files: bytes to a checked model whose nodes are kept as they are. */
import { fromBinary } from '@bufbuild/protobuf'
import { FormatError, messageOf } from '../../base/errors.ts'
import { checkModel, externalPlace, isExternal } from './check.ts'
import { type GraphProto, type ModelProto, ModelProtoSchema, type TensorProto } from './gen/onnx_pb.ts'
import { subgraphs } from './names.ts'

/** A checked ONNX model. */
export interface OnnxFile {
  readonly model: ModelProto
  readonly graph: GraphProto
  /** Version of each operator set that the file's nodes are written in, by domain; '' is the standard one. */
  readonly opsets: ReadonlyMap<string, number>
}

/**
 * Reads an ONNX model.
 * @throws FormatError for bytes that are no model, are cut off, or describe a graph that cannot run: cycles, undefined or doubly
 * defined names, values that do not fill their shapes, functions that call themselves.
 */
export function readOnnx(bytes: Uint8Array, name: string): OnnxFile {
  let model: ModelProto
  try {
    model = fromBinary(ModelProtoSchema, bytes)
  } catch (error) {
    throw new FormatError(`${name} is not an ONNX model, or is damaged: ${messageOf(error)}.`, { cause: error })
  }
  try {
    const graph = checkModel(model)
    const opsets = new Map(model.opsetImport.map((o) => [o.domain === 'ai.onnx' ? '' : o.domain, Number(o.version)]))
    if (graph.node.length > 0 && opsets.size === 0) throw new FormatError('The file names no operator set, so its nodes have no meaning.')
    return { model, graph, opsets }
  } catch (error) {
    if (error instanceof FormatError) throw new FormatError(`${name}: ${error.message}`, { cause: error })
    if (error instanceof RangeError) throw new FormatError(`${name} is nested too deeply to be a model that runs.`, { cause: error })
    throw error
  }
}

/** All tensors that a model holds: weights, and values in attributes, in sub-graphs too. */
export function* tensorsOf(model: ModelProto): Generator<TensorProto> {
  const graphs: GraphProto[] = model.graph ? [model.graph] : []
  const nodes = model.functions.flatMap((f) => f.node)
  for (;;) {
    const graph = graphs.pop()
    if (graph) {
      yield* graph.initializer
      for (const s of graph.sparseInitializer) for (const t of [s.values, s.indices]) if (t) yield t
      nodes.push(...graph.node)
    }
    const node = nodes.pop()
    if (!graph && !node) return
    if (!node) continue
    for (const a of node.attribute) {
      if (a.t) yield a.t
      yield* a.tensors
    }
    graphs.push(...subgraphs(node))
  }
}

/** Names of the files beside it that a model keeps weights in, with the end of what it reads there. */
export function externalFiles(model: ModelProto): Map<string, number> {
  const files = new Map<string, number>()
  for (const t of tensorsOf(model)) {
    if (!isExternal(t)) continue
    const { location, offset, length } = externalPlace(t)
    files.set(location, Math.max(files.get(location) ?? 0, offset + length))
  }
  return files
}
