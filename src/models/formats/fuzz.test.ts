import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { FormatError } from '../../base/errors.ts'
import { type ByteSource, fromBytes } from './bytes.ts'
import { openGguf } from './gguf.ts'
import { openLlama2c } from './llama2c.ts'
import { openPickle } from './pickle.ts'
import { openSafetensors } from './safetensors.ts'
import { encodeSafetensors } from './safetensors-write.ts'
import type { WeightStore } from './store.ts'
import { countOf } from './stored-types.ts'
import { bytesOfPieces, gguf, ggufText, legacyTorchFile, little, pickled, rawBytes, torchFile } from './testing.ts'

const runs = process.env.ACTLENS_FULL ? 10_000 : 500
const seed = 20_261_124

interface Format {
  /** A sound file. */
  readonly file: Uint8Array
  /** Where mutations happen: from the start, and for archives at the end too. */
  readonly header: number
  open(source: ByteSource): Promise<WeightStore>
}

const values = Float32Array.from({ length: 96 }, (_, i) => i / 7)

function safetensorsFile(): Format {
  const tensors = {
    a: { dtype: 'float32', shape: [8, 12], data: values },
    b: { dtype: 'int8', shape: [3], data: Int8Array.of(1, 2, 3) },
    c: { dtype: 'float16', shape: [0, 2], data: new Uint16Array(0) },
  } as const
  const file = encodeSafetensors(tensors, { format: 'pt' })
  return { file, header: file.length - 4 * 96 - 3, open: openSafetensors }
}

function ggufFile(): Format {
  const data = bytesOfPieces(rawBytes(values), new Uint8Array(18 * 2))
  const pairs: [string, number, Uint8Array][] = [
    ['general.architecture', 8, ggufText('llama')],
    ['general.alignment', 4, little(4, 32)],
    ['tokens', 9, bytesOfPieces(little(4, 8), little(8, 2), ggufText('ab'), ggufText('c'))],
    ['scores', 9, bytesOfPieces(little(4, 6), little(8, 3), rawBytes(Float32Array.of(1, 2, 3)))],
    ['nested', 9, bytesOfPieces(little(4, 9), little(8, 1), little(4, 0), little(8, 2), Uint8Array.of(1, 2))],
    ['flag', 7, Uint8Array.of(1)],
    ['big', 10, little(8, 2n ** 60n)],
  ]
  const tensors = [
    { name: 'a', sizes: [12, 8], type: 0, offset: 0 },
    { name: 'b', sizes: [32, 2], type: 2, offset: 384 },
  ]
  const file = gguf(pairs, tensors, data)
  return { file, header: file.length - data.length, open: openGguf }
}

function llama2cFile(): Format {
  const header = [8, 12, 2, 4, 2, 5, 6].map((n) => little(4, n))
  const count = 5 * 8 + 2 * (2 * 8 + 2 * 64 + 2 * 32 + 3 * 96) + 8 + 12
  return { file: bytesOfPieces(...header, new Uint8Array(4 * count)), header: 28, open: openLlama2c }
}

const { dict, text, tensor, storage, list, int, none, tuple } = pickled

function stateDict(...more: Uint8Array[]): Uint8Array {
  return dict(
    [text('a'), tensor(storage('FloatStorage', '0', 96, ...more), 0, [8, 12], [1, 8])],
    [text('b'), tensor(storage('LongStorage', '1', 4, ...more), 1, [3], [1])],
    [text('c'), list(int(5), tuple(none, text('x')))],
  )
}

function pickleFile(): Format {
  const file = torchFile(stateDict(), { 0: values, 1: BigInt64Array.of(1n, 2n, 3n, 4n) })
  return { file, header: file.length, open: openPickle }
}

function legacyFile(): Format {
  const storages = { 0: { length: 96, values }, 1: { length: 4, values: BigInt64Array.of(1n, 2n, 3n, 4n) } }
  const file = legacyTorchFile(stateDict(none), storages)
  return { file, header: file.length - 400, open: openPickle }
}

