/** @file Writing an ordinary model as an ONNX file that any ONNX Runtime runs. For Node only. */
import { create, fromBinary } from '@bufbuild/protobuf'
import { EditError } from '../../base/errors.ts'
import type { PreparedEdit } from '../../sites/prepare.ts'
import {
  externalPlace,
  type GraphProto,
  isExternal,
  lower,
  lowerable,
  type ModelProto,
  ModelProtoSchema,
  type NodeProto,
  readNames,
  type Tensor,
  topological,
  type WeightRef,
} from '../../tensor/index.ts'
import { StringStringEntryProtoSchema } from '../../tensor/onnx/gen/onnx_pb.ts'
import type { ModelCore } from '../core.ts'
import type { ModelOrigin } from '../model.ts'
import { versions } from '../versions.ts'
import { type ExportedOnnx, write } from './export.ts'
import { type ExportShape, exportGraph } from './export-graph.ts'
import { recordKey, sitesKey } from './recognise.ts'

/** How a model is written. */
export interface ExportOptions extends Partial<ExportShape> {
  /** Weights go into a file beside the graph at any size. */
  readonly external?: boolean
}

/** What was written, and what a runtime must know to run it. */
export interface ExportedModel extends ExportedOnnx {
  /** Names of its inputs and outputs. */
  readonly inputs: readonly string[]
  readonly outputs: readonly string[]
  /** Version of the standard operators. */
  readonly opset: number
  /** Operators that are not of the standard but of ONNX Runtime (`com.microsoft`). */
  readonly contrib: readonly string[]
}

/** The parts of a model that is written. */
export interface ExportedParts {
  readonly core: ModelCore
  readonly edits: readonly PreparedEdit[]
  readonly origin: ModelOrigin
}

/** Order of inputs in transformers' exports. */
const inputOrder = ['input_ids', 'attention_mask', 'token_type_ids', 'pixel_values', 'decoder_input_ids']

/**
 * Writes a model with its edits built in. Inputs and outputs are named as in transformers' exports; positions are told by `attention_mask`,
 * whose zeros may be on the left or on the right. With `cache`, `past_key_values.N.key` and `.value` [batch, kv_head, past, d_head] go in
 * (empty at first) and `present.N.key` and `.value` come out.
 * @throws EditError for edits whose numbers the file's inputs do not tell; ModelError for a cache in a model that has none.
 */
export async function exportModel(
  { core, edits, origin }: ExportedParts,
  path: string,
  options: ExportOptions = {},
): Promise<ExportedModel> {
  const shape = { cache: options.cache ?? false, lastOnly: options.lastOnly ?? false }
  const { outputs, sites } = exportGraph(core, edits, shape)
  const named = [...outputs, ...sites]
  const tensors = lowerable(
    named.map(([, t]) => t),
    false,
    true,
  )
  const lowered = lower(topological(tensors), tensors)
  const model = fromBinary(ModelProtoSchema, lowered.bytes) as ModelProto & { graph: GraphProto }
  const names = new Names(model.graph)
  for (const [i, [name]] of named.entries()) names.give(lowered.outputs.get(tensors[i] as Tensor) as string, name)
  const weights = weightNames(tensors)
  const byPlace = new Map<string, string>()
  for (const t of model.graph.initializer) {
    if (!isExternal(t)) continue
    const place = placeKey(externalPlace(t))
    // A table that is also read as a matrix is one weight in a file.
    const same = `${place} ${t.dataType} ${t.dims}`
    const first = byPlace.get(same)
    if (first) names.same(t.name, first)
    else {
      byPlace.set(same, t.name)
      names.give(t.name, weights.get(place) as string)
    }
  }
  // Weights in memory go into the file.
  for (const t of model.graph.initializer) {
    const data = isExternal(t) ? lowered.memory.get(externalPlace(t).location) : undefined
    if (data) Object.assign(t, { rawData: data, dataLocation: 0, externalData: [] })
  }
  names.apply()
  const { graph } = model
  const at = new Map(
    [...sites.keys()].map((site, i) => [site, names.of(lowered.outputs.get(tensors[outputs.size + i] as Tensor) as string)]),
  )
  graph.output = graph.output.filter((o) => outputs.has(o.name))
  keepReached(graph)
  const made = new Set(graph.node.flatMap((n) => n.output))
  const shown = Object.fromEntries([...at].filter(([, tensor]) => made.has(tensor)))
  const rank = (name: string) => (inputOrder.includes(name) ? inputOrder.indexOf(name) : inputOrder.length)
  graph.input = graph.input.toSorted((a, b) => rank(a.name) - rank(b.name))
  const record = {
    model: origin.id,
    hash: await origin.hash(),
    family: core.architecture.family,
    precision: core.weights.precision,
    layers: Math.max(...core.architecture.stacks.map((stack) => stack.layers)),
    edits: edits.map((e) => dataOf(e)),
    versions: await versions(),
  }
  const metadata = { [recordKey]: JSON.stringify(record), [sitesKey]: JSON.stringify(shown) }
  const metadataProps = Object.entries(metadata).map(([key, value]) => create(StringStringEntryProtoSchema, { key, value }))
  const written = await write(create(ModelProtoSchema, { ...model, metadataProps }), path, options.external)
  return {
    ...written,
    inputs: graph.input.map((i) => i.name),
    outputs: graph.output.map((o) => o.name),
    opset: Number(model.opsetImport.find((o) => o.domain === '')?.version),
    contrib: [...new Set(graph.node.filter((n) => n.domain === 'com.microsoft').map((n) => n.opType))].sort(),
  }
}

