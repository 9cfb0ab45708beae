import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { Sae } from '../../decompose/sae/sae.ts'
import { saeWeights } from '../../models/sae/weights.ts'
import { RandomStream } from '../../nn/index.ts'
import type { Model } from '../../run/index.ts'
import { tinyModel } from '../../run/testing.ts'
import { add, sae as saeEdit } from '../../sites/index.ts'
import { splitTokens } from './attempts.ts'
import { ablation, type Detector, derangement, findDetectors, randomSets, silentOnMatched } from './detectors.ts'
import { type Distractor, type Judge, ResistanceStudy } from './trials.ts'

let model: Model
beforeAll(async () => {
  model = await tinyModel()
})
afterAll(() => model.dispose())

const site = 'resid_post.1'
const random = RandomStream.of(3)
const normal = (n: number) => Float32Array.from({ length: n }, () => random.normal())
const distractors: Distractor[] = [
  { name: 'a', vector: normal(32), relevantTo: [0] },
  { name: 'b', vector: normal(32) },
]
const prompts = [
  [3, 7, 9],
  [4, 4, 12, 30],
  [50, 2, 17],
]
/** Each attempt scores the share of its even tokens; 5 starts again. */
const judge: Judge = ({ tokens }) =>
  splitTokens(tokens, [5])
    .filter((p) => p.length > 0)
    .map((p) => (100 * p.filter((t) => t % 2 === 0).length) / p.length)
const study = (over: Partial<ConstructorParameters<typeof ResistanceStudy>[1]> = {}) =>
  new ResistanceStudy(model, { prompts, distractors, site, judge, maxNewTokens: 8, temperature: 1, ...over })
const tokens = (run: { answers: readonly { tokens: readonly number[] }[] }) => run.answers.map((a) => [...a.tokens])

describe('trials', () => {
  it('replay prompt, seed and boost, whatever runs beside them', async () => {
    const s = study()
    const trials = s.trials([2, 4], { each: 4, seed: 9 })
    expect(trials.map((t) => t.seed)).toEqual([9, 10, 11, 12, 13, 14, 15, 16])
    expect(trials.filter((t) => t.distractor === 0).every((t) => t.prompt !== 0 && t.boost === 2)).toBe(true)
    const whole = tokens(await s.run(trials))
    expect(tokens(await s.run(trials))).toEqual(whole)
    expect(tokens(await study({ batch: 3 }).run(trials))).toEqual(whole)
    expect(tokens(await s.run([...trials].reverse()))).toEqual([...whole].reverse())
    expect(tokens(await s.run(trials, { edits: [] }))).toEqual(whole)
    expect(tokens(await s.run(trials, { unsteered: true }))).not.toEqual(whole)
  })

  it('add the boosted vector of their own distractor at every position', async () => {
    const s = study()
    const trials = s.trials([2, 4], { each: 2, seed: 1 })
    const got = tokens(await s.run(trials))
    for (const [i, t] of trials.entries()) {
      const steered = model.with(add(site, (distractors[t.distractor] as Distractor).vector as Float32Array, { scale: t.boost }))
      const alone = await steered
        .generate({ ids: prompts[t.prompt] as number[] }, { maxNewTokens: 8, temperature: 1, seed: t.seed })
        .result()
      expect(got[i]).toEqual(alone.tokens)
    }
    const [zero, plain] = [s.trials(0, { each: 2 }), await s.run(s.trials(3, { each: 2 }), { unsteered: true })]
    expect(tokens(await s.run(zero))).toEqual(tokens(plain))
  })

  it('append a suffix of the kind that prompts are', async () => {
    const s = study()
    const [t] = s.trials(1, { each: 1 }) as [ReturnType<typeof s.trials>[number]]
    const asked = study({ prompts: prompts.map((p) => [...p, 8, 8]) })
    expect(tokens(await s.run([t], { suffix: [8, 8] }))).toEqual(tokens(await asked.run([t])))
    await expect(s.run([t], { suffix: 'focus' })).rejects.toThrow(/token ids, so the suffix/)
  })

  it('calibrate to the boost at which scores fall below the target', async () => {
    // A judge that sees the boost: right below 2.5, wrong above.
    const s = study({ judge: ({ boost }) => [boost < 2.5 ? 90 : 5], maxNewTokens: 1 })
    const options = { range: [0, 10], prior: [5, 3], rounds: 14, prompts: 2 } as const
    for (const which of [1, [0, 1]]) expect(Math.abs((await s.calibrate(which, options)).boost - 2.5)).toBeLessThan(0.3)
    await expect(async () => s.calibrate(2, options)).rejects.toThrow(/no distractor 2/)
  })

  it('refuse what does not fit', async () => {
    expect(() => study({ prompts: [] })).toThrow(/at least one prompt/)
    expect(() => study({ distractors: [{ name: 'none', vector: new Float32Array(32) }] })).toThrow(/'none' is zero/)
    expect(() => study({ distractors: [{ name: 'short', vector: normal(8) }] })).toThrow(/32/)
    expect(() => study().trials([1], { each: 1 })).toThrow(/1 boosts for 2 distractors/)
    expect(() => study({ distractors: [{ name: 'all', vector: normal(32), relevantTo: [0, 1, 2] }] }).trials(1, { each: 1 })).toThrow(
      /relevant to every prompt/,
    )
    await expect(study().run([{ prompt: 7, distractor: 0, boost: 1, seed: 0 }])).rejects.toThrow(/does not have/)
    await expect(study({ judge: () => [400] }).run(study().trials(1, { each: 1 }))).rejects.toThrow(/0 to 100/)
  })
})

