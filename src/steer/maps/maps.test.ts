import { join } from 'node:path'
import { describe, expect, test } from 'vitest'
import { temporaryFolder } from '../../models/formats/testing.ts'
import { RandomStream } from '../../nn/index.ts'
import { tinyModel } from '../../run/testing.ts'
import { AffineMaps } from './affine-maps.ts'
import { areaUnderRoc, closedFormMaps, fitSiteBySite, meanShift, sortedLeastSquares } from './closed-form.ts'
import { fitMaps, lineas, mapDistance } from './lineas.ts'
import { modelNetwork, type PooledRows, plainNetwork, pooledRows } from './pooled.ts'

function gaussians(count: number, width: number, mean: number, std: number, seed: number): PooledRows {
  const random = RandomStream.of(seed)
  return { count, width, data: Float64Array.from({ length: count * width }, () => mean + std * random.normal()) }
}

describe('one site, where the best map is known', () => {
  test('LinEAS finds the least squares of sorted values', async () => {
    const [source, target] = [gaussians(256, 8, 0.5, 1, 1), gaussians(256, 8, -1, 2, 2)]
    const network = plainNetwork(source)
    const wanted = new Map([['x', target]])
    const exact = sortedLeastSquares(source, target)
    const { maps, halvings } = await fitMaps(network, wanted, { steps: 2000, rate: 0.1, batch: 256 })
    const found = maps.get('x') as typeof exact
    for (const part of ['scale', 'shift'] as const)
      for (const [j, v] of exact[part].entries()) expect(Math.abs((found[part][j] as number) - v)).toBeLessThan(1e-8)
    expect(halvings).toBe(0)
    const best = await mapDistance(network, wanted, new Map([['x', exact]]))
    expect((await mapDistance(network, wanted, maps)).total).toBeCloseTo(best.total, 9)
    expect(best.total).toBeLessThan(0.05 * (await mapDistance(network, wanted)).total)
  })

  test('the distance is the mean squared difference of sorted columns', async () => {
    const [a, b] = [gaussians(5, 3, 0, 1, 3), gaussians(5, 3, 1, 1, 4)]
    let direct = 0
    for (let j = 0; j < 3; j++) {
      const column = (r: PooledRows) => Array.from({ length: 5 }, (_, i) => r.data[i * 3 + j] as number).sort((x, y) => x - y)
      for (const [i, x] of column(a).entries()) direct += (x - (column(b)[i] as number)) ** 2 / 5
    }
    expect((await mapDistance(plainNetwork(a), new Map([['x', b]]))).total).toBeCloseTo(direct, 12)
  })

  test.each([
    [0, 1.8, 3],
    [0, 3.2, 3],
    [0, 10, 0],
    [1, 1.8, 0],
  ])('planted shifts survive the penalty (group weight %d, gamma %d: %d coordinates)', async (lambdaGroup, gamma, kept) => {
    const source = gaussians(64, 64, 0, 1, 5)
    const target = gaussians(64, 64, 0, 1, 6)
    const planted = new Map([
      [3, 3],
      [17, -3],
      [40, 2.5],
    ])
    for (let i = 0; i < 64; i++) for (const [j, by] of planted) (target.data[i * 64 + j] as number) += by
    const { maps } = await fitMaps(plainNetwork(source), new Map([['x', target]]), { steps: 600, gamma, lambdaGroup, batch: 64 })
    const { scale, shift } = maps.get('x') as { scale: Float64Array; shift: Float64Array }
    const support = [...scale.keys()].filter((j) => scale[j] !== 1 || shift[j] !== 0)
    expect(support.length).toBe(kept)
    if (kept === 3) expect(support).toEqual([3, 17, 40])
  })

  test('support shrinks as gamma grows', async () => {
    const source = gaussians(64, 32, 0, 1, 7)
    const target = gaussians(64, 32, 0.4, 1.3, 8)
    const sizes = []
    for (const gamma of [0, 0.2, 0.6, 1, 3]) {
      const { maps } = await fitMaps(plainNetwork(source), new Map([['x', target]]), { steps: 300, gamma, lambdaGroup: 0, batch: 64 })
      sizes.push(new AffineMaps(maps, { method: 'lineas', model: { id: 'x' } }).support.changed)
    }
    expect(sizes[0]).toBe(32)
    expect(sizes.at(-1)).toBe(0)
    for (let i = 1; i < sizes.length; i++) expect(sizes[i]).toBeLessThanOrEqual(sizes[i - 1] as number)
  })

  test('plain SGD overflows beyond the law of stability, is halved, and a preconditioner needs no halving', async () => {
    const wide = gaussians(64, 2, 0, 30, 9)
    const target = new Map([['x', gaussians(64, 2, 5, 30, 10)]])
    const plain = await fitMaps(plainNetwork(wide), target, { steps: 200, rate: 0.1, batch: 64, scales: [-1e300, 1e300] })
    expect(plain.halvings).toBeGreaterThan(0)
    const safe = await fitMaps(plainNetwork(wide), target, { steps: 200, rate: 0.4, batch: 64, precondition: true })
    expect(safe.halvings).toBe(0)
    expect(safe.losses.at(-1)).toBeLessThan(safe.losses[0] as number)
  })
})

