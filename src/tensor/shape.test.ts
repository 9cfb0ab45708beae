import { describe, expect, it } from 'vitest'
import type { NDArray } from '../base/types.ts'
import { cast, concat, constant, evaluate, input, reshape, slice } from './index.ts'
import { arrayOf, testOptions } from './ops/testing/check.ts'
import { factorsOf, product, resolveReshape, termsOf, total } from './shape.ts'

const numbers = (x: NDArray) => Array.from(x.data as ArrayLike<number>)

describe('names of axes', () => {
  it('multiply and add without mixing the two up', () => {
    expect(product(['pos', 2, 'batch', 3])).toBe('batch*pos*6')
    expect(product(['batch*4', 2])).toBe('batch*8')
    expect(product(['a+b', 'c'])).toBe('(a+b)*c')
    expect(total(['a', 'b*c', 3])).toBe('a+b*c+3')
    expect(total(['past+2', 'pos', 1])).toBe('past+pos+3')
    expect(product(['(a+b)'])).toBe('a+b')
    expect(factorsOf('(a+b)*c*2')).toEqual(['(a+b)', 'c', 2])
    expect(termsOf('n[1:-1]+3')).toEqual(['n[1:-1]', 3])
  })

  it('come out of a reshape as they went in', () => {
    expect(resolveReshape(['a+b', 'c', 4], [-1, 2])).toEqual(['(a+b)*c*2', 2])
    expect(resolveReshape(['(a+b)*c', 4], ['c', -1, 4])).toEqual(['c', 'a+b', 4])
    expect(() => resolveReshape(['a', 4], ['b', 4])).toThrow('cannot be reshaped')
  })

  it('are measured at run time, sums and products included', async () => {
    const x = input('x', 'float32', ['n', 2])
    const y = input('y', 'float32', ['m', 2])
    const joined = concat([x, y, slice(x, 0, 0, 1)], 0)
    expect(joined.shape).toEqual(['n+m+1', 2])
    const flat = reshape(reshape(joined, ['n+m+1', 1, 2]), [-1])
    expect(slice(joined, 0, 0, -1).shape).toEqual(['n+m', 2])
    const out = await evaluate(
      { flat },
      { x: arrayOf('float32', [1, 2], [1, 2]), y: arrayOf('float32', [2, 2], [3, 4, 5, 6]) },
      testOptions,
    )
    expect(numbers(out.flat)).toEqual([1, 2, 3, 4, 5, 6, 1, 2])
  })
})

describe('constants in half precision', () => {
  const values = [0, -0, 1, -2.5, 65504, 65520, 1e-8, 6e-8, 6.1e-5, 1 / 3, Number.POSITIVE_INFINITY]

  it('are rounded to the nearest float16', async () => {
    const out = await evaluate({ y: cast(constant('float16', [values.length], values), 'float32') }, {}, testOptions)
    expect(numbers(out.y)).toEqual([0, -0, 1, -2.5, 65504, Infinity, 0, 2 ** -24, 1023 * 2 ** -24, 0.333251953125, Infinity])
  })

  it('are rounded to the nearest bfloat16', async () => {
    const out = await evaluate({ y: cast(constant('bfloat16', [3], [1, 1 / 3, -1.00390625]), 'float32') }, {}, testOptions)
    expect(numbers(out.y)).toEqual([1, 0.333984375, -1])
  })
})
