import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { describe, expect, it } from 'vitest'
import { decodeSafetensors, writeSafetensors } from '../models/formats/index.ts'
import { temporaryFolder } from '../models/formats/testing.ts'
import { randomStream } from '../models/sampling.ts'
import type { Activation } from '../run/index.ts'
import { tinyModel } from '../run/testing.ts'
import { add } from '../sites/index.ts'
import { gaussianRows, plantedModel } from '../steer/testing.ts'
import { readFeatures } from './features.ts'
import type { ProbeKind } from './kinds.ts'
import { principalComponents } from './pca.ts'
import { loadProbes, type Probe, saveProbes } from './probe.ts'
import type { Features } from './solver.ts'
import { type ProbeOptions, probe, type SiteResult, type StudyResult } from './study.ts'

const [words, width] = [240, 32]
const direction = gaussianRows(1, width, 9)[0] as number[]
const length = Math.hypot(...direction)
/** Tokens whose embeddings carry a label along one direction, in noise; the last two thirds of the label strength is planted. */
const rows = gaussianRows(words, width, 4)
const sides = rows.map((r) => r.reduce((sum, v, j) => sum + (v * (direction[j] as number)) / length, 0))
const texts = rows.map((_, i) => [i])
const labels = sides.map((s) => (s > 0 ? 'yes' : 'no'))
const settings = { site: 'embeddings', texts, labels, samples: 200 } as const

const one = (result: StudyResult) => result.sites[0] as SiteResult
const cosine = (p: Probe) => {
  const dot = p.weights.reduce((sum, v, j) => sum + v * (direction[j] as number), 0)
  return dot / length / Math.hypot(...p.weights)
}

