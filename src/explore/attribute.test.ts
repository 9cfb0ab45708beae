import { describe, expect, it } from 'vitest'
import { tinyGpt2, tinyLlama, tinyModel } from '../run/testing.ts'
import { edit, zero } from '../sites/index.ts'
import { gaussLegendre } from './attribute.ts'
import { attribute, compareAttribution, patch } from './index.ts'
import { derived, errorOf, hasGoldens } from './testing.ts'

const clean = [5, 17, 3, 44, 29, 8]
const corrupt = [5, 17, 21, 44, 29, 8]
const metric = { kind: 'logit-difference', answer: 7, wrong: 40 } as const
const pair = { clean: { ids: clean }, corrupt: { ids: corrupt }, metric } as const

it('Gauss–Legendre quadrature is exact for polynomials', () => {
  for (const n of [1, 2, 5, 16])
    for (let degree = 0; degree < 2 * n; degree++) {
      const integral = gaussLegendre(n).reduce((s, { alpha, weight }) => s + weight * alpha ** degree, 0)
      expect(integral).toBeCloseTo(1 / (degree + 1), 12)
    }
})

describe.each([
  ['llama', tinyLlama],
  ['gpt2', tinyGpt2],
])('attribution on %s', (_, config) => {
  it('is exact where the metric is linear in the site', async () => {
    await using model = await tinyModel(config)
    const last = `resid_post.${model.spec.layers - 1}`
    // Without attention, MLPs and the final norm only the embeddings speak, through a linear map.
    const linear = model.with(
      zero('attn_out.*'),
      zero('mlp_out.*'),
      edit('final_norm', (_, c) => c.read(last), { reads: [last] }),
    )
    const request = { ...pair, corrupt: { ids: [5, 17, 3, 44, 29, 9] }, sites: ['resid_pre.*', last, 'logits'] }
    for (const method of ['gradient', 'integrated'] as const) {
      const estimate = await attribute(linear, { ...request, method, steps: 2 })
      const patched = await patch(linear, request)
      expect(estimate.metric.clean).toBeCloseTo(patched.metric.clean, 4)
      expect(estimate.metric.corrupt).toBeCloseTo(patched.metric.corrupt, 4)
      const { correlation, largestDifference } = compareAttribution(estimate, patched)
      expect(correlation).toBeCloseTo(1, 5)
      expect(largestDifference).toBeLessThan(1e-3)
    }
  })

  it('is the gradient times the difference', async () => {
    await using model = await tinyModel(config)
    const { tables } = await attribute(model, { ...pair, sites: ['z.*', 'attn_probs.1', 'k.*', 'attn_scores.0'] })
    const g = await model.gradient({ of: { kind: 'logit-difference', tokens: [7, 40] }, at: ['z.1', 'k.0'] }, pair.corrupt)
    const { taps } = await model.run(pair.clean, { taps: ['z.1', 'k.0'] })
    for (const [site, pattern, layer] of [
      ['z.1', 'z.*', 1],
      ['k.0', 'k.*', 0],
    ] as const) {
      const { data, shape } = g.sites[site]!
      const [heads, width] = shape.slice(2) as [number, number]
      const want = new Float32Array(clean.length * heads)
      for (let i = 0; i < data.length; i++) {
        const at = Math.floor(i / width)
        want[at] = (want[at] as number) + (data[i] as number) * ((taps[site].data[i] as number) - (g.activations[site]!.data[i] as number))
      }
      expect(errorOf(tables[pattern]!.data.subarray(layer * want.length, (layer + 1) * want.length), want)).toBeLessThan(1e-4)
    }
    expect(tables['attn_scores.0']?.shape).toEqual([1, clean.length, 4])
    expect(tables['attn_scores.0']?.data.every(Number.isFinite)).toBe(true)
    const all = await attribute(model, { ...pair, sites: 'z.*', positions: 'all' })
    const heads = model.spec.heads
    const summed = new Float32Array(heads)
    for (let i = 0; i < clean.length * heads; i++) summed[i % heads] = (summed[i % heads] as number) + (tables['z.*']!.data[i] as number)
    expect(errorOf(all.tables['z.*']!.data.subarray(0, heads), summed)).toBeLessThan(1e-4)
  })

  it('integrated is complete: the parts add up to what the whole site changes', async () => {
    await using model = await tinyModel(config)
    for (const direction of ['denoise', 'noise'] as const) {
      const request = { ...pair, sites: ['resid_pre.*', 'z.*', 'mlp_act.1'], direction }
      const { completeness } = await attribute(model, { ...request, method: 'integrated', steps: 24 })
      expect(Object.keys(completeness ?? {})).toHaveLength(2 * model.spec.layers + 1)
      for (const [site, { sum, change }] of Object.entries(completeness ?? {})) expect(sum, site).toBeCloseTo(change, 2)
      // In small groups of rows as well.
      const groups = await attribute(model, { ...request, method: 'integrated', steps: 24, memory: 1 })
      expect(groups.completeness?.['z.0']?.sum).toBeCloseTo(completeness?.['z.0']?.sum as number, 4)
    }
  })

  it('knows all metrics, and averages over pairs', async () => {
    await using model = await tinyModel(config)
    const pairs = { clean: { rows: [clean, corrupt] }, corrupt: { rows: [corrupt, clean] }, sites: 'mlp_out.*' }
    for (const m of [{ kind: 'kl' }, { kind: 'loss' }, { kind: 'probability', answer: [7, 9] }] as const)
      for (const direction of ['denoise', 'noise'] as const) {
        const estimate = await attribute(model, { ...pairs, metric: m, direction, method: 'integrated', steps: 16 })
        const patched = await patch(model, { ...pairs, metric: m, direction })
        expect(estimate.metric.clean).toBeCloseTo(patched.metric.clean, 4)
        expect(estimate.metric.corrupt).toBeCloseTo(patched.metric.corrupt, 4)
      }
  })

  it('is the same in segments', async () => {
    await using model = await tinyModel(config)
    await using segmented = await tinyModel(config, { compile: 'segmented' })
    const request = { ...pair, sites: ['resid_pre.*', 'z.*', 'attn_scores.*'] }
    const [a, b] = [await attribute(model, request), await attribute(segmented, request)]
    expect(b.metric.clean).toBeCloseTo(a.metric.clean, 4)
    for (const [name, t] of Object.entries(a.tables)) expect(errorOf(b.tables[name]!.data, t.data), name).toBeLessThan(1e-4)
  })

  it('refuses what makes no sense', async () => {
    await using model = await tinyModel(config)
    await expect(attribute(model, { ...pair, sites: 'z.*', method: 'edge' as 'gradient' })).rejects.toThrow("no method 'edge'")
    await expect(attribute(model, { ...pair, sites: 'z.*', steps: 0 })).rejects.toThrow('whole number')
    await expect(attribute(model, { ...pair, sites: 'z.*', signal: AbortSignal.abort() })).rejects.toThrow('cancelled')
  })
})

describe.skipIf(!hasGoldens).each(['gpt2', 'llama'])('attribution of TransformerLens on %s', (family) => {
  it('is ours, and as good an estimate', async () => {
    const { model, get, clean, corrupt, answer, wrong, facts } = await derived(family)
    await using _ = model
    const request = {
      clean: { ids: clean },
      corrupt: { ids: corrupt },
      metric: { kind: 'logit-difference', answer, wrong },
      sites: 'resid_pre.*',
    } as const
    const estimate = await attribute(model, request)
    expect(errorOf(estimate.tables['resid_pre.*']!.data, (await get('attribution.resid_pre')).data)).toBeLessThan(1e-3)
    const compared = compareAttribution(estimate, await patch(model, request))
    expect(compared.correlation).toBeCloseTo(facts.attribution_vs_patching.correlation, 3)
    expect(compared.largestDifference).toBeCloseTo(facts.attribution_vs_patching.largest_difference, 2)
  })
})
