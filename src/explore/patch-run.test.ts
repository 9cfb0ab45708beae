import { describe, expect, it } from 'vitest'
import { tinyGpt2, tinyLlama, tinyModel } from '../run/testing.ts'
import { patch, patchedRun, type SweepPart } from './index.ts'

const pair = { clean: { ids: [5, 17, 3, 44, 29, 8] }, corrupt: { ids: [5, 17, 21, 44, 29, 8] } }
const metric = { kind: 'logit-difference', answer: 7, wrong: 40 } as const
const difference = (row: Float32Array) => (row[7] as number) - (row[40] as number)

describe.each([
  ['llama', tinyLlama],
  ['gpt2', tinyGpt2],
])('over %s', (_, config) => {
  it.each(['denoise', 'noise'] as const)('the run behind a cell has the metric of the cell (%s)', async (direction) => {
    await using model = await tinyModel(config)
    const { tables, metric: ends } = await patch(model, { ...pair, metric, direction, sites: ['resid_mid.*', 'z.*', 'attn_probs.1'] })
    const cells = [
      { table: 'resid_mid.*', site: 'resid_mid.1', position: 2, index: pair.clean.ids.length + 2 },
      { table: 'z.*', site: 'z.0', position: 4, head: 1, index: 4 * model.spec.heads + 1 },
      { table: 'attn_probs.1', site: 'attn_probs.1', position: 3, head: 0, index: 3 * model.spec.heads },
    ]
    for (const { table, index, ...cell } of cells) {
      const run = await patchedRun(model, { ...pair, direction, ...cell })
      expect(difference(run.clean)).toBeCloseTo(ends.clean, 4)
      expect(difference(run.corrupt)).toBeCloseTo(ends.corrupt, 4)
      expect(difference(run.patched)).toBeCloseTo(tables[table]!.data[index] as number, 4)
    }
  })
})

it('refuses cells that are not there', async () => {
  await using model = await tinyModel(tinyLlama)
  await expect(patchedRun(model, { ...pair, site: 'resid_post.0', position: 6 })).rejects.toThrow('no pos 6')
  await expect(patchedRun(model, { ...pair, site: 'resid_post.0', head: 0 })).rejects.toThrow('no heads')
})

it('a sweep tells its parts as they come, each cell once, and waits for whoever listens', async () => {
  await using model = await tinyModel(tinyLlama)
  const seen: number[] = []
  const values = new Map<number, number>()
  let inside = 0
  const result = await patch(model, {
    ...pair,
    metric,
    sites: 'resid_pre.*',
    rows: 5,
    onPart: async (part: SweepPart) => {
      expect(inside++).toBe(0)
      await new Promise((resolve) => setTimeout(resolve, 1))
      inside--
      if (seen.length === 0 && part.cells.length === 0) expect(part.metric.clean).not.toBe(part.metric.corrupt)
      expect(part.cells.length).toBeLessThanOrEqual(5)
      for (const { table, index } of part.cells) {
        seen.push(index)
        values.set(index, part.tables[table]!.data[index] as number)
      }
    },
  })
  const { data } = result.tables['resid_pre.*']!
  expect(seen.toSorted((a, b) => a - b)).toEqual([...data.keys()])
  expect([...data].map((v, i) => v - (values.get(i) as number)).every((d) => d === 0)).toBe(true)
  await expect(patch(model, { ...pair, metric, sites: 'resid_pre.*', rows: 0 })).rejects.toThrow('whole number')
})
