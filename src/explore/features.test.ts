import { readdir, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { asyncBufferFromFile, parquetMetadataAsync, parquetReadObjects } from 'hyparquet'
import { beforeAll, describe, expect, it } from 'vitest'
import type { NDArray } from '../base/types.ts'
import { temporaryFolder } from '../models/formats/testing.ts'
import type { Model } from '../run/index.ts'
import { tinyModel } from '../run/testing.ts'
import { featureFrequencies, queryFeatures, strongestPlaces } from './feature-query.ts'
import { captureFeatures, type FeatureEncoder, type FeatureRows, writeFeatures } from './features.ts'

let model: Model
beforeAll(async () => {
  model = await tinyModel()
})
const data = [[3, 1, 4, 1, 5], [], [9, 2, 6], [5, 3, 5, 8, 9, 7, 9]]
/** Features that are the coordinates above a bound, less it. */
const encoder: FeatureEncoder = {
  async encode(x) {
    return { dtype: 'float32', shape: [x.shape[0] as number, 32], data: x.data.map((v) => Math.max(0, v - 1)) }
  },
}
interface Want {
  feature: number
  document: number
  position: number
  token: number
  value: number
}
/** The same from runs of single rows. */
async function wanted(bound = 1): Promise<Want[]> {
  const out: Want[] = []
  for (const [document, ids] of data.entries()) {
    if (ids.length === 0) continue
    const { taps } = await model.run({ ids }, { taps: ['resid_post.1'], logits: false })
    for (const [at, v] of (taps['resid_post.1']?.data ?? []).entries()) {
      const position = Math.floor(at / 32)
      if (v > bound) out.push({ feature: at % 32, document, position, token: ids[position] as number, value: v - 1 })
    }
  }
  return out
}
const capture = (out: string, threshold = 0) =>
  captureFeatures(model, { data, encoder, site: 'resid_post.1', out, threshold, source: { name: 'coordinates' } })

describe('features', () => {
  it('are written as rows of Parquet, in the order of the corpus, with where they come from', async () => {
    const out = join(temporaryFolder(), 'f.parquet')
    const result = await capture(out)
    const want = await wanted()
    expect(result).toEqual({ out, rows: want.length, places: 15, active: want.length / 15 })
    const file = await asyncBufferFromFile(out)
    const rows = (await parquetReadObjects({ file })) as (Want & { piece: string })[]
    expect(rows.map(({ value: _v, piece: _p, ...r }) => r)).toEqual(want.map(({ value: _v, ...r }) => r))
    for (const [i, row] of rows.entries()) expect(row.value).toBeCloseTo(want[i]?.value as number, 4)
    const { key_value_metadata: pairs } = await parquetMetadataAsync(file)
    expect(JSON.parse(pairs?.find((p) => p.key === 'actlens')?.value ?? '')).toMatchObject({
      format: 'actlens-features-1',
      site: 'resid_post.1',
      data: { documents: 3, skipped: 1 },
      source: { name: 'coordinates' },
    })
    const above = join(temporaryFolder(), 'above.parquet')
    expect((await capture(above, 0.5)).rows).toBe((await wanted(1.5)).length)
  })

  it('are asked by DuckDB', async () => {
    const out = join(temporaryFolder(), "it's.parquet")
    await capture(out)
    const want = await wanted()
    const counts = new Map<number, number>()
    for (const { feature } of want) counts.set(feature, (counts.get(feature) ?? 0) + 1)
    const frequencies = await featureFrequencies(out)
    expect(frequencies.map((f) => [f.feature, f.places])).toEqual([...counts].sort(([a, n], [b, m]) => m - n || a - b))
    const { feature, max, mean, documents } = frequencies[0] as (typeof frequencies)[0]
    const own = want.filter((w) => w.feature === feature)
    expect([max, mean]).toEqual([
      expect.closeTo(Math.max(...own.map((w) => w.value)), 4),
      expect.closeTo(
        own.reduce((s, w) => s + w.value / own.length, 0),
        4,
      ),
    ])
    expect(documents).toBe(new Set(own.map((w) => w.document)).size)
    const places = await strongestPlaces(out, feature, { limit: 2 })
    expect(places).toHaveLength(Math.min(2, documents))
    expect(places[0]?.value).toBeCloseTo(max, 5)
    expect(data[places[0]?.document as number]?.[places[0]?.position as number]).toBe(places[0]?.token)
    const { columns, rows } = await queryFeatures<{ n: number }>([out, out], 'SELECT count(*) AS n FROM features WHERE document = $d', {
      parameters: { d: 0 },
    })
    expect([columns, rows]).toEqual([['n'], [{ n: 2 * want.filter((w) => w.document === 0).length }]])
  })

  it('appear whole or not at all, and wrong questions are told', async () => {
    const folder = temporaryFolder()
    const out = join(folder, 'f.parquet')
    const part: FeatureRows = {
      feature: Int32Array.of(1),
      document: Int32Array.of(0),
      position: Int32Array.of(0),
      token: Int32Array.of(5),
      piece: ['a'],
      value: Float32Array.of(0.5),
    }
    const failing = async function* () {
      yield part
      throw new Error('broken')
    }
    await expect(writeFeatures(out, failing())).rejects.toThrow('broken')
    expect(await readdir(folder)).toEqual([])
    expect(await writeFeatures(out, [part, part])).toBe(2)
    await expect(queryFeatures(out, 'SELECT nothing FROM features')).rejects.toThrow(
      /cannot be answered: .*nothing.*table is called features/,
    )
    await expect(queryFeatures(join(folder, 'lost.parquet'), 'SELECT 1')).rejects.toThrow(/does not exist/)
    await writeFile(join(folder, 'bad.parquet'), 'no parquet at all')
    await expect(queryFeatures(join(folder, 'bad.parquet'), 'SELECT 1')).rejects.toThrow(/cannot be read as Parquet/)
    const bad = (acts: (x: NDArray<Float32Array>) => NDArray<Float32Array>) =>
      captureFeatures(model, { data, encoder: { encode: async (x) => acts(x) }, site: 'resid_post.1', out })
    await expect(bad((x) => ({ ...x, shape: [1, x.data.length] }))).rejects.toThrow(/must give \[places, features\]/)
    await expect(bad((x) => ({ ...x, data: x.data.map(() => Number.NaN) }))).rejects.toThrow(/no number/)
    expect((await queryFeatures<{ n: number }>(out, 'SELECT count(*) AS n FROM features')).rows).toEqual([{ n: 2 }])
    await expect(captureFeatures(model, { data, encoder, site: 'resid_post.*', out })).rejects.toThrow(/means 3 sites/)
  })
})
