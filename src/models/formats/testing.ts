/** @file For tests only: temporary folders, the shared reference files, and archives made by hand. */
import { existsSync, mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { dirname, join, resolve } from 'node:path'
import { fileURLToPath } from 'node:url'
import { expect, onTestFinished } from 'vitest'
import { FormatError } from '../../base/errors.ts'

const repository = resolve(dirname(fileURLToPath(import.meta.url)), '../../..')

/** Path of a file of the shared folder of references. */
export function shared(path: string): string {
  return resolve(repository, '../shared', path)
}

/** Whether the references are there; tests that need them are skipped, visibly, where they are not. */
export const hasShared = (path: string): boolean => existsSync(shared(path))

/** A folder that is removed after the test. */
export function temporaryFolder(): string {
  const folder = mkdtempSync(join(tmpdir(), 'actlens-formats-'))
  onTestFinished(() => rmSync(folder, { recursive: true, force: true }))
  return folder
}

/** Expects a FormatError whose message matches and is a sentence. */
export async function expectRefusal(work: Promise<unknown> | (() => unknown), message: RegExp): Promise<void> {
  const error = await Promise.resolve()
    .then(() => (typeof work === 'function' ? work() : work))
    .then(
      () => undefined,
      (thrown: unknown) => thrown,
    )
  expect(error).toBeInstanceOf(FormatError)
  expect((error as Error).message).toMatch(message)
  expect((error as Error).message).toMatch(/[.?]$/)
}

/** Bytes from pieces: numbers are bytes, texts are UTF-8. */
export function bytesOfPieces(...pieces: (number | string | Uint8Array)[]): Uint8Array<ArrayBuffer> {
  const parts = pieces.map((piece) =>
    typeof piece === 'number' ? Uint8Array.of(piece) : typeof piece === 'string' ? new TextEncoder().encode(piece) : piece,
  )
  const out = new Uint8Array(parts.reduce((n, part) => n + part.length, 0))
  let at = 0
  for (const part of parts) {
    out.set(part, at)
    at += part.length
  }
  return out
}

/** A little-endian integer of 1, 2, 4 or 8 bytes. */
export function little(size: 1 | 2 | 4 | 8, value: number | bigint): Uint8Array {
  const bytes = new Uint8Array(size)
  let rest = BigInt.asUintN(64, BigInt(value))
  for (let i = 0; i < size; i++, rest >>= 8n) bytes[i] = Number(rest & 255n)
  return bytes
}

/** A zip archive whose members are stored uncompressed, as torch.save writes it. */
export function zip(members: Record<string, Uint8Array>, method = 0): Uint8Array<ArrayBuffer> {
  const locals: Uint8Array[] = []
  const entries: Uint8Array[] = []
  let offset = 0
  for (const [name, data] of Object.entries(members)) {
    const sizes = bytesOfPieces(little(4, 0), little(4, data.length), little(4, data.length), little(2, name.length))
    const local = bytesOfPieces(
      little(4, 0x04034b50),
      little(2, 20),
      little(2, 0),
      little(2, method),
      little(4, 0),
      sizes,
      little(2, 3),
      name,
      'pad',
      data,
    )
    const header = bytesOfPieces(little(4, 0x02014b50), little(2, 20), little(2, 20), little(2, 0), little(2, method), little(4, 0), sizes)
    entries.push(bytesOfPieces(header, little(2, 0), little(2, 0), little(2, 0), little(2, 0), little(4, 0), little(4, offset), name))
    locals.push(local)
    offset += local.length
  }
  const directory = bytesOfPieces(...entries)
  const count = little(2, entries.length)
  return bytesOfPieces(
    ...locals,
    directory,
    little(4, 0x06054b50),
    little(4, 0),
    count,
    count,
    little(4, directory.length),
    little(4, offset),
    little(2, 0),
  )
}

/** A GGUF file; `pairs` are encoded values with their type, `tensors` have sizes in GGUF's order. */
export function gguf(
  pairs: readonly (readonly [key: string, type: number, value: Uint8Array])[],
  tensors: readonly { name: string; sizes: number[]; type: number; offset: number }[],
  data: Uint8Array,
  version = 3,
): Uint8Array<ArrayBuffer> {
  const header = bytesOfPieces(
    'GGUF',
    little(4, version),
    little(8, tensors.length),
    little(8, pairs.length),
    ...pairs.flatMap(([key, type, value]) => [ggufText(key), little(4, type), value]),
    ...tensors.flatMap(({ name, sizes, type, offset }) => [
      ggufText(name),
      little(4, sizes.length),
      ...sizes.map((size) => little(8, size)),
      little(4, type),
      little(8, offset),
    ]),
  )
  return bytesOfPieces(header, new Uint8Array((32 - (header.length % 32)) % 32), data)
}

/** A text with its length, as GGUF writes it. */
export function ggufText(text: string): Uint8Array {
  const bytes = new TextEncoder().encode(text)
  return bytesOfPieces(little(8, bytes.length), bytes)
}

/** Bytes of a typed array. */
export function rawBytes(values: ArrayBufferView): Uint8Array {
  return new Uint8Array(values.buffer, values.byteOffset, values.byteLength)
}

/** Pieces of a pickle, as Python's pickler writes them in protocol 2. */
export const pickled = {
  text: (value: string) => bytesOfPieces('X', little(4, new TextEncoder().encode(value).length), value),
  int: (value: number) => bytesOfPieces('J', little(4, value)),
  global: (module: string, name: string) => bytesOfPieces('c', module, '\n', name, '\n'),
  tuple: (...items: Uint8Array[]) => bytesOfPieces('(', ...items, 't'),
  list: (...items: Uint8Array[]) => bytesOfPieces(']', '(', ...items, 'e'),
  dict: (...pairs: (readonly [Uint8Array, Uint8Array])[]) => bytesOfPieces('}', '(', ...pairs.flat(), 'u'),
  call: (callee: Uint8Array, ...args: Uint8Array[]) => bytesOfPieces(callee, pickled.tuple(...args), 'R'),
  none: bytesOfPieces('N'),
  no: bytesOfPieces(0x89),
  yes: bytesOfPieces(0x88),
  /** A whole pickle. */
  whole: (value: Uint8Array) => bytesOfPieces(0x80, 2, value, '.'),
  /** A storage by its persistent id. */
  storage: (kind: string, key: string, length: number, ...more: Uint8Array[]) =>
    bytesOfPieces(
      pickled.tuple(
        pickled.text('storage'),
        pickled.global('torch', kind),
        pickled.text(key),
        pickled.text('cpu'),
        pickled.int(length),
        ...more,
      ),
      'Q',
    ),
  /** A tensor as torch.save describes it. */
  tensor: (storage: Uint8Array, offset: number, shape: number[], strides: number[]) =>
    pickled.call(
      pickled.global('torch._utils', '_rebuild_tensor_v2'),
      storage,
      pickled.int(offset),
      pickled.tuple(...shape.map(pickled.int)),
      pickled.tuple(...strides.map(pickled.int)),
      pickled.no,
      pickled.call(pickled.global('collections', 'OrderedDict')),
    ),
} as const

/** A file of torch.save with this pickle and these storages. */
export function torchFile(
  value: Uint8Array,
  storages: Record<string, ArrayBufferView>,
  more: Record<string, Uint8Array> = {},
): Uint8Array<ArrayBuffer> {
  const data = Object.entries(storages).map(([key, values]): [string, Uint8Array] => [`model/data/${key}`, rawBytes(values)])
  return zip({ 'model/data.pkl': pickled.whole(value), ...more, ...Object.fromEntries(data), 'model/version': bytesOfPieces('3\n') })
}

/** A file of torch.save from before PyTorch 1.6. */
export function legacyTorchFile(
  value: Uint8Array,
  storages: Record<string, { length: number; values: ArrayBufferView }>,
): Uint8Array<ArrayBuffer> {
  const magic = bytesOfPieces(0x8a, 10, Uint8Array.of(0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19))
  const machine = pickled.dict([pickled.text('protocol_version'), pickled.int(1001)], [pickled.text('little_endian'), pickled.yes])
  const keys = pickled.list(...Object.keys(storages).map(pickled.text))
  const pickles = [magic, pickled.int(1001), machine, value, keys].map(pickled.whole)
  return bytesOfPieces(...pickles, ...Object.values(storages).flatMap(({ length, values }) => [little(8, length), rawBytes(values)]))
}
