import { existsSync, readFileSync } from 'node:fs'
import { describe, expect, it } from 'vitest'
import type { NDArray } from '../base/types.ts'
import { openSafetensors } from '../models/formats/index.ts'
import { add, edit, scale } from '../sites/edits.ts'
import { mul, sub, sum } from '../tensor/index.ts'
import { assemble } from './load.ts'
import { tinyGpt2, tinyLlama, tinyModel } from './testing.ts'

const ids = [5, 17, 3, 44, 29, 8, 60]
const loss = { kind: 'logit-difference', tokens: [7, 40] } as const

/** Largest error relative to the scale of the reference. */
const errorOf = (ours: ArrayLike<number>, want: ArrayLike<number>) => {
  let [scaleOf, worst] = [0, 0]
  for (let i = 0; i < want.length; i++) {
    scaleOf = Math.max(scaleOf, Math.abs(want[i] as number))
    worst = Math.max(worst, Math.abs((ours[i] as number) - (want[i] as number)))
  }
  return worst / scaleOf
}

describe.each([
  ['llama', tinyLlama],
  ['gpt2', tinyGpt2],
])('a gradient of %s', (_, config) => {
  it.each(['resid_post.0', 'attn_probs.1', 'z.0', 'mlp_act.1', 'q.1', 'resid_pre.0', 'final_norm_scale'])(
    'at %s equals finite differences',
    async (site) => {
      await using model = await tinyModel(config)
      const { value, sites, activations } = await model.gradient({ of: loss, at: site }, { ids })
      const g = sites[site]!
      const at = async (values: Float32Array) => {
        const changed = model.with({ op: 'replace', site, params: { value: { dtype: 'float32', shape: g.shape, data: values } } })
        const last = (await changed.run({ ids })).logits.at(0, -1)
        return (last[7] as number) - (last[40] as number)
      }
      const base = activations[site]!.data
      expect(await at(base)).toBeCloseTo(value, 3)
      // Along the gradient, and along a direction that is not special.
      for (const direction of [g.data, g.data.map((_, i) => Math.sin(i + 1))]) {
        const length = Math.hypot(...direction)
        const step = 0.02 / length
        const ahead = await at(base.map((v, i) => v + step * (direction[i] as number)))
        const behind = await at(base.map((v, i) => v - step * (direction[i] as number)))
        const expected = g.data.reduce((s, v, i) => s + v * (direction[i] as number), 0)
        const tolerance = 0.03 * Math.max(Math.abs(expected), length * Math.hypot(...g.data) * 0.05)
        expect(Math.abs((ahead - behind) / (2 * step) - expected)).toBeLessThan(tolerance + 1e-3)
      }
    },
  )

  it('is the same for a row alone and in a padded batch, and in segments', async () => {
    await using model = await tinyModel(config)
    await using segmented = await tinyModel(config, { compile: 'segmented' })
    const request = { of: loss, at: ['resid_post.*', 'attn_out.1'] } as const
    const alone = await model.gradient(request, { ids: ids.slice(0, 4) })
    const batch = await model.gradient(request, { rows: [ids, ids.slice(0, 4)] })
    const parts = await segmented.gradient(request, { ids: ids.slice(0, 4) })
    for (const site of Object.keys(alone.sites)) {
      expect(errorOf(batch.sites[site]!.row(1).data, alone.sites[site]!.data)).toBeLessThan(1e-4)
      expect(errorOf(parts.sites[site]!.data, alone.sites[site]!.data)).toBeLessThan(1e-4)
    }
  })

  it('passes through edits, and takes any function of the run', async () => {
    await using model = await tinyModel(config)
    const tripled = model.with(scale('resid_post.0', 3))
    const plain = await tripled.gradient({ of: loss, at: ['resid_post.0', 'resid_mid.0'] }, { ids })
    const direct = await model
      .with(edit('resid_post.0', (x) => mul(x, 3)))
      .gradient({ of: loss, at: ['resid_post.0', 'resid_mid.0'] }, { ids })
    expect(errorOf(plain.sites['resid_mid.0']!.data, direct.sites['resid_mid.0']!.data)).toBeLessThan(1e-5)
    const probed = await model.gradient(
      { of: (run) => sum(mul(run.site('resid_post.1'), sub(run.site('attn_probs.0').sum(), 1))), at: 'resid_post.1' },
      { ids },
    )
    // Rows of four heads sum to one: 4 heads × 7 queries − 1.
    expect(probed.sites['resid_post.1']!.data.every((v) => Math.abs(v - 27) < 1e-3)).toBe(true)
  })

  it('refuses what it cannot give', async () => {
    await using model = await tinyModel(config)
    await expect(model.gradient({ of: loss }, { ids })).rejects.toThrow('at least one site or parameter')
    await expect(model.gradient({ of: loss, parameters: ['nope'] }, { ids })).rejects.toThrow("reads no parameter 'nope'")
    await expect(model.gradient({ of: { kind: 'logit', token: 99 }, at: 'z.0' }, { ids })).rejects.toThrow('ids 0 to 60')
    await expect(model.gradient({ of: (run) => run.site('resid_post.0').sum(), at: 'resid_post.1' }, { ids })).rejects.toThrow(
      'does not depend on',
    )
    await expect(model.with(add('resid_post.1', 1)).gradient({ of: { kind: 'next-token' }, at: 'z.0' }, { ids: [3] })).rejects.toThrow(
      'at least two tokens',
    )
  })
})

const root = new URL('../../../shared/goldens/', import.meta.url).pathname
describe.skipIf(!existsSync(root)).each(['llama', 'llama-tied-headdim', 'llama3-rope', 'gpt2'])('recorded gradients of %s', (name) => {
  it('are ours', async () => {
    const golden = await openSafetensors(`${root}${name}/golden.safetensors`)
    const get = async (n: string) => (await golden.readRaw(n)) as NDArray<Float32Array>
    await using model = await assemble({
      id: name,
      hash: async () => '',
      store: await openSafetensors(`${root}${name}/model.safetensors`),
      config: JSON.parse(readFileSync(`${root}${name}/config.json`, 'utf8')),
    })
    const rowIds = Array.from((await get('input_ids')).data.slice(0, 12) as unknown as BigInt64Array, Number)
    const parameters = [...golden.tensors.keys()].filter((n) => n.startsWith('grad.param.')).map((n) => n.slice(11))
    const g = await model.gradient({ of: { kind: 'next-token' }, at: 'resid_post.*', parameters }, { ids: rowIds })
    expect(g.value).toBeCloseTo((await get('loss')).data[0] as number, 4)
    for (const site of Object.keys(g.sites))
      expect(errorOf(g.sites[site]!.data, (await get(`grad.${site}`)).data.slice(0, 12 * 48)), site).toBeLessThan(1e-3)
    for (const p of parameters) expect(errorOf(g.parameters[p]!.data, (await get(`grad.param.${p}`)).data), p).toBeLessThan(1e-3)
    expect(parameters.length).toBeGreaterThan(2)
  })
})
