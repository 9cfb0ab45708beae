import { describe, expect, it } from 'vitest'
import { tinyGpt2, tinyLlama, tinyModel } from '../run/testing.ts'
import { add, edit, replace, scale, zero } from '../sites/index.ts'
import { gather, input, squeeze } from '../tensor/index.ts'
import { ablate, patch } from './index.ts'
import { derived, errorOf, hasGoldens } from './testing.ts'

const clean = [5, 17, 3, 44, 29, 8]
const corrupt = [5, 17, 21, 44, 29, 8]
const metric = { kind: 'logit-difference', answer: 7, wrong: 40 } as const
const difference = (row: Float32Array) => (row[7] as number) - (row[40] as number)

describe.each([
  ['llama', tinyLlama],
  ['gpt2', tinyGpt2],
])('a sweep over %s', (_, config) => {
  it.each(['resid_pre.*', 'mlp_act.1', 'resid_post.*', 'attn_out.*', 'embeddings', 'final_norm', 'logits'])(
    'at %s equals patches one by one',
    async (name) => {
      await using model = await tinyModel(config)
      const { tables, metric: ends } = await patch(model, { clean: { ids: clean }, corrupt: { ids: corrupt }, metric, sites: name })
      const { sites, shape, data } = tables[name]!
      expect(shape).toEqual([...(name.includes('.') ? [sites.length] : []), clean.length])
      const source = await model.run({ ids: clean }, { taps: sites })
      expect(ends.clean).toBeCloseTo(difference(source.logits.at(0, -1)), 4)
      expect(ends.corrupt).toBeCloseTo(difference((await model.run({ ids: corrupt })).logits.at(0, -1)), 4)
      const one: number[] = []
      for (const site of sites)
        for (let p = 0; p < clean.length; p++) {
          const edited = model.with(replace(site, source.taps[site]!, { where: { positions: p } }))
          one.push(difference((await edited.run({ ids: corrupt })).logits.at(0, -1)))
        }
      expect(errorOf(data, one)).toBeLessThan(1e-4)
    },
  )

  it('over heads, in small groups, and the other way round, is the same', async () => {
    await using model = await tinyModel(config)
    const request = { clean: { ids: clean }, corrupt: { ids: corrupt }, metric, sites: ['z.*', 'attn_probs.*', 'k.1'] }
    const whole = await patch(model, request)
    const groups = await patch(model, { ...request, memory: 1 })
    const back = await patch(model, { ...request, clean: request.corrupt, corrupt: request.clean, direction: 'noise' })
    const kv = model.spec.kvHeads
    expect(whole.tables['z.*']?.axes.map((a) => a.name)).toEqual(['layer', 'pos', 'head'])
    expect(whole.tables['k.1']?.shape).toEqual([1, clean.length, kv])
    for (const [name, table] of Object.entries(whole.tables)) {
      expect(errorOf(groups.tables[name]!.data, table.data)).toBeLessThan(1e-4)
      expect(errorOf(back.tables[name]!.data, table.data)).toBeLessThan(1e-4)
    }
    expect(back.metric).toEqual({ clean: whole.metric.corrupt, corrupt: whole.metric.clean })
    // One head at one query position, by hand.
    const taps = (await model.run({ ids: clean }, { taps: ['z.1'] })).taps['z.1']
    const own = (await model.run({ ids: corrupt }, { taps: ['z.1'] })).taps['z.1']
    const { headDim, heads } = model.spec
    const mixed = own.data.slice()
    const start = (3 * heads + 2) * headDim
    mixed.set(taps.data.subarray(start, start + headDim), start)
    const edited = model.with(replace('z.1', { dtype: 'float32', shape: own.shape, data: mixed }))
    const want = difference((await edited.run({ ids: corrupt })).logits.at(0, -1))
    expect(whole.tables['z.*']?.data[(1 * clean.length + 3) * heads + 2]).toBeCloseTo(want, 4)
  })

  it('keeps the edits of the model, also those that look at other layers', async () => {
    await using model = await tinyModel(config)
    const far = edit('resid_mid.1', (x, { read }) => x.add(read('resid_pre.0')), { reads: ['resid_pre.0'] })
    for (const edited of [model.with(scale('mlp_out.0', 2)), model.with(far), model.with(add('resid_post.0', 1))]) {
      const { tables } = await patch(edited, {
        clean: { ids: clean },
        corrupt: { ids: corrupt },
        metric,
        sites: 'mlp_out.1',
        positions: 'all',
      })
      const source = await edited.run({ ids: clean }, { taps: ['mlp_out.1'] })
      const want = difference((await edited.with(replace('mlp_out.1', source.taps['mlp_out.1'])).run({ ids: corrupt })).logits.at(0, -1))
      expect(tables['mlp_out.1']?.data[0]).toBeCloseTo(want, 4)
    }
  })

  it('knows metrics as data and as functions, and averages over pairs', async () => {
    await using model = await tinyModel(config)
    const pairs = { clean: { rows: [clean, corrupt] }, corrupt: { rows: [corrupt, clean] } }
    const common = { sites: 'resid_post.*', positions: 'all' } as const
    const own = (x: Parameters<typeof gather>[0]) => squeeze(gather(x, input('nothing', 'int64', [1]), 1), 1)
    await expect(patch(model, { ...pairs, ...common, metric: own })).rejects.toThrow("'nothing'")
    const logits = async (ids: readonly number[]) => (await model.run({ ids })).logits.at(0, -1)
    const probabilities = (x: Float32Array) => {
      const e = [...x].map((v) => Math.exp(v - Math.max(...x)))
      return e.map((v) => v / e.reduce((a, b) => a + b))
    }
    const [a, b] = [probabilities(await logits(clean)), probabilities(await logits(corrupt))] as const
    const kl = (p: readonly number[], q: readonly number[]) => p.reduce((s, v, i) => s + v * Math.log(v / (q[i] as number)), 0)
    const run = async (m: Parameters<typeof patch>[1]['metric']) => (await patch(model, { ...pairs, ...common, metric: m })).metric
    expect((await run({ kind: 'probability', answer: [7, 9] })).clean).toBeCloseTo(((a[7] as number) + (b[9] as number)) / 2, 5)
    expect((await run({ kind: 'kl' })).clean).toBeCloseTo(0, 5)
    expect((await run({ kind: 'kl' })).corrupt).toBeCloseTo((kl(a, b) + kl(b, a)) / 2, 4)
    const loss = await model.gradient({ of: { kind: 'next-token' }, at: 'resid_pre.0' }, { rows: [clean, corrupt] })
    expect((await run({ kind: 'loss' })).clean).toBeCloseTo(loss.value, 4)
    // The last residual stream is all that the head reads: patched, the run is the clean one.
    const { tables, metric: ends } = await patch(model, { ...pairs, ...common, metric: { kind: 'loss' } })
    expect(tables['resid_post.*']?.data.at(-1)).toBeCloseTo(ends.clean, 4)
  })

  it('ablates by zero, mean, another text and noise', async () => {
    await using model = await tinyModel(config)
    const common = { input: { ids: clean }, metric, sites: ['mlp_out.*'], positions: 'all' } as const
    const zeros = await ablate(model, { ...common, by: { kind: 'zero' } })
    const want = difference((await model.with(zero('mlp_out.1')).run({ ids: clean })).logits.at(0, -1))
    expect(zeros.tables['mlp_out.*']?.data[1]).toBeCloseTo(want, 4)
    const means = await ablate(model, { ...common, by: { kind: 'mean', over: { rows: [clean, [3, 4]] } } })
    const taps = (await model.run({ rows: [clean, [3, 4]] }, { taps: ['mlp_out.0'] })).taps['mlp_out.0']
    const rows = [...clean.map((_, p) => taps.at(0, p)), taps.at(1, 0), taps.at(1, 1)]
    const mean = Float32Array.from(rows[0] as Float32Array, (_, i) => rows.reduce((s, r) => s + (r[i] as number), 0) / rows.length)
    const byHand = model.with({ op: 'mean_ablate', site: 'mlp_out.0', params: { mean } })
    expect(means.tables['mlp_out.*']?.data[0]).toBeCloseTo(difference((await byHand.run({ ids: clean })).logits.at(0, -1)), 4)
    const other = await ablate(model, { ...common, by: { kind: 'resample', from: { ids: corrupt } } })
    const patched = await patch(model, { ...common, clean: { ids: clean }, corrupt: { ids: corrupt }, direction: 'noise' })
    expect(other.tables).toEqual(patched.tables)
    const noise = (seed: number) => ablate(model, { ...common, by: { kind: 'noise', seed } })
    expect((await noise(1)).tables).toEqual((await noise(1)).tables)
    expect((await noise(1)).tables).not.toEqual((await noise(2)).tables)
  })

  it('compiles once for a kind of site, whatever the texts', async () => {
    await using model = await tinyModel(config)
    const run = (ids: number[], other: number[]) =>
      patch(model, { clean: { ids }, corrupt: { ids: other }, metric: { ...metric, wrong: ids[0]! }, sites: 'resid_pre.*' })
    await run(clean, corrupt)
    const { compiled } = model.statistics
    await run([1, 2, 3], [1, 9, 3])
    expect(model.statistics.compiled).toBe(compiled)
  })

  it('refuses what makes no sense', async () => {
    await using model = await tinyModel(config)
    const request = { clean: { ids: clean }, corrupt: { ids: corrupt }, metric, sites: 'resid_pre.*' } as const
    await expect(patch(model, { ...request, corrupt: { ids: [1, 2] } })).rejects.toThrow('6 tokens and the corrupted one 2')
    await expect(patch(model, { ...request, sites: [] })).rejects.toThrow('at least one site')
    await expect(patch(model, { ...request, sites: '*.1' })).rejects.toThrow('several kinds')
    await expect(patch(model, { ...request, metric: { ...metric, answer: 99 } })).rejects.toThrow('ids 0 to 60')
    await expect(patch(model, { ...request, metric: { ...metric, answer: [1, 2] } })).rejects.toThrow('for 1 pairs')
    await expect(patch(model, { ...request, signal: AbortSignal.abort() })).rejects.toThrow('cancelled')
    await expect(patch(model.with(zero('z.0', { where: { rows: [0] } })), request)).rejects.toThrow('rows are stacked')
    await expect(
      ablate(model, { input: { ids: clean }, metric, sites: 'attn_probs.*', by: { kind: 'mean', over: { ids: clean } } }),
    ).rejects.toThrow('no mean over positions')
    const uneven = { clean: { rows: [clean, [1, 2]] }, corrupt: { rows: [corrupt, [1, 3]] } }
    await expect(patch(model, { ...request, ...uneven })).rejects.toThrow('differ in length')
    await expect(patch(model, { ...request, ...uneven, positions: 'all' })).resolves.toBeDefined()
  })
})

