/** Measures against numpy, scipy and scikit-learn, and against closed forms. */
import { beforeAll, describe, expect, it } from 'vitest'
import { randomStream } from '../../models/sampling.ts'
import type { Model } from '../../run/index.ts'
import { tinyModel } from '../../run/testing.ts'
import { times } from '../../tensor/index.ts'
import {
  alignPoints,
  canonicalCorrelations,
  compareSites,
  cosineTable,
  dissimilarities,
  effectiveRank,
  geometryOf,
  likelihoodDimension,
  linearCka,
  MinibatchCka,
  meanCosine,
  measures,
  nearestPoints,
  type Points,
  participationRatio,
  pcaMap,
  principalComponentsOf,
  representationalSimilarity,
  spectrumOf,
  twoNearestDimension,
  umapMap,
} from './index.ts'
import reference from './similarity.reference.json' with { type: 'json' }

/** The recipe of the points, the same in the script that made the reference values. */
function recipe(rows: number, columns: number, phase = 0): Points {
  const data = Float32Array.from({ length: rows * columns }, (_, at) => {
    const [i, j] = [Math.floor(at / columns), at % columns]
    return Math.sin(0.7 * i * (j + 1) + phase) + Math.cos(1.3 * (i + 2) * j) / (1 + j) + 0.3 * phase
  })
  return { dtype: 'float32', shape: [rows, columns], data }
}
const close = (have: ArrayLike<number>, want: ArrayLike<number>, tolerance = 1e-6) => {
  expect(have.length).toBe(want.length)
  for (let i = 0; i < want.length; i++) expect(Math.abs((have[i] as number) - (want[i] as number)), `${i}`).toBeLessThan(tolerance)
}
const part = (x: Points, from: number, to: number): Points => {
  const width = x.shape[1] as number
  return { dtype: 'float32', shape: [to - from, width], data: x.data.subarray(from * width, to * width) }
}
/** Points turned in the plane of each two neighbouring coordinates, stretched and moved. */
function turned(x: Points, scale = 3, shift = 5): Points {
  const data = Float32Array.from(x.data)
  const width = x.shape[1] as number
  for (let i = 0; i < data.length; i += width)
    for (let j = 0; j + 1 < width; j++) {
      const [a, b] = [data[i + j] as number, data[i + j + 1] as number]
      data[i + j] = Math.cos(j + 1) * a - Math.sin(j + 1) * b
      data[i + j + 1] = Math.sin(j + 1) * a + Math.cos(j + 1) * b
    }
  return { ...x, data: data.map((v) => scale * v + shift) }
}
const [x, y] = [recipe(40, 6), recipe(40, 9, 1.5)]

describe('similarity', () => {
  it('CKA equals numpy: plain, unbiased, and over minibatches', async () => {
    expect(await linearCka(x, y)).toBeCloseTo(reference.cka, 6)
    expect(await linearCka(x, y, { unbiased: true })).toBeCloseTo(reference.unbiased, 6)
    const batches = new MinibatchCka([2, 1])
    for (let at = 0; at < 40; at += 10) await batches.add([part(x, at, at + 10), part(y, at, at + 10)], [part(y, at, at + 10)])
    close(batches.values, [reference.minibatch, 1])
    await expect(batches.add([x], [y])).rejects.toThrow(/2 and 1 sites/)
  })

  it('canonical correlations equal numpy and scikit-learn', async () => {
    for (const [variance, want] of [
      [0.9, reference.cca90],
      [1, reference.cca100],
    ] as const) {
      const found = await canonicalCorrelations(x, y, { variance })
      expect(found.kept).toEqual(want.kept)
      close(found.correlations, want.r)
      expect(found.svcca).toBeCloseTo(want.svcca, 6)
      expect(found.pwcca).toBeCloseTo(want.pwcca, 6)
    }
    const { correlations } = await canonicalCorrelations(x, y, { variance: 1 })
    close(correlations.slice(0, 3), reference.sklearnCca, 1e-4)
  })

  it('Procrustes equals scipy and undoes a rotation', async () => {
    const z = recipe(40, 6, 1.5)
    const found = await alignPoints(x, z)
    expect(1 - found.similarity ** 2).toBeCloseTo(reference.disparity, 6)
    close(found.rotation.data, reference.rotation, 1e-5)
    const other = turned(x)
    const back = await alignPoints(x, other)
    expect(back.similarity).toBeCloseTo(1, 6)
    expect(back.scale).toBeCloseTo(3, 5)
    expect(back.distance).toBeLessThan(1e-3)
    const identity = await times(back.rotation, back.rotation, { transB: true })
    close(
      identity.data,
      Array.from({ length: 36 }, (_, at) => Number(at % 7 === 0)),
      1e-10,
    )
  })

  it('RSA equals scipy', async () => {
    for (const kind of ['correlation', 'cosine', 'euclidean'] as const) {
      const [spearman, pearson] = reference[`rsa_${kind}`] as [number, number]
      expect(await representationalSimilarity(x, y, { dissimilarity: kind })).toBeCloseTo(spearman, 5)
      expect(await representationalSimilarity(x, y, { dissimilarity: kind, comparison: 'pearson' })).toBeCloseTo(pearson, 6)
    }
    const corners: Points = { dtype: 'float32', shape: [3, 2], data: Float32Array.of(0, 0, 3, 4, 6, 8) }
    close(await dissimilarities(corners, 'euclidean'), [5, 10, 5])
  })

  it('every measure is 1 for points and themselves, and unchanged by a rotation and a scaling', async () => {
    for (const [name, { prepare, symmetric }] of Object.entries(measures)) {
      const [a, b, c] = [await prepare(x), await prepare(turned(x, 2, 0)), await prepare(y)]
      expect(await a.compare(a), name).toBeCloseTo(1, 5)
      // Correlation distances are not those of turned points.
      if (name !== 'rsa') expect(await a.compare(b), name).toBeCloseTo(1, 5)
      const [there, back] = [await a.compare(c), await c.compare(a)]
      expect(there, name).toBeLessThan(0.9)
      if (symmetric) expect(there, name).toBeCloseTo(back, 8)
    }
  })
})

