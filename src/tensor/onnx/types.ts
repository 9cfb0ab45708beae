/** @file Types and shapes of all tensors of a file, as the runtime infers them. */
import { create } from '@bufbuild/protobuf'
import { FormatError, messageOf } from '../../base/errors.ts'
import type { DType } from '../../base/types.ts'
import { onnxType } from '../ops/elementwise.ts'
import { getRuntime } from '../runtime/index.ts'
import type { Device } from '../runtime/runtime.ts'
import { storedBytes } from './check.ts'
import { compose, encode } from './compose.ts'
import {
  type GraphProto,
  GraphProtoSchema,
  ModelProtoSchema,
  type TensorProto,
  type ValueInfoProto,
  ValueInfoProtoSchema,
} from './gen/onnx_pb.ts'
import type { OnnxFile } from './read.ts'

/** A tensor of a file. */
export interface OnnxTensor {
  readonly name: string
  readonly kind: 'input' | 'weight' | 'computed'
  /** Element type; undefined for texts and for what is no tensor. */
  readonly dtype?: DType
  /** What it is where it has no element type. */
  readonly other?: 'string' | 'no tensor' | 'unknown type'
  /** Lengths, names of lengths, or null where a length is not known; undefined where not even the rank is. */
  readonly shape?: readonly (number | string | null)[]
  /** The operator that computes it. */
  readonly op?: string
}

const byCode = new Map<number, DType>(Object.entries(onnxType).map(([name, code]) => [code, name as DType]))

/** The element type of an ONNX code; undefined for those that arrays here do not hold. */
export const dtypeOf = (code: number): DType | undefined => byCode.get(code)

/** Element types that edits and gradients may change. */
export const floatTypes: readonly DType[] = ['float32', 'float64', 'float16', 'bfloat16']

/** More elements than a tensor may have by what a file itself says. */
const maxElements = 2 ** 36

/** How the types are found. */
export interface TypesOptions {
  readonly device: Device
  readonly threads?: number
  /** The file keeps weights in other files. */
  readonly filesUsed: boolean
}

/** A weight of more bytes than this is declared, not given, while types are inferred: only short ones can say a shape. */
const declaredBytes = 512

/**
 * Asks the runtime for the types of all tensors of the main graph.
 * @throws FormatError with the runtime's sentence where it cannot run the file, and for absurd sizes.
 */
export async function inferTypes(file: OnnxFile, options: TypesOptions): Promise<Map<string, OnnxTensor>> {
  const { graph } = file
  const weights = new Set([...graph.initializer.map((t) => t.name), ...graph.sparseInitializer.map((s) => s.values?.name ?? '')])
  const out = new Map<string, OnnxTensor>()
  for (const input of graph.input) if (!weights.has(input.name)) out.set(input.name, fromInfo(input))
  for (const t of graph.initializer) out.set(t.name, { name: t.name, kind: 'weight', ...typeOf(t.dataType), shape: t.dims.map(Number) })
  const ops = new Map(graph.node.flatMap((n) => n.output.filter((o) => o !== '').map((o) => [o, n.opType] as const)))
  const asked = [...ops.keys()]
  if (asked.length === 0) return out
  const composed = compose(file, { fetch: asked })
  const attempt = async (model: typeof composed.model) => {
    const lowered = encode(model, options.filesUsed)
    const compiled = await (await getRuntime()).compile(lowered.bytes, { ...options, memory: lowered.memory, optimize: false })
    const metadata = compiled.outputMetadata
    await compiled.release()
    return metadata
  }
  let metadata: Awaited<ReturnType<typeof attempt>>
  try {
    metadata = await attempt(create(ModelProtoSchema, { ...composed.model, graph: declaring(composed.model.graph as GraphProto) })).catch(
      () =>
        // Some operators want to see their weights.
        attempt(composed.model),
    )
  } catch (error) {
    throw new FormatError(messageOf(error).replace('could not compile the program', 'refuses the file'), { cause: error })
  }
  const names = new Map([...composed.outputs].map(([name, o]) => [o, name]))
  for (const m of metadata) {
    const name = names.get(m.name) ?? m.name
    out.set(name, {
      name,
      kind: 'computed',
      ...(m.isTensor ? named(m.type) : { other: 'no tensor' as const }),
      // No axes at all: a single number, or a rank that the runtime could not tell.
      ...(m.shape && m.shape.length > 0 ? { shape: m.shape.map((d) => (d === '' || (typeof d === 'number' && d < 0) ? null : d)) } : {}),
      op: ops.get(name) ?? '',
    })
  }
  for (const t of out.values()) {
    const size = (t.shape ?? []).reduce<number>((n, d) => (typeof d === 'number' ? n * d : n), 1)
    if (size > maxElements)
      throw new FormatError(`The tensor '${t.name}' would have ${size} elements, which no machine holds; the file is damaged.`)
  }
  return out
}

function typeOf(code: number): Pick<OnnxTensor, 'dtype' | 'other'> {
  const dtype = dtypeOf(code)
  return dtype ? { dtype } : { other: code === 8 ? 'string' : 'unknown type' }
}

function named(type: string | undefined): Pick<OnnxTensor, 'dtype' | 'other'> {
  if (type === 'string') return { other: 'string' }
  return type !== undefined && Object.hasOwn(onnxType, type) ? { dtype: type as DType } : { other: 'unknown type' }
}

function fromInfo(info: ValueInfoProto): OnnxTensor {
  const type = info.type?.value
  if (type?.case !== 'tensorType') return { name: info.name, kind: 'input', other: 'no tensor' }
  const dims = type.value.shape?.dim
  const shape = dims?.map(({ value }) =>
    value.case === 'dimValue' ? Number(value.value) : value.case === 'dimParam' && value.value !== '' ? value.value : null,
  )
  return { name: info.name, kind: 'input', ...typeOf(type.value.elemType), ...(shape ? { shape } : {}) }
}

/** The same graph with its long weights as inputs, so that nothing is read to infer types. */
function declaring(graph: GraphProto): GraphProto {
  const long = graph.initializer.filter((t) => (storedBytes(t) ?? 0) > declaredBytes)
  const names = new Set(long.map((t) => t.name))
  return create(GraphProtoSchema, {
    ...graph,
    initializer: graph.initializer.filter((t) => !names.has(t.name)),
    input: [...graph.input.filter((i) => !names.has(i.name)), ...long.map(declared)],
  })
}

function declared(t: TensorProto): ValueInfoProto {
  const dim = t.dims.map((d) => ({ value: { case: 'dimValue' as const, value: d } }))
  return create(ValueInfoProtoSchema, {
    name: t.name,
    type: { value: { case: 'tensorType', value: { elemType: t.dataType, shape: { dim } } } },
  })
}
