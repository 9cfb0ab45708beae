import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { describe, expect, it } from 'vitest'
import { writeSafetensors } from '../models/formats/index.ts'
import { tinyGpt2, tinyLlama, tinyModel } from '../run/testing.ts'
import { add, scale, zero } from '../sites/index.ts'
import { fitJacobianLens, lens, loadLens, saveLens } from './index.ts'
import { derived, errorOf, hasGoldens } from './testing.ts'

const ids = [5, 17, 3, 44, 29, 8]

describe.each([
  ['llama', tinyLlama],
  ['gpt2', tinyGpt2],
])('the logit lens on %s', (_, config) => {
  it('ends at the model itself, and gives top tokens, entropy and KL of its logits', async () => {
    await using model = await tinyModel(config)
    const { vocab, layers } = model.spec
    const result = await lens(model, { ids }, { sites: ['resid_post.*', 'resid_pre.0'], top: 3, tokens: [7, 40], logits: true })
    expect(result.sites).toEqual(['resid_pre.0', ...Array.from({ length: layers }, (_, l) => `resid_post.${l}`)])
    const n = layers + 1
    expect([result.topIds.shape, result.entropy.shape, result.probabilities?.shape]).toEqual([
      [n, 6, 3],
      [n, 6],
      [n, 6, 2],
    ])
    const own = (await model.run({ ids })).logits
    const logits = result.logits!.data
    expect(errorOf(logits.subarray(layers * 6 * vocab), own.data)).toBeLessThan(1e-5)
    const softmax = (x: Float32Array) => {
      const e = [...x].map((v) => Math.exp(v - Math.max(...x)))
      return e.map((v) => v / e.reduce((a, b) => a + b))
    }
    for (let l = 0; l < n; l++)
      for (let p = 0; p < 6; p++) {
        const q = softmax(logits.subarray((l * 6 + p) * vocab, (l * 6 + p + 1) * vocab))
        const model = softmax(own.at(0, p))
        const order = [...q.keys()].sort((a, b) => (q[b] as number) - (q[a] as number)).slice(0, 3)
        const at = l * 6 + p
        expect([...result.topIds.data.subarray(at * 3, at * 3 + 3)].map(Number)).toEqual(order)
        expect(result.topProbs.data[at * 3]).toBeCloseTo(q[order[0] as number] as number, 5)
        expect(result.probabilities!.data[at * 2 + 1]).toBeCloseTo(q[40] as number, 5)
        expect(result.entropy.data[at]).toBeCloseTo(-q.reduce((s, v) => s + v * Math.log(v), 0), 4)
        expect(result.kl.data[at]).toBeCloseTo(
          model.reduce((s, v, i) => s + v * Math.log(v / (q[i] as number)), 0),
          4,
        )
      }
  })

  it('sees the edits of the model', async () => {
    await using model = await tinyModel(config)
    const edited = model.with(scale('resid_post.0', 3), add('final_norm', 0.5))
    const result = await lens(edited, { ids }, { sites: 'resid_post.*', logits: true })
    const own = (await edited.run({ ids })).logits
    expect(errorOf(result.logits!.data.subarray(-own.data.length), own.data)).toBeLessThan(1e-5)
    expect(result.kl.data.at(-1)).toBeCloseTo(0, 5)
  })

  it('of Jacobians is exact where the blocks are linear, and equals finite differences where not', async () => {
    await using model = await tinyModel(config)
    const { dModel } = model.spec
    // Without attention a position moves itself alone; without MLPs, too, the map is the identity over the share of such pairs.
    const linear = await fitJacobianLens(model.with(zero('attn_out.*'), zero('mlp_out.*')), { ids }, { tokensAtOnce: 64 })
    const share = (2 * ids.length) / (ids.length * (ids.length + 1))
    const identity = Float32Array.from({ length: dModel * dModel }, (_, i) => (i % (dModel + 1) === 0 ? share : 0))
    expect(errorOf(linear.maps['resid_post.0']!.data, identity)).toBeLessThan(1e-5)
    expect(linear.maps[`resid_post.${model.spec.layers - 1}`]).toBeUndefined()

    const texts = { rows: [ids, [3, 9]] }
    const fitted = await fitJacobianLens(model, texts, { sites: 'resid_post.0' })
    const direction = Float32Array.from({ length: dModel }, (_, i) => Math.sin(i + 1))
    const end = `resid_post.${model.spec.layers - 1}`
    const moved = new Float32Array(dModel)
    let pairs = 0
    const step = 1e-2
    for (const row of texts.rows)
      for (let t = 0; t < row.length; t++) {
        const run = async (by: number) =>
          (await model.with(add('resid_post.0', direction, { scale: by, where: { positions: t } })).run({ ids: row }, { taps: [end] }))
            .taps[end]!
        const [ahead, behind] = [await run(step), await run(-step)]
        for (let p = t; p < row.length; p++, pairs++)
          for (let i = 0; i < dModel; i++)
            moved[i] = (moved[i] as number) + ((ahead.at(0, p)[i] as number) - (behind.at(0, p)[i] as number)) / (2 * step)
      }
    const map = fitted.maps['resid_post.0']!.data
    const ours = moved.map((_, i) => direction.reduce((s, v, j) => s + v * (map[i * dModel + j] as number), 0) * pairs)
    expect(errorOf(ours, moved)).toBeLessThan(1e-2)
  })

  it('of Jacobians is applied, saved and loaded', async () => {
    await using model = await tinyModel(config)
    const folder = await mkdtemp(join(tmpdir(), 'actlens-lens-'))
    try {
      const maps = await fitJacobianLens(model, { ids })
      await saveLens(join(folder, 'lens.safetensors'), maps)
      const loaded = await loadLens(join(folder, 'lens.safetensors'))
      expect(loaded).toEqual(maps)
      const seen = await lens(model, { ids }, { maps: loaded, logits: true })
      expect(seen.kind).toBe('jacobian')
      const value = (await model.run({ ids }, { taps: ['resid_post.0'] })).taps['resid_post.0']
      const { dModel, vocab } = model.spec
      const map = maps.maps['resid_post.0']!.data
      const moved = new Float32Array(value.data.length)
      for (let p = 0; p < ids.length; p++)
        for (let i = 0; i < dModel; i++)
          moved[p * dModel + i] = value.at(0, p).reduce((s, v, j) => s + v * (map[i * dModel + j] as number), 0)
      const end = `resid_post.${model.spec.layers - 1}`
      const shape = [1, ids.length, dModel]
      const want = await model.with({ op: 'replace', site: end, params: { value: { dtype: 'float32', shape, data: moved } } }).run({ ids })
      expect(errorOf(seen.logits!.data.subarray(0, ids.length * vocab), want.logits.data)).toBeLessThan(1e-4)
      expect(seen.kl.data.at(-1)).toBeCloseTo(0, 5)
      await expect(lens(model, { ids }, { maps: { kind: 'jacobian', maps: {} } })).rejects.toThrow('not fitted')
      await writeSafetensors(join(folder, 'other.safetensors'), { x: value })
      await expect(loadLens(join(folder, 'other.safetensors'))).rejects.toThrow('no fitted lens')
    } finally {
      await rm(folder, { recursive: true })
    }
  })

  it('refuses what makes no sense', async () => {
    await using model = await tinyModel(config)
    await expect(lens(model, { ids }, { sites: 'z.*' })).rejects.toThrow('d_model wide')
    await expect(lens(model, { ids }, { top: 0 })).rejects.toThrow('between 1 and 61')
    await expect(lens(model, { ids }, { tokens: [61] })).rejects.toThrow('ids 0 to 60')
    await expect(lens(model, { rows: [ids, ids] })).rejects.toThrow('one text at a time')
    await expect(fitJacobianLens(model, { ids }, { signal: AbortSignal.abort() })).rejects.toThrow('cancelled')
  })
})

describe.skipIf(!hasGoldens).each(['gpt2', 'llama'])('the logit lens of TransformerLens on %s', (family) => {
  it('is ours', async () => {
    const { model, get, clean } = await derived(family)
    await using _ = model
    const end = `resid_post.${model.spec.layers - 1}`
    const { logits, sites } = await lens(model, { ids: clean }, { sites: ['resid_pre.*', 'resid_mid.*', end], logits: true })
    expect(sites).toHaveLength(7)
    const want = await get('logit_lens')
    expect(errorOf(logits!.data, want.data)).toBeLessThan(1e-3)
    expect(errorOf(logits!.data, (await get('folded.logit_lens')).data)).toBeLessThan(1e-3)
  })
})