function dataOf({ edit, label }: PreparedEdit): unknown {
  if (edit.op === 'function') return { op: edit.op, site: edit.site }
  try {
    return JSON.parse(JSON.stringify(edit, (_, v) => (ArrayBuffer.isView(v) ? Array.from(v as Float32Array) : v)))
  } catch (error) {
    throw new EditError(`The edit ${label} cannot be written into the record of a file.`, { cause: error })
  }
}

const placeKey = ({ location, offset }: { location: string; offset: number }) => `${location}@${offset}`

/** Names of weights in the checkpoint, by where they lie. */
function weightNames(tensors: readonly Tensor[]): Map<string, string> {
  const names = new Map<string, string>()
  for (const { op, attrs } of topological(tensors)) {
    if (op.name !== 'weight') continue
    const { place, name } = attrs.ref as WeightRef
    names.set(
      'path' in place
        ? placeKey({ location: place.path.replace(/^([A-Za-z]:)?[\\/]+/, ''), offset: place.offset })
        : placeKey({ location: place.key, offset: 0 }),
      name,
    )
  }
  return names
}

/** Leaves out what no output is computed from. */
function keepReached(graph: GraphProto): void {
  const makers = new Map(graph.node.flatMap((n) => n.output.map((o) => [o, n] as const)))
  const [kept, seen] = [new Set<NodeProto>(), new Set<string>()]
  const stack = graph.output.map((o) => o.name)
  for (let name = stack.pop(); name !== undefined; name = stack.pop()) {
    if (seen.has(name)) continue
    seen.add(name)
    const maker = makers.get(name)
    if (!maker || kept.has(maker)) continue
    kept.add(maker)
    stack.push(...readNames(maker))
  }
  graph.node = graph.node.filter((n) => kept.has(n))
  graph.initializer = graph.initializer.filter((t) => seen.has(t.name))
  graph.input = graph.input.filter((i) => seen.has(i.name))
}

/** New names for the tensors of a graph: the first that is given to one, made different from all others. */
class Names {
  private readonly graph: GraphProto
  private readonly given = new Map<string, string>()
  private readonly taken: Set<string>

  constructor(graph: GraphProto) {
    this.graph = graph
    this.taken = new Set([
      ...graph.node.flatMap((n) => n.output),
      ...graph.initializer.map((t) => t.name),
      ...graph.input.map((i) => i.name),
    ])
  }

  give(old: string, name: string): void {
    if (this.given.has(old)) return
    let free = name
    for (let i = 1; this.taken.has(free); i++) free = `${name}:${i}`
    this.given.set(old, free)
    this.taken.add(free)
  }

  /** Reads of one tensor go to another instead. */
  same(old: string, other: string): void {
    this.given.set(old, this.of(other))
    this.graph.initializer = this.graph.initializer.filter((t) => t.name !== old)
  }

  readonly of = (name: string) => this.given.get(name) ?? name

  apply(): void {
    const { graph, of } = this
    const rename = (nodes: NodeProto[]) => {
      for (const n of nodes) {
        n.input = n.input.map(of)
        n.output = n.output.map(of)
        for (const a of n.attribute) if (a.g) rename(a.g.node)
      }
    }
    rename(graph.node)
    for (const t of [...graph.initializer, ...graph.input, ...graph.output]) t.name = of(t.name)
  }
}