const formats: Record<string, () => Format> = {
  safetensors: safetensorsFile,
  GGUF: ggufFile,
  'llama2.c': llama2cFile,
  'zipped pickle': pickleFile,
  'legacy pickle': legacyFile,
}

type Mutation = (bytes: Uint8Array, header: number) => Uint8Array

const at = (place: number, header: number) => Math.floor(place * header)
const place = fc.double({ min: 0, max: 1, maxExcluded: true, noNaN: true })
/** Numbers at which readers break: limits of types, and small ones that shift what follows. */
const edge = fc.constantFrom(
  0n,
  1n,
  2n,
  3n,
  7n,
  255n,
  65535n,
  2n ** 31n - 1n,
  2n ** 31n,
  2n ** 32n - 1n,
  2n ** 53n,
  2n ** 63n,
  2n ** 64n - 1n,
)

const mutation: fc.Arbitrary<Mutation> = fc.oneof(
  fc.tuple(place, fc.integer({ min: 0, max: 255 })).map(
    ([p, value]): Mutation =>
      (bytes, header) => {
        const out = bytes.slice()
        out[at(p, header)] = value
        return out
      },
  ),
  fc.tuple(place, fc.integer({ min: 0, max: 7 })).map(
    ([p, bit]): Mutation =>
      (bytes, header) => {
        const out = bytes.slice()
        out[at(p, header)]! ^= 1 << bit
        return out
      },
  ),
  fc.tuple(place, edge, fc.constantFrom(1, 2, 4, 8)).map(
    ([p, value, size]): Mutation =>
      (bytes, header) => {
        const out = bytes.slice()
        const integer = little(size as 1 | 2 | 4 | 8, value)
        out.set(integer.subarray(0, Math.max(0, out.length - at(p, header))), at(p, header))
        return out
      },
  ),
  fc.tuple(place, fc.uint8Array({ minLength: 1, maxLength: 16 })).map(
    ([p, more]): Mutation =>
      (bytes, header) => {
        return bytesOfPieces(bytes.subarray(0, at(p, header)), more, bytes.subarray(at(p, header)))
      },
  ),
  fc.tuple(place, fc.integer({ min: 1, max: 16 })).map(
    ([p, count]): Mutation =>
      (bytes, header) => {
        return bytesOfPieces(bytes.subarray(0, at(p, header)), bytes.subarray(at(p, header) + count))
      },
  ),
  fc.tuple(place, place, fc.integer({ min: 1, max: 40 })).map(
    ([p, q, count]): Mutation =>
      (bytes, header) => {
        const copied = bytes.subarray(at(q, header), at(q, header) + count)
        return bytesOfPieces(bytes.subarray(0, at(p, header)), copied, bytes.subarray(at(p, header)))
      },
  ),
  place.map(
    (p): Mutation =>
      (bytes) =>
        bytes.slice(0, at(p, bytes.length)),
  ),
  // A digit of a JSON header becomes another, which keeps the JSON valid and the offsets wrong.
  fc.tuple(place, fc.integer({ min: 0, max: 9 })).map(
    ([p, digit]): Mutation =>
      (bytes, header) => {
        const out = bytes.slice()
        const digits = [...out.subarray(0, header).keys()].filter((i) => out[i]! >= 0x30 && out[i]! <= 0x39)
        if (digits.length > 0) out[digits[at(p, digits.length)]!] = 0x30 + digit
        return out
      },
  ),
)

/** A source that remembers the longest read; a reader that trusts a length of the file shows here. */
function watched(bytes: Uint8Array): { source: ByteSource; longest: () => number } {
  let longest = 0
  const inner = fromBytes(bytes, 'mutated')
  const source: ByteSource = {
    ...inner,
    read(offset, length) {
      longest = Math.max(longest, length)
      return inner.read(offset, length)
    },
  }
  return { source, longest: () => longest }
}