/** A plain autoencoder of random weights. */
function autoencoder(): Sae {
  const array = (...shape: number[]) => ({
    dtype: 'float32' as const,
    shape,
    data: normal(shape.reduce((p, n) => p * n, 1)).map((v) => 0.4 * v),
  })
  return new Sae(
    saeWeights({
      kind: 'standard',
      subtractsBias: true,
      tensors: { W_enc: array(32, 48), W_dec: array(48, 32), b_enc: array(48), b_dec: array(32) },
    }),
  )
}
const activation = async (m: Model, at: string, ids: number[] = [3, 7, 9, 30]) =>
  ((await m.run({ ids }, { taps: [at] })).taps[at] as unknown as { data: Float32Array }).data

describe('latents', () => {
  it('steer by their decoder rows: what the full arithmetic with the error kept gives', async () => {
    await using sae = autoencoder()
    const boosted = await activation(model.with(saeEdit(site, sae, { latents: { 9: 4 } })), site)
    const added = await activation(model.with(add(site, sae.direction(9), { scale: 4 })), site)
    expect(Math.max(...boosted.map((v, i) => Math.abs(v - (added[i] as number))))).toBeLessThan(1e-5)
    const { logits } = await model.with().run({ ids: [3, 7] })
    expect(logits.data).toEqual((await model.run({ ids: [3, 7] })).logits.data)
  })
})

