/** Probes across data sets, and read while a model writes. */
import { describe, expect, it } from 'vitest'
import { tinyModel } from '../run/testing.ts'
import { gaussianRows, plantedModel } from '../steer/testing.ts'
import { generateWithProbes, probe, transferMatrix } from './index.ts'

const [words, width] = [240, 32]
const rows = gaussianRows(words, width, 4)
const [one, other] = [gaussianRows(1, width, 9)[0] as number[], gaussianRows(1, width, 10)[0] as number[]]
const side = (direction: readonly number[]) =>
  rows.map((r) => (r.reduce((s, v, j) => s + v * (direction[j] as number), 0) > 0 ? 'yes' : 'no'))
const half = (from: number, labels: readonly string[]) => ({
  texts: rows.map((_, i) => [i]).filter((_, i) => i % 2 === from),
  labels: labels.filter((_, i) => i % 2 === from),
})

describe('transfer', () => {
  it('holds between sets that ask the same, and not between those that do not', async () => {
    const model = await plantedModel(rows)
    const sets = { a: half(0, side(one)), b: half(1, side(one)), c: half(1, side(other)) }
    const result = await transferMatrix(model, { sets, site: 'embeddings', kind: 'mean-difference', controls: false, samples: 10 })
    const { scores, cosines, probes } = result.sites[0]!
    const at = (a: number, b: number) => scores.accuracy!.data[a * 3 + b] as number
    expect(scores.accuracy!.shape).toEqual([3, 3])
    expect([at(0, 1), at(1, 0)].every((v) => v > 0.8)).toBe(true)
    expect([at(0, 2), at(2, 0)].every((v) => Math.abs(v - 0.5) < 0.25)).toBe(true)
    expect(cosines.data[1]).toBeGreaterThan(Math.abs(cosines.data[2] as number))
    expect(cosines.data[0]).toBeCloseTo(1, 5)
    // The diagonal is what a study of the set alone says.
    const alone = await probe(model, { ...sets.b, site: 'embeddings', kind: 'mean-difference', controls: false, samples: 10 })
    expect(at(1, 1)).toBeCloseTo(alone.sites[0]!.scores.accuracy!.value, 6)
    // By hand: the probe of one set on the other.
    const { taps } = await model.run({ rows: sets.b.texts }, { taps: ['embeddings'], logits: false })
    const told = await probes.a!.predict({ dtype: 'float32', shape: [120, width], data: taps.embeddings.data })
    expect(at(0, 1)).toBeCloseTo(told.filter((t, i) => t === sets.b.labels[i]).length / 120, 6)
    await expect(transferMatrix(model, { sets: { a: sets.a }, site: 'embeddings' })).rejects.toThrow('at least two')
    const named = { ...sets.b, labels: sets.b.labels.map((l) => `${l}!`) }
    await expect(transferMatrix(model, { sets: { a: sets.a, b: named }, site: 'embeddings', controls: false })).rejects.toThrow(
      'same classes',
    )
  })
})

describe('a live read-out', () => {
  it('says at every token what the probe says of the finished text', async () => {
    await using model = await tinyModel()
    const texts = Array.from({ length: 60 }, (_, i) => [i, (i * 7) % 61, (i * 3 + 1) % 61])
    const labels = texts.map((t) => ((t[2] as number) % 2 === 0 ? 'even' : 'odd'))
    const { sites } = await probe(model, { texts, labels, site: 'resid_post.1', controls: false, samples: 10, C: 1 })
    const found = sites[0]!.probe
    const prompts = {
      rows: [
        [5, 6, 7],
        [8, 9],
      ],
    }
    const steps = []
    for await (const step of generateWithProbes(model, prompts, { probes: [found], maxNewTokens: 4, temperature: 0 })) steps.push(step)
    expect(steps).toHaveLength(8)
    for (const row of [0, 1]) {
      const own = steps.filter((s) => s.row === row)
      const prompt = prompts.rows[row] as number[]
      const ids = [...prompt, ...own.map((s) => s.token)]
      const { taps } = await model.run({ ids }, { taps: ['resid_post.1'] })
      expect(own[0]!.prompt).toHaveLength(prompt.length)
      expect(own[1]!.prompt).toBeUndefined()
      for (const [n, step] of own.entries()) {
        const want = await found.scores(Float32Array.from(taps['resid_post.1'].at(0, prompt.length - 1 + n)))
        expect(step.readings[0]!.scores[0]).toBeCloseTo(want[0] as number, 3)
        expect(step.readings[0]!.told).toBe((want[0] as number) > 0 ? 'odd' : 'even')
        expect(step.readings[0]!.probability).toBeGreaterThanOrEqual(0)
      }
    }
    await expect(generateWithProbes(model, prompts, { probes: [] }).next()).rejects.toThrow('no probes')
  })
})
