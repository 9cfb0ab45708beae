/** @file Damaged and hostile ONNX files are refused in a sentence; nothing crashes or hangs. */
import { create, fromBinary, toBinary } from '@bufbuild/protobuf'
import { expect, test } from 'vitest'
import { ModelProtoSchema } from '../../tensor/onnx/gen/onnx_pb.ts'
import { tryDamaged } from './hostile.ts'
import { encodeModel, floats, type GraphInit, loadBytes, longs, smallModel } from './testing.ts'

test('three hundred damaged files, seed 1: each runs or is refused in a sentence', async () => {
  const { ran, refused, wrong } = await tryDamaged(300, 1)
  expect(wrong).toEqual([])
  expect(refused).toBeGreaterThan(100)
  expect(ran).toBeGreaterThan(10)
})

const changed = (change: (model: ReturnType<typeof decode>) => void) => {
  const model = decode(encodeModel(smallModel))
  change(model)
  return toBinary(ModelProtoSchema, create(ModelProtoSchema, model))
}
const decode = (bytes: Uint8Array) => fromBinary(ModelProtoSchema, bytes)
const rows = { inputs: { x: ['float32', 'n'] } } as const satisfies Partial<GraphInit>

test.each<[string, () => Uint8Array, RegExp]>([
  ['an empty file', () => new Uint8Array(0), /no graph/],
  ['text', () => new TextEncoder().encode('this is no model'), /not an ONNX model|no graph/],
  ['the first half', () => encodeModel(smallModel).slice(0, 100), /damaged/],
  [
    'a cycle',
    () =>
      encodeModel({
        ...rows,
        nodes: [
          ['Add', ['x', 'b'], ['a']],
          ['Neg', ['a'], ['b']],
        ],
        outputs: ['b'],
      }),
    /in a circle/,
  ],
  ['a node that waits for itself', () => encodeModel({ ...rows, nodes: [['Add', ['x', 'a'], ['a']]], outputs: ['a'] }), /in a circle/],
  ['an undefined name', () => encodeModel({ ...rows, nodes: [['Neg', ['q'], ['y']]], outputs: ['y'] }), /reads 'q', which nothing/],
  ['an undefined output', () => encodeModel({ ...rows, nodes: [['Neg', ['x'], ['y']]], outputs: ['z'] }), /output 'z'/],
  [
    'a name given twice',
    () =>
      encodeModel({
        ...rows,
        nodes: [
          ['Neg', ['x'], ['y']],
          ['Abs', ['x'], ['y']],
        ],
        outputs: ['y'],
      }),
    /'y' is given to two/,
  ],
  ['an unknown operator', () => encodeModel({ ...rows, nodes: [['Bogus', ['x'], ['y']]], outputs: ['y'] }), /Bogus/],
  [
    'four gigabytes claimed in a kilobyte',
    () => changed((m) => m.graph?.initializer[0]?.dims.splice(0, 2, 65536n, 16384n)),
    /holds 24 bytes/,
  ],
  ['a negative length', () => changed((m) => m.graph?.initializer[0]?.dims.splice(0, 1, -3n)), /claims an axis of length -3/],
  [
    'a tensor that no memory holds',
    () => encodeModel({ weights: { n: longs([2], [1_000_000, 1_000_000]) }, nodes: [['ConstantOfShape', ['n'], ['y']]], outputs: ['y'] }),
    /1000000000000 elements/,
  ],
  [
    'sub-graphs in sub-graphs without end',
    () => {
      let inner: GraphInit = { nodes: [['Neg', ['x'], ['deepest']]], outputs: ['deepest'] }
      for (let i = 0; i < 80; i++)
        inner = {
          nodes: [
            [
              'If',
              ['yes'],
              [`o${i}`],
              {
                then_branch: { g: inner },
                else_branch: { g: inner.nodes.length > 1 ? inner : { nodes: [['Neg', ['x'], [`e${i}`]]], outputs: [`e${i}`] } },
              },
            ],
          ],
          outputs: [`o${i}`],
        }
      return encodeModel({ ...rows, ...inner, weights: { yes: { dtype: 'bool', shape: [], data: Uint8Array.of(1) } } })
    },
    /maximum recursion depth/,
  ],
  ['an operator set from the future', () => encodeModel(smallModel, 9999), /opset|9999/i],
  [
    'values of another number',
    () => encodeModel({ weights: { w: { ...floats([2], [1, 2]), shape: [3] } }, nodes: [['Neg', ['w'], ['y']]], outputs: ['y'] }),
    /holds 8 bytes/,
  ],
])('%s is refused', async (_, bytes, sentence) => {
  await expect(loadBytes(bytes())).rejects.toThrow(sentence)
})
