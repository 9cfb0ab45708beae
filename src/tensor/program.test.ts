import { describe, expect, it } from 'vitest'
import {
  add,
  concat,
  constant,
  cut,
  evaluate,
  greater,
  input,
  matmul,
  mul,
  reshape,
  SessionCache,
  softmax,
  transpose,
  where,
} from './index.ts'

const cache = new SessionCache(1e9)
const options = { device: 'cpu', cache, threads: 1 } as const
const f32 = (shape: number[], data: number[]) => ({ dtype: 'float32' as const, shape, data: Float32Array.from(data) })

describe('programs', () => {
  it('compute what the graph says, with symbolic axes', async () => {
    const x = input('x', 'float32', ['batch', 'pos', 2])
    const w = constant('float32', [2, 2], [1, 2, 3, 4])
    const y = softmax(matmul(x, w))
    const flat = reshape(transpose(y, [1, 0, 2]), ['batch*pos', 2])
    const out = await evaluate({ y, flat, top: where(greater(y, 0.5), y, 0) }, { x: f32([1, 2, 2], [1, 0, 0, 0]) }, options)
    const e = Math.exp(1) / (1 + Math.exp(1))
    expect([...out.y.data]).toEqual([1 - e, e, 0.5, 0.5].map((v) => expect.closeTo(v, 6)))
    expect(out.flat.shape).toEqual([2, 2])
    expect([...out.top.data]).toEqual([0, e, 0, 0].map((v) => expect.closeTo(v, 6)))
  })

  it('give the same in segments, recompiling only the segment that changed', async () => {
    const build = (inner: boolean) => {
      const x = input('x', 'float32', ['n', 2])
      let h = cut(mul(x, 2), 0)
      for (let i = 1; i < 4; i++) {
        h = cut(add(matmul(h, constant('float32', [2, 2], [1, 0.5, 0.25, i])), 1), i)
        if (inner && i === 2) h = mul(h, input('knob', 'float32', []))
      }
      return { h }
    }
    const feeds = { x: f32([1, 2], [1, 2]), knob: f32([], [1]) }
    const plain = await evaluate(build(false), feeds, options)
    const segmented = await evaluate(build(false), feeds, { ...options, segmented: true })
    expect(segmented.h.data).toEqual(plain.h.data)
    const before = cache.statistics.compiled
    const edited = await evaluate(build(true), feeds, { ...options, segmented: true })
    expect(edited.h.data).toEqual(plain.h.data)
    expect(cache.statistics.compiled - before).toBe(1)
    await evaluate(build(true), { ...feeds, knob: f32([], [3]) }, { ...options, segmented: true })
    expect(cache.statistics.compiled - before).toBe(1)
  })

  it('refuse feeds that disagree about an axis', async () => {
    const y = add(input('a', 'float32', ['n']), input('b', 'float32', ['n']))
    await expect(evaluate({ y }, { a: f32([2], [1, 2]), b: f32([3], [1, 2, 3]) }, options)).rejects.toThrow(
      "The axis 'n' is 2 in the input 'a' but 3 in 'b'.",
    )
    expect(() => concat([constant('float32', [2], [1, 2]), constant('float32', [1, 2], [1, 2])], 0)).toThrow('cannot join shapes')
  })
})
