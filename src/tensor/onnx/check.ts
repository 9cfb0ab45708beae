/** @file Checks of an ONNX file's structure, before anything of it reaches the runtime: names, order, sizes, depth. */
import { FormatError, listed } from '../../base/errors.ts'
import { type GraphProto, type ModelProto, type TensorProto, TensorProto_DataLocation, TensorProto_DataType } from './gen/onnx_pb.ts'
import { readNames, subgraphs } from './names.ts'

/** Functions that call functions. */
const maxDepth = 64
/** More elements than any tensor of a file has: the most bytes that one protobuf message holds. */
const maxElements = 2 ** 40

/** Bits of an element by ONNX type; strings have none. */
const bits: Readonly<Record<number, number>> = {
  [TensorProto_DataType.FLOAT]: 32,
  [TensorProto_DataType.UINT8]: 8,
  [TensorProto_DataType.INT8]: 8,
  [TensorProto_DataType.UINT16]: 16,
  [TensorProto_DataType.INT16]: 16,
  [TensorProto_DataType.INT32]: 32,
  [TensorProto_DataType.INT64]: 64,
  [TensorProto_DataType.BOOL]: 8,
  [TensorProto_DataType.FLOAT16]: 16,
  [TensorProto_DataType.DOUBLE]: 64,
  [TensorProto_DataType.UINT32]: 32,
  [TensorProto_DataType.UINT64]: 64,
  [TensorProto_DataType.COMPLEX64]: 64,
  [TensorProto_DataType.COMPLEX128]: 128,
  [TensorProto_DataType.BFLOAT16]: 16,
  [TensorProto_DataType.FLOAT8E4M3FN]: 8,
  [TensorProto_DataType.FLOAT8E4M3FNUZ]: 8,
  [TensorProto_DataType.FLOAT8E5M2]: 8,
  [TensorProto_DataType.FLOAT8E5M2FNUZ]: 8,
  [TensorProto_DataType.UINT4]: 4,
  [TensorProto_DataType.INT4]: 4,
}

/** Number of elements of a tensor of a file; refuses negative and absurd sizes. */
export function elementsOf(t: TensorProto): number {
  let n = 1
  for (const d of t.dims) {
    if (d < 0n || d > BigInt(maxElements))
      throw new FormatError(`The tensor '${t.name}' claims an axis of length ${d}; the file is damaged.`)
    n *= Number(d)
  }
  if (n > maxElements) throw new FormatError(`The tensor '${t.name}' claims ${n} elements; the file is damaged.`)
  return n
}

/** Bytes that a tensor of a file takes; undefined for types of no fixed size. */
export function storedBytes(t: TensorProto): number | undefined {
  const size = bits[t.dataType]
  return size === undefined ? undefined : Math.ceil((elementsOf(t) * size) / 8)
}

/** The entries of an external tensor: where its bytes lie. */
export function externalPlace(t: TensorProto): { location: string; offset: number; length: number } {
  const entries = new Map(t.externalData.map((e) => [e.key, e.value]))
  const location = entries.get('location')
  if (!location) throw new FormatError(`The tensor '${t.name}' lies in another file, but the file is not named.`)
  const number = (key: string, otherwise: number) => {
    const text = entries.get(key)
    if (text === undefined || text === '') return otherwise
    if (!/^\d{1,15}$/.test(text)) throw new FormatError(`The tensor '${t.name}' has the ${key} '${text}', which is no number of bytes.`)
    return Number(text)
  }
  const needed = storedBytes(t)
  if (needed === undefined) throw new FormatError(`The tensor '${t.name}' is of a type that cannot lie in another file.`)
  const length = number('length', needed)
  if (length !== needed) throw new FormatError(`The tensor '${t.name}' needs ${needed} bytes, but the file says ${length}.`)
  return { location, offset: number('offset', 0), length }
}

/** Whether the bytes of a tensor lie in another file. */
export const isExternal = (t: TensorProto) => t.dataLocation === TensorProto_DataLocation.EXTERNAL || t.externalData.length > 0

/** Refuses a tensor whose values do not fill its shape. */
export function checkTensor(t: TensorProto): void {
  if (t.segment) throw new FormatError(`The tensor '${t.name}' is cut into segments, which no runtime reads.`)
  const n = elementsOf(t)
  if (isExternal(t)) {
    externalPlace(t)
    return
  }
  const wrong = (held: number, unit: string) =>
    new FormatError(`The tensor '${t.name}' has the shape [${t.dims.join(', ')}], but holds ${held} ${unit}; the file is damaged.`)
  if (t.dataType === TensorProto_DataType.STRING) {
    if (t.stringData.length !== n) throw wrong(t.stringData.length, 'strings')
    return
  }
  const size = bits[t.dataType]
  if (size === undefined) throw new FormatError(`The tensor '${t.name}' has the element type ${t.dataType}, which is not known here.`)
  const bytes = Math.ceil((n * size) / 8)
  if (t.rawData.length > 0) {
    if (t.rawData.length !== bytes) throw wrong(t.rawData.length, 'bytes')
    return
  }
  const complex = t.dataType === TensorProto_DataType.COMPLEX64 || t.dataType === TensorProto_DataType.COMPLEX128
  const held = Math.max(t.floatData.length, t.int32Data.length, t.int64Data.length, t.doubleData.length, t.uint64Data.length)
  if (held !== (size === 4 ? Math.ceil(n / 2) : complex ? 2 * n : n)) throw wrong(held, 'numbers')
}

