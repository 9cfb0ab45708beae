import { describe, expect, it } from 'vitest'
import { tinyGpt2, tinyLlama, tinyModel } from '../run/testing.ts'
import { replace } from '../sites/index.ts'
import { decomposeStream, patch, patchPaths } from './index.ts'
import { errorOf } from './testing.ts'

const [clean, corrupt] = [
  [5, 17, 3, 44, 29, 8],
  [5, 17, 21, 44, 29, 8],
] as const
const pair = { clean: { ids: clean }, corrupt: { ids: corrupt }, metric: { kind: 'logit-difference', answer: 7, wrong: 40 } } as const

describe.each([
  ['llama', tinyLlama],
  ['gpt2', tinyGpt2],
])('path patching on %s', (_, config) => {
  it('to the end with all held fast is the direct effect of each head', async () => {
    await using model = await tinyModel(config)
    const { heads, layers, dModel } = model.spec
    const end = `resid_post.${layers - 1}`
    const { table, metric } = await patchPaths(model, { ...pair, receivers: { site: end }, freezeMlps: true })
    const ends = await patch(model, { ...pair, sites: 'z.*', positions: 'all' })
    expect(metric.clean).toBeCloseTo(ends.metric.clean, 4)
    expect(metric.corrupt).toBeCloseTo(ends.metric.corrupt, 4)
    expect(table.shape).toEqual([layers, heads])
    // With all held fast, what a head writes arrives at the end as it is.
    const [a, b] = [
      await decomposeStream(model, pair.clean, { parts: 'heads' }),
      await decomposeStream(model, pair.corrupt, { parts: 'heads' }),
    ]
    const stream = (await model.run(pair.corrupt, { taps: [end] })).taps[end]!
    const size = clean.length * dModel
    for (const cell of [0, heads * layers - 1]) {
      const moved = stream.data.map((v, i) => v + (a.values.data[cell * size + i] as number) - (b.values.data[cell * size + i] as number))
      const edited = model.with(replace(end, { dtype: 'float32', shape: stream.shape, data: moved }))
      const last = (await edited.run(pair.corrupt)).logits.at(0, -1)
      expect(table.data[cell]).toBeCloseTo((last[7] as number) - (last[40] as number), 3)
    }
  })

  it('to heads is nothing from later layers, and the whole of patching where there is one way only', async () => {
    await using model = await tinyModel(config)
    const { heads, layers } = model.spec
    const end = `resid_post.${layers - 1}`
    const q = await patchPaths(model, {
      ...pair,
      receivers: [
        { site: 'q.1', head: 2 },
        { site: 'k.1', head: 0 },
      ],
      direction: 'noise',
    })
    for (let i = heads; i < q.table.data.length; i++) expect(q.table.data[i]).toBeCloseTo(q.metric.clean, 4)
    expect(q.table.data.slice(0, heads).some((v) => Math.abs(v - q.metric.clean) > 1e-4)).toBe(true)
    // Heads of the last block have no heads after them: with the MLP free, the paths to the end are all there is.
    const last = await patchPaths(model, { ...pair, senders: `z.${layers - 1}`, receivers: { site: end } })
    const whole = await patch(model, { ...pair, sites: `z.${layers - 1}`, positions: 'all' })
    expect(errorOf(last.table.data, whole.tables[`z.${layers - 1}`]!.data)).toBeLessThan(1e-4)
  })

  it('refuses what makes no sense', async () => {
    await using model = await tinyModel(config)
    await expect(patchPaths(model, { ...pair, receivers: { site: 'q.1', head: 9 } })).rejects.toThrow('heads 0 to 3')
    await expect(patchPaths(model, { ...pair, receivers: { site: 'mlp_in.1', head: 0 } })).rejects.toThrow('no heads')
    await expect(patchPaths(model, { ...pair, receivers: { site: 'q.1' }, senders: 'mlp_out.*' })).rejects.toThrow("outputs 'z'")
  })
})
