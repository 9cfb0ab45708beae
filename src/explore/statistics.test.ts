import * as fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import type { NDArray } from '../base/types.ts'
import { randomStream } from '../models/sampling.ts'
import { tinyModel } from '../run/testing.ts'
import { activationStatistics, Moments, normsOf, TopContexts } from './statistics.ts'
import { QuantileSketch } from './statistics-sketch.ts'

const matrix = (data: Float32Array, width: number): NDArray<Float32Array> => ({
  dtype: 'float32',
  shape: [data.length / width, width],
  data,
})
const random = randomStream(11)
const width = 12
const rows = 500
/** Coordinates with large means, and two that move together. */
const data = Float32Array.from({ length: rows * width }, (_, at) => (at % width === 3 ? 1000 : 0) + random() * (1 + (at % width)))
for (let i = 0; i < rows; i++) data[i * width + 5] = (data[i * width + 4] as number) * 2 + random() * 0.1

/** The reference: two passes in float64. */
function twoPass(values: Float32Array) {
  const n = values.length / width
  const mean = Float64Array.from({ length: width }, (_, j) => {
    let sum = 0
    for (let i = 0; i < n; i++) sum += values[i * width + j] as number
    return sum / n
  })
  const covariance = new Float64Array(width * width)
  for (let i = 0; i < n; i++)
    for (let a = 0; a < width; a++)
      for (let b = 0; b < width; b++)
        covariance[a * width + b] =
          (covariance[a * width + b] as number) +
          (((values[i * width + a] as number) - (mean[a] as number)) * ((values[i * width + b] as number) - (mean[b] as number))) / n
  return { mean, covariance }
}

describe('moments', () => {
  const want = twoPass(data)
  const close = (have: Float64Array, reference: Float64Array, scale: (i: number) => number) => {
    for (const [i, v] of reference.entries()) expect(Math.abs((have[i] as number) - v), `${i}`).toBeLessThan(scale(i))
  }
  const deviation = (j: number) => Math.sqrt(want.covariance[j * width + j] as number)

  it('equal two passes, however the rows come', async () => {
    for (const sizes of [[500], [1, 499], [7, 93, 400], new Array(50).fill(10)]) {
      const all = new Moments(width, { covariance: true })
      const only = new Moments(width)
      let at = 0
      for (const size of sizes) {
        const part = matrix(data.slice(at * width, (at + size) * width), width)
        await all.add(part)
        await only.add(part)
        at += size
      }
      expect(all.count).toBe(rows)
      close(all.mean, want.mean, (j) => 2e-6 * Math.abs(want.mean[j] as number) + 1e-6)
      close(all.covariance, want.covariance, (i) => 1e-4 * deviation(Math.floor(i / width)) * deviation(i % width))
      close(
        only.variance,
        Float64Array.from(want.mean, (_, j) => deviation(j) ** 2),
        (j) => 1e-4 * deviation(j) ** 2,
      )
      expect(() => only.covariance).toThrow(/ask for the covariance/)
    }
  })

  it('merge to the same', async () => {
    const [a, b] = [new Moments(width, { covariance: true }), new Moments(width, { covariance: true })]
    await a.add(matrix(data.slice(0, 100 * width), width))
    await b.add(matrix(data.slice(100 * width), width))
    a.merge(b)
    close(a.covariance, want.covariance, (i) => 1e-4 * deviation(Math.floor(i / width)) * deviation(i % width))
    expect(() => a.merge(new Moments(3))).toThrow(/cannot be merged/)
    const norms = await normsOf(matrix(data, width))
    expect(norms[3]).toBeCloseTo(Math.hypot(...data.slice(3 * width, 4 * width)), 2)
  })
})

