import { describe, expect, it } from 'vitest'
import { tinyGpt2, tinyLlama, tinyModel } from '../run/testing.ts'
import { edit } from '../sites/index.ts'
import { mul } from '../tensor/index.ts'
import { attributeLogits, decomposeStream, headPatterns, headScores } from './index.ts'
import { derived, errorOf, hasGoldens } from './testing.ts'

const rows = [
  [5, 17, 3, 44, 29, 8],
  [9, 17, 9, 44, 29, 17],
]

describe.each([
  ['llama', tinyLlama],
  ['gpt2', tinyGpt2],
])('direct logit attribution on %s', (_, config) => {
  it('adds up to the logits', async () => {
    await using model = await tinyModel(config)
    const { logits } = await model.run({ rows })
    for (const [options, want] of [
      [{ answer: 7, wrong: 40 }, (x: Float32Array) => (x[7] as number) - (x[40] as number)],
      [{ answer: 7 }, (x: Float32Array) => x[7] as number],
    ] as const) {
      const { values, bias, metric } = await attributeLogits(model, { rows }, options)
      const places = rows.flatMap((r, b) => r.map((_, p) => want(logits.at(b, p))))
      const parts = values.shape[0] as number
      const sums = places.map((_, i) =>
        Array.from({ length: parts }, (_, c) => values.data[c * places.length + i] as number).reduce((a, v) => a + v, bias),
      )
      expect(errorOf(sums, places)).toBeLessThan(1e-4)
      expect(errorOf(metric.data, places)).toBeLessThan(1e-4)
    }
  })

  it('of heads adds up to that of attention, less the bias of the output projection', async () => {
    await using model = await tinyModel(config)
    const [whole, heads] = [await decomposeStream(model, { rows }), await decomposeStream(model, { rows }, { parts: 'heads' })]
    const size = whole.values.data.length / (whole.values.shape[0] as number)
    const at = (d: typeof whole, label: string) =>
      d.values.data.subarray(d.labels.indexOf(label) * size, (d.labels.indexOf(label) + 1) * size)
    const sum = new Float32Array(size)
    for (let h = 0; h < model.spec.heads; h++) for (const [i, v] of at(heads, `L1H${h}`).entries()) sum[i] = (sum[i] as number) + v
    const rest = at(whole, '1_attn_out').map((v, i) => v - (sum[i] as number))
    // The rest is the same vector everywhere.
    const bias = rest.slice(0, model.spec.dModel)
    expect(Math.max(...rest.map((v, i) => Math.abs(v - (bias[i % bias.length] as number))))).toBeLessThan(1e-4)
    expect(bias.every((v) => Math.abs(v) < 1e-4)).toBe(config.model_type === 'llama')
  })

  it('refuses what makes no sense', async () => {
    await using model = await tinyModel(config)
    await expect(attributeLogits(model, { rows }, { answer: 61 })).rejects.toThrow('no token 61')
    await expect(decomposeStream(model, { rows: [[1], [1, 2]] })).rejects.toThrow('one length')
  })

  it('heads are scored by what they look at', async () => {
    await using model = await tinyModel(config)
    const { attn_probs } = Object.fromEntries(
      Object.entries((await model.run({ rows }, { taps: ['attn_probs.1'] })).taps).map(([, v]) => ['attn_probs', v]),
    )
    const { scores, patterns, queries } = await headScores(model, { texts: { rows } })
    const { heads, layers } = model.spec
    expect(scores.shape).toEqual([5, layers, heads])
    for (const [i, name] of patterns.entries()) {
      const keys = headPatterns[name as 'first'].keys
      for (let h = 0; h < heads; h++) {
        let [sum, count] = [0, 0]
        for (const [b, row] of rows.entries())
          for (let q = 0; q < row.length; q++) {
            const found = keys(row, q)
            if (found.length > 0) count++
            for (const k of found) sum += attn_probs!.data[((b * heads + h) * 6 + q) * 6 + k] as number
          }
        expect(queries[name]).toBe(count)
        expect(scores.data[(i * layers + 1) * heads + h]).toBeCloseTo(sum / count, 5)
      }
    }
    // Rows of attention sum to one, so a head that is told to spread less scores less.
    const half = await headScores(model.with(edit('attn_probs.0', (x) => mul(x, 0.5))), {
      patterns: { all: { doc: 'all', keys: (_, q) => [...Array(q + 1).keys()] } },
    })
    expect(half.scores.data[0]).toBeCloseTo(0.5, 5)
    expect(half.scores.data.at(-1)).toBeCloseTo(1, 5)
    await expect(headScores(model, { texts: { ids: [1, 2, 3] } })).rejects.toThrow('duplicate, induction')
  })
})

describe.skipIf(!hasGoldens).each(['gpt2', 'llama'])('the stream of %s taken apart', (family) => {
  it('is that of TransformerLens, with the norm folded whatever the weights look like', async () => {
    const { model, get, clean, answer, wrong, facts } = await derived(family)
    await using _ = model
    const input = { ids: clean }
    const components = await decomposeStream(model, input)
    expect(components.labels).toEqual(facts.labels.components)
    expect(components.values.shape).toEqual((await get('decompose_resid')).shape)
    expect(errorOf(components.values.data, (await get('decompose_resid')).data)).toBeLessThan(1e-3)
    const frozen = await decomposeStream(model, input, { norm: 'frozen' })
    expect(errorOf(frozen.values.data, (await get('decompose_resid.ln')).data)).toBeLessThan(1e-3)
    expect(errorOf(frozen.values.data, (await get('folded.decompose_resid.ln')).data)).toBeLessThan(1e-3)
    const accumulated = await decomposeStream(model, input, { parts: 'accumulated' })
    expect(accumulated.labels).toEqual(facts.labels.accumulated)
    expect(errorOf(accumulated.values.data, (await get('accumulated_resid')).data)).toBeLessThan(1e-3)
    const own = await decomposeStream(model, input, { parts: 'accumulated', norm: 'own' })
    expect(errorOf(own.values.data, (await get('folded.accumulated_resid.ln')).data)).toBeLessThan(1e-3)
    const heads = await decomposeStream(model, input, { parts: 'heads' })
    expect(heads.labels).toEqual(facts.labels.heads)
    expect(errorOf(heads.values.data, (await get('stack_head_results')).data)).toBeLessThan(1e-3)
    for (const by of ['components', 'heads'] as const) {
      const { values, bias } = await attributeLogits(model, input, { answer, wrong, by })
      expect(errorOf(values.data, (await get(`folded.logit_attrs.${by}`)).data), by).toBeLessThan(1e-3)
      expect(bias).toBeCloseTo(facts.tensors['folded.logit_attrs.components']?.b_U_difference ?? Number.NaN, 3)
    }
  })
})