/** Opens and reads everything; what is refused must be refused by a FormatError, what is accepted must lie inside the file. */
async function check(format: Format, bytes: Uint8Array): Promise<boolean> {
  const { source, longest } = watched(bytes)
  const started = performance.now()
  let store: WeightStore
  try {
    store = await format.open(source)
  } catch (error) {
    if (!(error instanceof FormatError)) throw error
    expect(error.message).toMatch(/[.?]$/)
    return false
  } finally {
    expect(performance.now() - started).toBeLessThan(2000)
  }
  for (const { name, shape, offset, bytes: size, source: from } of store.tensors.values()) {
    expect(offset).toBeGreaterThanOrEqual(0)
    expect(offset + size).toBeLessThanOrEqual(from.size)
    expect(from.size).toBeLessThanOrEqual(bytes.length)
    expect((await store.readFloat32(name)).length).toBe(countOf(shape, name))
  }
  expect(longest()).toBeLessThanOrEqual(bytes.length)
  return true
}

describe.each(Object.keys(formats))('mutated %s', (name) => {
  const format = formats[name]!()

  it('is sound before it is mutated', async () => {
    expect(await check(format, format.file)).toBe(true)
  })

  it(`is refused or read soundly, ${runs} times`, { timeout: 600_000 }, async () => {
    let refused = 0
    await fc.assert(
      fc.asyncProperty(fc.array(mutation, { minLength: 1, maxLength: 4 }), async (mutations) => {
        const bytes = mutations.reduce((current, mutate) => mutate(current, Math.min(format.header, current.length)), format.file)
        if (!(await check(format, bytes))) refused++
      }),
      { seed, numRuns: runs },
    )
    // Were nearly all mutations harmless, the test would test nothing.
    expect(refused).toBeGreaterThan(runs / 3)
  })
})

describe('invented headers', () => {
  const offset = fc.oneof(fc.integer({ min: -1, max: 40 }), fc.constantFrom(2 ** 53, 1e300, 0.5, null, '4'))
  const field = fc.record({
    dtype: fc.constantFrom('F32', 'F16', 'U8', 'I64', 'F4', 5),
    shape: fc.oneof(
      fc.array(fc.oneof(fc.integer({ min: 0, max: 4 }), fc.constantFrom(-1, 2 ** 32, 2 ** 53)), { maxLength: 3 }),
      fc.constant('x'),
    ),
    data_offsets: fc.array(offset, { minLength: 1, maxLength: 3 }),
  })

  it(`of safetensors are refused or read soundly, ${runs} times`, { timeout: 600_000 }, async () => {
    const format = { file: new Uint8Array(0), header: 0, open: openSafetensors }
    await fc.assert(
      fc.asyncProperty(
        fc.dictionary(fc.constantFrom('a', 'b', 'c', '__metadata__', '__proto__'), field),
        fc.integer({ min: 0, max: 48 }),
        async (fields, size) => {
          const json = new TextEncoder().encode(JSON.stringify(fields))
          await check(format, bytesOfPieces(little(8, json.length), json, new Uint8Array(size)))
        },
      ),
      { seed, numRuns: runs },
    )
  })

  it(`of pickles are refused or read soundly, ${runs} times`, { timeout: 600_000 }, async () => {
    const format = { file: new Uint8Array(0), header: 0, open: openPickle }
    const piece = fc.oneof(
      fc.constantFrom(...[...'(tlde}])uasRQbN0.q\0h\0'].map((c) => bytesOfPieces(c))),
      fc.constantFrom(
        int(3),
        int(-1),
        text('storage'),
        text('0'),
        tuple(int(2), int(3)),
        tuple(int(3), int(1)),
        storage('FloatStorage', '0', 96),
      ),
      fc.constantFrom(
        pickled.global('torch._utils', '_rebuild_tensor_v2'),
        pickled.global('collections', 'OrderedDict'),
        pickled.global('os', 'system'),
      ),
      fc.constant(tensor(storage('FloatStorage', '0', 96), 1, [2, 3], [3, 1])),
      fc.uint8Array({ minLength: 1, maxLength: 2 }),
    )
    await fc.assert(
      fc.asyncProperty(fc.array(piece, { maxLength: 30 }), (pieces) =>
        check(format, torchFile(bytesOfPieces(...pieces), { 0: values })).then(() => {}),
      ),
      { seed, numRuns: runs },
    )
  })
})