describe('a study', () => {
  it('finds a planted direction with every kind, and nothing in the controls', async () => {
    const model = await plantedModel(rows)
    for (const kind of ['logistic', 'mean-difference', 'ridge', 'lda', 'svm'] as ProbeKind[]) {
      const result = await probe(model, { ...settings, kind })
      const { scores, controls, selectivity, probe: found } = one(result)
      expect(scores.accuracy?.value, kind).toBeGreaterThan(0.85)
      expect(scores.auroc?.value, kind).toBeGreaterThan(0.9)
      expect(scores.accuracy?.low, kind).toBeLessThan(scores.accuracy?.value as number)
      expect(cosine(found), kind).toBeGreaterThan(0.85)
      expect(Math.abs((controls.shuffledLabels as number) - 0.5), kind).toBeLessThan(0.12)
      expect(Math.abs((controls.randomFeatures as number) - 0.5), kind).toBeLessThan(0.12)
      // Every text is a token of its own, so the token tells nothing about others.
      expect(controls.tokenIdentity, kind).toBeLessThan(0.6)
      expect(selectivity).toBeCloseTo((scores.accuracy?.value as number) - (controls.shuffledLabels as number), 10)
      expect(result).toMatchObject({ examples: words, groups: words, classes: ['no', 'yes'], folds: 5, position: 'last' })
    }
  })

  it('learns from principal components of the training texts', async () => {
    const strong = rows.map((r, i) => r.map((v, j) => v + ((sides[i] as number) > 0 ? 3 : -3) * ((direction[j] as number) / length)))
    const model = await plantedModel(strong)
    const { scores, probe: found } = one(await probe(model, { ...settings, pca: 2, controls: false }))
    expect(scores.accuracy?.value).toBeGreaterThan(0.98)
    expect(cosine(found)).toBeGreaterThan(0.98)
    const features = (await readFeatures(model, settings)).sites.get('embeddings') as Features
    const { basis, variances, mean } = await principalComponents(features, 3)
    for (let a = 0; a < 3; a++) {
      // Orthonormal, and uncorrelated with the variances that are told.
      const along = Array.from({ length: words }, (_, i) => {
        let sum = 0
        for (let j = 0; j < width; j++)
          sum += ((features.data[i * width + j] as number) - (mean[j] as number)) * (basis[j * 3 + a] as number)
        return sum
      })
      expect(along.reduce((s, v) => s + v * v, 0) / words / (variances[a] as number)).toBeCloseTo(1, 3)
      for (let b = 0; b < 3; b++) {
        let dot = 0
        for (let j = 0; j < width; j++) dot += (basis[j * 3 + a] as number) * (basis[j * 3 + b] as number)
        expect(dot).toBeCloseTo(a === b ? 1 : 0, 5)
      }
    }
    expect(variances[0]).toBeGreaterThan(variances[1] as number)
    await expect(probe(model, { ...settings, pca: 33 })).rejects.toThrow(/have 32 principal components, so there are no 33/)
  })

  it('is the same each time, and other with another seed', async () => {
    const model = await plantedModel(rows)
    const numbers = async (seed: number) => {
      const { scores, controls, C } = one(await probe(model, { ...settings, seed }))
      return { scores, controls, C }
    }
    const first = await numbers(1)
    expect(await numbers(1)).toEqual(first)
    expect(await numbers(2)).not.toEqual(first)
  })

  it('does not fool itself: labels without meaning stay at chance, also with searched strength and repeated texts', async () => {
    const model = await plantedModel(rows)
    const random = randomStream(3)
    const chance = texts.map(() => (random() < 0.5 ? 'a' : 'b'))
    const { scores } = one(await probe(model, { ...settings, labels: chance, controls: false }))
    expect(Math.abs((scores.accuracy?.value as number) - 0.5)).toBeLessThan(0.1)
    // Each text thrice: were copies on both sides of a fold, the probe would know them by heart.
    const thrice = { texts: [...texts, ...texts, ...texts], labels: [...chance, ...chance, ...chance] }
    const repeated = await probe(model, { ...settings, ...thrice, controls: false })
    expect(repeated).toMatchObject({ examples: 3 * words, groups: words })
    expect(Math.abs((one(repeated).scores.accuracy?.value as number) - 0.5)).toBeLessThan(0.1)
    const leaking = await probe(model, { ...settings, ...thrice, groups: thrice.texts.map((_, i) => String(i)), C: 100, controls: false })
    expect(one(leaking).scores.accuracy?.value).toBeGreaterThan(0.6)
  })

  it('tells several classes and numbers', async () => {
    const model = await plantedModel(rows)
    const thirds = sides.map((s) => (s < -0.43 ? 'low' : s < 0.43 ? 'mid' : 'high'))
    for (const kind of ['logistic', 'lda', 'mean-difference', 'svm', 'ridge'] as ProbeKind[]) {
      const result = await probe(model, { ...settings, labels: thirds, kind, controls: false })
      expect(result.classes).toEqual(['high', 'low', 'mid'])
      expect(one(result).scores.accuracy?.value, kind).toBeGreaterThan(kind === 'logistic' || kind === 'lda' ? 0.6 : 0.45)
      expect(one(result).probe.outputs).toBe(3)
      expect(() => one(result).probe.when()).toThrow(/3 outputs; train one class against the rest/)
    }
    const regression = await probe(model, { ...settings, labels: sides, kind: 'regression' })
    expect(one(regression).scores.r2?.value).toBeGreaterThan(0.99)
    expect(one(regression).controls.shuffledLabels).toBeLessThan(0.1)
    expect(cosine(one(regression).probe)).toBeGreaterThan(0.999)
  })

  it('reads the last token, the mean, and any position, of every site', async () => {
    const model = await tinyModel()
    const several = [
      [5, 6, 7],
      [8, 9],
      [1, 2, 3, 4],
    ]
    const { taps } = await model.run({ rows: several }, { taps: ['resid_post.1'], logits: false })
    const value = taps['resid_post.1'] as Activation
    const near = (have: Float32Array, want: ArrayLike<number>) => {
      for (let j = 0; j < 32; j++) expect(Math.abs((have[j] as number) - (want[j] as number))).toBeLessThan(2e-5)
    }
    const last = await readFeatures(model, { texts: several, site: 'resid_post.*' })
    expect([...last.sites.keys()]).toEqual(['resid_post.0', 'resid_post.1', 'resid_post.2'])
    expect(last.tokens).toEqual([[7], [9], [4]])
    const first = await readFeatures(model, { texts: several, site: 'resid_post.1', position: 1 })
    const mean = await readFeatures(model, { texts: several, site: 'resid_post.1', position: 'mean' })
    expect(mean.tokens).toEqual(several)
    for (const [i, row] of several.entries()) {
      const at = (f: typeof last) => (f.sites.get('resid_post.1') as Features).data.subarray(i * 32, (i + 1) * 32)
      near(at(last), value.at(i, -1))
      near(at(first), value.at(i, 1))
      const want = new Float64Array(32)
      for (let p = 0; p < row.length; p++) for (const [j, v] of value.at(i, p).entries()) want[j] = (want[j] as number) + v / row.length
      near(at(mean), want)
    }
    await expect(readFeatures(model, { texts: several, site: 'resid_post.1', position: 3 })).rejects.toThrow(/Text 0 has no position 3/)
    await expect(readFeatures(model, { texts: [[1], []], site: 'resid_post.1' })).rejects.toThrow(/Text 1 is empty/)
    const long = await readFeatures(model, { texts: [Array.from({ length: 100 }, (_, i) => i % 61), [1]], site: 'resid_post.1' })
    expect(long.tokens).toEqual([[99 % 61], [1]])
    expect(long.cut).toBe(1)
  })

  it('refuses what cannot be learned, and warns where it can be learned too well', async () => {
    const model = await plantedModel(rows)
    const cases: readonly (readonly [Partial<ProbeOptions>, RegExp])[] = [
      [
        { labels: labels.map(() => 'yes') },
        /All 240 labels are 'yes', so there is nothing to tell apart; give examples of at least two classes/,
      ],
      [{ labels: labels.map((_, i) => (i === 0 ? 'rare' : 'often')) }, /class 'rare' occurs in one source text only/],
      [{ labels: labels.slice(1) }, /240 texts, but 239 labels/],
      [{ labels: labels.map((_, i) => i) }, /240 different labels for 240 texts; if they are numbers, use the kind 'regression'/],
      [{ kind: 'regression' }, /Label 0 is '(yes|no)', which is no number/],
      [{ kind: 'regression', labels: labels.map(() => 3) }, /All 240 labels are 3/],
      [{ kind: 'knn' as 'lda' }, /no kind of probe 'knn'/],
      [{ C: -1 }, /C must be a positive number/],
      [{ folds: 1 }, /folds must be a whole number from 2/],
      [{ l1Ratio: 0.5, kind: 'lda' }, /l1Ratio concerns logistic probes only/],
      [{ groups: texts.map((_, i) => String(i % 2)) }, /2 different source texts, too few for 5 folds/],
      [{ site: 'attn_probs.0' }, /key axis/],
    ]
    for (const [options, message] of cases)
      await expect(probe(model, { ...settings, ...options }), String(message)).rejects.toThrow(message)
    const few = await probe(model, { ...settings, texts: texts.slice(0, 24), labels: labels.slice(0, 24), controls: false })
    expect(few.warnings).toEqual([expect.stringMatching(/24 examples, fewer than the features at embeddings/)])
    await expect(
      probe(model, { ...settings, kind: 'lda', shrinkage: 0, texts: texts.slice(0, 24), labels: labels.slice(0, 24) }),
    ).rejects.toThrow(/With shrinkage 0/)
  })
})

