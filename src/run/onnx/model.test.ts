/** @file ONNX files: every tensor read and edited, in the file's own opset; closed forms and the plain runtime as reference. */
import { mkdirSync, symlinkSync, writeFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { create, fromBinary, toBinary } from '@bufbuild/protobuf'
import { describe, expect, test } from 'vitest'
import { add, edit, projectOut, scale, set, zero } from '../../sites/index.ts'
import { gelu } from '../../tensor/index.ts'
import { ModelProtoSchema, TensorProto_DataLocation } from '../../tensor/onnx/gen/onnx_pb.ts'
import { loadAny } from '../open.ts'
import { loadOnnx } from './load.ts'
import { encodeModel, fileOf, floats, loadBytes, longs, smallModel } from './testing.ts'

const x = floats([2, 3], [1, 0, -1, 2, 1, 0])
// x · w + b, by hand.
const hidden = [-3.5, -4.5, 5.5, 7.5]
const relu = hidden.map((v) => Math.max(v, 0))
const y = hidden.map((v, i) => v * (relu[i] as number))
const numbers = (v: { data: ArrayLike<unknown> } | undefined) => Array.from(v?.data ?? [], Number)

describe('reading', () => {
  test('every tensor is a site with type and shape, and what is read is what is computed', async () => {
    const model = await loadBytes(encodeModel(smallModel))
    expect(model.sites().map((s) => [s.site, s.tensor.kind, s.tensor.dtype, s.tensor.shape])).toEqual([
      ['path:x', 'input', 'float32', ['batch', 3]],
      ['path:w', 'weight', 'float32', [3, 2]],
      ['path:b', 'weight', 'float32', [2]],
      ['path:yes', 'weight', 'bool', []],
      ['path:product', 'computed', 'float32', ['batch', 2]],
      ['path:hidden', 'computed', 'float32', ['batch', 2]],
      ['path:branch', 'computed', 'float32', ['batch', 2]],
      ['path:y', 'computed', 'float32', ['batch', 2]],
    ])
    const out = await model.run({ x }, { taps: ['path:hidden', 'path:branch', 'path:x', 'path:w'] })
    expect(numbers(out.outputs.y)).toEqual(y)
    expect(numbers(out.taps['path:hidden'])).toEqual(hidden)
    expect(numbers(out.taps['path:branch'])).toEqual(relu)
    expect(numbers(out.taps['path:x'])).toEqual(numbers(x))
    expect(numbers(out.taps['path:w'])).toEqual([1, 2, 3, 4, 5, 6])
    await model.dispose()
  })

  test('patterns, misspelt names and wrong inputs', async () => {
    const model = await loadBytes(encodeModel(smallModel))
    expect(model.resolve('path:*d*').map((s) => s.site)).toEqual(['path:product', 'path:hidden'])
    expect(() => model.resolve('path:hiden')).toThrow("did you mean 'path:hidden'")
    expect(() => model.resolve('resid_post.3')).toThrow('no family that is recognised')
    await expect(model.run({})).rejects.toThrow("needs a value for its input 'x'")
    await expect(model.run({ x, z: x })).rejects.toThrow("no input 'z'")
    await expect(model.run({ x: floats([2, 2], [1, 2, 3, 4]) })).rejects.toThrow("'x' must be float32 [batch, 3], not float32 [2, 2]")
    await expect(model.run({ x: longs([1, 3], [1, 2, 3]) })).rejects.toThrow('must be float32')
    await model.dispose()
  })
})

describe('editing', () => {
  // Opsets before and after reductions took their axes as an input, and Shape its bounds.
  test.each([11, 12, 13, 17, 18, 21])('edits are written in opset %i, and sub-graphs see them', async (opset) => {
    const model = await loadBytes(encodeModel(smallModel, opset))
    const out = await model.with(add('path:hidden', [10, 20], { scale: 2 })).run({ x })
    expect(numbers(out.outputs.y)).toEqual(hidden.map((v, i) => (v + [20, 40][i % 2]!) * Math.max(v + [20, 40][i % 2]!, 0)))
    const direction = [0.6, 0.8]
    const projected = await model.with(projectOut('path:hidden', [3, 4])).run({ x }, { taps: ['path:hidden'] })
    const along = (r: number) => hidden[2 * r]! * direction[0]! + hidden[2 * r + 1]! * direction[1]!
    for (const [i, v] of numbers(projected.taps['path:hidden']).entries())
      expect(v).toBeCloseTo(hidden[i]! - along(i >> 1) * direction[i % 2]!, 4)
    expect(numbers((await model.with(zero('path:branch')).run({ x })).outputs.y)).toEqual([0, 0, 0, 0].map((v, i) => v * hidden[i]!))
    expect(numbers((await model.with(set('path:branch', 3)).run({ x })).outputs.y)).toEqual(hidden.map((v) => 3 * v))
    await model.dispose()
  })

  test('inputs and weights can be edited, edits at one tensor act in order, and knobs compile nothing', async () => {
    const model = await loadBytes(encodeModel(smallModel))
    expect(numbers((await model.with(scale('path:x', 2)).run({ x }, { taps: ['path:product'] })).taps['path:product'])).toEqual([
      -8, -8, 10, 16,
    ])
    expect(numbers((await model.with(zero('path:b')).run({ x }, { taps: ['path:hidden'] })).taps['path:hidden'])).toEqual([-4, -4, 5, 8])
    const twice = model.with(add('path:product', [1, 1]), scale('path:product', 3))
    expect(numbers((await twice.run({ x }, { taps: ['path:product'] })).taps['path:product'])).toEqual([-9, -9, 18, 27])
    const before = model.statistics.compiled
    await model.with(add('path:product', [2, 7]), scale('path:product', 5)).run({ x }, { taps: ['path:product'] })
    expect(model.statistics.compiled).toBe(before)
    await model.dispose()
  })

  test('what cannot be done is refused with its reason', async () => {
    const model = await loadBytes(encodeModel(smallModel, 13))
    expect(() => model.with(add('path:hidden', [1, 2, 3]))).toThrow('has shape [3]')
    expect(() => model.with(zero('path:yes'))).toThrow('this tensor is bool')
    expect(() => model.with(zero('path:hidden', { where: { positions: 0 } }))).toThrow('which of its axes these are is not known')
    await expect(model.with(zero('path:y')).run({ x }, { outputs: [], taps: ['path:hidden'] })).rejects.toThrow('can never fire')
    await expect(model.with(edit('path:hidden', (v) => gelu(v))).run({ x })).rejects.toThrow(
      /needs the operator Gelu of opset 2\d, but the file imports opset 13/,
    )
    await expect(model.with(edit('path:hidden', (_, c) => c.read('path:branch'), { reads: ['path:branch'] })).run({ x })).rejects.toThrow(
      'circle',
    )
    await model.dispose()
  })
})

describe('weights in other files', () => {
  const external = (location: string, data = true) => {
    const model = fromBinary(ModelProtoSchema, encodeModel(smallModel))
    const w = model.graph?.initializer[0]
    if (!w) throw new Error('no weight')
    const bytes = w.rawData
    w.rawData = new Uint8Array(0)
    w.dataLocation = TensorProto_DataLocation.EXTERNAL
    w.externalData = Object.entries({ location, offset: '8', length: '24' }).map(([key, value]) => ({
      $typeName: 'onnx.StringStringEntryProto',
      key,
      value,
    }))
    const path = fileOf(toBinary(ModelProtoSchema, create(ModelProtoSchema, model)))
    if (data) writeFileSync(join(dirname(path), 'weights.bin'), Buffer.concat([Buffer.alloc(8), bytes]))
    return path
  }
  const load = (path: string) => loadOnnx(path, { id: 'test', hash: async () => '' }, { threads: 1 })

  test('are read, and edited programs read them too', async () => {
    const model = await load(external('weights.bin'))
    expect(numbers((await model.run({ x })).outputs.y)).toEqual(y)
    expect(numbers((await model.with(set('path:branch', 1)).run({ x })).outputs.y)).toEqual(hidden)
    await model.dispose()
  })

  test.each([
    ['/etc/passwd', 'not a path relative'],
    ['../weights.bin', 'lies outside'],
    ['sub/../../weights.bin', 'lies outside'],
    ['C:\\weights.bin', 'not a path relative'],
    ['missing.bin', 'not beside it'],
    ['.', 'lies outside'],
  ])('the place %s is refused', async (location, why) => {
    await expect(load(external(location))).rejects.toThrow(why)
  })

  test('a link that leads out, and a file that is too short', async () => {
    const path = external('weights.bin', false)
    symlinkSync('/etc/passwd', join(dirname(path), 'weights.bin'))
    await expect(load(path)).rejects.toThrow('leads out of its folder')
    const short = external('weights.bin', false)
    writeFileSync(join(dirname(short), 'weights.bin'), new Uint8Array(20))
    await expect(load(short)).rejects.toThrow('was cut off')
    const folder = external('weights.bin', false)
    mkdirSync(join(dirname(folder), 'weights.bin'))
    await expect(load(folder)).rejects.toThrow('is no file')
  })
})

test('a folder with one ONNX file is that file', async () => {
  const model = await loadAny(dirname(fileOf(encodeModel(smallModel))))
  expect('kind' in model && model.kind).toBe('onnx')
  await model.dispose()
})
