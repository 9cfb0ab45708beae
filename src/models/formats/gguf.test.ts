import { readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { describe, expect, it } from 'vitest'
import type { ByteSource } from './bytes.ts'
import { fromBytes } from './bytes.ts'
import { openGguf } from './gguf.ts'
import { openSafetensors } from './safetensors.ts'
import { storedTypes } from './stored-types.ts'
import { bytesOfPieces, expectRefusal, gguf, ggufText, hasShared, little, rawBytes, shared, temporaryFolder } from './testing.ts'

const quants = 'goldens/gguf-quants'

interface Index {
  types: Record<string, { ggml_type?: number; values_per_block: number; bytes_per_block: number; tensors: Record<string, unknown> }>
}

describe.skipIf(!hasShared(quants))('every recorded type', () => {
  const index: Index = hasShared(quants) ? JSON.parse(readFileSync(shared(`${quants}/index.json`), 'utf8')) : { types: {} }
  const types = Object.keys(index.types).filter((type) => index.types[type]!.tensors !== undefined)

  it('has a decoder, and blocks of the recorded size', () => {
    expect(types.length).toBe(26)
    for (const type of types) {
      const { values_per_block, bytes_per_block } = index.types[type]!
      expect(storedTypes[type as keyof typeof storedTypes], type).toMatchObject({ values: values_per_block, bytes: bytes_per_block })
    }
  })

  it.each(types)('%s decodes to the recorded values, bit for bit', async (type) => {
    const store = await openGguf(shared(`${quants}/${type}.gguf`))
    const expected = await openSafetensors(shared(`${quants}/${type}.safetensors`))
    for (const name of Object.keys(index.types[type]!.tensors)) {
      expect(store.get(name).type).toBe(type)
      expect(store.get(name).shape).toEqual(expected.get(name).shape)
      const bits = new Uint32Array((await store.readFloat32(name)).buffer)
      const expectedBits = new Uint32Array((await expected.readFloat32(name)).buffer)
      const wrong = bits.findIndex((x, i) => x !== expectedBits[i])
      expect(wrong, `${name}: first value that differs`).toBe(-1)
      expect(bits.length).toBe(expectedBits.length)
      expect(await store.readRawBytes(name)).toHaveLength(store.get(name).bytes)
    }
    await store.close()
    await expected.close()
  })

  it('a whole model has its metadata and weights', async () => {
    const store = await openGguf(shared(`${quants}/llama.f32.gguf`))
    const checkpoint = await openSafetensors(shared('goldens/llama/model.safetensors'))
    expect(store.metadata.get('general.architecture')).toBe('llama')
    expect(store.metadata.get('tokenizer.ggml.add_bos_token')).toBe(true)
    expect((store.metadata.get('tokenizer.ggml.tokens') as string[]).slice(0, 4)).toEqual(['<unk>', '<s>', '</s>', '▁w3'])
    expect((store.metadata.get('tokenizer.ggml.scores') as number[])[4]).toBe(-4)
    const same = { 'token_embd.weight': 'model.embed_tokens.weight', 'blk.1.ffn_down.weight': 'model.layers.1.mlp.down_proj.weight' }
    for (const [ours, theirs] of Object.entries(same)) {
      expect(store.get(ours).shape).toEqual(checkpoint.get(theirs).shape)
      expect(await store.readFloat32(ours)).toEqual(await checkpoint.readFloat32(theirs))
    }
    await store.close()
    await checkpoint.close()
  })
})

describe('types without a recorded file', () => {
  const one = async (type: number, bytes: Uint8Array, values: number) =>
    (await openGguf(fromBytes(gguf([], [{ name: 'x', sizes: [values], type, offset: 0 }], bytes)))).readFloat32('x')

  it('Q1_0: a bit chooses the sign of the scale', async () => {
    const values = await one(41, bytesOfPieces(little(2, 0x3800), 0b101, new Uint8Array(15)), 128)
    expect([...values.subarray(0, 4)]).toEqual([0.5, -0.5, 0.5, -0.5])
  })

  it('Q8_K: float32 scale, 256 values, sums that are not needed', async () => {
    const values = await one(15, bytesOfPieces(rawBytes(Float32Array.of(0.25)), 255, 4, new Uint8Array(254 + 32)), 256)
    expect([...values.subarray(0, 3)]).toEqual([-0.25, 1, 0])
  })

  it('integers and float64', async () => {
    expect([...(await one(24, Uint8Array.of(255, 1), 2))]).toEqual([-1, 1])
    expect([...(await one(28, rawBytes(Float64Array.of(0.5)), 1))]).toEqual([0.5])
  })
})

const number = (value: number) => little(4, value)
const list = (type: number, items: Uint8Array[]) => Buffer.concat([little(4, type), little(8, items.length), ...items])
const oneTensor = [{ name: 'x', sizes: [3, 2], type: 0, offset: 0 }]
const oneData = rawBytes(Float32Array.of(1, 2, 3, 4, 5, 6))
const open = (bytes: Uint8Array) => openGguf(fromBytes(bytes, 'test.gguf'))

describe('GGUF header', () => {
  it('reads values of all types, versions 2 and 3, and reverses shapes', async () => {
    const pairs: [string, number, Uint8Array][] = [
      ['u8', 0, Uint8Array.of(200)],
      ['i8', 1, Uint8Array.of(200)],
      ['u16', 2, little(2, 65535)],
      ['i16', 3, little(2, -2)],
      ['u32', 4, little(4, 2 ** 32 - 1)],
      ['i32', 5, little(4, -5)],
      ['f32', 6, rawBytes(Float32Array.of(1.5))],
      ['bool', 7, Uint8Array.of(1)],
      ['text', 8, ggufText('\ufeffgrüße')],
      ['u64', 10, little(8, 2n ** 64n - 1n)],
      ['i64', 11, little(8, -7)],
      ['f64', 12, rawBytes(Float64Array.of(Math.PI))],
      ['texts', 9, list(8, [ggufText('a'), ggufText('')])],
      ['lists', 9, list(9, [list(0, [Uint8Array.of(1)]), list(8, [])])],
      ['__proto__', 4, number(3)],
    ]
    for (const version of [2, 3]) {
      const store = await open(gguf(pairs, oneTensor, oneData, version))
      expect([...store.metadata]).toEqual([
        ['u8', 200],
        ['i8', -56],
        ['u16', 65535],
        ['i16', -2],
        ['u32', 2 ** 32 - 1],
        ['i32', -5],
        ['f32', 1.5],
        ['bool', true],
        ['text', '\ufeffgrüße'],
        ['u64', 2n ** 64n - 1n],
        ['i64', -7],
        ['f64', Math.PI],
        ['texts', ['a', '']],
        ['lists', [[1], []]],
        ['__proto__', 3],
      ])
      expect(store.get('x').shape).toEqual([2, 3])
      expect([...(await store.readFloat32('x'))]).toEqual([1, 2, 3, 4, 5, 6])
    }
  })

  it('reads headers longer than its window', async () => {
    const words = Array.from({ length: 150_000 }, (_, i) => `token number ${i}`)
    const store = await open(gguf([['words', 9, list(8, words.map(ggufText))]], oneTensor, oneData))
    expect(store.metadata.get('words')).toEqual(words)
  })

  const counted = (tensors: bigint, pairs: bigint) => bytesOfPieces('GGUF', number(3), little(8, tensors), little(8, pairs))
  const typed = (type: number) => gguf([], [{ name: 'x', sizes: [32], type, offset: 0 }], new Uint8Array(64))
  const hostile: Record<string, [Uint8Array, RegExp]> = {
    'another file': [new Uint8Array(100), /is not a GGUF file/],
    'a stump': [bytesOfPieces('GGUF'), /too few/],
    'version 1': [bytesOfPieces('GGUF', number(1), new Uint8Array(40)), /version 1, but versions 2 and 3/],
    'big-endian order': [bytesOfPieces('GGUF', Uint8Array.of(0, 0, 0, 3), new Uint8Array(40)), /big-endian/],
    'absurdly many tensors': [counted(2n ** 63n, 0n), /claims 9223372036854775808 tensors/],
    'absurdly many values': [counted(0n, 2n ** 40n), /claims 1099511627776 metadata values/],
    'a text beyond the file': [gguf([['a', 8, little(8, 2 ** 50)]], [], new Uint8Array(0)), /bytes in the value of a/],
    'a list beyond the file': [gguf([['a', 9, bytesOfPieces(number(4), little(8, 2n ** 62n))]], [], new Uint8Array(0)), /items of a/],
    'an unknown value type': [gguf([['a', 13, number(0)]], [], new Uint8Array(0)), /the unknown type 13/],
    'an unknown item type': [
      gguf([['a', 9, bytesOfPieces(number(99), little(8, 0))]], [], new Uint8Array(0)),
      /items of the unknown type 99/,
    ],
    'bottomless lists': [
      gguf([['a', 9, bytesOfPieces(...Array(50).fill(bytesOfPieces(number(9), little(8, 1))))]], [], new Uint8Array(0)),
      /nested deeper/,
    ],
    'a repeated key': [
      gguf(
        [
          ['a', 4, number(1)],
          ['a', 4, number(2)],
        ],
        [],
        new Uint8Array(0),
      ),
      /the metadata a twice/,
    ],
    'a repeated tensor': [gguf([], [...oneTensor, { ...oneTensor[0]!, offset: 32 }], new Uint8Array(64)), /the tensor x twice/],
    'an odd alignment': [gguf([['general.alignment', 4, number(24)]], [], new Uint8Array(0)), /no power of two/],
    'an alignment of zero': [gguf([['general.alignment', 4, number(0)]], [], new Uint8Array(0)), /no power of two/],
    'an alignment that is text': [gguf([['general.alignment', 8, ggufText('32')]], [], new Uint8Array(0)), /no power of two/],
    'five dimensions': [gguf([], [{ name: 'x', sizes: [1, 1, 1, 1, 1], type: 0, offset: 0 }], new Uint8Array(4)), /5 dimensions/],
    'an absurd shape': [gguf([], [{ name: 'x', sizes: [2 ** 50, 2 ** 50], type: 0, offset: 0 }], new Uint8Array(4)), /more elements/],
    'rows that are no blocks': [gguf([], [{ name: 'x', sizes: [16, 2], type: 2, offset: 0 }], new Uint8Array(18)), /rows of 16 values/],
    'an unknown type': [typed(77), /the unknown GGUF type 77/],
    'a retired type': [typed(31), /Q4_0_4_4, which llama\.cpp no longer keeps/],
    'data cut off': [gguf([], oneTensor, oneData.subarray(0, 23)), /is truncated/],
    'an offset beyond the file': [gguf([], [{ ...oneTensor[0]!, offset: 2 ** 40 }], oneData), /is truncated/],
    'a crooked offset': [gguf([], [{ ...oneTensor[0]!, offset: 4 }], new Uint8Array(64)), /multiple of 32/],
    'an overlap': [gguf([], [...oneTensor, { ...oneTensor[0]!, name: 'y' }], oneData), /overlaps x/],
    'a gap': [gguf([], [{ ...oneTensor[0]!, offset: 64 }], new Uint8Array(96)), /64 unused bytes/],
    'a missing part': [
      gguf(
        [
          ['split.count', 2, little(2, 2)],
          ['split.no', 2, little(2, 0)],
        ],
        oneTensor,
        oneData,
      ),
      /one of 2 parts/,
    ],
  }

  it.each(Object.keys(hostile))('refuses %s', async (name) => {
    const [bytes, message] = hostile[name]!
    await expectRefusal(open(bytes), message)
  })

  it('refuses a header that is cut anywhere', async () => {
    const whole = gguf(
      [
        ['words', 9, list(8, [ggufText('a'), ggufText('b')])],
        ['n', 4, number(1)],
      ],
      oneTensor,
      oneData,
    )
    for (let length = 0; length < whole.length; length++) await expectRefusal(open(whole.slice(0, length)), /test\.gguf/)
  })
})

describe('split GGUF', () => {
  const part = (no: number, count: number, name: string, tensors = 2) =>
    gguf(
      [
        ['split.no', 2, little(2, no)],
        ['split.count', 2, little(2, count)],
        ['split.tensors.count', 5, number(tensors)],
        ...(no === 0 ? [['general.name', 8, ggufText('whole')] as const] : []),
      ],
      [{ name, sizes: [6], type: 0, offset: 0 }],
      rawBytes(Float32Array.from({ length: 6 }, (_, i) => i + 10 * no)),
    )

  it('joins the parts, whichever is named', async () => {
    const folder = temporaryFolder()
    writeFileSync(join(folder, 'm-00001-of-00002.gguf'), part(0, 2, 'a'))
    writeFileSync(join(folder, 'm-00002-of-00002.gguf'), part(1, 2, 'b'))
    for (const name of ['m-00001-of-00002.gguf', 'm-00002-of-00002.gguf']) {
      const store = await openGguf(join(folder, name))
      expect([...store.tensors.keys()]).toEqual(['a', 'b'])
      expect((await store.readFloat32('b'))[1]).toBe(11)
      expect(store.metadata.get('general.name')).toBe('whole')
      await store.close()
    }
    await expectRefusal(openGguf(join(folder, 'm-00001-of-00003.gguf')), /There is no file .*m-00001-of-00003/)
  })

  it('joins sources in any order, and refuses what does not belong together', async () => {
    const sources = (...parts: Uint8Array[]): ByteSource[] => parts.map((bytes, i) => fromBytes(bytes, `part ${i}`))
    expect((await openGguf(sources(part(1, 2, 'b'), part(0, 2, 'a')))).metadata.get('general.name')).toBe('whole')
    await expectRefusal(openGguf(sources(part(0, 2, 'a'), part(0, 2, 'b'))), /here are the parts 1, 1/)
    await expectRefusal(openGguf(sources(part(0, 2, 'a'), part(1, 3, 'b'))), /parts/)
    await expectRefusal(openGguf(sources(part(0, 2, 'a', 3), part(1, 2, 'b', 3))), /promises 3 tensors, but its parts hold 2/)
    await expectRefusal(openGguf([]), /No GGUF file/)
  })
})