describe('the sketch', () => {
  it('tells quantiles within its promise, whatever the numbers', () => {
    const number = fc.float({ noNaN: true, noDefaultInfinity: true, min: Math.fround(-1e6), max: Math.fround(1e6) })
    fc.assert(
      fc.property(fc.array(number, { minLength: 1, maxLength: 200 }), fc.double({ min: 0, max: 1, noNaN: true }), (list, q) => {
        const sketch = new QuantileSketch()
        sketch.add(Float32Array.from(list.slice(0, 50)))
        const rest = new QuantileSketch()
        rest.add(Float32Array.from(list.slice(50)))
        sketch.merge(rest)
        const sorted = Float32Array.from(list).sort()
        const at = q * (sorted.length - 1)
        const [low, high] = [sorted[Math.floor(at)] as number, sorted[Math.ceil(at)] as number]
        const have = sketch.quantile(q)
        const slack = (v: number) => Math.abs(v) / 128 + 1e-38
        expect(have).toBeGreaterThanOrEqual(low - slack(low))
        expect(have).toBeLessThanOrEqual(high + slack(high))
      }),
    )
  })

  it('makes histograms that hold every number', () => {
    const sketch = new QuantileSketch()
    sketch.add(Float32Array.from({ length: 10_000 }, (_, i) => i / 10_000 - 0.5))
    sketch.add(Float32Array.of(Number.NaN, Number.POSITIVE_INFINITY))
    const { edges, counts } = sketch.histogram(10)
    expect(edges[0]).toBe(-0.5)
    expect(counts.reduce((a, b) => a + b, 0)).toBeCloseTo(10_000, 6)
    for (const c of counts) expect(Math.abs(c - 1000)).toBeLessThan(20)
    expect(sketch).toMatchObject({ count: 10_000, notFinite: 2 })
    const constant = new QuantileSketch()
    constant.add(Float32Array.of(3, 3, 3))
    expect([constant.quantile(0), constant.quantile(0.5), constant.quantile(1)]).toEqual([3, 3, 3])
    expect(constant.histogram(4).counts.reduce((a, b) => a + b, 0)).toBe(3)
    expect(new QuantileSketch().quantile(0.5)).toBeNaN()
    expect(() => sketch.quantile(2)).toThrow(/from 0 to 1/)
  })
})

describe('statistics of a model', () => {
  const documents = Array.from({ length: 20 }, (_, i) => Array.from({ length: 3 + ((i * 5) % 25) }, (_, j) => (i * 31 + j * 17) % 61))

  it('equal those of all its activations, and find the strongest contexts', async () => {
    const model = await tinyModel()
    const vector = Float32Array.from({ length: 32 }, (_, j) => Math.sin(j))
    const found = await activationStatistics(model, {
      data: documents,
      sites: ['resid_post.1', 'mlp_act.0'],
      covariance: true,
      contexts: { 'resid_post.1': [{ name: 'wave', vector }], 'blocks.0.mlp.hook_post': [{ name: 'n7', neuron: 7 }] },
      keep: 3,
      around: 2,
      batchTokens: 64,
    })
    const stats = found.get('resid_post.1')
    const all: number[] = []
    const best: { value: number; document: number; position: number }[] = []
    for (const [document, ids] of documents.entries()) {
      const { taps } = await model.run({ ids }, { taps: ['resid_post.1'], logits: false })
      const values = ids.map((_, p) => taps['resid_post.1']?.at(0, p) as Float32Array)
      for (const v of values) all.push(...v)
      const along = values.map((v) => v.reduce((sum, x, j) => sum + x * (vector[j] as number), 0))
      const position = along.indexOf(Math.max(...along))
      best.push({ value: along[position] as number, document, position })
    }
    const total = documents.flat().length
    expect(stats).toMatchObject({ count: total, values: { count: total * 32 }, norms: { count: total } })
    const mean = Array.from({ length: 32 }, (_, j) => all.filter((_, at) => at % 32 === j).reduce((a, b) => a + b, 0) / total)
    for (const [j, m] of mean.entries()) expect(stats?.moments.mean[j]).toBeCloseTo(m, 4)
    const sorted = [...all].sort((a, b) => a - b)
    const median = sorted[sorted.length >> 1] as number
    expect(Math.abs((stats?.values.quantile(0.5) as number) - median)).toBeLessThan(0.01)
    best.sort((a, b) => b.value - a.value)
    const contexts = stats?.contexts.get('wave') ?? []
    expect(contexts).toHaveLength(3)
    for (const [i, c] of contexts.entries()) {
      const want = best[i] as (typeof best)[number]
      expect(c.value).toBeCloseTo(want.value, 3)
      expect([c.document, c.position]).toEqual([want.document, want.position])
      const ids = documents[want.document] as number[]
      expect(c.tokens).toEqual(ids.slice(Math.max(0, want.position - 2), want.position + 3))
      expect(c.tokens[c.at]).toBe(ids[want.position])
    }
    expect(found.get('mlp_act.0')?.contexts.get('n7')).toHaveLength(3)
  })

  it('refuses directions that do not fit', async () => {
    const model = await tinyModel()
    const base = { data: documents, sites: 'resid_post.1' }
    await expect(activationStatistics(model, { ...base, contexts: { 'z.0': [] } })).rejects.toThrow(
      /asked for at 'z\.0', which is not among the sites/,
    )
    expect(() => new TopContexts(32, [{ name: 'short', vector: [1, 2] }])).toThrow(/'short' has 2 numbers, but the site has 32/)
    expect(() => new TopContexts(32, [{ name: 'n', neuron: 32 }])).toThrow(/coordinates 0 to 31, not 32/)
  })
})
