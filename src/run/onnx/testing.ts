/** @file Small ONNX models for tests, written node by node. */
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { create, type MessageInitShape, toBinary } from '@bufbuild/protobuf'
import type { DType, NDArray } from '../../base/types.ts'
import { onnxType } from '../../tensor/index.ts'
import {
  AttributeProtoSchema,
  AttributeProto_AttributeType as AttributeType,
  GraphProtoSchema,
  ModelProtoSchema,
  NodeProtoSchema,
  TensorProtoSchema,
  ValueInfoProtoSchema,
} from '../../tensor/onnx/gen/onnx_pb.ts'
import type { LoadOptions } from '../load.ts'
import { loadOnnx } from './load.ts'
import type { OnnxModel } from './model.ts'

/** A node: operator (`com.microsoft:NAME` for the runtime's own), inputs, outputs, integer (or integers, or `{ f }` float, or `{ g }` sub-graph) attributes. */
export type NodeInit = readonly [
  string,
  readonly string[],
  readonly string[],
  Readonly<Record<string, number | readonly number[] | { f: number } | { g: GraphInit }>>?,
]

/** A graph as tests write it. */
export interface GraphInit {
  readonly inputs?: Readonly<Record<string, readonly [DType, ...(number | string)[]]>>
  readonly weights?: Readonly<Record<string, NDArray>>
  readonly nodes: readonly NodeInit[]
  readonly outputs: readonly string[]
}

/** A float32 array. */
export const floats = (shape: readonly number[], data: ArrayLike<number>): NDArray<Float32Array> => ({
  dtype: 'float32',
  shape,
  data: Float32Array.from(data),
})

/** An int64 array. */
export const longs = (shape: readonly number[], data: readonly number[]): NDArray => ({
  dtype: 'int64',
  shape,
  data: BigInt64Array.from(data, BigInt),
})

/** The graph of a model, as its message. */
export function graphOf(init: GraphInit): MessageInitShape<typeof GraphProtoSchema> {
  const info = (name: string, [dtype, ...shape]: readonly [DType, ...(number | string)[]]) =>
    create(ValueInfoProtoSchema, {
      name,
      type: {
        value: {
          case: 'tensorType',
          value: {
            elemType: onnxType[dtype],
            shape: {
              dim: shape.map((d) => ({
                value: typeof d === 'number' ? { case: 'dimValue' as const, value: BigInt(d) } : { case: 'dimParam' as const, value: d },
              })),
            },
          },
        },
      },
    })
  return create(GraphProtoSchema, {
    name: 'test',
    input: Object.entries(init.inputs ?? {}).map(([n, t]) => info(n, t)),
    initializer: Object.entries(init.weights ?? {}).map(([name, a]) =>
      create(TensorProtoSchema, {
        name,
        dims: a.shape.map(BigInt),
        dataType: onnxType[a.dtype],
        rawData: new Uint8Array(a.data.buffer, a.data.byteOffset, a.data.byteLength),
      }),
    ),
    node: init.nodes.map(([opType, input, output, attrs], i) =>
      create(NodeProtoSchema, {
        name: `node${i}`,
        opType: opType.split(':').at(-1) as string,
        domain: opType.includes(':') ? (opType.split(':')[0] as string) : '',
        input: [...input],
        output: [...output],
        attribute: Object.entries(attrs ?? {}).map(([name, value]) => {
          if (typeof value === 'number') return create(AttributeProtoSchema, { name, type: AttributeType.INT, i: BigInt(value) })
          if ('f' in value) return create(AttributeProtoSchema, { name, type: AttributeType.FLOAT, f: value.f })
          if ('g' in value) return create(AttributeProtoSchema, { name, type: AttributeType.GRAPH, g: graphOf(value.g) })
          return create(AttributeProtoSchema, { name, type: AttributeType.INTS, ints: value.map(BigInt) })
        }),
      }),
    ),
    output: init.outputs.map((name) => create(ValueInfoProtoSchema, { name })),
  })
}

/** The bytes of a model. */
export const encodeModel = (init: GraphInit, opset = 17) =>
  toBinary(
    ModelProtoSchema,
    create(ModelProtoSchema, {
      irVersion: 8n,
      opsetImport: [
        { domain: '', version: BigInt(opset) },
        { domain: 'com.microsoft', version: 1n },
      ],
      graph: graphOf(init),
    }),
  )

/** Writes bytes into a fresh folder. */
export function fileOf(bytes: Uint8Array, name = 'model.onnx'): string {
  const path = join(mkdtempSync(join(tmpdir(), 'actlens-onnx-')), name)
  writeFileSync(path, bytes)
  return path
}

/** Loads a model from its bytes; the file that held them goes at once. */
export async function loadBytes(bytes: Uint8Array, options: LoadOptions = {}): Promise<OnnxModel> {
  const path = fileOf(bytes)
  try {
    return await loadOnnx(path, { id: 'test', hash: async () => 'test' }, { threads: 1, ...options })
  } finally {
    rmSync(dirname(path), { recursive: true })
  }
}

/** A small model: a matrix product, a bias, a branch that reads around itself, and a sum. */
export const smallModel: GraphInit = {
  inputs: { x: ['float32', 'batch', 3] },
  weights: {
    w: floats([3, 2], [1, 2, 3, 4, 5, 6]),
    b: floats([2], [0.5, -0.5]),
    yes: { dtype: 'bool', shape: [], data: Uint8Array.of(1) },
  },
  nodes: [
    ['MatMul', ['x', 'w'], ['product']],
    ['Add', ['product', 'b'], ['hidden']],
    [
      'If',
      ['yes'],
      ['branch'],
      {
        then_branch: { g: { nodes: [['Relu', ['hidden'], ['then']]], outputs: ['then'] } },
        else_branch: { g: { nodes: [['Neg', ['hidden'], ['else']]], outputs: ['else'] } },
      },
    ],
    ['Mul', ['branch', 'hidden'], ['y']],
  ],
  outputs: ['y'],
}
