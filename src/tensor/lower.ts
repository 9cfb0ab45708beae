/** @file From traced nodes to the bytes of an ONNX model. */
import { create, type MessageInitShape, toBinary } from '@bufbuild/protobuf'
import { RuntimeFailure, ShapeError } from '../base/errors.ts'
import type { DType, TypedArray } from '../base/types.ts'
import { topological, weightKey } from './graph.ts'
import {
  type AttributeProtoSchema,
  AttributeProto_AttributeType as AttributeType,
  type GraphProtoSchema,
  ModelProtoSchema,
  type NodeProtoSchema,
  TensorProto_DataLocation,
  type TensorProtoSchema,
  type ValueInfoProtoSchema,
} from './onnx/gen/onnx_pb.ts'
import { onnxType } from './ops/elementwise.ts'
import { type WeightRef, weightBytes } from './ops/leaf.ts'
import type { FileRange } from './runtime/runtime.ts'
import { factorsOf, termsOf } from './shape.ts'
import type { Dim, Emitter, Node, Shape, Tensor } from './tensor.ts'

type Init<T extends Parameters<typeof create>[0]> = MessageInitShape<T>

/** Opsets that the emitted models import. */
const opsets = [
  { domain: '', version: 21n },
  { domain: 'com.microsoft', version: 1n },
]

/** A model ready for the runtime. */
export interface LoweredModel {
  readonly bytes: Uint8Array
  /** Graph inputs: ONNX name → tensor. */
  readonly inputs: ReadonlyMap<string, Tensor>
  /** Graph outputs: ONNX name for each requested tensor. */
  readonly outputs: ReadonlyMap<Tensor, string>
  /** Weights held in memory, by the name of their external data. */
  readonly memory: ReadonlyMap<string, Uint8Array>
  /** Bytes of all weights that the model refers to. */
  readonly weightBytes: number
  /** Where those lie that are in files. */
  readonly files: readonly FileRange[]
}

/**
 * Lowers nodes to one ONNX model.
 * @param nodes in topological order; everything else that they use becomes a graph input.
 * @param fetched tensors that become graph outputs.
 */
export function lower(nodes: readonly Node[], fetched: readonly Tensor[]): LoweredModel {
  const lowering = new Lowering()
  for (const node of nodes) lowering.node(node)
  return lowering.finish(fetched)
}

class Lowering implements Emitter {
  private readonly names = new Map<Tensor, string>()
  private readonly protoNodes: Init<typeof NodeProtoSchema>[] = []
  private readonly initializers: Init<typeof TensorProtoSchema>[] = []
  private readonly constants = new Map<string, string>()
  private readonly weights = new Map<string, string>()
  private readonly inputs = new Map<string, Tensor>()
  private readonly memory = new Map<string, Uint8Array>()
  private readonly sizeNames = new Map<string, string>()
  private weightBytes = 0
  private readonly files: FileRange[] = []
  private counter = 0
  private bodies = 0
  /** Set apart the names inside the body of a loop, which must differ from all around it. */
  private readonly prefix: string

  constructor(prefix = '') {
    this.prefix = prefix
  }

  node(node: Node): void {
    const { op, attrs } = node
    const out = node.outputs[0] as Tensor
    if (op.name === 'input') this.graphInput(out, attrs.name as string)
    else if (op.name === 'constant') this.names.set(out, this.constant(out.dtype, attrs.shape as number[], attrs.data as TypedArray))
    else if (op.name === 'weight') return
    else if (op.lower) {
      const inputs = node.inputs.map((x, i) => (x ? this.inputName(node, x, i) : ''))
      const outputs = op.lower(this, inputs, node)
      for (const [i, t] of node.outputs.entries()) this.names.set(t, outputs[i] as string)
    } else if (op.expand) {
      // A composite without a fused form: the program expands these before lowering.
      throw new RuntimeFailure(`The composite op '${op.name}' reached lowering unexpanded.`)
    } else throw new RuntimeFailure(`The op '${op.name}' has no lowering to ONNX.`)
  }