describe('a model', () => {
  const rows = (seed: number, from: number, count = 12) => {
    const random = RandomStream.of(seed)
    return Array.from({ length: count }, () => Array.from({ length: 4 + random.below(5) }, () => from + random.below(25)))
  }
  const [source, target] = [rows(1, 2), rows(2, 30)]

  test('pooling leaves padding out, and mapped activations are those of the edited model', async () => {
    const model = await tinyModel()
    const network = modelNetwork(model, source, ['mlp_in.0', 'mlp_in.2'], 'mean')
    const map = { scale: new Float64Array(32).fill(0.5), shift: new Float64Array(32).fill(0.1) }
    const maps = new AffineMaps([['mlp_in.0', map]], { method: 'test', model: { id: 'tiny' } })
    const pooled = await pooledRows(network, maps.maps, { batchSize: 5 })
    const edited = model.with(...maps.edits())
    for (const [i, ids] of source.entries()) {
      const { taps } = await edited.run({ ids }, { taps: ['mlp_in.2'] })
      for (let j = 0; j < 32; j++) {
        const mean = ids.reduce((s, _, p) => s + (taps['mlp_in.2'].at(0, p)[j] as number), 0) / ids.length
        expect(pooled.get('mlp_in.2')?.data[i * 32 + j]).toBeCloseTo(mean, 5)
      }
    }
    await model.dispose()
  })

  test('LinEAS brings held-out activations nearer at all sites; incremental fits see what they will meet', async () => {
    const model = await tinyModel()
    const sites = ['mlp_in.0', 'mlp_in.1', 'mlp_in.2']
    const held = modelNetwork(model, rows(3, 2, 48), sites, 'mean')
    const heldTarget = await pooledRows(modelNetwork(model, rows(4, 30, 48), sites, 'mean'))
    const before = (await mapDistance(held, heldTarget)).total
    const maps = await lineas(model, {
      source: rows(5, 2, 32),
      target: rows(6, 30, 32),
      sites: 'mlp_in.*',
      steps: 200,
      optimizer: 'adam',
      rate: 0.02,
    })
    expect(maps.sites).toEqual(sites)
    expect((await mapDistance(held, heldTarget, maps.maps)).total).toBeLessThan(0.6 * before)
    const network = modelNetwork(model, source, sites, 'mean')
    const wanted = await pooledRows(modelNetwork(model, target, sites, 'mean'))
    const fitted = await fitSiteBySite(network, wanted, meanShift, { mode: 'incremental' })
    const seen = await pooledRows(network, fitted)
    for (const site of sites)
      for (let j = 0; j < 32; j += 7) {
        const mean = (r: PooledRows | undefined) =>
          Array.from({ length: 12 }, (_, i) => r?.data[i * 32 + j] as number).reduce((a, b) => a + b, 0) / 12
        expect(mean(seen.get(site))).toBeCloseTo(mean(wanted.get(site)), 4)
      }
    await model.dispose()
  })

  test('strength 0 and no steps change nothing, an inverse undoes, compositions apply in order, and a file keeps all', async () => {
    const model = await tinyModel()
    const none = await lineas(model, { source, target, sites: 'mlp_in.1', steps: 0 })
    expect(none.edits()).toEqual([])
    const maps = await closedFormMaps(model, 'lin-act', { source, target, sites: 'mlp_in.*' })
    expect(maps.strength(0).edits()).toEqual([])
    const x = Float64Array.from({ length: 32 }, (_, i) => Math.sin(i))
    const apply = (m: AffineMaps, v: Float64Array) =>
      v.map((z, i) => z * (m.at('mlp_in.1').scale[i] as number) + (m.at('mlp_in.1').shift[i] as number))
    const inverse = maps.inverse(1e-6)
    expect(Math.max(...apply(inverse, apply(maps, x)).map((v, i) => Math.abs(v - (x[i] as number))))).toBeLessThan(1e-9)
    const both = maps.followedBy(maps.strength(0.5))
    expect([...apply(both, x)]).toEqual([...apply(maps.strength(0.5), apply(maps, x))].map((v) => expect.closeTo(v, 9)))
    const path = join(temporaryFolder(), 'maps.safetensors')
    await maps.save(path)
    const again = await AffineMaps.load(path)
    expect([...again.maps]).toEqual([...maps.maps])
    expect(again.record).toEqual(maps.record)
    await again.check(model)
    await expect(
      again.check(
        await tinyModel({
          model_type: 'gpt2',
          n_embd: 64,
          n_layer: 2,
          n_head: 4,
          n_positions: 64,
          vocab_size: 61,
          layer_norm_epsilon: 1e-5,
          activation_function: 'gelu_new',
        }),
      ),
    ).rejects.toThrow(/belongs to another model|no site/i)
    await model.dispose()
  })

  test('what cannot be fitted is refused', async () => {
    const model = await tinyModel()
    await expect(lineas(model, { source, target: target.slice(0, 5), sites: 'mlp_in.1' })).rejects.toThrow(/pairs ranks/)
    await expect(lineas(model, { source, target, sites: 'attn_probs.1' })).rejects.toThrow(/cannot be mapped/)
    await expect(lineas(model, { source, target, sites: 'mlp_in.1', rate: Number.NaN })).rejects.toThrow(/rate/)
    await model.dispose()
  })
})

test('the area under the curve counts ties half', () => {
  expect(areaUnderRoc(Float64Array.of(2, 3), Float64Array.of(0, 1))).toBe(1)
  expect(areaUnderRoc(Float64Array.of(1, 1), Float64Array.of(1, 1))).toBe(0.5)
  expect(areaUnderRoc(Float64Array.of(1, 3), Float64Array.of(2))).toBe(0.5)
})
