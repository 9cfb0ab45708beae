/** @file Writing an edited ONNX file: a standard file that the plain runtime runs. For Node only. */
import { createReadStream } from 'node:fs'
import { basename, dirname, join, parse } from 'node:path'
import { create, toBinary } from '@bufbuild/protobuf'
import { EditError } from '../../base/errors.ts'
import { writeFileWhole } from '../../base/files.ts'
import type { NDArray } from '../../base/types.ts'
import {
  compose,
  externalPlace,
  type GraphProto,
  isExternal,
  type ModelProto,
  ModelProtoSchema,
  onnxType,
  storedBytes,
  type TensorProto,
} from '../../tensor/index.ts'
import { GraphProtoSchema, TensorProto_DataLocation, TensorProtoSchema } from '../../tensor/onnx/gen/onnx_pb.ts'
import { editFeeds } from './edits.ts'
import type { OnnxModel } from './model.ts'

/** What was written. */
export interface ExportedOnnx {
  readonly path: string
  /** The file beside it with the weights, where they do not fit into one message. */
  readonly weights?: string
  readonly bytes: number
}

/** Weights of more bytes than this lie in a file of their own: one protobuf message holds less than 2 GiB. */
const inlineLimit = 1.5e9

/**
 * Writes the file with its edits built in, in the file's own operator set. Inputs and outputs are those of the file, the cache of
 * keys and values included.
 * @throws EditError for edits whose numbers depend on the input: a `where` clause on tokens, and noise.
 */
export async function exportOnnx(model: OnnxModel, path: string): Promise<ExportedOnnx> {
  const { core } = model.parts
  const constants = new Map<string, NDArray>()
  for (const e of model.prepared) {
    const why = e.masked
      ? "its 'where' is told by the tokens of a run"
      : e.seed !== undefined
        ? 'its noise is drawn for each run'
        : undefined
    if (why) throw new EditError(`The edit ${e.label} cannot be written into a file, since ${why}; leave it out.`)
    for (const [name, value] of Object.entries(editFeeds(e, undefined, undefined, new Map()))) constants.set(name, value)
  }
  const splices = await model.splices({})
  const { model: cut } = compose(core.file, { fetch: core.outputs, splices })
  const graph = cut.graph as GraphProto
  graph.input = graph.input.filter((i) => !constants.has(i.name))
  graph.initializer = [...graph.initializer, ...[...constants].map(([name, array]) => stored(name, array))]
  // The declarations of the file: names and types of its outputs.
  graph.output = core.file.graph.output
  return write(cut, path)
}

/** Writes a model; weights that lie in files are copied into it, or into a file beside it where they are large or it is asked for. */
export async function write(model: ModelProto, path: string, external = false): Promise<ExportedOnnx> {
  const graph = model.graph as GraphProto
  const total = graph.initializer.reduce((n, t) => n + (storedBytes(t) ?? 0), 0)
  if (external || total > inlineLimit) return writeApart(model, graph, path)
  const initializer: TensorProto[] = []
  for (const t of graph.initializer)
    initializer.push(isExternal(t) ? create(TensorProtoSchema, { ...plain(t), rawData: await bytesOf(t) }) : t)
  const bytes = toBinary(
    ModelProtoSchema,
    create(ModelProtoSchema, { ...model, graph: create(GraphProtoSchema, { ...graph, initializer }) }),
  )
  await writeFileWhole(path, bytes)
  return { path, bytes: bytes.length }
}

const plain = (t: TensorProto) => ({ name: t.name, dims: t.dims, dataType: t.dataType })

async function writeApart(model: ModelProto, graph: GraphProto, path: string): Promise<ExportedOnnx> {
  const weights = `${path}.data`
  const location = basename(weights)
  let offset = 0
  const chunks: (() => AsyncIterable<Uint8Array>)[] = []
  const initializer = graph.initializer.map((t) => {
    const length = storedBytes(t)
    if (length === undefined || length < 1024 || (!isExternal(t) && t.rawData.length === 0)) return t
    // Mapped tensors begin at a page.
    const gap = (4096 - (offset % 4096)) % 4096
    const at = offset + gap
    chunks.push(async function* () {
      yield new Uint8Array(gap)
      yield* isExternal(t) ? read(t) : [t.rawData]
    })
    offset = at + length
    const entries = { location, offset: String(at), length: String(length) }
    return create(TensorProtoSchema, {
      ...plain(t),
      dataLocation: TensorProto_DataLocation.EXTERNAL,
      externalData: Object.entries(entries).map(([key, value]) => ({ key, value })),
    })
  })
  await writeFileWhole(
    join(dirname(path), location),
    (async function* () {
      for (const chunk of chunks) yield* chunk()
    })(),
  )
  const bytes = toBinary(
    ModelProtoSchema,
    create(ModelProtoSchema, { ...model, graph: create(GraphProtoSchema, { ...graph, initializer }) }),
  )
  await writeFileWhole(path, bytes)
  return { path, weights, bytes: bytes.length + offset }
}

/** The bytes of a weight that lies in a file, whose place is told from the root of the file system. */
async function* read(t: TensorProto): AsyncGenerator<Uint8Array> {
  const { location, offset, length } = externalPlace(t)
  if (length === 0) return
  yield* createReadStream(join(parse(process.cwd()).root, location), { start: offset, end: offset + length - 1 })
}

async function bytesOf(t: TensorProto): Promise<Uint8Array> {
  const parts: Uint8Array[] = []
  for await (const part of read(t)) parts.push(part)
  return Buffer.concat(parts)
}

function stored(name: string, { dtype, shape, data }: NDArray): TensorProto {
  const rawData = new Uint8Array(data.buffer, data.byteOffset, data.byteLength)
  return create(TensorProtoSchema, { name, dims: shape.map(BigInt), dataType: onnxType[dtype], rawData })
}
