import { describe, expect, it } from 'vitest'
import { add, projectOut, scale } from '../sites/edits.ts'
import { tinyGpt2, tinyLlama, tinyModel } from './testing.ts'

const rows = [
  [5, 17, 3, 44, 29, 8, 60],
  [9, 2, 33, 1],
]
const loss = { kind: 'logit-difference', tokens: [7, 40] } as const
const wave = (n: number, phase = 1) => Float32Array.from({ length: n }, (_, i) => Math.sin(i * 1.7 + phase))
const dot = (a: ArrayLike<number>, b: ArrayLike<number>) => Array.from(a).reduce((s, v, i) => s + v * (b[i] as number), 0)
const errorOf = (ours: ArrayLike<number>, want: ArrayLike<number>) => {
  expect(ours.length).toBe(want.length)
  const size = Math.max(...Array.from(want, Math.abs))
  return Math.max(...Array.from(ours, (v, i) => Math.abs(v - (want[i] as number)))) / size
}

describe.each([
  ['llama', tinyLlama],
  ['gpt2', tinyGpt2],
])('saved values of %s', (_, config) => {
  it('give the same numbers kept, computed again, on disk and within a budget, which is honoured', async () => {
    await using model = await tinyModel(config, { compile: 'segmented' })
    const parameter = config.model_type === 'gpt2' ? 'transformer.h.0.mlp.c_fc.weight' : 'model.layers.0.mlp.up_proj.weight'
    const request = { of: { kind: 'next-token' as const }, at: ['resid_post.*', 'embeddings'], parameters: [parameter] }
    const want = await model.gradient(request, { rows })
    const budget = Math.round(want.saved.keptBytes * 0.6)
    for (const saved of ['keep', 'recompute', 'disk', { budget }, { budget: 3000 }] as const) {
      const got = await model.gradient(request, { rows }, { saved })
      expect(got.value).toBeCloseTo(want.value, 5)
      for (const site of Object.keys(want.sites)) expect(errorOf(got.sites[site]!.data, want.sites[site]!.data)).toBeLessThan(1e-4)
      expect(errorOf(got.parameters[parameter]!.data, want.parameters[parameter]!.data)).toBeLessThan(1e-4)
      if (saved === 'recompute') expect(got.saved.keptBytes).toBeLessThan(0.6 * want.saved.keptBytes)
      if (saved === 'disk') expect(got.saved.spilledBytes).toBeGreaterThan(0.5 * want.saved.keptBytes)
      if (typeof saved === 'object' && saved.budget === budget) {
        expect(got.saved.keptBytes).toBeLessThan(1.15 * budget)
        expect(got.saved.spilledBytes).toBe(0)
      }
    }
  })

  it('are looked after in a model that is compiled as a whole, too; what is no policy is refused', async () => {
    await using model = await tinyModel(config)
    const request = { of: loss, at: 'resid_post.0' }
    const [want, got] = [await model.gradient(request, { rows }), await model.gradient(request, { rows }, { saved: 'recompute' })]
    expect(errorOf(got.sites['resid_post.0']!.data, want.sites['resid_post.0']!.data)).toBeLessThan(1e-4)
    await expect(model.gradient(request, { rows }, { saved: { budget: -1 } })).rejects.toThrow("'keep', 'recompute', 'disk'")
    await expect(model.gradient(request, { rows }, { saved: 'drop' as 'keep' })).rejects.toThrow("'drop'".replaceAll("'", '"'))
  })
})