describe('geometry', () => {
  it('equals numpy and scikit-learn', async () => {
    close(await spectrumOf(x), reference.spectrum)
    expect(effectiveRank(await spectrumOf(x))).toBeCloseTo(reference.effectiveRank, 5)
    expect(await participationRatio(x)).toBeCloseTo(reference.participation, 5)
    expect((await twoNearestDimension(x)).dimension).toBeCloseTo(reference.twoNN, 4)
    expect((await likelihoodDimension(x, { k: 5 })).dimension).toBeCloseTo(reference.mle5, 4)
    expect(await meanCosine(x)).toBeCloseTo(reference.meanCosine, 6)
    const { coordinates, explained } = await pcaMap(x)
    close(coordinates.data.map(Math.abs), reference.pca, 1e-5)
    close(explained as Float64Array, reference.pcaExplained)
  })

  it('finds the dimension of a cube that lies in more dimensions', async () => {
    const random = randomStream(3)
    for (const dimension of [2, 5]) {
      const inner = Array.from({ length: 1500 }, () => Array.from({ length: dimension }, () => random()))
      const data = Float32Array.from(
        inner.flatMap((p) => Array.from({ length: 20 }, (_, j) => p.reduce((s, v, d) => s + v * Math.sin((d + 1) * (j + 1)), 0))),
      )
      const cloud: Points = { dtype: 'float32', shape: [1500, 20], data }
      const found = await geometryOf(cloud)
      expect(Math.abs(found.twoNearest / dimension - 1)).toBeLessThan(0.15)
      expect(Math.abs(found.likelihood / dimension - 1)).toBeLessThan(0.15)
      expect(found.participationRatio).toBeLessThanOrEqual(dimension + 1e-6)
      // What is left of directions that are not there is rounding of float32.
      expect(found.effectiveRank).toBeLessThan(dimension + 0.01)
    }
  })

  it('of directions that are used alike is their number', async () => {
    const axes: Points = {
      dtype: 'float32',
      shape: [8, 4],
      data: Float32Array.from({ length: 32 }, (_, at) => (Math.floor(at / 4) % 4 === at % 4 ? (at < 16 ? 1 : -1) : 0)),
    }
    expect(effectiveRank(await spectrumOf(axes))).toBeCloseTo(4, 10)
    expect(await participationRatio(axes)).toBeCloseTo(4, 10)
    const { s, total } = await principalComponentsOf(axes)
    close(s, new Array(4).fill(Math.SQRT2), 1e-10)
    expect(total).toBeCloseTo(8, 10)
  })

  it('refuses what says nothing', async () => {
    const same: Points = { dtype: 'float32', shape: [6, 2], data: new Float32Array(12).fill(3) }
    await expect(pcaMap(same)).rejects.toThrow(/All points are the same/)
    await expect(twoNearestDimension(same)).rejects.toThrow(/apart from all others/)
    await expect(linearCka(x, recipe(39, 9))).rejects.toThrow(/40 points on one side and 39/)
    await expect(linearCka({ ...x, shape: [40] }, x)).rejects.toThrow(/Points must be float32/)
    expect(await linearCka({ ...same, shape: [6, 2] }, recipe(6, 3))).toBeNaN()
  })
})

