import { describe, expect, it } from 'vitest'
import type { NDArray } from '../../base/types.ts'
import { gradients } from '../grad.ts'
import { topological } from '../graph.ts'
import { evaluate, Program } from '../program.ts'
import type { Tensor } from '../tensor.ts'
import * as op from './index.ts'
import { arrayOf, testOptions } from './testing/check.ts'

const f32 = (shape: number[], values: number[]) => arrayOf('float32', shape, values)
const numbers = (x: NDArray) => Array.from(x.data as ArrayLike<number | bigint>, Number)

/** Gradients of the sum of `build(x)` at `x`. */
async function slope(values: number[], build: (x: Tensor) => Tensor): Promise<number[]> {
  const x = op.input('x', 'float32', [values.length])
  const [g] = gradients(build(x).sum(), [x]) as [Tensor]
  const needsX = topological([g]).some((n) => n === x.node)
  return numbers((await evaluate({ g }, needsX ? { x: f32([values.length], values) } : {}, testOptions)).g)
}

describe('gradients where a function has no slope, or several', () => {
  it('relu and its kin have none at zero', async () => {
    expect(await slope([-1, 0, 2], op.relu)).toEqual([0, 0, 1])
    expect(await slope([-1, 0, 2], op.abs)).toEqual([-1, 0, 1])
    expect(await slope([-1, 0, 2], (x) => op.leakyRelu(x, 0.25))).toEqual([0.25, 0.25, 1])
    expect(await slope([-1, 0, 2], (x) => op.clip(x, 0, 2))).toEqual([0, 1, 1])
  })

  it('equal values share that of an extreme', async () => {
    expect(await slope([1, 3, 3], (x) => op.max(x))).toEqual([0, 0.5, 0.5])
    expect(await slope([1, 1, 3], (x) => op.min(x))).toEqual([0.5, 0.5, 0])
    expect(await slope([1, 2, 3], (x) => op.maximum(x, 2))).toEqual([0, 0.5, 1])
    expect(await slope([1, 2, 3], (x) => op.minimum(x, 2))).toEqual([1, 0.5, 0])
  })

  it('a product knows zeros, a power zero exponents', async () => {
    expect(await slope([0, 2, 3], (x) => op.prod(x))).toEqual([6, 0, 0])
    expect(await slope([0, 2, 0], (x) => op.prod(x))).toEqual([0, 0, 0])
    expect(await slope([0, 2, -3], (x) => op.pow(x, 0))).toEqual([0, 0, 0])
    expect(await slope([0, 2, -3], (x) => op.pow(x, 1))).toEqual([1, 1, 1])
    expect(await slope([0, 2, 3], (x) => op.pow(op.constant('float32', [], [0]), x))).toEqual([0, 0, 0])
  })

  it('where lets nothing through that was not chosen, not even NaN', async () => {
    expect(await slope([0, 4], (x) => op.where(op.greater(x, 0), op.log(op.where(op.greater(x, 0), x, 1)), 0))).toEqual([0, 0.25])
  })

  it('a row of -∞ does not turn logsumexp to NaN', async () => {
    const x = op.constant('float32', [2, 2], [-Infinity, -Infinity, 0, -Infinity])
    expect(numbers((await evaluate({ y: op.logSumExp(x, [1]) }, {}, testOptions)).y)).toEqual([-Infinity, 0])
  })
})

describe('gradients that are not derivatives', () => {
  it('go straight through', async () => {
    expect(await slope([0.2, 1.7], (x) => op.mul(op.straightThrough(op.round(x), x), 3))).toEqual([3, 3])
  })

  it('of simulated quantisation are those of learned step sizes', async () => {
    const x = op.input('x', 'float32', [5])
    const scale = op.input('s', 'float32', [])
    const zero = op.input('z', 'float32', [])
    const y = op.fakeQuantize(x, scale, zero, { low: -2, high: 3 })
    const grads = gradients(y.sum(), [x, scale, zero])
    const feeds = { x: f32([5], [0.3, -0.6, 5, -7, 1]), s: f32([], [0.5]), z: f32([], [1]) }
    const out = await evaluate({ y, gx: grads[0] as Tensor, gs: grads[1] as Tensor, gz: grads[2] as Tensor }, feeds, testOptions)
    expect(numbers(out.y)).toEqual([0.5, -0.5, 1, -1.5, 1])
    expect(numbers(out.gx)).toEqual([1, 1, 0, 0, 1])
    // In range q − x/s: 0.4 + 0.2 + 0; held at an end the distance from the zero point: 2 − 3.
    expect(numbers(out.gs)).toEqual([expect.closeTo(0.6 + 2 - 3, 5)])
    expect(numbers(out.gz)).toEqual([-1])
  })

  it('are what a caller brings', async () => {
    const reversed = op.customGradient({ forward: (x) => op.mul(x as Tensor, 2), backward: (g) => [op.neg(g)] })
    expect(await slope([1, 2], (x) => reversed(reversed(x)))).toEqual([1, 1])
    const wrong = op.customGradient({ forward: (x) => op.mul(x as Tensor, 2), backward: () => [] })
    expect(() => gradients(wrong(op.input('x', 'float32', [2])).sum(), [op.input('x', 'float32', [2])])).toThrow('does not depend on')
    const x = op.input('x', 'float32', [2])
    expect(() => gradients(wrong(x).sum(), [x])).toThrow('gave 0 gradients for 1 inputs')
  })

  it('two custom gradients of one forward function stay two', async () => {
    const twice = (factor: number) => op.customGradient({ forward: (x) => op.mul(x as Tensor, 2), backward: (g) => [op.mul(g, factor)] })
    expect(await slope([1], (x) => op.add(twice(3)(x), twice(5)(x)))).toEqual([8])
  })
})

