import { describe, expect, it } from 'vitest'
import type { NDArray } from '../base/types.ts'
import { openSafetensors } from '../models/formats/index.ts'
import { projectOut } from '../sites/index.ts'
import { caa, extractVector, loadVector, SteeringVector, steer } from './index.ts'
import { golden, goldenJson, goldenModel, hasGoldens, idsOf, relativeError } from './testing.ts'

/** Single precision here and there; the libraries' own orders of summation differ by about this much. */
const tolerance = 1e-4
const pairsOf = (pairs: readonly (readonly [string, string])[]) => ({
  positive: pairs.map(([p]) => idsOf(p)),
  negative: pairs.map(([, n]) => idsOf(n)),
})
const values = async (file: string) => {
  const store = await openSafetensors(golden(`vectors/${file}`))
  return (name: string) => store.readFloat32(name)
}
const recorded = async (file: string, name: string) => (await openSafetensors(golden(`vectors/${file}`))).readRaw(name)

describe.skipIf(!hasGoldens)('repeng', () => {
  // repeng reads the last block after the final norm.
  const sites = ['resid_post.0', 'resid_post.1', 'final_norm']

  it.each([
    ['pca-diff', 'pca_diff'],
    ['pca-center', 'pca_center'],
  ])('%s gives its directions, sign and all', async (method, name) => {
    await using model = await goldenModel('llama')
    const get = await values('repeng.safetensors')
    const { prompts, pca_gap } = goldenJson<{ prompts: [string, string][]; pca_gap: Record<string, [number, number]> }>(
      'vectors/repeng.json',
    )
    const vector = await extractVector(model, { method, ...pairsOf(prompts), site: sites, batchSize: 5 })
    for (const [layer, site] of sites.entries()) {
      expect(relativeError(vector.at(site), await get(`repeng.${name}.direction.${layer}`)), site).toBeLessThan(tolerance)
      // The share of the first of two recorded singular values in their squares bounds what it explains.
      const [first, second] = pca_gap[`${name}.${layer}`] as [number, number]
      expect(vector.record.fit?.[site]?.explained).toBeLessThan(first ** 2 / (first ** 2 + second ** 2))
    }
  })

  it('applies the same: logits under its file', async () => {
    await using model = await goldenModel('llama')
    const vector = await loadVector(golden('vectors/repeng-pca_diff.gguf'))
    const input = { input_ids: await recorded('repeng.safetensors', 'apply.input_ids') }
    const steered = await steer(model, vector, { scale: 4, sites: ['resid_post.1', 'resid_post.2'] })
    const get = await values('repeng.safetensors')
    expect(relativeError((await steered.run(input)).logits.data, await get('apply.add.logits'))).toBeLessThan(tolerance)
    expect(relativeError((await model.run(input)).logits.data, await get('apply.base.logits'))).toBeLessThan(tolerance)
  })

  it('combines the same', async () => {
    const [a, b] = [await loadVector(golden('vectors/repeng-pca_diff.gguf')), await loadVector(golden('vectors/repeng-pca_center.gguf'))]
    const combined = a.times(2).minus(b.times(0.5))
    const get = await values('repeng.safetensors')
    for (const layer of [0, 1, 2]) expect(combined.at(`resid_post.${layer}`)).toEqual(await get(`repeng.combined.direction.${layer}`))
    expect(combined.record.parts?.map((p) => p.factor)).toEqual([2, -0.5])
  })
})

describe.skipIf(!hasGoldens).each(['llama', 'gpt2'])('steering-vectors on %s', (name) => {
  const file = `steering-vectors-${name}.safetensors`
  const pairs = () => pairsOf(goldenJson<{ pairs: [string, string][] }>(`vectors/steering-vectors-${name}.json`).pairs)

  it('mean, PCA and logistic regression of all layers, at the last token and the one before', async () => {
    await using model = await goldenModel(name)
    const get = await values(file)
    for (const position of [-1, -2]) {
      const extract = (method: string, more: object = {}) =>
        extractVector(model, { method, ...pairs(), site: 'resid_post.*', position, batchSize: 4, ...more })
      const vectors = {
        mean: await extract('mean-difference'),
        pca: await extract('pca-center'),
        logistic: await extract('logistic', { paired: true }),
        'logistic-C0.1': await extract('logistic', { paired: true, C: 0.1 }),
      }
      for (const [kind, vector] of Object.entries(vectors))
        for (let layer = 0; layer < model.spec.layers; layer++) {
          // Its solver stops early.
          const allowed = kind.startsWith('logistic') ? 2e-3 : tolerance
          const wanted = await get(`${kind}.${position}.${layer}`)
          expect(relativeError(vector.at(`resid_post.${layer}`), wanted), `${kind}.${position}.${layer}`).toBeLessThan(allowed)
        }
    }
  })

  it('CAA', async () => {
    await using model = await goldenModel(name)
    const get = await values(file)
    const { positive, negative } = pairs()
    const questions = positive.map((p, i) => ({
      question: [] as number[],
      answer_matching_behavior: p,
      answer_not_matching_behavior: negative[i] as number[],
    }))
    const vector = await caa(model, { questions, site: 'resid_post.*', position: -2 })
    for (let layer = 0; layer < model.spec.layers; layer++)
      expect(relativeError(vector.at(`resid_post.${layer}`), await get(`caa.${layer}`))).toBeLessThan(tolerance)
    const letters = await caa(model, { questions, site: 'resid_post.*' })
    expect(letters.record).toMatchObject({ method: 'caa', position: -1 })
    expect(relativeError(letters.at('resid_post.1'), await get('mean.-1.1'))).toBeLessThan(tolerance)
  })

  it('applies the same: everywhere, from a position on, and by ablation', async () => {
    await using model = await goldenModel(name)
    const get = await values(file)
    const input = { input_ids: (await recorded(file, 'apply.input_ids')) as NDArray }
    const direction = await get('mean.-1.1')
    const vector = new SteeringVector([['resid_post.1', direction]], { method: 'unknown', model: { id: name }, sites: [] })
    const logits = async (m: typeof model) => (await m.run(input)).logits.data
    const all = await logits(await steer(model, vector, { scale: 2 }))
    expect(relativeError(all, await get('apply.all.logits'))).toBeLessThan(tolerance)
    const from4 = await logits(await steer(model, vector, { scale: -1.5, where: { positions: { from: 4 } } }))
    expect(relativeError(from4, await get('apply.from4.logits'))).toBeLessThan(tolerance)
    const ablated = await logits(model.with(projectOut('resid_post.1', direction)))
    expect(relativeError(ablated, await get('apply.ablation.logits'))).toBeLessThan(tolerance)
  })
})
