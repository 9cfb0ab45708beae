/** @file Sweeps over sites and strengths: the cell that a trained vector needs is found, overflows and leaks are told, cells are kept; the rules of the choice by hand. */
import { mkdtemp, readdir, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, describe, expect, it } from 'vitest'
import { functionJudge } from './judges/judge.ts'
import { logOddsJudge } from './judges/log-odds.ts'
import { perplexity } from './measures.ts'
import { optimisedVector } from './optimised.ts'
import { type SteerSweepOptions, steerSweep } from './sweep.ts'
import { frontier, recommend, type SweepCell } from './sweep-choice.ts'
import { gaussianRows, plantedModel } from './testing.ts'
import { SteeringVector } from './vector.ts'

const model = await plantedModel(gaussianRows(12, 16), { tokenizer: true })
const folder = await mkdtemp(join(tmpdir(), 'actlens-sweep-'))
afterAll(async () => {
  await model.dispose()
  await rm(folder, { recursive: true, force: true })
})
const targets = ['2 9 9 9', '3 9 9 9', '4 9 9 9']

describe('optimised vector', () => {
  it('makes its target likely within its length', async () => {
    const vector = await optimisedVector(model, { site: 'resid_post.1', targets, norm: 4, steps: 60 })
    expect(vector.norms.get('resid_post.1') as number).toBeLessThanOrEqual(4.0001)
    const steered = model.with(...vector.edits())
    expect(await perplexity(steered, ['5 9 9 9'])).toBeLessThan(0.7 * (await perplexity(model, ['5 9 9 9'])))
    // The trained numbers, added by the edit, give the loss that training ended at.
    const { lastLoss, firstLoss } = (vector.record.fit as NonNullable<typeof vector.record.fit>)['resid_post.1'] as Record<string, number>
    expect(Math.log(await perplexity(steered, targets))).toBeCloseTo(lastLoss as number, 1)
    expect(lastLoss as number).toBeLessThan(firstLoss as number)
    await expect(optimisedVector(model, { site: 'resid_post.1', targets, norm: 0 })).rejects.toThrow('positive number')
    await expect(optimisedVector(model, { site: 'resid_post.1', targets: [[3]], norm: 1 })).rejects.toThrow('one token')
  })
})

describe('sweep', async () => {
  const trained = await optimisedVector(model, { site: 'resid_post.1', targets, norm: 4, steps: 60 })
  const settings: SteerSweepOptions = {
    vector: trained,
    examples: { positive: targets, negative: [] },
    strengths: [0.5, -0.5],
    judge: functionJudge('nines', ({ text }) => (text.match(/9/g) ?? []).length),
    prompts: ['5', '6', '7', '8', '10', '11'],
    neutral: ['5 6 7 8', '3 2 5'],
    maxNewTokens: 6,
    seeds: [0, 1],
    temperature: 1,
    limits: { kl: 10, perplexity: 100, repetition: 1, incoherence: 100 },
  }
  it('tells the right sign from the wrong one, and keeps its cells', async () => {
    const seen: SweepCell[] = []
    const sweep = await steerSweep(model, { ...settings, folder, onCell: (c) => seen.push(c) })
    const [up, down] = sweep.cells as [SweepCell, SweepCell]
    expect(seen).toEqual([sweep.baseline, up, down])
    expect(up.effect).toBeGreaterThan(sweep.baseline.effect)
    expect(down.effect).toBeLessThan(sweep.baseline.effect)
    expect([sweep.baseline.kl, up.kl > 0, down.kl > 0]).toEqual([0, true, true])
    expect(sweep.recommendation.cell).toEqual(up)
    expect(up.scores.length).toBe(12)
    const files = await readdir(folder)
    expect(files.length).toBe(3)
    const judge = { ...settings.judge, score: () => Promise.reject(new Error('asked again')) }
    expect((await steerSweep(model, { ...settings, judge, folder })).cells).toEqual(sweep.cells)
    await expect(steerSweep(model, { ...settings, judge: { ...judge, key: 'other' }, folder })).rejects.toThrow('asked again')
  })
  it('stops at a strength that overflows, and says so', async () => {
    const judge = logOddsJudge(' 9')
    const sweep = await steerSweep(model, { ...settings, judge, unit: 'vector', strengths: [1, 1e37, 1e38, 1e39] })
    expect(sweep.cells.filter((c) => c.overflow !== undefined).length).toBe(1)
    expect(sweep.notes.join(' ')).toMatch(/overflows/)
    expect(sweep.notes.join(' ')).toMatch(/was left out, since a weaker one overflows/)
    expect(sweep.cells[0]?.overflow).toBeUndefined()
  })
  it('refuses prompts that the vector was made of, and bad settings; can be cancelled', async () => {
    await expect(steerSweep(model, { ...settings, prompts: ['2 9 9 9'] })).rejects.toThrow('one of the examples')
    await expect(steerSweep(model, { ...settings, neutral: ['2 9 9 9'] })).rejects.toThrow('one of the examples')
    await expect(steerSweep(model, { ...settings, strengths: [0] })).rejects.toThrow('other than 0')
    const aborted = AbortSignal.abort()
    await expect(steerSweep(model, { ...settings, signal: aborted })).rejects.toThrow('cancelled')
    const zero = new SteeringVector([['resid_post.1', new Float32Array(16)]], trained.record)
    await expect(steerSweep(model, { ...settings, vector: zero })).rejects.toThrow('zero')
  })
})

describe('the choice', () => {
  const cell = (strength: number, effect: number, kl: number, more: Partial<SweepCell> = {}): SweepCell => ({
    site: 'resid_post.1',
    strength,
    effect,
    scores: [effect, effect + 0.1, effect - 0.1],
    kl,
    perplexity: 10,
    ...more,
  })
  const baseline = cell(0, 1, 0)
  it('keeps what no other cell beats', () => {
    const cells = [cell(1, 2, 0.1), cell(2, 1.5, 0.2), cell(3, 4, 0.3), cell(4, 4, 0.4), cell(5, 9, Number.NaN, { overflow: 'x' })]
    expect(frontier([baseline, ...cells]).map((c) => c.strength)).toEqual([0, 1, 3])
  })
  it('takes the largest effect within the limits, or nothing', () => {
    const cells = [cell(1, 2, 0.1), cell(2, 4, 0.45), cell(3, 9, 2), cell(4, 8, 0.1, { perplexity: 16 })]
    const { cell: best, reasons } = recommend(baseline, cells)
    expect(best?.strength).toBe(2)
    expect(reasons.join(' ')).toContain('The largest effect is 9 with strength 3 at resid_post.1, but it moves neutral text by 2 nats')
    expect(recommend(baseline, [cell(3, 9, 2)]).cell).toBeUndefined()
    const noisy = cell(1, 1.5, 0.1, { scores: [3, 0.2, 1.3] })
    expect(recommend(baseline, [noisy]).reasons[0]).toContain('may be chance')
  })
})
