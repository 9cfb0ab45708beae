import { writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { describe, expect, it } from 'vitest'
import { fromBytes } from './bytes.ts'
import { openPickle } from './pickle.ts'
import { openSafetensors } from './safetensors.ts'
import {
  bytesOfPieces,
  expectRefusal,
  hasShared,
  legacyTorchFile,
  little,
  pickled,
  shared,
  temporaryFolder,
  torchFile,
  zip,
} from './testing.ts'

const { text, int, global, tuple, list, dict, call, tensor, storage, none } = pickled
const six = Float32Array.of(0, 1, 2, 3, 4, 5)
const sixStored = storage('FloatStorage', '0', 6)
const open = (bytes: Uint8Array) => openPickle(fromBytes(bytes, 'model.bin'))

/** A state dict with one tensor `w` over six float32 values. */
function withTensor(offset: number, shape: number[], strides: number[]): Uint8Array {
  return torchFile(dict([text('w'), tensor(sixStored, offset, shape, strides)]), { 0: six })
}

describe('PyTorch checkpoints', () => {
  it('reads tensors in place', async () => {
    const bytes = torchFile(
      dict([text('a'), tensor(sixStored, 0, [2, 3], [3, 1])], [text('b'), tensor(storage('HalfStorage', '1', 2), 1, [1], [1])]),
      { 0: six, 1: Uint16Array.of(0, 0x3c00) },
    )
    const store = await open(bytes)
    expect(store.get('a')).toMatchObject({ type: 'F32', shape: [2, 3] })
    expect([...(await store.readFloat32('a'))]).toEqual([...six])
    expect(await store.readRaw('b')).toEqual({ dtype: 'float16', shape: [1], data: Uint16Array.of(0x3c00) })
  })

  it.each<[string, number, number[], number[], number[]]>([
    ['a slice', 1, [2, 2], [3, 1], [1, 2, 4, 5]],
    ['a transposed matrix', 0, [3, 2], [1, 3], [0, 3, 1, 4, 2, 5]],
    ['every second value', 1, [3], [2], [1, 3, 5]],
    ['a repeated row', 0, [2, 3], [0, 1], [0, 1, 2, 0, 1, 2]],
    ['a size of one with any stride', 2, [1, 2], [77, 1], [2, 3]],
    ['a scalar', 4, [], [], [4]],
    ['nothing', 0, [0, 3], [3, 1], []],
  ])('puts the elements of %s in order', async (_, offset, shape, strides, expected) => {
    const store = await open(withTensor(offset, shape, strides))
    expect([...(await store.readFloat32('w'))]).toEqual(expected)
    const pieces: number[] = []
    for await (const chunk of store.float32Chunks('w', 1)) pieces.push(...chunk)
    expect(pieces).toEqual(expected)
  })

  it.each<[string, ArrayBufferView, number[]]>([
    ['LongStorage', BigInt64Array.of(-1n, 2n, -3n, 4n, 2n ** 40n, -6n), [-1, 4, 2, 2 ** 40, -3, -6]],
    ['DoubleStorage', Float64Array.of(1, 2, 3, 4, 5, 6), [1, 4, 2, 5, 3, 6]],
    ['HalfStorage', Uint16Array.of(0x3c00, 0x4000, 0, 0xbc00, 0x3c00, 0), [1, -1, 2, 1, 0, 0]],
    ['CharStorage', Int8Array.of(-1, 2, 3, 4, 5, 6), [-1, 4, 2, 5, 3, 6]],
  ])('transposes a %s', async (kind, values, expected) => {
    const store = await open(torchFile(dict([text('w'), tensor(storage(kind, '0', 6), 0, [3, 1, 2], [1, 5, 3])]), { 0: values }))
    expect([...(await store.readFloat32('w'))]).toEqual(expected)
    expect(await store.readRawBytes('w')).toEqual(await store.readRawBytes('w'))
  })

  it('shares storages, joins the names of nested dictionaries, and keeps other values as metadata', async () => {
    const value = dict(
      [text('state_dict'), dict([text('a'), tensor(sixStored, 0, [6], [1])], [text('b'), tensor(sixStored, 0, [6], [1])])],
      [text('cfg'), dict([text('dtype'), global('torch', 'float32')], [text('width'), int(-3)], [text('none'), none])],
      [text('list'), list(text('x'), tuple(int(1), pickled.yes))],
      [int(7), bytesOfPieces('G', Uint8Array.of(0x3f, 0xe0, 0, 0, 0, 0, 0, 0))],
    )
    const store = await open(torchFile(value, { 0: six }))
    expect([...store.tensors.keys()]).toEqual(['state_dict.a', 'state_dict.b'])
    expect(store.get('state_dict.a').offset).toBe(store.get('state_dict.b').offset)
    expect(Object.fromEntries(store.metadata)).toEqual({
      'cfg.dtype': 'torch.float32',
      'cfg.width': -3,
      'cfg.none': null,
      'list.0': 'x',
      'list.1.0': 1,
      'list.1.1': true,
      7: 0.5,
    })
  })

  it('reads parameters, untyped storages, memo and newer instructions', async () => {
    const bytes3 = bytesOfPieces(tuple(text('storage'), global('torch.storage', 'UntypedStorage'), text('0'), text('cpu'), int(24)), 'Q')
    const ordered = call(global('collections', 'OrderedDict'))
    const third = call(
      global('torch._utils', '_rebuild_tensor_v3'),
      bytes3,
      int(1),
      tuple(int(2)),
      tuple(int(1)),
      pickled.no,
      ordered,
      global('torch', 'float8_e4m3fn'),
    )
    const parameter = call(global('torch._utils', '_rebuild_parameter'), tensor(sixStored, 0, [6], [1]), pickled.yes, ordered)
    const f8 = Uint8Array.from({ length: 24 }, () => 0x38)
    const store = await open(torchFile(dict([text('w'), third]), { 0: f8 }))
    expect(store.get('w').type).toBe('F8_E4M3')
    expect([...(await store.readFloat32('w'))]).toEqual([1, 1])
    expect((await open(torchFile(dict([text('p'), parameter]), { 0: six }))).get('p').shape).toEqual([6])
    // Protocol 4: frame, short text, memo, and a name taken from the stack.
    const dictionary = bytesOfPieces(0x8c, 11, 'collections', 0x94, 0x8c, 11, 'OrderedDict', 0x93, 0x94, ')', 'R', 0x94)
    const item = bytesOfPieces('(', 0x8c, 1, 'a', 'h', 0, 'u')
    const modern = bytesOfPieces(0x80, 4, 0x95, little(8, 10), dictionary, item, '.')
    expect([...(await open(zip({ 'x/data.pkl': modern }))).metadata]).toEqual([['a', 'collections']])
    // A state dict carries `_metadata` as an attribute.
    const withAttribute = bytesOfPieces(
      ordered,
      '(',
      text('w'),
      tensor(sixStored, 0, [6], [1]),
      'u',
      dict([text('_metadata'), dict()]),
      'b',
    )
    expect((await open(torchFile(withAttribute, { 0: six }))).has('w')).toBe(true)
    const pairs = call(global('collections', 'OrderedDict'), list(list(text('w'), tensor(sixStored, 0, [6], [1]))))
    expect((await open(torchFile(pairs, { 0: six }))).has('w')).toBe(true)
    expect((await open(torchFile(tensor(sixStored, 0, [6], [1]), { 0: six }))).has('tensor')).toBe(true)
  })

  it('reads files from before PyTorch 1.6', async () => {
    const float = storage('FloatStorage', '94', 6, none)
    const long = storage('LongStorage', '95', 2, none)
    const value = dict([text('w'), tensor(float, 0, [3, 2], [1, 3])], [text('n'), tensor(long, 0, [2], [1])])
    const storages = { 95: { length: 2, values: BigInt64Array.of(5n, -6n) }, 94: { length: 6, values: six } }
    const file = legacyTorchFile(value, storages)
    const store = await open(file)
    expect([...(await store.readFloat32('w'))]).toEqual([0, 3, 1, 4, 2, 5])
    expect([...(await store.readFloat32('n'))]).toEqual([5, -6])
    for (let length = 0; length < file.length; length += 7) await expectRefusal(open(file.slice(0, length)), /model\.bin/)
    await expectRefusal(open(legacyTorchFile(value, { 94: { length: 7, values: six } })), /7 elements, but its tensors expect 6/)
    await expectRefusal(open(legacyTorchFile(value, { 96: { length: 6, values: six } })), /lists the storage 96/)
    await expectRefusal(open(legacyTorchFile(value, { 94: { length: 6, values: six } })), /storage 95, which the file does not have/)
  })

  it('joins shards by their index', async () => {
    const folder = temporaryFolder()
    writeFileSync(
      join(folder, 'pytorch_model-00001-of-00002.bin'),
      torchFile(dict([text('a'), tensor(sixStored, 0, [3, 2], [1, 3])]), { 0: six }),
    )
    writeFileSync(
      join(folder, 'pytorch_model-00002-of-00002.bin'),
      torchFile(dict([text('b'), tensor(sixStored, 3, [3], [1])]), { 0: six }),
    )
    const index = { weight_map: { a: 'pytorch_model-00001-of-00002.bin', b: 'pytorch_model-00002-of-00002.bin' } }
    writeFileSync(join(folder, 'pytorch_model.bin.index.json'), JSON.stringify(index))
    const store = await openPickle(folder)
    expect([...(await store.readFloat32('a'))]).toEqual([0, 3, 1, 4, 2, 5])
    expect([...(await store.readFloat32('b'))]).toEqual([3, 4, 5])
    await store.close()
  })
})

describe('hostile pickles', () => {
  const system = call(global('os', 'system'), text('touch /tmp/actlens-was-here'))
  const inZip = (pickle: Uint8Array) => zip({ 'x/data.pkl': pickle })
  const deep = bytesOfPieces(0x80, 2, '(lp0\nh', 0, '.')
  const selfHolding = bytesOfPieces(0x80, 2, ']', 'q', 0, 'h', 0, 'a', '.')
  const laughter = bytesOfPieces(
    0x80,
    2,
    ']',
    ...Array.from({ length: 30 }, () => bytesOfPieces('q', 0, ']', '(', 'h', 0, 'h', 0, 'h', 0, 'e')),
    '.',
  )
  const cases: Record<string, [Uint8Array, RegExp]> = {
    'os.system': [torchFile(system, {}), /asks for os\.system, which is no part of a tensor.*not loaded; convert/],
    'os.system hidden in a state dict': [torchFile(dict([text('w'), system]), { 0: six }), /asks for os\.system/],
    'builtins.eval': [torchFile(call(global('builtins', 'eval'), text('1')), {}), /asks for builtins\.eval/],
    'a name from the stack': [inZip(bytesOfPieces(0x80, 4, 0x8c, 5, 'posix', 0x8c, 6, 'system', 0x93, '.')), /asks for posix\.system/],
    'a name of the prototype': [torchFile(global('__proto__', 'constructor'), {}), /asks for __proto__\.constructor/],
    'an old-style object': [inZip(bytesOfPieces(0x80, 2, '(ios\nsystem\n.')), /the instruction 105/],
    'a new object': [inZip(bytesOfPieces(0x80, 2, global('collections', 'OrderedDict'), ')', 0x81, '.')), /the instruction 129/],
    'an extension': [inZip(bytesOfPieces(0x80, 2, 0x82, 1, '.')), /the instruction 130/],
    'a call of a type': [torchFile(call(global('torch', 'FloatStorage'), int(1)), {}), /calls torch\.FloatStorage/],
    'a call of a number': [torchFile(bytesOfPieces(int(1), ')', 'R'), {}), /calls something that is no function/],
    'attributes of a tensor': [torchFile(bytesOfPieces(tensor(sixStored, 0, [6], [1]), dict(), 'b'), { 0: six }), /sets attributes/],
    'text instructions': [inZip(deep), /the instruction 112/],
    'a list in itself': [inZip(selfHolding), /is tangled/],
    'lists that double': [inZip(laughter), /is tangled/],
    'an empty stack': [inZip(bytesOfPieces(0x80, 2, 'R.')), /has not made/],
    'a missing mark': [inZip(bytesOfPieces(0x80, 2, 't.')), /has not opened/],
    'a missing memo': [inZip(bytesOfPieces(0x80, 2, 'h', 5, '.')), /recalls the value 5/],
    'a huge integer': [inZip(bytesOfPieces(0x80, 2, 0x8a, 200, new Uint8Array(200), '.')), /an integer of 200 bytes/],
    'a huge text': [inZip(bytesOfPieces(0x80, 2, 'X', little(4, 2 ** 32 - 1), 'a.')), /truncated/],
    'a pickle without end': [inZip(bytesOfPieces(0x80, 2, 'N')), /truncated/],
    'a foreign reference': [torchFile(bytesOfPieces(tuple(text('module')), 'Q'), {}), /refers to something that is no storage/],
    'a storage in two ways': [
      torchFile(tuple(sixStored, storage('HalfStorage', '0', 6)), { 0: six }),
      /describes the storage 0 in two ways/,
    ],
    'a bare storage': [torchFile(dict([text('s'), sixStored]), { 0: six }), /s in model\.bin is a bare storage/],
    'an absent storage': [
      torchFile(tensor(storage('FloatStorage', '9', 6), 0, [6], [1]), { 0: six }),
      /storage 9, which the file does not have/,
    ],
    'complex numbers': [
      torchFile(tensor(storage('ComplexFloatStorage', '0', 3), 0, [3], [1]), { 0: six }),
      /asks for torch\.ComplexFloatStorage/,
    ],
    'a storage cut short': [
      torchFile(tensor(storage('FloatStorage', '0', 7), 0, [6], [1]), { 0: six }),
      /reaches beyond its storage of 6 elements/,
    ],
    'a tensor beyond its storage': [withTensor(1, [6], [1]), /reaches beyond/],
    'a stride beyond the storage': [withTensor(0, [2], [6]), /reaches beyond/],
    'an endless expansion': [withTensor(0, [2 ** 30, 2 ** 20], [0, 0]), /repeats its elements/],
    'an absurd shape': [withTensor(0, [2 ** 30, 2 ** 30], [0, 0]), /more elements than any file/],
    'a negative stride': [withTensor(5, [6], [-1]), /without a sound shape/],
    'a negative offset': [withTensor(-1, [6], [1]), /without a sound storage/],
    'strides of another rank': [withTensor(0, [6], [1, 1]), /without a sound shape/],
    'a tensor without arguments': [torchFile(call(global('torch._utils', '_rebuild_tensor_v2')), {}), /without a sound storage/],
    'big-endian values': [torchFile(dict(), {}, { 'model/byteorder': bytesOfPieces('big') }), /big-endian/],
    'the same name twice': [torchFile(dict([text('a.b'), int(1)], [text('a'), dict([text('b'), int(2)])]), {}), /a\.b in .* twice/],
    'a key that is a list': [torchFile(dict([tuple(), int(1)]), {}), /neither text nor number/],
  }

  it.each(Object.keys(cases))('refuses %s', async (name) => {
    const [bytes, message] = cases[name]!
    await expectRefusal(open(bytes), message)
  })

  it.each<[string, Uint8Array, RegExp]>([
    ['no archive', bytesOfPieces('hello, world'), /is no checkpoint of torch\.save/],
    ['another pickle', pickled.whole(int(5)), /is a pickle, but no checkpoint/],
    ['an archive without a pickle', zip({ 'a/b': six as unknown as Uint8Array }), /0 members data\.pkl/],
    ['two pickles', zip({ 'a/data.pkl': pickled.whole(none), 'b/data.pkl': pickled.whole(none) }), /2 members data\.pkl/],
    ['compressed members', zip({ 'a/data.pkl': pickled.whole(none) }, 8), /is compressed/],
    ['an archive cut short', withTensor(0, [6], [1]).slice(0, -10), /no directory at its end: it is truncated/],
  ])('refuses %s', async (_, bytes, message) => {
    await expectRefusal(open(bytes), message)
  })
})

const saes = 'goldens/sae-formats/dictionary_learning'

describe.skipIf(!hasShared(saes))('files of PyTorch itself', () => {
  it('gives the matrices with which the recorded activations come out', async () => {
    const store = await openPickle(shared(`${saes}/topk/ckpt/acme/dictionaries/tiny-random/topk/resid_post_layer_3/trainer_0/ae.pt`))
    const golden = await openSafetensors(shared(`${saes}/topk/expected.safetensors`))
    expect(store.get('encoder.weight').source.path).toBeUndefined()
    expect(await store.readRaw('k')).toEqual({ dtype: 'int32', shape: [], data: Int32Array.of(8) })
    const [x, acts, recon] = await Promise.all(['x', 'acts', 'recon'].map((name) => golden.readFloat32(name)))
    const names = ['encoder.weight', 'encoder.bias', 'decoder.weight', 'b_dec']
    const [encoder, bias, decoder, bDec] = await Promise.all(names.map((name) => store.readFloat32(name)))
    const [d, latents] = [24, 72]
    for (let row = 0; row < 16; row++) {
      for (let f = 0; f < latents; f++) {
        let pre = bias![f]!
        for (let i = 0; i < d; i++) pre += (x![row * d + i]! - bDec![i]!) * encoder![f * d + i]!
        const act = acts![row * latents + f]!
        if (act > 0) expect(pre).toBeCloseTo(act, 4)
      }
      for (let i = 0; i < d; i++) {
        let sum = bDec![i]!
        for (let f = 0; f < latents; f++) sum += acts![row * latents + f]! * decoder![i * latents + f]!
        expect(sum).toBeCloseTo(recon![row * d + i]!, 4)
      }
    }
    await store.close()
    await golden.close()
  })

  it.each(['standard', 'gated', 'jumprelu', 'matryoshka', 'batchtopk', 'new'])('opens %s', async (cell) => {
    const store = await openPickle(shared(`${saes}/${cell}/ckpt/acme/dictionaries/tiny-random/${cell}/resid_post_layer_3/trainer_0/ae.pt`))
    expect(store.tensors.size).toBeGreaterThan(3)
    for (const name of store.tensors.keys()) expect((await store.readFloat32(name)).every(Number.isFinite)).toBe(true)
    await store.close()
  })
})
