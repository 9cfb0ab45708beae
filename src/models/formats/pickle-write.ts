/** @file PyTorch checkpoints, written: a dictionary of float32 tensors in the zip archive that `torch.load` reads. */
import { ShapeError } from '../../base/errors.ts'
import { type NDArray, sizeOf } from '../../base/types.ts'

const utf8 = new TextEncoder()

/** A checkpoint of `torch.save` that holds these tensors by name; they must be float32. */
export function encodePickle(tensors: Readonly<Record<string, NDArray>>): Uint8Array {
  const list = Object.entries(tensors)
  for (const [name, { dtype, data, shape }] of list)
    if (dtype !== 'float32' || data.length !== sizeOf(shape))
      throw new ShapeError(`'${name}' is ${dtype} [${shape.join(', ')}] with ${data.length} values; give float32 values for all of it.`)
  const members: [string, Uint8Array][] = [
    ['archive/data.pkl', pickleOf(list.map(([name, { shape }]) => ({ name, shape })))],
    ['archive/byteorder', utf8.encode('little')],
    ...list.map(([, { data }], i): [string, Uint8Array] => [
      `archive/data/${i}`,
      new Uint8Array(data.buffer as ArrayBuffer, data.byteOffset, data.byteLength),
    ]),
    ['archive/version', utf8.encode('3\n')],
  ]
  return archive(members)
}

/** Opcodes of pickle protocol 2 that are needed. */
const op = {
  begin: [0x80, 2],
  mark: [0x28],
  tuple: [0x74],
  call: [0x52],
  emptyTuple: [0x29],
  emptyDict: [0x7d],
  setItems: [0x75],
  persistent: [0x51],
  no: [0x89],
  end: [0x2e],
} as const

const text = (value: string) => {
  const bytes = utf8.encode(value)
  return [0x58, ...little(4, bytes.length), ...bytes]
}
const integer = (value: number) => [0x4a, ...little(4, value)]
const global = (module: string, name: string) => [0x63, ...utf8.encode(`${module}\n${name}\n`)]
const tuple = (...items: readonly number[][]) => [...op.mark, ...items.flat(), ...op.tuple]

/** The dictionary of tensors: each is rebuilt from the storage of its number. */
function pickleOf(tensors: readonly { name: string; shape: readonly number[] }[]): Uint8Array {
  const items = tensors.flatMap(({ name, shape }, i) => {
    const strides = shape.map((_, axis) => sizeOf(shape.slice(axis + 1)))
    const storage = tuple(text('storage'), global('torch', 'FloatStorage'), text(String(i)), text('cpu'), integer(sizeOf(shape)))
    const hooks = [...global('collections', 'OrderedDict'), ...op.emptyTuple, ...op.call]
    const rebuilt = [[...storage, ...op.persistent], integer(0), tuple(...shape.map(integer)), tuple(...strides.map(integer)), [...op.no]]
    return [...text(name), ...global('torch._utils', '_rebuild_tensor_v2'), ...tuple(...rebuilt, hooks), ...op.call]
  })
  return Uint8Array.from([...op.begin, ...op.emptyDict, ...op.mark, ...items, ...op.setItems, ...op.end])
}

const little = (size: number, value: number) => Array.from({ length: size }, (_, i) => Math.floor(value / 256 ** i) % 256)

/** Where torch wants its storages to begin. */
const alignment = 64

/** A zip archive whose members are stored uncompressed, each beginning at a multiple of 64 bytes. */
function archive(members: readonly (readonly [string, Uint8Array])[]): Uint8Array {
  const pieces: Uint8Array[] = []
  const directory: number[] = []
  let at = 0
  const put = (bytes: Uint8Array) => {
    pieces.push(bytes)
    at += bytes.length
  }
  for (const [name, data] of members) {
    const title = utf8.encode(name)
    const start = at
    // An extra field needs four bytes of its own.
    const pad = (alignment - ((start + 30 + title.length + 4) % alignment)) % alignment
    const extra = [0x46, 0x42, ...little(2, pad), ...new Array<number>(pad).fill(0)]
    const facts = [...little(4, crc32(data)), ...little(4, data.length), ...little(4, data.length), ...little(2, title.length)]
    const versions = [...little(2, 0), ...little(2, 0), ...little(4, 0)]
    put(Uint8Array.from([0x50, 0x4b, 3, 4, 20, 0, ...versions, ...facts, ...little(2, extra.length), ...title, ...extra]))
    put(data)
    directory.push(0x50, 0x4b, 1, 2, 20, 0, 20, 0, ...versions, ...facts, ...new Array<number>(12).fill(0), ...little(4, start), ...title)
  }
  const start = at
  const count = little(2, members.length)
  put(Uint8Array.from(directory))
  put(Uint8Array.from([0x50, 0x4b, 5, 6, 0, 0, 0, 0, ...count, ...count, ...little(4, directory.length), ...little(4, start), 0, 0]))
  if (at >= 2 ** 32) throw new ShapeError('The tensors take more than 4 GiB, which this kind of file cannot hold; write safetensors.')
  const out = new Uint8Array(at)
  let to = 0
  for (const piece of pieces) {
    out.set(piece, to)
    to += piece.length
  }
  return out
}

const crcTable = Uint32Array.from({ length: 256 }, (_, n) => {
  let c = n
  for (let k = 0; k < 8; k++) c = c & 1 ? 0xedb88320 ^ (c >>> 1) : c >>> 1
  return c
})

function crc32(bytes: Uint8Array): number {
  let c = 0xffffffff
  for (const b of bytes) c = (crcTable[(c ^ b) & 255] as number) ^ (c >>> 8)
  return (c ^ 0xffffffff) >>> 0
}
