import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import type { Model } from '../../run/index.ts'
import { gaussianRows, plantedModel } from '../testing.ts'
import { referenceJudge } from './judge.ts'
import { measureResistance } from './protocol.ts'

let model: Model
beforeAll(async () => {
  model = await plantedModel(gaussianRows(12, 16), { tokenizer: true })
})
afterAll(() => model.dispose())

const references = [
  ['2 3 4 2', '3 2 4 4'],
  ['7 8 9 7', '8 9 9 7'],
  ['5 6 10 5', '6 10 5 5'],
]
const answer = (prompt: number, text: string) => ({ prompt, distractor: 0, boost: 1, seed: 0, tokens: [], text })

describe('the judge by references', () => {
  it('scores what is like the answers to the prompt high, and what is like those to others low', async () => {
    const { judge, separation } = await referenceJudge(model, { references, site: 'embeddings' })
    expect(separation).toBe(1)
    expect((await judge(answer(0, '2 4 3 2'), {}))[0]).toBeGreaterThan(80)
    expect((await judge(answer(1, '2 4 3 2'), {}))[0]).toBeLessThan(30)
    expect(await judge(answer(0, '  '), {})).toEqual([])
  })

  it('scores each attempt on its own', async () => {
    const { judge } = await referenceJudge(model, { references, site: 'embeddings', phrases: ['11'] })
    const [first, second, ...more] = await judge(answer(0, '7 8 9 9 7 8\n11 2 3 4 2 3'), {})
    expect(more).toEqual([])
    expect(first).toBeLessThan(20)
    expect(second).toBeGreaterThan(60)
  })

  it('refuses what it cannot compare', async () => {
    await expect(referenceJudge(model, { references: [['2 3', '3 2']] })).rejects.toThrow(/two prompts or more/)
    await expect(referenceJudge(model, { references: [['2 3', ' '], references[1] as string[]] })).rejects.toThrow(/Prompt 0 has fewer/)
    await expect(
      referenceJudge(model, {
        references: [
          ['2 3', '2 3'],
          ['2 3', '2 3'],
        ],
        site: 'embeddings',
      }),
    ).rejects.toThrow(/look alike/)
  })
})

describe('the protocol', () => {
  it('calibrates, steers, and repeats the same trials under its controls', async () => {
    const vector = new Float32Array(16).fill(1)
    const report = await measureResistance(model, {
      prompts: ['2 3', '7 8', '5 6'],
      distractors: [{ name: 'd', vector }],
      site: 'resid_post.0',
      // Falls with the boost, whatever is written; the second attempt is always better.
      judge: ({ boost }) => [Math.max(0, 90 - 20 * boost), 95],
      range: [0, 5],
      prior: [2, 2],
      rounds: 12,
      each: 6,
      maxNewTokens: 4,
      temperature: 1,
      suffix: ' 10',
      hold: { sources: [{ site: 'mlp_act.1' }], count: 3, sets: 2 },
      seed: 4,
    })
    expect(report.distractors[0]?.calibration.boost).toBeCloseTo(3, 0)
    expect(Object.keys(report.runs)).toEqual(['unsteered', 'boosted', 'suffix', 'detectors held', 'random set 0', 'random set 1'])
    const of = (name: string) => report.runs[name]?.answers.map(({ prompt, seed, boost }) => [prompt, seed, boost])
    for (const name of Object.keys(report.runs)) expect(of(name)).toEqual(of('boosted'))
    expect(report.runs.boosted?.rates.resistance).toMatchObject({ count: 6, of: 6 })
    expect(report.detectors.map((d) => d.source.site)).toEqual(['mlp_act.1', 'mlp_act.1', 'mlp_act.1'])
    expect(report.separation).toBeUndefined()
  })
})
