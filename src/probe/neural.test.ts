/** Probes that are no straight line find what linear ones cannot, and nothing where nothing is. */
import { describe, expect, it } from 'vitest'
import { gaussianRows, plantedModel } from '../steer/testing.ts'
import { neuralProbe, probe } from './index.ts'

const [words, width] = [240, 32]
const rows = gaussianRows(words, width, 4).map((r) => r.map((v, j) => (j < 2 ? 3 * v : j < 6 ? v : 0)))
const texts = rows.map((_, i) => [i])
/** Whether two coordinates have the same sign: no hyperplane tells. */
const same = rows.map((r) => ((r[0] as number) * (r[1] as number) > 0 ? 'same' : 'other'))
const common = { site: 'embeddings', samples: 50 } as const

describe('probes that are no straight line', () => {
  it('find a product of signs, where a linear probe is at chance', async () => {
    const model = await plantedModel(rows)
    const straight = await probe(model, { ...common, texts, labels: same, controls: false, C: 1 })
    expect(straight.sites[0]!.scores.accuracy!.value).toBeLessThan(0.62)
    for (const kind of ['mlp', 'quadratic'] as const) {
      const found = await neuralProbe(model, { ...common, kind, texts, labels: same, folds: 2, steps: 200, rate: 1e-2 })
      expect(found.scores.accuracy!.value, kind).toBeGreaterThan(0.7)
      expect(found.controls.shuffledLabels, kind).toBeLessThan(0.63)
      expect(found.selectivity, kind).toBeCloseTo(found.scores.accuracy!.value - (found.controls.shuffledLabels as number), 8)
      expect(found.classes).toEqual(['other', 'same'])
    }
  })

  it('attention finds the one token that tells, wherever it stands', async () => {
    const model = await plantedModel(rows)
    // Words of large first coordinate are looked at; their second one tells.
    const marked = [...rows.keys()].filter((i) => (rows[i]![0] as number) > 3)
    const plain = [...rows.keys()].filter((i) => (rows[i]![0] as number) < 0)
    const many = Array.from({ length: 160 }, (_, i) => {
      const ids = Array.from({ length: 4 + (i % 3) }, (_, n) => plain[(i * 13 + n * 7) % plain.length] as number)
      ids[(i * 5) % ids.length] = marked[i % marked.length] as number
      return ids
    })
    const labels = many.map((_, i) => ((rows[marked[i % marked.length] as number]![1] as number) > 0 ? 'up' : 'down'))
    const found = await neuralProbe(model, {
      ...common,
      kind: 'attention',
      texts: many,
      labels,
      folds: 2,
      controls: false,
      steps: 200,
      rate: 1e-2,
    })
    const mean = await probe(model, { ...common, texts: many, labels, position: 'mean', folds: 2, controls: false })
    expect(found.scores.accuracy!.value).toBeGreaterThan(0.8)
    expect(found.scores.accuracy!.value).toBeGreaterThan(mean.sites[0]!.scores.accuracy!.value)
    await expect(neuralProbe(model, { ...common, kind: 'attention', texts: many, labels, position: 'last' })).rejects.toThrow('all tokens')
  })

  it('tell numbers, and refuse what makes no sense', async () => {
    const model = await plantedModel(rows)
    const numbers = rows.map((r) => (r[0] as number) ** 2)
    const found = await neuralProbe(model, {
      ...common,
      kind: 'quadratic',
      texts,
      labels: numbers,
      regression: true,
      folds: 2,
      steps: 300,
      rate: 1e-2,
      controls: false,
    })
    expect(found.scores.r2!.value).toBeGreaterThan(0.5)
    await expect(neuralProbe(model, { ...common, kind: 'mlp', texts, labels: texts.map(() => 'a') })).rejects.toThrow(
      'nothing to tell apart',
    )
    await expect(neuralProbe(model, { ...common, kind: 'mlp', texts, labels: ['a'] })).rejects.toThrow('one for each')
  })
})