  /**
   * A table that rows are looked up in is an initializer apart from the same weight as a matrix: the runtime packs the matrix
   * and lets its bytes go, while of the table only the pages that are looked up become resident.
   */
  private inputName(node: Node, x: Tensor, i: number): string {
    return ['gather', 'gather_blocks'].includes(node.op.name) && i === 0 && x.node.op.name === 'weight'
      ? this.weight(x.node.attrs.ref as WeightRef, ' rows')
      : this.nameOf(x)
  }

  nameOf(t: Tensor): string {
    const known = this.names.get(t)
    if (known) return known
    return t.node.op.name === 'weight'
      ? this.weight(t.node.attrs.ref as WeightRef, '')
      : this.graphInput(t, `${this.prefix}x${this.inputs.size}`)
  }

  private graphInput(t: Tensor, name: string): string {
    this.names.set(t, name)
    this.inputs.set(name, t)
    return name
  }

  emit(
    opType: string,
    inputs: readonly string[],
    attrs: Record<string, unknown> = {},
    options: { outputs?: number; domain?: string } = {},
  ): string[] {
    const output = Array.from({ length: options.outputs ?? 1 }, () => `${this.prefix}t${this.counter++}`)
    const trimmed = [...inputs]
    while (trimmed.at(-1) === '') trimmed.pop()
    this.protoNodes.push({
      opType,
      input: trimmed,
      output,
      domain: options.domain ?? '',
      attribute: Object.entries(attrs).map(([name, value]) => attribute(name, value)),
    })
    return output
  }

  constant(dtype: DType, shape: readonly number[], data: TypedArray | readonly number[]): string {
    const raw = rawBytes(dtype, data)
    const key = `${dtype}[${shape}]${raw.byteLength <= 256 ? raw.join() : ''}`
    if (raw.byteLength <= 256) {
      const known = this.constants.get(key)
      if (known) return known
    }
    const name = `${this.prefix}c${this.initializers.length}`
    this.initializers.push({ name, dims: shape.map(BigInt), dataType: onnxType[dtype], rawData: raw })
    if (raw.byteLength <= 256) this.constants.set(key, name)
    return name
  }

  private weight(ref: WeightRef, use: string): string {
    const key = `${weightKey(ref)} ${ref.dtype} [${ref.shape}]${use}`
    const known = this.weights.get(key)
    if (known) return known
    const name = `${this.prefix}w${this.initializers.length}`
    if (use === '') this.weightBytes += weightBytes(ref)
    const place = ref.place
    const entry = (k: string, value: string | number) => ({ key: k, value: String(value) })
    let externalData: { key: string; value: string }[]
    if ('path' in place) {
      if (use === '') this.files.push(place)
      externalData = [entry('location', withoutRoot(place.path)), entry('offset', place.offset), entry('length', place.bytes)]
    } else {
      externalData = [entry('location', place.key), entry('offset', 0), entry('length', place.data.byteLength)]
      this.memory.set(place.key, place.data)
    }
    this.initializers.push({
      name,
      dims: ref.shape.map(BigInt),
      dataType: onnxType[ref.dtype],
      dataLocation: TensorProto_DataLocation.EXTERNAL,
      externalData,
    })
    this.weights.set(key, name)
    return name
  }

  sizes(shape: Shape, from: readonly Tensor[]): string {
    if (shape.every((d) => typeof d === 'number')) return this.constant('int64', [shape.length], shape as number[])
    const parts = shape.map((d) => (typeof d === 'number' ? this.constant('int64', [1], [d]) : this.symbol(d, from)))
    return parts.length === 1 ? (parts[0] as string) : (this.emit('Concat', parts, { axis: 0 })[0] as string)
  }