describe('a probe', () => {
  it('is saved and loaded whole, and predicts the same', async () => {
    const model = await plantedModel(rows)
    const result = await probe(model, { ...settings, site: ['embeddings', 'resid_post.0'], C: 0.1, controls: false })
    const path = join(temporaryFolder(), 'probes.safetensors')
    await saveProbes(
      path,
      result.sites.map((s) => s.probe),
    )
    const { tensors, metadata } = decodeSafetensors(await readFile(path))
    expect(Object.keys(tensors).sort()).toEqual(
      ['embeddings', 'resid_post.0'].flatMap((s) => ['bias', 'mean', 'scale', 'weights'].map((p) => `${s}.${p}`)).sort(),
    )
    expect(metadata.format).toBe('actlens-probe/1')
    const loaded = await loadProbes(path)
    expect(loaded).toEqual(result.sites.map((s) => s.probe))
    const { sites } = await readFeatures(model, settings)
    const features = sites.get('embeddings')
    if (!features) throw new Error('no features')
    const p = loaded[0] as Probe
    expect(await p.predict(features)).toEqual(await one(result).probe.predict(features))
    const right = (await p.predict(features)).filter((c, i) => c === labels[i]).length / words
    expect(right).toBeGreaterThan(0.9)
    const sure = await p.probabilities(features)
    const expected = sure.reduce((a, b) => a + b, 0) / words
    expect(expected).toBeCloseTo(labels.filter((l) => l === 'yes').length / words, 1)
    expect(p.record).toMatchObject({
      position: 'last',
      regularisation: { C: 0.1, standardise: true },
      data: { examples: words, groups: words },
    })
    await expect(p.scores(new Float32Array(3))).rejects.toThrow(/reads 32 numbers/)
    await writeSafetensors(path, { x: { dtype: 'float32', shape: [1], data: Float32Array.of(1) } })
    await expect(loadProbes(path)).rejects.toThrow(/no file of probes/)
  })

  it('is the condition of an edit: it fires exactly where the probe says so', async () => {
    const model = await plantedModel(rows)
    const { probe: found } = one(await probe(model, { ...settings, controls: false, C: 1 }))
    const ids = [3, 14, 15, 92, 65, 35, 89, 79]
    const told = await found.predict({
      dtype: 'float32',
      shape: [ids.length, width],
      data: Float32Array.from(ids.flatMap((i) => rows[i] as number[])),
    })
    const steered = model.with(add('embeddings', new Float32Array(width).fill(5), { where: { when: found.when() } }))
    const [before, after] = await Promise.all([model, steered].map((m) => m.run({ ids }, { taps: ['embeddings'], logits: false })))
    for (const [i, side] of told.entries()) {
      const moved = (after?.taps.embeddings?.at(0, i)[0] as number) - (before?.taps.embeddings?.at(0, i)[0] as number)
      expect(moved).toBeCloseTo(side === 'yes' ? 5 : 0, 4)
    }
    expect(new Set(told).size).toBe(2)
  })
})
