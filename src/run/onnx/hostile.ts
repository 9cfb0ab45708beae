/** @file Damaged ONNX files by the hundred: small models with bytes, names, sizes and links changed, from a fixed seed. */
import { create, fromBinary, toBinary } from '@bufbuild/protobuf'
import { ActlensError } from '../../base/errors.ts'
import { randomStream } from '../../models/sampling.ts'
import { type ModelProto, ModelProtoSchema } from '../../tensor/onnx/gen/onnx_pb.ts'
import { encodeModel, floats, loadBytes, longs, smallModel } from './testing.ts'

/** What became of damaged files: how many still ran, and how many were refused in a sentence. */
export interface HostileCounts {
  readonly ran: number
  readonly refused: number
  /** Anything else: a defect. */
  readonly wrong: readonly string[]
}

const seeds = [
  encodeModel(smallModel),
  encodeModel({
    inputs: { ids: ['int64', 'batch', 'pos'] },
    weights: {
      table: floats([4, 2], [1, 2, 3, 4, 5, 6, 7, 8]),
      shape: longs([3], [0, 0, -1]),
      scale: floats([2], [1, 1]),
      shift: floats([2], [0, 0]),
    },
    nodes: [
      ['Gather', ['table', 'ids'], ['rows']],
      ['LayerNormalization', ['rows', 'scale', 'shift'], ['normed']],
      ['Reshape', ['normed', 'shape'], ['flat']],
      ['Softmax', ['flat'], ['probs'], { axis: -1 }],
      ['Transpose', ['probs'], ['turned'], { perm: [2, 0, 1] }],
    ],
    outputs: ['turned', 'flat'],
  }),
]

type Random = () => number
const pick = <T>(list: readonly T[], random: Random) => list[Math.floor(random() * list.length)] as T

/** Changes of the message itself: what a hostile author would write. */
const changes: readonly ((model: ModelProto, random: Random) => void)[] = [
  ({ graph }, r) => {
    const node = pick(graph?.node ?? [], r)
    const other = pick(graph?.node ?? [], r)
    node.input[0] = other.output[0] ?? ''
  },
  ({ graph }, r) => {
    pick(graph?.node ?? [], r).input[0] = 'nowhere'
  },
  ({ graph }, r) => {
    pick(graph?.node ?? [], r).output[0] = pick(graph?.node ?? [], r).output[0] ?? 'x'
  },
  ({ graph }, r) => {
    const t = pick(graph?.initializer ?? [], r)
    t.dims[Math.floor(r() * Math.max(1, t.dims.length))] = pick([-1n, 0n, 1n, 4294967296n, 2n ** 62n], r)
  },
  ({ graph }, r) => {
    const t = pick(graph?.initializer ?? [], r)
    t.rawData = t.rawData.slice(0, Math.floor(r() * t.rawData.length))
  },
  ({ graph }, r) => {
    pick(graph?.initializer ?? [], r).dataType = Math.floor(r() * 26)
  },
  ({ graph }, r) => {
    pick(graph?.node ?? [], r).opType = pick(['NoSuchOp', 'ConstantOfShape', 'Loop', 'Expand', 'Tile', 'Range', 'SequenceEmpty', ''], r)
  },
  ({ graph }, r) => {
    pick(graph?.node ?? [], r).domain = pick(['com.microsoft', 'nowhere', 'ai.onnx.ml'], r)
  },
  (model, r) => {
    for (const o of model.opsetImport) o.version = pick([0n, 1n, 5n, 12n, 99n, -1n, 2n ** 60n], r)
  },
  ({ graph }, r) => {
    const a = pick(pick(graph?.node ?? [], r).attribute, r)
    if (a) a.ints = Array.from({ length: Math.floor(r() * 5) }, () => BigInt(Math.floor(r() * 1e9)) - 5n * 10n ** 8n)
  },
  ({ graph }, r) => {
    const t = pick(graph?.initializer ?? [], r)
    t.externalData = [
      create(ModelProtoSchema, { metadataProps: [{ key: 'location', value: pick(['/etc/passwd', '../x', 'gone.bin', ''], r) }] })
        .metadataProps[0],
    ].flatMap((e) => e ?? [])
  },
  ({ graph }, r) => {
    const type = pick(graph?.input ?? [], r)?.type?.value
    if (type?.case === 'tensorType') type.value.elemType = Math.floor(r() * 24)
  },
  (model) => {
    if (model.graph) model.graph.output = []
  },
  (model) => {
    delete model.graph
  },
]

/** One damaged file. */
export function damaged(random: Random): Uint8Array {
  const bytes = pick(seeds, random).slice()
  const kind = random()
  if (kind < 0.15) return bytes.slice(0, Math.floor(random() * bytes.length))
  if (kind < 0.55) {
    for (let n = 1 + Math.floor(random() * 4); n > 0; n--) bytes[Math.floor(random() * bytes.length)] = Math.floor(random() * 256)
    return bytes
  }
  const model = fromBinary(ModelProtoSchema, bytes)
  for (let n = 1 + Math.floor(random() * 2); n > 0 && model.graph; n--) pick(changes, random)(model, random)
  try {
    return toBinary(ModelProtoSchema, model)
  } catch {
    return bytes.slice(1)
  }
}

/** Loads and runs damaged files; every one must run or be refused in a sentence. */
export async function tryDamaged(count: number, seed: number): Promise<HostileCounts> {
  const random = randomStream(seed)
  let ran = 0
  let refused = 0
  const wrong: string[] = []
  for (let i = 0; i < count; i++) {
    const bytes = damaged(random)
    try {
      const model = await loadBytes(bytes)
      const feeds = Object.fromEntries(
        model.inputs.map((t) => [t.name, t.dtype === 'int64' ? longs([1, 2], [1, 3]) : floats([1, 3], [1, 2, 3])]),
      )
      await model.run(feeds, {
        taps: model
          .sites()
          .filter((s) => s.tensor.kind === 'computed' && s.tensor.dtype === 'float32')
          .map((s) => s.site),
      })
      await model.dispose()
      ran++
    } catch (error) {
      const sentence = error instanceof ActlensError && error.message.length > 10
      if (sentence) refused++
      else wrong.push(`${i}: ${error instanceof Error ? (error.stack ?? error.message) : error}`)
    }
  }
  return { ran, refused, wrong }
}