  private symbol(d: Dim, from: readonly Tensor[]): string {
    for (const t of from) {
      const axis = t.shape.indexOf(d)
      if (axis < 0) continue
      const key = `${this.nameOf(t)}.${axis}`
      let name = this.sizeNames.get(key)
      if (!name) {
        name = this.emit('Shape', [this.nameOf(t)], { start: axis, end: axis + 1 })[0] as string
        this.sizeNames.set(key, name)
      }
      return name
    }
    const known = this.graphInputWith(d)
    if (known) return this.symbol(d, [known])
    for (const [op, parts] of [
      ['Add', termsOf(d)],
      ['Mul', factorsOf(d)],
    ] as const)
      if (parts.length > 1)
        return parts
          .map((part) => (typeof part === 'number' ? this.constant('int64', [1], [part]) : this.symbol(part, from)))
          .reduce((a, b) => this.emit(op, [a, b])[0] as string)
    const inner = termsOf(d)[0] as Dim
    if (inner !== d) return this.symbol(inner, from)
    throw new ShapeError(`The length of axis '${d}' cannot be read from the tensors at hand.`)
  }

  /** A graph input that has an axis of this name: a symbol means one length throughout a program. */
  private graphInputWith(d: Dim): Tensor | undefined {
    for (const t of this.inputs.values()) if (t.shape.includes(d)) return t
    return undefined
  }

  body(inputs: readonly Tensor[], outputs: readonly Tensor[], outside: ReadonlyMap<Tensor, string>): unknown {
    const inside = new Lowering(`${this.prefix}b${this.bodies++}_`)
    for (const [t, name] of outside) inside.names.set(t, name)
    for (const [i, t] of inputs.entries()) inside.graphInput(t, `${inside.prefix}i${i}`)
    const known = inputs.length
    for (const node of topological(outputs)) if (node.op.name !== 'input') inside.node(node)
    const { graph } = inside.graph(outputs, false)
    if (inside.inputs.size !== known) throw new RuntimeFailure('The body of a loop reads a value that is not handed to it.')
    return { g: { ...graph, name: `${inside.prefix}body` } }
  }

  finish(fetched: readonly Tensor[]): LoweredModel {
    const { graph, outputs } = this.graph(fetched, true)
    const model = create(ModelProtoSchema, { irVersion: 10n, producerName: 'actlens', opsetImport: opsets, graph })
    const { inputs, memory, weightBytes, files } = this
    return { bytes: toBinary(ModelProtoSchema, model), inputs, outputs, memory, weightBytes, files }
  }

  /** The nodes emitted so far as a graph; `once` declares a tensor that is fetched twice once only. */
  private graph(fetched: readonly Tensor[], once: boolean): { graph: Init<typeof GraphProtoSchema>; outputs: Map<Tensor, string> } {
    const outputs = new Map<Tensor, string>()
    const produced = new Set(this.protoNodes.flatMap((n) => n.output ?? []))
    const info: Init<typeof ValueInfoProtoSchema>[] = []
    const declared = new Set<string>()
    for (const t of fetched) {
      let name = this.nameOf(t)
      // A graph input or an initializer cannot be an output under its own name, nor one value be two outputs of a body.
      if (!produced.has(name) || (!once && declared.has(name))) name = this.emit('Identity', [name])[0] as string
      outputs.set(t, name)
      if (!declared.has(name)) info.push(valueInfo(name, t.dtype, t.shape))
      declared.add(name)
    }
    const input = [...this.inputs].map(([name, t]) => valueInfo(name, t.dtype, t.shape))
    return { graph: { name: 'graph', node: this.protoNodes, initializer: this.initializers, input, output: info }, outputs }
  }
}

/** A path as seen from the root of the file system, which is the folder the runtime resolves external data against. */
function withoutRoot(path: string): string {
  return path.replace(/^([A-Za-z]:)?[\\/]+/, '')
}