describe('gradients that many places add to', () => {
  it('lose nothing when several threads run, and are the same every time', async () => {
    const [places, count, width] = [2, 100_000, 8]
    const table = op.input('t', 'float32', [places, width])
    const ids = op.input('ids', 'int64', [count])
    const [g] = gradients(op.gather(table, ids).sum(), [table]) as [Tensor]
    const index = Array.from({ length: count }, (_, i) => i % places)
    const program = await Program.of({ g }, { ...testOptions, threads: 4 })
    for (let run = 0; run < 20; run++)
      expect(new Set(numbers((await program.run({ ids: arrayOf('int64', [count], index) })).g))).toEqual(new Set([count / places]))
  })
})

describe('gradients that are refused', () => {
  const layout = { n: 3, k: 32, block: 16, bits: 4 } as const
  const x = op.input('x', 'float32', [2, 32])
  const packed = op.input('p', 'uint8', [3, 2, 8])
  const scales = op.input('s', 'float32', [3, 2])
  const sentence = 'packed weights are frozen, so unpack them to train them'

  it('at what packed weights are made of', () => {
    expect(() => gradients(op.matmulBlocks(x, packed, scales, undefined, layout).sum(), [scales])).toThrow(sentence)
    expect(() => gradients(op.dequantizeBlocks(packed, scales, undefined, layout).sum(), [scales])).toThrow(sentence)
    const ids = op.input('ids', 'int64', [4])
    expect(() => gradients(op.lookup(op.dequantizeBlocks(packed, scales, undefined, layout), ids).sum(), [scales])).toThrow(sentence)
    expect(gradients(op.matmulBlocks(x, packed, scales, undefined, layout).sum(), [x])[0]?.shape).toEqual([2, 32])
  })

  it('where lengths that they need are not known', () => {
    const image = op.input('i', 'float32', [1, 1, 'width'])
    const w = op.input('w', 'float32', [1, 1, 3])
    expect(() => gradients(op.conv(image, w, undefined, { stride: 2 }).sum(), [image])).toThrow("needs axes of known length, not 'width'")
    expect(() => gradients(op.conv(image, w, undefined, { stride: 2 }).sum(), [w])).toThrow('needs axes of known length')
    expect(() => gradients(op.pad(image, [0, 0, 1], [0, 0, 0], 'reflect').sum(), [image])).toThrow(
      "'pad_copies' needs an axis of known length",
    )
    expect(() => gradients(op.resize(image, [4]).sum(), [image])).toThrow("'resize' needs axes of known length")
  })

  it('at the slot of an edit', () => {
    const y = op.slot(op.mul(x, 2), 'added')
    const added = topological([y]).find((n) => n.attrs.name === 'added')?.outputs[0] as Tensor
    expect(() => gradients(y.sum(), [added])).toThrow("'slot' has no gradient at what is added")
    expect(gradients(y.sum(), [x])[0]?.shape).toEqual([2, 32])
  })
})

describe('loops', () => {
  it('are gone through in either direction, over a length known at run time, and share what they read', async () => {
    const x = op.input('x', 'float32', ['n', 2])
    const w = op.input('w', 'float32', [2])
    const run = (reverse: boolean) =>
      op.scan(
        [op.constant('float32', [2], [1, 1])],
        [x],
        ([h], [item]) => {
          const next = op.add(op.mul(h as Tensor, w), item as Tensor)
          return { carry: [next], each: [next, op.softmax(next)] }
        },
        { reverse },
      )
    const [forward, back] = [run(false), run(true)]
    expect(forward.each[0]?.shape).toEqual(['n', 2])
    const feeds = { x: f32([3, 2], [1, 2, 3, 4, 5, 6]), w: f32([2], [2, 0.5]) }
    const out = await evaluate(
      { last: forward.carry[0] as Tensor, all: forward.each[0] as Tensor, first: back.carry[0] as Tensor },
      feeds,
      testOptions,
    )
    expect(numbers(out.all)).toEqual([3, 2.5, 9, 5.25, 23, 8.625])
    expect(numbers(out.last)).toEqual([23, 8.625])
    expect(numbers(out.first)).toEqual([35, 5.625])
    const [gw] = gradients(forward.carry[0]?.sum() as Tensor, [w]) as [Tensor]
    // d/dw of ((w + x₁)·w + x₂)·w + x₃ is 3w² + 2x₁w + x₂.
    expect(numbers((await evaluate({ gw }, feeds, testOptions)).gw)).toEqual([12 + 4 + 3, expect.closeTo(0.75 + 2 + 4, 5)])
  })

  it('give the state as it was where the step leaves it alone', async () => {
    const { carry, each } = op.scan([op.constant('float32', [], [5])], [op.constant('float32', [2], [1, 2])], (c, x) => ({
      carry: c,
      each: [x[0] as Tensor, c[0] as Tensor],
    }))
    const out = await evaluate({ c: carry[0] as Tensor, x: each[0] as Tensor, h: each[1] as Tensor }, {}, testOptions)
    expect([numbers(out.c), numbers(out.x), numbers(out.h)]).toEqual([[5], [1, 2], [5, 5]])
  })
})