describe.skipIf(!hasGoldens).each(['gpt2', 'llama'])('sweeps of TransformerLens over %s', (family) => {
  it('are ours', async () => {
    const { model, get, clean, corrupt, answer, wrong } = await derived(family)
    await using _ = model
    const request = { clean: { ids: clean }, corrupt: { ids: corrupt }, metric: { kind: 'logit-difference', answer, wrong } } as const
    const each = await patch(model, { ...request, sites: ['resid_pre.*', 'resid_mid.*', 'attn_out_post.*', 'mlp_out_post.*', 'z.*'] })
    const all = await patch(model, { ...request, positions: 'all', sites: ['z.*', 'q.*', 'k.*', 'v.*', 'attn_probs.*'] })
    expect(each.metric.clean).toBeCloseTo((await get('metric.clean')).data[0] as number, 3)
    expect(each.metric.corrupt).toBeCloseTo((await get('metric.corrupt')).data[0] as number, 3)
    const names = {
      resid_pre: [each, 'resid_pre.*'],
      resid_mid: [each, 'resid_mid.*'],
      attn_out: [each, 'attn_out_post.*'],
      mlp_out: [each, 'mlp_out_post.*'],
      attn_head_out_by_pos: [each, 'z.*'],
      attn_head_out_all_pos: [all, 'z.*'],
      attn_head_q_all_pos: [all, 'q.*'],
      attn_head_k_all_pos: [all, 'k.*'],
      attn_head_v_all_pos: [all, 'v.*'],
      attn_head_pattern_all_pos: [all, 'attn_probs.*'],
    } as const
    for (const [name, [result, pattern]] of Object.entries(names)) {
      const want = await get(`act_patch.${name}`)
      expect(result.tables[pattern]?.shape).toEqual(want.shape)
      expect(errorOf(result.tables[pattern]!.data, want.data), name).toBeLessThan(1e-3)
    }
  })
})