describe('detectors', () => {
  const matched = prompts.map((p) => [...p, 20, 21])
  const mismatched = prompts.map((p, i) => [...p, 20 + i])

  it('pair questions with answers to others', async () => {
    const order = derangement(60, 4, (a, b) => a % 6 !== b % 6)
    expect([...order].sort((a, b) => a - b)).toEqual(Array.from({ length: 60 }, (_, i) => i))
    expect(order.every((o, i) => o % 6 !== i % 6)).toBe(true)
    expect(() => derangement(3, 0, () => false)).toThrow(/none belongs to its question/)
    const s = study()
    const run = await s.run(s.trials(0, { each: 6 }))
    const pairs = s.pairs(run, { seed: 1 })
    const asked = (i: number) => prompts[run.answers[i]?.prompt as number] as number[]
    for (const [i, row] of pairs.matched.entries()) expect(row).toEqual([...asked(i), ...(run.answers[i]?.tokens ?? [])])
    // Rows end with the eight tokens of an answer.
    const answer = (row: readonly number[]) => row.slice(-8).join()
    for (const [i, row] of pairs.mismatched.entries()) {
      expect(row.slice(0, -8)).toEqual(asked(i))
      expect(run.answers.some((a, k) => asked(k) !== asked(i) && a.tokens.join() === answer(row))).toBe(true)
    }
    expect(pairs.mismatched.map(answer).sort()).toEqual(pairs.matched.map(answer).sort())
  })

  it('have the areas, maxima and means that counting gives', async () => {
    await using sae = autoencoder()
    const sources = [{ site: 'mlp_act.2' }, { site, sae }]
    const found = await findDetectors(model, { matched, mismatched, sources, batch: 2 })
    expect(found).toHaveLength(48 + 48)
    const values = async (row: number[], d: Detector) => {
      const data = await activation(model, d.source.site, row)
      const width = data.length / row.length
      const x = d.source.sae ? (await sae.encode({ dtype: 'float32', shape: [row.length, width], data })).data : data
      return Array.from(row, (_, p) => x[p * 48 + d.feature] as number)
    }
    for (const d of [found[0], found[40], found.at(-1)] as Detector[]) {
      const own: number[] = []
      const all: number[] = []
      for (const row of matched) {
        const v = await values(row, d)
        own.push(Math.max(...v))
        all.push(v.reduce((s, x) => s + x, 0) / v.length)
      }
      const other: number[] = []
      for (const row of mismatched) other.push(Math.max(...(await values(row, d))))
      const wins = other.flatMap((o) => own.map((w): number => (o > w ? 1 : o === w ? 0.5 : 0)))
      expect(d.auc).toBeCloseTo(wins.reduce((s, v) => s + v, 0) / 9, 5)
      expect(d.matched).toBeCloseTo(own.reduce((s, v) => s + v, 0) / 3, 4)
      expect(d.mean).toBeCloseTo(all.reduce((s, v) => s + v, 0) / 3, 4)
    }
    expect(found.every((d, i) => i === 0 || d.auc <= (found[i - 1] as Detector).auc)).toBe(true)
    expect(silentOnMatched(found).every((d) => d.firesMatched === 0 && d.firesMismatched >= 0.8)).toBe(true)
    await expect(findDetectors(model, { matched, mismatched, sources: [] })).rejects.toThrow(/at least one source/)
  })

  it('are held at their mean or at zero, and nothing else with them', async () => {
    const found = await findDetectors(model, { matched, mismatched, sources: [{ site: 'mlp_act.1' }, { site: 'mlp_act.2' }] })
    const chosen = found.slice(0, 6)
    const before = await activation(model, 'mlp_act.1')
    for (const to of ['mean', 'zero'] as const) {
      const after = await activation(model.with(ablation(model, chosen, to)), 'mlp_act.1')
      const here = new Map(chosen.filter((d) => d.source.site === 'mlp_act.1').map((d) => [d.feature, d.mean]))
      for (const [i, v] of after.entries()) {
        const mean = here.get(i % 48)
        expect(v).toBeCloseTo(mean === undefined ? (before[i] as number) : to === 'mean' ? mean : 0, 5)
      }
    }
    expect(() => ablation(model, [], 'mean')).toThrow(/nothing to hold/)
  })

  it('of an autoencoder are clamped with the error kept; a clamp to what is there changes nothing', async () => {
    await using sae = autoencoder()
    const ids = [3, 7, 9, 30]
    const data = await activation(model, site, ids)
    const { data: acts } = await sae.encode({ dtype: 'float32', shape: [4, 32], data })
    const latent = Array.from({ length: 48 }, (_, j) => j).find((j) => (acts[2 * 48 + j] as number) > 0.1) as number
    const here = acts[2 * 48 + latent] as number
    const detector = { source: { site, sae }, feature: latent, mean: here } as unknown as Detector
    const after = await activation(model.with(ablation(model, [detector], 'mean')), site, ids)
    for (let i = 0; i < 32; i++) expect(after[2 * 32 + i]).toBeCloseTo(data[2 * 32 + i] as number, 5)
    const zeroed = await activation(model.with(ablation(model, [detector], 'zero')), site, ids)
    const row = sae.direction(latent)
    for (let i = 0; i < 32; i++) expect(zeroed[2 * 32 + i]).toBeCloseTo((data[2 * 32 + i] as number) - here * (row[i] as number), 4)
  })

  it('are matched by random sets that hold none of them', async () => {
    const source = { site: 'mlp_act.1' }
    const all = Array.from({ length: 100 }, (_, feature): Detector => {
      const level = feature % 50
      return {
        source,
        feature,
        auc: feature < 20 ? 0.99 : 0.6,
        matched: level,
        mismatched: level,
        firesMatched: 1,
        firesMismatched: 1,
        mean: level,
        alive: feature !== 60,
      }
    })
    const chosen = all.slice(0, 12)
    const sets = randomSets(all, chosen, { sets: 3, seed: 0 })
    expect(sets).toHaveLength(3)
    for (const set of sets) {
      expect(new Set(set).size).toBe(12)
      expect(set.every((d) => d.auc < 0.95 && d.alive)).toBe(true)
      for (const [i, d] of set.entries()) expect(Math.abs(d.mean - (chosen[i] as Detector).mean)).toBeLessThan(25)
    }
    expect(sets[0]).not.toEqual(sets[1])
    expect(() => randomSets(all, all.slice(0, 20), { sets: 1, seed: 0, detects: 0.1 })).toThrow(/not enough features/)
  })
})
