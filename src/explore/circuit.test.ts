/** Cut edges against edits of the model, and circuits against the runs that define them. */
import { describe, expect, it } from 'vitest'
import { tinyGpt2, tinyLlama, tinyModel } from '../run/testing.ts'
import { replace, zero } from '../sites/index.ts'
import { CutModel } from './circuit-run.ts'
import { findCircuit } from './index.ts'
import { prepareMetric } from './patch-metric.ts'

const [clean, corrupt] = [
  [5, 17, 3, 44, 29, 8],
  [5, 21, 3, 44, 30, 8],
]
const metric = { kind: 'logit-difference', answer: 7, wrong: 40 } as const
const differenceOf = (logits: Float32Array) => (logits[7] as number) - (logits[40] as number)

describe.each([
  ['llama', tinyLlama],
  ['gpt2', tinyGpt2],
])('cut edges of %s', (_, config) => {
  it('all kept is the clean run, all cut the corrupted one, and some are the edits that they mean', async () => {
    await using model = await tinyModel(config)
    const cut = CutModel.of(model)
    const prepared = prepareMetric(metric, 1, model.spec.vocab)
    const { writes, rest } = await cut.writesOf(clean)
    const run = { tokens: clean, own: writes, rest, replacement: (await cut.writesOf(corrupt)).writes }
    const { senders, receivers } = cut.graph
    const mask = (keep: (sender: string, receiver: string) => boolean) =>
      Float32Array.from(receivers.flatMap((r) => senders.map((s) => (keep(s.label, r.label) ? 1 : 0))))
    const masks = [
      mask(() => true),
      mask(() => false),
      // A head that nobody hears is a head whose output is the corrupted one.
      mask((s) => s !== 'head 0.1'),
      // A head whose queries hear nothing clean has corrupted queries.
      mask((_s, r) => r !== 'q 1.2'),
      // The last MLP that hears nothing clean, and nothing else changes.
      mask((_s, r) => r !== `mlp ${model.spec.layers - 1}`),
    ]
    const values = await cut.run(run, masks, prepared, prepared.feeds(0, masks.length, clean, undefined))
    const [a, b] = [
      await model.run({ ids: clean }, { taps: ['z.0', 'q.1'] }),
      await model.run({ ids: corrupt }, { taps: ['z.0', 'q.1', 'mlp_out.*'] }),
    ]
    const patched = async (site: string, value: Float32Array, shape: readonly number[]) =>
      differenceOf((await model.with(replace(site, { dtype: 'float32', shape, data: value })).run({ ids: clean })).logits.at(0, -1))
    const oneHead = (site: 'z.0' | 'q.1', head: number) => {
      const [own, other] = [a.taps[site], b.taps[site]]
      const [, length, heads, width] = own.shape as [number, number, number, number]
      const data = Float32Array.from(own.data)
      for (let p = 0; p < length; p++) {
        const at = (p * heads + head) * width
        data.set(other.data.subarray(at, at + width), at)
      }
      return patched(site, data, own.shape)
    }
    const last = `mlp_out.${model.spec.layers - 1}`
    const want = [
      differenceOf(a.logits.at(0, -1)),
      differenceOf(b.logits.at(0, -1)),
      await oneHead('z.0', 1),
      await oneHead('q.1', 2),
      await patched(last, b.taps[last]!.data, b.taps[last]!.shape),
    ]
    for (const [i, w] of want.entries()) expect(values[i], String(i)).toBeCloseTo(w, 4)
  })

  it('the circuit of all edges is faithful and complete; zero ablation cuts what zero edits cut', async () => {
    await using model = await tinyModel(config)
    const all = await findCircuit(model, {
      clean: { ids: clean },
      corrupt: { ids: corrupt },
      metric,
      search: { kind: 'threshold', threshold: 0 },
    })
    expect(all.edges.length).toBe(all.total)
    expect(all.faithfulness).toBeCloseTo(1, 3)
    expect(all.completeness).toBeCloseTo(1, 3)
    expect(all.incompleteness).toBeCloseTo(0, 3)
    expect(all.scores.shape).toEqual([all.senders.length, all.receivers.length])
    const none = await findCircuit(model, {
      clean: { ids: clean },
      corrupt: { ids: corrupt },
      metric: { kind: 'logit', answer: 7 },
      ablation: 'zero',
      search: { kind: 'top', count: 3 },
      samples: 1,
    })
    if (config === tinyLlama) {
      const silent = await model.with(zero('embeddings'), zero('z.*'), zero('mlp_out.*')).run({ ids: clean })
      // What is left is rounding, which the norm of nothing enlarges.
      expect(none.metric.ablated).toBeCloseTo(silent.logits.at(0, -1)[7] as number, 3)
    }
    expect(none.metric.full).toBeCloseTo((await model.run({ ids: clean })).logits.at(0, -1)[7] as number, 4)
    expect(none.edges.length).toBeLessThanOrEqual(3)
  })

  it('greedy cutting keeps what matters: the change of each cut is below its threshold', async () => {
    await using model = await tinyModel(config)
    const options = { clean: { ids: clean }, corrupt: { ids: corrupt }, metric, samples: 2 }
    const span = 0.02
    const found = await findCircuit(model, { ...options, search: { kind: 'acdc', threshold: span } })
    expect(found.edges.length).toBeGreaterThan(0)
    expect(found.edges.length).toBeLessThan(found.total)
    for (const e of found.edges) expect(Math.abs(e.score)).toBeGreaterThanOrEqual(span)
    // What was cut adds up to less than the number of cuts times the threshold.
    expect(Math.abs(found.metric.full - found.metric.circuit)).toBeLessThan(span * found.total)
    const same = await findCircuit(model, { ...options, search: { kind: 'top', count: found.edges.length } })
    expect(same.faithfulness).not.toBe(found.faithfulness)
    await expect(findCircuit(model, { ...options, search: { kind: 'top', count: 0 } })).rejects.toThrow('at least 1 edge')
    await expect(findCircuit(model, { ...options, corrupt: { ids: clean }, search: { kind: 'top', count: 5 } })).rejects.toThrow(
      'nothing to find',
    )
    await expect(findCircuit(model, { ...options, over: { ids: clean }, search: { kind: 'top', count: 5 } })).rejects.toThrow("'over'")
    const means = await findCircuit(model, { ...options, ablation: 'mean', over: { rows: [clean] }, search: { kind: 'top', count: 5 } })
    expect(Number.isFinite(means.faithfulness)).toBe(true)
  })
})