/** Refuses a model whose graph could not be run, with the name of what is wrong. */
export function checkModel(model: ModelProto): GraphProto {
  const { graph } = model
  if (!graph) throw new FormatError('The file holds no graph; it is not an ONNX model, or it was cut off.')
  const functions = new Set<string>()
  for (const f of model.functions) {
    const key = `${f.domain}.${f.name}.${f.overload}`
    if (functions.has(key)) throw new FormatError(`The file defines the function '${f.name}' twice.`)
    functions.add(key)
  }
  checkFunctions(model)
  checkGraph(graph, new Set())
  return graph
}

/** Sub-graphs are nested less than a hundred deep: the decoder refuses more. */
function checkGraph(graph: GraphProto, outer: ReadonlySet<string>): void {
  const defined = new Set<string>()
  const define = (name: string, what: string) => {
    if (name === '') throw new FormatError(`The graph has ${what} without a name.`)
    if (defined.has(name)) throw new FormatError(`The name '${name}' is given to two tensors of one graph; the second is ${what}.`)
    defined.add(name)
  }
  for (const input of graph.input) define(input.name, 'an input')
  for (const t of graph.initializer) {
    checkTensor(t)
    // Old files list each weight among the inputs, too.
    if (!graph.input.some((i) => i.name === t.name)) define(t.name, 'a weight')
  }
  for (const s of graph.sparseInitializer) {
    if (s.values && !graph.input.some((i) => i.name === s.values?.name)) define(s.values.name, 'a sparse weight')
  }
  for (const node of graph.node) for (const name of node.output) if (name !== '') define(name, `an output of ${node.opType}`)
  const seen = new Set([...outer, ...defined])
  for (const node of graph.node) {
    for (const name of node.input)
      if (name !== '' && !seen.has(name))
        throw new FormatError(`The node '${node.name}' (${node.opType}) reads '${name}', which nothing in the file computes.`)
    for (const a of node.attribute) {
      for (const t of [...(a.t ? [a.t] : []), ...a.tensors]) checkTensor(t)
      for (const g of [...(a.g ? [a.g] : []), ...a.graphs]) checkGraph(g, seen)
    }
  }
  for (const output of graph.output)
    if (!seen.has(output.name)) throw new FormatError(`The output '${output.name}' of the graph is computed by nothing in the file.`)
  order(graph)
}

/** The nodes of a graph, each after those it reads from; refuses a cycle. */
export function order(graph: GraphProto): number[] {
  const maker = new Map<string, number>()
  for (const [i, node] of graph.node.entries()) for (const name of node.output) if (name !== '') maker.set(name, i)
  const waits = new Int32Array(graph.node.length)
  const users: number[][] = graph.node.map(() => [])
  for (const [i, node] of graph.node.entries())
    for (const name of readNames(node)) {
      const from = maker.get(name)
      if (from === undefined) continue
      waits[i] = (waits[i] as number) + 1
      users[from]?.push(i)
    }
  const ready = graph.node.map((_, i) => i).filter((i) => waits[i] === 0)
  const out: number[] = []
  for (let n = 0; n < ready.length; n++) {
    const i = ready[n] as number
    out.push(i)
    for (const user of users[i] as number[]) {
      waits[user] = (waits[user] as number) - 1
      if (waits[user] === 0) ready.push(user)
    }
  }
  if (out.length < graph.node.length) {
    const stuck = graph.node.filter((_, i) => (waits[i] as number) > 0).map((n) => n.name || n.opType)
    throw new FormatError(`The nodes ${listed(stuck, 4)} of the graph wait for one another in a circle, so nothing can be computed.`)
  }
  return out
}

/** Functions must not call themselves, not even by way of others: the runtime writes them out. */
function checkFunctions(model: ModelProto): void {
  const byName = new Map(model.functions.map((f) => [`${f.domain}.${f.name}`, f]))
  const state = new Map<string, 'open' | 'done'>()
  const visit = (key: string, depth: number): void => {
    const f = byName.get(key)
    if (!f || state.get(key) === 'done') return
    if (state.get(key) === 'open' || depth > maxDepth)
      throw new FormatError(`The function '${f.name}' of the file calls itself, so that it cannot be written out.`)
    state.set(key, 'open')
    const stack = [...f.node]
    for (let node = stack.pop(); node; node = stack.pop()) {
      visit(`${node.domain}.${node.opType}`, depth + 1)
      for (const g of subgraphs(node)) stack.push(...g.node)
    }
    state.set(key, 'done')
  }
  for (const key of byName.keys()) visit(key, 0)
}