function valueInfo(name: string, dtype: DType, shape: Shape): Init<typeof ValueInfoProtoSchema> {
  const dim = shape.map((d) =>
    typeof d === 'number' ? { value: { case: 'dimValue' as const, value: BigInt(d) } } : { value: { case: 'dimParam' as const, value: d } },
  )
  return { name, type: { value: { case: 'tensorType', value: { elemType: onnxType[dtype], shape: { dim } } } } }
}

/** Attribute values: integer → INT, `{f}` → FLOAT, string → STRING, integers → INTS, `{fs}` → FLOATS, `{g}` → GRAPH. */
function attribute(name: string, value: unknown): Init<typeof AttributeProtoSchema> {
  if (typeof value === 'number') return { name, type: AttributeType.INT, i: BigInt(value) }
  if (typeof value === 'string') return { name, type: AttributeType.STRING, s: new TextEncoder().encode(value) }
  if (Array.isArray(value)) return { name, type: AttributeType.INTS, ints: value.map((v) => BigInt(v as number)) }
  if (value && typeof value === 'object' && 'f' in value) return { name, type: AttributeType.FLOAT, f: value.f as number }
  if (value && typeof value === 'object' && 'fs' in value) return { name, type: AttributeType.FLOATS, floats: value.fs as number[] }
  if (value && typeof value === 'object' && 'g' in value)
    return { name, type: AttributeType.GRAPH, g: value.g as Init<typeof GraphProtoSchema> }
  throw new RuntimeFailure(`The attribute '${name}' has a value that ONNX cannot hold.`)
}

/** The bits of a number as float16, rounded to nearest even. */
function halfBits(value: number): number {
  const sign = value < 0 || Object.is(value, -0) ? 0x8000 : 0
  const size = Math.abs(value)
  if (Number.isNaN(size)) return 0x7e00
  if (size >= 65520) return sign | 0x7c00
  // Below 2^-14 the spacing stays 2^-24; above it, ten bits follow the leading one.
  const exponent = Math.max(Math.floor(Math.log2(size)), -14)
  const steps = roundEven(size * 2 ** (10 - exponent))
  return sign | (size < 2 ** -14 ? steps : (exponent + 14) * 1024 + steps)
}

function roundEven(x: number): number {
  const below = Math.floor(x)
  const rest = x - below
  return rest > 0.5 || (rest === 0.5 && below % 2 === 1) ? below + 1 : below
}

/** The bits of a number as bfloat16, rounded to nearest even. */
function brainBits(value: number): number {
  const bits = new Uint32Array(Float32Array.of(value).buffer)[0] as number
  return Number.isNaN(value) ? 0x7fc0 : (bits + 0x7fff + ((bits >>> 16) & 1)) >>> 16
}

const arrays: Readonly<Partial<Record<DType, (data: readonly number[]) => TypedArray>>> = {
  float32: (d) => Float32Array.from(d),
  float64: (d) => Float64Array.from(d),
  int64: (d) => BigInt64Array.from(d.map((v) => (v >= Number.MAX_SAFE_INTEGER ? 9223372036854775807n : BigInt(v)))),
  uint64: (d) => BigUint64Array.from(d, BigInt),
  int32: (d) => Int32Array.from(d),
  int16: (d) => Int16Array.from(d),
  int8: (d) => Int8Array.from(d),
  uint8: (d) => Uint8Array.from(d),
  uint16: (d) => Uint16Array.from(d),
  uint32: (d) => Uint32Array.from(d),
  bool: (d) => Uint8Array.from(d.map((v) => (v ? 1 : 0))),
  float16: (d) => Uint16Array.from(d, halfBits),
  bfloat16: (d) => Uint16Array.from(d, brainBits),
}

function rawBytes(dtype: DType, data: TypedArray | readonly number[]): Uint8Array {
  let typed = data as TypedArray
  if (!ArrayBuffer.isView(data)) {
    const make = arrays[dtype]
    if (!make) throw new ShapeError(`A constant of type ${dtype} must be given as a typed array.`)
    typed = make(data)
  }
  return new Uint8Array(typed.buffer, typed.byteOffset, typed.byteLength)
}