describe('nearest points', () => {
  it('equal scikit-learn, in pieces too', async () => {
    const queries = part(y, 0, 5)
    const pieces = async function* () {
      for (let at = 0; at < 40; at += 7) yield part(y, at, Math.min(40, at + 7))
    }
    for (const points of [y, pieces()]) {
      const { rows, values } = await nearestPoints(points, queries, { k: 3 })
      close(rows, reference.nearest.rows)
      close(values, reference.nearest.cosines)
    }
    const far = await nearestPoints(y, queries, { k: 2, nearness: 'euclidean' })
    expect([...far.rows].filter((_, i) => i % 2 === 0)).toEqual([0, 1, 2, 3, 4])
    expect(Math.max(...[...far.values].filter((_, i) => i % 2 === 0))).toBeLessThan(1e-6)
    await expect(nearestPoints(part(y, 0, 2), queries, { k: 3 })).rejects.toThrow(/There are 2 points/)
    await expect(nearestPoints(x, queries, { k: 1 })).rejects.toThrow(/6 numbers and the queries 9/)
  })
})

describe('maps', () => {
  it('UMAP keeps clusters apart, and repeats by seed', async () => {
    const random = randomStream(9)
    const data = Float32Array.from({ length: 60 * 8 }, (_, at) => (Math.floor(at / (20 * 8)) === at % 8 ? 30 : 0) + random())
    const cloud: Points = { dtype: 'float32', shape: [60, 8], data }
    const options = { seed: 4, neighbours: 8, epochs: 100 }
    const { coordinates } = await umapMap(cloud, options)
    expect((await umapMap(cloud, options)).coordinates.data).toEqual(coordinates.data)
    const centre = (group: number) =>
      [0, 1].map((d) =>
        Array.from({ length: 20 }, (_, i) => coordinates.data[(group * 20 + i) * 2 + d] as number).reduce((s, v) => s + v / 20, 0),
      )
    const spread = Array.from({ length: 60 }, (_, i) =>
      Math.hypot(...[0, 1].map((d) => (coordinates.data[i * 2 + d] as number) - (centre(Math.floor(i / 20))[d] as number))),
    )
    for (const [a, b] of [
      [0, 1],
      [0, 2],
      [1, 2],
    ] as const)
      expect(Math.hypot(...[0, 1].map((d) => (centre(a)[d] as number) - (centre(b)[d] as number)))).toBeGreaterThan(Math.max(...spread))
    await expect(umapMap(part(cloud, 0, 8), options)).rejects.toThrow(/too few/)
  })
})

describe('cosines', () => {
  it('are those of the names', async () => {
    const table = await cosineTable({ a: [1, 0], b: [3, 4] }, { c: [0, 2], a: [1, 0], d: [-3, -4] })
    expect([table.rows, table.columns]).toEqual([
      ['a', 'b'],
      ['c', 'a', 'd'],
    ])
    close(table.values, [0, 1, -0.6, 0.8, 0.6, -1])
    await expect(cosineTable({ a: [1, 0], b: [0, 0] })).rejects.toThrow(/'b' is zero/)
    await expect(cosineTable({ a: [1, 0], b: [1] })).rejects.toThrow(/one width/)
  })
})

describe('sites', () => {
  let model: Model
  let other: Model
  beforeAll(async () => {
    model = await tinyModel()
    other = await tinyModel()
  })
  const random = randomStream(5)
  const data = Array.from({ length: 12 }, () => Array.from({ length: 5 + Math.floor(random() * 20) }, () => Math.floor(random() * 61)))

  it('are compared across layers and with another model at the same places', async () => {
    const own = await compareSites(model, { data, sites: 'resid_post.*', maxTokens: 100 })
    expect(own.rows).toEqual(own.columns)
    expect(own.places).toBe(100)
    for (let i = 0; i < own.rows.length; i++) expect(own.values[i * own.rows.length + i]).toBeCloseTo(1, 6)
    const across = await compareSites(model, {
      data,
      sites: 'resid_post.*',
      with: other,
      withSites: ['resid_post.1', 'z.0'],
      maxTokens: 100,
    })
    expect(across.columns).toEqual(['resid_post.1', 'z.0'])
    expect(across.values[1 * 2]).toBeCloseTo(1, 6)
    // The reference takes the two sites from runs of its own.
    const ends = await compareSites(model, { data, sites: ['resid_post.0'], withSites: 'resid_post.2', where: { positions: -1 } })
    expect(ends.places).toBe(12)
    const rows = await Promise.all(
      (['resid_post.0', 'resid_post.2'] as const).map(async (site) => {
        const parts: number[] = []
        for (const ids of data)
          parts.push(...((await model.run({ ids }, { taps: [site], logits: false })).taps[site]?.data.slice(-32) ?? []))
        return { dtype: 'float32' as const, shape: [12, 32], data: Float32Array.from(parts) }
      }),
    )
    expect(ends.values[0]).toBeCloseTo(await linearCka(rows[0] as Points, rows[1] as Points), 5)
    await expect(compareSites(model, { data, sites: 'resid_post.0', measure: 'cca' as 'cka' })).rejects.toThrow(/no measure 'cca'/)
  })
})