describe('gradients', () => {
  it('at a part of a site are that part of the whole gradient', async () => {
    await using model = await tinyModel(tinyLlama)
    const whole = await model.gradient({ of: loss, at: 'resid_post.1' }, { rows })
    const part = await model.gradient({ of: loss, at: { site: 'resid_post.1', where: { positions: [-1], rows: [1] } } }, { rows })
    expect(part.sites['resid_post.1']!.shape).toEqual([1, 32])
    expect([...part.sites['resid_post.1']!.data]).toEqual([...whole.sites['resid_post.1']!.at(1, -1)])
    expect(part.selected['resid_post.1']!.places).toEqual([{ row: 1, position: 3 }])
    await expect(model.gradient({ of: loss, at: { site: 'resid_post.1', where: { rows: [5] } } }, { rows })).rejects.toThrow(
      'holds nowhere',
    )
  })

  it('reach the parameters of edits, with sites and weights at once', async () => {
    await using model = await tinyModel(tinyLlama)
    const [vector, away] = [wave(32), wave(32, 4)]
    const edited = (v: Float32Array, s: number, f: number) =>
      model.with(
        add('resid_post.0', v, { scale: s, where: { positions: { from: 1 } } }),
        projectOut('resid_mid.1', away),
        scale('mlp_out.2', f),
      )
    const request = { of: loss, edits: true, at: 'resid_post.1', parameters: ['model.norm.weight'] }
    const { edits, value, sites } = await edited(vector, 0.5, 1.2).gradient(request, { rows })
    expect(edits.map((e) => [e.label, Object.keys(e.params)])).toEqual([
      ['add at resid_post.0', ['vector', 'scale']],
      ['project_out at resid_mid.1', ['vector']],
      ['scale at mlp_out.2', ['factor']],
    ])
    expect(sites['resid_post.1']!.shape).toEqual([2, 7, 32])
    const at = async (v: Float32Array, s: number, f: number) => (await edited(v, s, f).gradient({ of: loss, at: 'logits' }, { rows })).value
    expect(await at(vector, 0.5, 1.2)).toBeCloseTo(value, 4)
    const h = 0.02
    const direction = wave(32, 2)
    const slopes = [
      [
        dot(edits[0]!.params.vector!.data, direction),
        (e: number) =>
          at(
            vector.map((x, i) => x + e * (direction[i] as number)),
            0.5,
            1.2,
          ),
      ],
      [edits[0]!.params.scale!.data[0], (e: number) => at(vector, 0.5 + e, 1.2)],
      [edits[2]!.params.factor!.data[0], (e: number) => at(vector, 0.5, 1.2 + e)],
    ] as const
    for (const [ours, f] of slopes) expect(ours).toBeCloseTo(((await f(h)) - (await f(-h))) / (2 * h), 1)
    await expect(model.gradient({ of: loss, edits: true }, { rows })).rejects.toThrow('no edit with parameters')
  })

  it('of vector and Jacobian agree with each other and with finite differences', async () => {
    await using model = await tinyModel(tinyGpt2)
    const [along, back] = [
      { dtype: 'float32', shape: [2, 7, 32], data: wave(448) } as const,
      { dtype: 'float32', shape: [2, 7, 32], data: wave(448, 3) } as const,
    ]
    const { changes, values } = await model.jvp({ of: ['resid_post.1'], along: { 'resid_post.0': along } }, { rows })
    const { sites } = await model.vjp({ of: 'resid_post.1', vector: back, at: 'resid_post.0' }, { rows })
    // ⟨back, J·along⟩ = ⟨Jᵀ·back, along⟩; rows hold no data where they have no token.
    const forward = dot(changes['resid_post.1']!.data, back.data)
    expect(forward).toBeCloseTo(dot(sites['resid_post.0']!.data, along.data), 2)
    const moved = async (h: number) => {
      const base = await model.run({ rows }, { taps: ['resid_post.0'] })
      const value = { ...along, data: base.taps['resid_post.0'].data.map((v, i) => v + h * (along.data[i] as number)) }
      return (await model.run({ rows }, { from: { site: 'resid_post.0', value }, taps: ['resid_post.1'] })).taps['resid_post.1'].data
    }
    const [ahead, behind] = [await moved(0.01), await moved(-0.01)]
    expect(
      errorOf(
        changes['resid_post.1']!.data,
        ahead.map((v, i) => (v - (behind[i] as number)) / 0.02),
      ),
    ).toBeLessThan(0.02)
    expect(errorOf(values['resid_post.1']!.data, await moved(0))).toBeLessThan(1e-5)
    const alone = await model.vjp({ of: 'resid_post.1', vector: wave(32), at: 'resid_post.0' }, { ids: rows[0] as number[] })
    expect(alone.sites['resid_post.0']!.shape).toEqual([1, 7, 32])
  })

  it('of gradients are changes of gradients', async () => {
    await using model = await tinyModel(tinyLlama)
    const ids = { ids: rows[0] as number[] }
    const along = { dtype: 'float32', shape: [1, 7, 32], data: wave(224) } as const
    const { products, gradients, value } = await model.hessianProduct({ of: loss, along: { 'resid_post.0': along } }, ids)
    const base = await model.gradient({ of: loss, at: 'resid_post.0' }, ids)
    expect(value).toBeCloseTo(base.value, 4)
    expect(errorOf(gradients['resid_post.0']!.data, base.sites['resid_post.0']!.data)).toBeLessThan(1e-4)
    const moved = async (h: number) => {
      const value = { ...along, data: base.activations['resid_post.0']!.data.map((v, i) => v + h * (along.data[i] as number)) }
      return (await model.gradient({ of: loss, at: 'resid_post.0' }, ids, { from: { site: 'resid_post.0', value } })).sites['resid_post.0']!
        .data
    }
    const [ahead, behind] = [await moved(0.01), await moved(-0.01)]
    expect(
      errorOf(
        products['resid_post.0']!.data,
        ahead.map((v, i) => (v - (behind[i] as number)) / 0.02),
      ),
    ).toBeLessThan(0.03)
  })
})
