import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import type { NDArray } from '../../base/types.ts'
import { saeWeights } from '../../models/sae/weights.ts'
import { RandomStream } from '../../nn/index.ts'
import type { Model } from '../../run/index.ts'
import { tinyLlama, tinyModel, tinyTensors } from '../../run/testing.ts'
import { sae as saeEdit } from '../../sites/index.ts'
import { encodeAt, latentLogits, latentSummaries, steeringVectorOf } from './latents.ts'
import { encodeNeuronpediaFeatures } from './neuronpedia.ts'
import { Sae } from './sae.ts'
import { errorOf } from './testing.ts'

let model: Model
let sae: Sae
const data = Array.from({ length: 12 }, (_, i) => Array.from({ length: 6 + (i % 4) }, (_, j) => (11 * i + 5 * j + 1) % 61))

beforeAll(async () => {
  model = await tinyModel()
  const random = RandomStream.of(4)
  const array = (...shape: number[]): NDArray<Float32Array> => ({
    dtype: 'float32',
    shape,
    data: Float32Array.from({ length: shape.reduce((p, n) => p * n, 1) }, () => 0.4 * random.normal()),
  })
  const tensors = { W_enc: array(32, 24), W_dec: array(24, 32), b_dec: array(32), b_enc: array(24) }
  sae = new Sae(saeWeights({ kind: 'standard', subtractsBias: true, tensors, hook: 'blocks.1.hook_resid_post' }))
})
afterAll(() => model.dispose())

/** Activations of all positions, one document after another, each document run alone. */
async function byHand(latent: number) {
  const out: { document: number; position: number; token: number; value: number }[] = []
  for (const [document, ids] of data.entries()) {
    const { taps } = await model.run({ ids }, { taps: ['resid_post.1'], logits: false })
    const a = taps['resid_post.1'] as unknown as NDArray<Float32Array>
    const acts = await sae.encode({ dtype: 'float32', shape: a.shape, data: a.data })
    for (const [position, token] of ids.entries())
      out.push({ document, position, token, value: acts.data[position * 24 + latent] as number })
  }
  return out
}

describe('latents', () => {
  it('are summarised as counting by hand does', async () => {
    const latents = [3, 17]
    const summaries = await latentSummaries(model, sae, { data, latents, keep: 4, around: 2 })
    for (const [k, latent] of latents.entries()) {
      const all = await byHand(latent)
      const active = all.filter((p) => p.value > 0)
      const s = summaries[k] as (typeof summaries)[0]
      expect([s.latent, s.active, s.positions]).toEqual([latent, active.length, all.length])
      expect(s.max).toBeCloseTo(Math.max(...active.map((p) => p.value)), 4)
      expect(s.mean).toBeCloseTo(active.reduce((t, p) => t + p.value, 0) / active.length, 4)
      expect(s.histogram.counts.reduce((a, b) => a + b, 0)).toBe(active.length)
      // One context for each row, the strongest first.
      const best = data
        .map((_, d) => active.filter((p) => p.document === d).sort((a, b) => b.value - a.value)[0])
        .filter((p) => p !== undefined)
      best.sort((a, b) => b.value - a.value)
      expect(s.contexts.map((c) => [c.document, c.position])).toEqual(best.slice(0, 4).map((p) => [p.document, p.position]))
      expect(s.contexts[0]?.tokens[s.contexts[0].at]).toBe(best[0]?.token)
      expect(s.contexts[0]?.activations[s.contexts[0].at]).toBeCloseTo(best[0]?.value as number, 4)
      const sums = new Map<number, number>()
      for (const p of active) sums.set(p.token, (sums.get(p.token) ?? 0) + p.value)
      expect(s.tokens[0]?.token).toBe([...sums].sort(([, a], [, b]) => b - a)[0]?.[0])
    }
    await expect(latentSummaries(model, sae, { data, latents: [] })).rejects.toThrow(/No latent is named/)
    await expect(latentSummaries(model, sae, { data, latents: [24] })).rejects.toThrow(/latents 0 to 23/)
  })

  it('have logit weights W_dec · gain · W_U', async () => {
    const [logits] = await latentLogits(model, sae, [5], 3)
    const tensors = tinyTensors(tinyLlama)
    const gain = (tensors['model.norm.weight'] as NDArray<Float32Array>).data
    const head = (tensors['lm_head.weight'] as NDArray<Float32Array>).data
    const row = sae.direction(5)
    const want = Array.from({ length: 61 }, (_, t) =>
      row.reduce((s, v, i) => s + v * (gain[i] as number) * (head[t * 32 + i] as number), 0),
    )
    expect(errorOf(logits?.weights ?? [], want)).toBeLessThan(1e-5)
    expect(logits?.promoted[0]?.token).toBe(want.indexOf(Math.max(...want)))
    expect(logits?.suppressed[0]?.token).toBe(want.indexOf(Math.min(...want)))
  })

  it('steer as the edit that boosts them', async () => {
    const vector = await steeringVectorOf(model, sae, 9)
    expect(vector.sites).toEqual(['resid_post.1'])
    expect(vector.record).toMatchObject({ method: 'sae', options: { latent: 9 } })
    const ids = { ids: data[0] as number[] }
    const a = await model.with(vector.edits({ scale: 3 })).run(ids)
    const b = await model.with(saeEdit('resid_post.1', sae, { latents: { 9: 3 } })).run(ids)
    expect(errorOf(a.logits.data, b.logits.data)).toBeLessThan(1e-5)
  })

  it('are encoded for a batch of unequal rows as for each alone, with nothing at padding', async () => {
    const rows = [data[0], data[3]] as number[][]
    const { acts } = await encodeAt(model, sae, { rows })
    expect(acts.shape).toEqual([2, 9, 24])
    const alone = await encodeAt(model, sae, { ids: rows[0] as number[] })
    expect(errorOf(acts.data.subarray(0, 6 * 24), alone.acts.data)).toBeLessThan(1e-5)
    expect(acts.data.subarray(6 * 24, 9 * 24).every((v) => v === 0)).toBe(true)
    await expect(encodeAt(model, sae, { rows }, { site: 'mlp_act.0' })).rejects.toThrow(/48 wide: it belongs to another/)
  })

  it("are written as Neuronpedia's features, with labels as data", async () => {
    const summaries = await latentSummaries(model, sae, { data, latents: [3] })
    const logits = await latentLogits(model, sae, [3])
    const [feature] = encodeNeuronpediaFeatures(model, sae, summaries, logits, { labels: { 3: 'threes' }, sourceId: '1-res-mine' })
    expect(feature).toMatchObject({ layer: '1-res-mine', index: 3, explanations: [{ description: 'threes' }] })
    expect(feature?.vector).toEqual(Array.from(sae.direction(3)))
    expect(feature?.frac_nonzero).toBeCloseTo((summaries[0]?.active as number) / (summaries[0]?.positions as number), 6)
    expect(() => encodeNeuronpediaFeatures(model, sae, summaries, logits, { labels: { 4: 'x' } })).toThrow(/label for latent 4/)
    expect(() => encodeNeuronpediaFeatures(model, sae, summaries, [])).toThrow(/no logit weights/)
  })
})
