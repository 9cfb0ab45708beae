import { inverse, Matrix } from 'ml-matrix'
import { describe, expect, it } from 'vitest'
import { CancelledError } from '../base/errors.ts'
import type { Progress } from '../base/progress.ts'
import { tinyModel } from '../run/testing.ts'
import { edit, scale } from '../sites/index.ts'
import { caa, extractVector, lat, lda, logistic, meanDifference, pcaCentred, pcaDifference, steeringMethods } from './index.ts'
import { cosine, gaussianRows, length, numberTokenizer, plantedModel, relativeError, tokens } from './testing.ts'

const site = 'embeddings'
const mean = (rows: readonly (readonly number[])[]) =>
  (rows[0] as readonly number[]).map((_, j) => rows.reduce((s, r) => s + (r[j] as number), 0) / rows.length)
const minus = (a: readonly number[], b: readonly number[]) => a.map((x, i) => x - (b[i] as number))
const plus = (a: readonly number[], factor: number, b: readonly number[]) => a.map((x, i) => x + factor * (b[i] as number))
const unitAxis = (width: number, axis: number) => Array.from({ length: width }, (_, i) => (i === axis ? 1 : 0))

describe('mean difference', () => {
  it('is the difference of the means, for sides of different lengths', async () => {
    const rows = gaussianRows(20, 32)
    await using model = await plantedModel(rows)
    const vector = await meanDifference(model, { positive: tokens(0, 7), negative: tokens(7, 20), site })
    expect(relativeError(vector.at(site), minus(mean(rows.slice(0, 7)), mean(rows.slice(7))))).toBeLessThan(1e-6)
  })

  it('equals single runs at every layer, whatever the batches; equal examples run once', async () => {
    await using model = await tinyModel()
    const positive = [[5, 9, 2], [7], [1, 2, 3, 4, 5, 6], [7]]
    const negative = [
      [8, 9],
      [11, 12, 13, 14],
    ]
    const plain = await meanDifference(model, { positive, negative, site: 'resid_post.*' })
    for (const options of [{ batchSize: 1 }, { batchSize: 3 }, { memory: 1 }]) {
      const other = await meanDifference(model, { positive, negative, site: 'resid_post.*', ...options })
      for (const s of plain.sites) expect(relativeError(other.at(s), plain.at(s))).toBeLessThan(1e-5)
    }
    const last = async (rows: number[][]) =>
      mean(
        await Promise.all(
          rows.map(async (ids) => [...(await model.run({ ids }, { taps: ['resid_post.2'] })).taps['resid_post.2'].at(0, -1)]),
        ),
      )
    expect(relativeError(plain.at('resid_post.2'), minus(await last(positive), await last(negative)))).toBeLessThan(1e-5)
    const seen: Progress[] = []
    await meanDifference(model, { positive, negative, site: 'resid_post.1', batchSize: 2, onProgress: (p) => seen.push(p) })
    expect(seen.map((p) => [p.done, p.total])).toEqual([
      [0, 6],
      [2, 6],
      [4, 6],
      [6, 6],
    ])
  })

  it('reads the mean over tokens, with or without the one that begins them, and any position', async () => {
    const rows = gaussianRows(12, 32)
    await using model = await plantedModel(rows, { tokenizer: true })
    const [positive, negative] = [['4 5', '6'], ['7 8 9']]
    const at = async (options: object) => (await meanDifference(model, { positive, negative, site, ...options })).at(site)
    const e = (...ids: number[]) => mean(ids.map((i) => rows[i] as number[]))
    const cases: [object, number[]][] = [
      [{ position: 'mean' }, minus(mean([e(1, 4, 5), e(1, 6)]), e(1, 7, 8, 9))],
      [{ position: 'mean', excludeBos: true }, minus(mean([e(4, 5), e(6)]), e(7, 8, 9))],
      [{ position: 'mean', excludeBos: 1 }, minus(mean([e(4, 5), e(6)]), e(7, 8, 9))],
      [{ position: 1 }, minus(e(4, 6), e(7))],
      [{ position: -1 }, minus(e(5, 6), e(9))],
      [{}, minus(e(5, 6), e(9))],
    ]
    for (const [options, wanted] of cases) expect(relativeError(await at(options), wanted), JSON.stringify(options)).toBeLessThan(1e-6)
  })

  it('gives one direction for each site, of its own width', async () => {
    await using model = await tinyModel()
    const vector = await meanDifference(model, {
      positive: [[3, 4]],
      negative: [[3, 5]],
      site: ['resid_mid.{0..1}', 'z.1', 'blocks.2.mlp.hook_post', 'resid_mid.1'],
    })
    expect(vector.sites.map((s) => [s, vector.at(s).length])).toEqual([
      ['resid_mid.0', 32],
      ['resid_mid.1', 32],
      ['z.1', 64],
      ['mlp_act.2', 48],
    ])
    for (const s of vector.sites) await model.with(vector.only([s]).edits({ scale: 2 })).run({ ids: [3] })
  })

  it('keeps a record that makes it again', async () => {
    await using model = await plantedModel(gaussianRows(6, 32))
    const options = { positive: tokens(0, 3), negative: tokens(3, 6), site: ['resid_post.0', 'resid_post.1'] }
    const edited = model.with(scale('embeddings', 2))
    const { record } = await meanDifference(edited, { ...options, created: new Date(0) })
    expect(record).toEqual({
      method: 'mean-difference',
      model: { id: 'planted', hash: 'a'.repeat(64), family: 'llama', layers: 2 },
      sites: ['resid_post.0', 'resid_post.1'],
      // Of {"negative":[[3],[4],[5]],"positive":[[0],[1],[2]]}
      prompts: { hash: expect.stringMatching(/^[0-9a-f]{64}$/), positive: 3, negative: 3 },
      position: 'last',
      edits: { labels: ['scale at embeddings'], hash: expect.stringMatching(/^[0-9a-f]{64}$/) },
      precision: 'f32',
      versions: { actlens: expect.stringMatching(/^\d+\.\d+/), runtime: expect.stringMatching(/^onnxruntime-node 1\./) },
      created: '1970-01-01T00:00:00.000Z',
    })
    const again = await meanDifference(edited, options)
    expect(again.record.prompts).toEqual(record.prompts)
    expect(again.record).not.toHaveProperty('created')
    const swapped = await meanDifference(model, { ...options, positive: options.negative, negative: options.positive })
    expect(swapped.record.prompts?.hash).not.toBe(record.prompts?.hash)
    const opaque = await meanDifference(model.with(edit('embeddings', (x) => x.mul(2))), options)
    expect(opaque.record.edits).toEqual({ labels: ['function at embeddings'] })
  })
})

describe('principal components', () => {
  /** Pairs about a common body: differences vary most along axis 3, and have a mean along axis 0. */
  const pairs = (count: number, width: number) => {
    const [bodies, noise, along] = [gaussianRows(count, width, 1), gaussianRows(count, width, 2), gaussianRows(count, 1, 3)]
    const differences = noise.map((n, i) =>
      plus(
        plus(
          n.map((x) => 0.02 * x),
          3 * (along[i]?.[0] as number),
          unitAxis(width, 3),
        ),
        5,
        unitAxis(width, 0),
      ),
    )
    return [
      ...bodies.map((b, i) => plus(b, 0.5, differences[i] as number[])),
      ...bodies.map((b, i) => plus(b, -0.5, differences[i] as number[])),
    ]
  }

  it.each([
    [10, 32],
    [60, 16],
    [300, 192],
  ])('pca-diff finds what varies and pca-center what is common too, for %d pairs of width %d', async (count, width) => {
    await using model = await plantedModel(pairs(count, width))
    const options = { positive: tokens(0, count), negative: tokens(count, 2 * count), site, batchSize: 256 }
    const difference = await pcaDifference(model, options)
    expect(Math.abs(difference.at(site)[3] as number)).toBeGreaterThan(0.999)
    expect(length(difference.at(site))).toBeCloseTo(1, 5)
    expect(difference.record.fit?.[site]?.explained).toBeGreaterThan(0.9)
    const centred = await pcaCentred(model, options)
    expect(centred.at(site)[0]).toBeGreaterThan(0.9)
    expect(centred.record.fit?.[site]?.agreement).toBe(1)
  })

  it('is the eigenvector that a full decomposition gives, through a program too', async () => {
    // 400 pairs of width 480 are 77 million products, which go through a program.
    for (const [count, width] of [
      [40, 48],
      [400, 480],
    ] as const) {
      const rows = gaussianRows(2 * count, width)
      for (const row of rows) row[7] = (row[7] as number) * 3
      await using model = await plantedModel(rows)
      const vector = await pcaCentred(model, { positive: tokens(0, count), negative: tokens(count, 2 * count), site, batchSize: 256 })
      const d = new Matrix(rows.slice(0, count).map((r, i) => minus(r, rows[count + i] as number[])))
      const v = Matrix.columnVector([...vector.at(site)])
      const image = d.transpose().mmul(d.mmul(v))
      const value = v.dot(image)
      expect(Matrix.sub(image, Matrix.mul(v, value)).norm() / value).toBeLessThan(1e-4)
      expect(Math.abs(vector.at(site)[7] as number)).toBeGreaterThan(0.5)
    }
  })

  it('points to the side that more pairs project to', async () => {
    const rows = pairs(10, 32)
    await using model = await plantedModel(rows)
    const [a, b] = [tokens(0, 10), tokens(10, 20)]
    const vector = await pcaCentred(model, { positive: a, negative: b, site })
    const turned = await pcaCentred(model, { positive: b, negative: a, site })
    expect(cosine(vector.at(site), turned.at(site))).toBeCloseTo(-1, 5)
    expect(vector.at(site)[0]).toBeGreaterThan(0)
  })
})

describe('LAT', () => {
  it('finds the planted direction, and gives the same for the same seed', async () => {
    const width = 32
    const rows = gaussianRows(40, width).map((r, i) =>
      plus(
        r.map((x) => 0.3 * x),
        i < 20 ? 2 : -2,
        unitAxis(width, 5),
      ),
    )
    await using model = await plantedModel(rows)
    const options = { positive: tokens(0, 20), negative: tokens(20, 40), site }
    const vector = await lat(model, options)
    expect(vector.at(site)[5]).toBeGreaterThan(0.95)
    expect((await lat(model, { ...options, seed: 0 })).at(site)).toEqual(vector.at(site))
    expect((await lat(model, { ...options, seed: 1 })).at(site)).not.toEqual(vector.at(site))
    const turned = await lat(model, { ...options, positive: options.negative, negative: options.positive })
    expect(turned.at(site)[5]).toBeLessThan(-0.95)
    await expect(async () => lat(model, { ...options, positive: [[1]], negative: [[2]] })).rejects.toThrow('give at least 4')
  })
})

/** Plain gradient descent on ½‖w‖² + C Σ log(1 + exp(-t (w·x + b))), slowly but surely. */
function descended(rows: readonly number[][], targets: readonly number[], C: number, intercept: boolean): number[] {
  let w = (rows[0] as number[]).map(() => 0)
  let b = 0
  const bound = 1 + (C / 4) * rows.reduce((s, r) => s + r.reduce((q, x) => q + x * x, 1), 0)
  for (let step = 0; step < 40_000; step++) {
    const pull = rows.map((r, i) => {
      const t = targets[i] as number
      return (C * t) / (1 + Math.exp(t * (r.reduce((s, x, j) => s + x * (w[j] as number), 0) + b)))
    })
    const gradient = w.map((x, j) => x - rows.reduce((s, r, i) => s + (pull[i] as number) * (r[j] as number), 0))
    w = plus(w, -1 / bound, gradient)
    if (intercept) b += pull.reduce((s, x) => s + x, 0) / bound
  }
  return w.map((x) => x / length(w))
}

describe('logistic regression', () => {
  it.each([
    ['fewer examples than width', 8, 12, 16],
    ['more examples than width', 30, 20, 8],
  ])('reaches the optimum with %s', async (_, up, down, width) => {
    const rows = gaussianRows(up + down, width).map((r, i) => plus(r, i < up ? 0.7 : -0.2, unitAxis(width, 2)))
    await using model = await plantedModel(rows)
    const options = { positive: tokens(0, up), negative: tokens(up, up + down), site }
    const targets = rows.map((_, i) => (i < up ? 1 : -1))
    for (const C of [0.05, 0.7]) {
      const vector = await logistic(model, { ...options, C })
      expect(relativeError(vector.at(site), descended(rows, targets, C, true))).toBeLessThan(1e-5)
      expect(vector.record).toMatchObject({ method: 'logistic', options: { C, paired: false } })
    }
  })

  it('of pairs is that of both signs of the half differences', async () => {
    const rows = gaussianRows(20, 12).map((r, i) => plus(r, i < 10 ? 0.5 : 0, unitAxis(12, 1)))
    await using model = await plantedModel(rows)
    const halves = tokens(0, 10).map(([i]) => minus(rows[i as number] as number[], rows[(i as number) + 10] as number[]).map((x) => x / 2))
    const both = [...halves, ...halves.map((h) => h.map((x) => -x))]
    const wanted = descended(
      both,
      both.map((_, i) => (i < 10 ? 1 : -1)),
      1,
      false,
    )
    const vector = await logistic(model, { positive: tokens(0, 10), negative: tokens(10, 20), site, paired: true })
    expect(relativeError(vector.at(site), wanted)).toBeLessThan(1e-5)
  })

  it('bears sides that are far apart, large and many', async () => {
    const width = 200
    const rows = gaussianRows(300, width).map((r, i) =>
      plus(
        r.map((x) => 40 * x),
        i < 150 ? 300 : -300,
        unitAxis(width, 9),
      ),
    )
    await using model = await plantedModel(rows)
    const vector = await logistic(model, { positive: tokens(0, 150), negative: tokens(150, 300), site, batchSize: 512 })
    expect(vector.at(site)[9]).toBeGreaterThan(0.5)
    expect(vector.record.fit?.[site]?.accuracy).toBe(1)
  })
})

describe('LDA', () => {
  const scatter = (rows: readonly number[][], up: number) => {
    const [a, b] = [rows.slice(0, up), rows.slice(up)]
    const centred = [...a.map((r) => minus(r, mean(a))), ...b.map((r) => minus(r, mean(b)))]
    const x = new Matrix(centred)
    return { centred, s: x.transpose().mmul(x).div(rows.length), difference: minus(mean(a), mean(b)) }
  }
  const wanted = (rows: readonly number[][], up: number, gamma: number) => {
    const { s, difference } = scatter(rows, up)
    const shrunk = Matrix.add(Matrix.mul(s, 1 - gamma), Matrix.eye(s.rows).mul((gamma * s.trace()) / s.rows))
    const v = inverse(shrunk).mmul(Matrix.columnVector(difference)).getColumn(0)
    return v.map((x) => x / length(v))
  }

  it.each([
    ['fewer examples than width', 8, 6, 24],
    ['more examples than width', 30, 20, 8],
  ])('is the textbook normal with %s', async (_, up, down, width) => {
    const rows = gaussianRows(up + down, width).map((r, i) => plus(r, i < up ? 1 : -1, unitAxis(width, 4)))
    await using model = await plantedModel(rows)
    const options = { positive: tokens(0, up), negative: tokens(up, up + down), site }
    for (const shrinkage of [0.02, 0.4, 1])
      expect(relativeError((await lda(model, { ...options, shrinkage })).at(site), wanted(rows, up, shrinkage))).toBeLessThan(1e-5)
    // Ledoit and Wolf's estimate, by its definition: the mean squared distance of single outer products from their mean.
    const { centred, s } = scatter(rows, up)
    const n = rows.length
    const noise = centred.reduce((sum, x) => {
      const v = Matrix.columnVector(x)
      return sum + Matrix.sub(v.mmul(v.transpose()), s).norm('frobenius') ** 2
    }, 0)
    const spread = Matrix.sub(s, Matrix.eye(width).mul(s.trace() / width)).norm('frobenius') ** 2
    const gamma = Math.min(1, noise / n ** 2 / spread)
    const auto = await lda(model, options)
    expect(auto.record.fit?.[site]?.shrinkage).toBeCloseTo(gamma, 5)
    expect(relativeError(auto.at(site), wanted(rows, up, gamma))).toBeLessThan(1e-5)
  })

  it('with shrinkage 0 needs more examples than width', async () => {
    const rows = gaussianRows(50, 8).map((r, i) => plus(r, i < 25 ? 1 : 0, unitAxis(8, 0)))
    await using model = await plantedModel(rows)
    const vector = await lda(model, { positive: tokens(0, 25), negative: tokens(25, 50), site, shrinkage: 0 })
    expect(relativeError(vector.at(site), wanted(rows, 25, 0))).toBeLessThan(1e-5)
    await expect(lda(model, { positive: tokens(0, 3), negative: tokens(3, 6), site, shrinkage: 0 })).rejects.toThrow(
      'With shrinkage 0, 6 examples cannot determine a covariance of 8 coordinates',
    )
  })

  it('of sides without variance is the difference itself', async () => {
    const rows = gaussianRows(2, 32)
    await using model = await plantedModel(rows)
    const difference = minus(rows[0] as number[], rows[1] as number[])
    expect(cosine((await lda(model, { positive: [[0]], negative: [[1]], site })).at(site), difference)).toBeCloseTo(1, 6)
  })
})

describe('CAA', () => {
  const question = (text: string, yes: string, no: string) => ({
    question: text,
    answer_matching_behavior: yes,
    answer_not_matching_behavior: no,
  })

  it("reads the answer's letter, wherever the answers put it", async () => {
    const rows = gaussianRows(30, 32)
    await using model = await plantedModel(rows, { tokenizer: true })
    const difference = minus(
      mean([rows[20], rows[21]] as number[][]),
      mean([rows[21], rows[20]] as number[][]).map(() => 0),
    )
    const vector = await caa(model, { questions: [question('3 4', ' 20 9', ' 22 9'), question('5', ' 21 9', ' 22 9')], site })
    expect(vector.record).toMatchObject({ method: 'caa', position: -2, prompts: { positive: 2, negative: 2 } })
    expect(relativeError(vector.at(site), minus(difference, rows[22] as number[]))).toBeLessThan(1e-6)
    await expect(caa(model, { questions: [question('3', ' 20 9', ' 22 9'), question('5', ' 21', ' 22')], site })).rejects.toThrow(
      'differ at position -2 from the end in question 0, but at -1 in question 1',
    )
    await expect(caa(model, { questions: [], site })).rejects.toThrow('There are no questions')
    await expect(caa(model, { questions: [question('3', '', ' 4')], site })).rejects.toThrow(
      "Question 0 needs a 'question' and a 'answer_matching_behavior'",
    )
  })
})

describe('refusals', () => {
  it('say what is wrong with the examples', async () => {
    await using model = await plantedModel(gaussianRows(40, 32), { tokenizer: true })
    const cases: [object, RegExp][] = [
      [{ positive: [] }, /The positive side has no examples/],
      [{ negative: [] }, /The negative side has no examples/],
      [{ negative: undefined }, /The negative side has no examples/],
      [{ positive: [[5], []] }, /The positive example 1 \(ids:\) holds no token/],
      [{ positive: ['3 4', '5'], negative: [[9], [1, 3, 4]] }, /positive example 0 and the negative example 1 are the same \(ids:1,3,4\)/],
      [
        { positive: [Array.from({ length: 65 }, () => 3)] },
        /The positive example 0 \(ids:3,3,.*…\) has 65 tokens, but the context holds 64/,
      ],
      [{ positive: [[99]] }, /holds the token 99, but the vocabulary has ids 0 to 39/],
      [{ positive: [5] }, /must be a text or a list of token ids/],
      [{ position: 2 }, /has 2 tokens, so it has no position 2/],
      [{ position: -3 }, /has 2 tokens, so it has no position -3/],
      [{ position: 'first' }, /position must be 'last', 'mean' or an integer/],
      [{ excludeBos: true }, /concerns the position 'mean' only/],
      [{ positive: [''], position: 'mean', excludeBos: true }, /holds only the token that begins every text/],
      [{ batchSize: 0 }, /batchSize must be a positive integer/],
      [{ site: [] }, /No site is named/],
      [{ site: 'attn_probs.0' }, /No steering vector can be read at 'attn_probs.0': its axes are \[batch, head, pos, key\]/],
      [{ site: 'mlp_in_scale.0' }, /it holds one number for each position/],
      [{ site: 'resid_post.7' }, /asks for layer 7/],
      [{ positive: ['4 6'], negative: ['5 6'] }, /Both sides have the same activations at embeddings \(position last\)/],
      [{ method: 'pca-diff', negative: ['5', '6'] }, /there are 1 positive and 2 negative examples/],
      [{ method: 'logistic', C: 0 }, /C must be a positive number/],
      [{ method: 'lda', shrinkage: 2 }, /shrinkage must be 'auto' or a number/],
      [{ method: 'lat', seed: 0.5 }, /seed must be an integer/],
      [{ method: 'lda', C: 1 }, /The method 'lda' has no option 'C'; its own are shrinkage/],
      [{ method: 'mean-diference' }, /did you mean 'mean-difference'/],
    ]
    for (const [options, message] of cases)
      await expect(
        (async () => extractVector(model, { positive: ['4'], negative: ['5'], site: 'embeddings', ...options }))(),
        JSON.stringify(options),
      ).rejects.toThrow(message)
    await using bare = await plantedModel(gaussianRows(40, 32))
    await expect(meanDifference(bare, { positive: ['4'], negative: ['5'], site })).rejects.toThrow('has no tokenizer')
    await expect(meanDifference(bare, { positive: [[4]], negative: [[5]], site, position: 'mean', excludeBos: true })).rejects.toThrow(
      'names no token that begins texts',
    )
  })

  it('stop when asked to, and where the model overflows', async () => {
    await using model = await tinyModel()
    const options = { positive: tokens(1, 20), negative: tokens(20, 40), site: 'resid_post.1', batchSize: 8 }
    const controller = new AbortController()
    const stopped = meanDifference(model, {
      ...options,
      signal: controller.signal,
      onProgress: ({ done }) => done >= 8 && controller.abort(),
    })
    await expect(stopped).rejects.toBeInstanceOf(CancelledError)
    await expect(
      meanDifference(model.with(scale('embeddings', 1e38), scale('embeddings', 1e38)), { ...options, site: 'resid_mid.0' }),
    ).rejects.toThrow(/The model gave (NaN|-?Infinity) at 'resid_mid.0'/)
  })
})

it('the table names every method and says what it is', () => {
  expect(Object.keys(steeringMethods)).toEqual(['mean-difference', 'reading', 'pca-diff', 'pca-center', 'logistic', 'lda', 'lat'])
  for (const { doc } of Object.values(steeringMethods)) expect(doc).toMatch(/^[A-Z].*\.$/)
  expect(numberTokenizer.encode('5 6')).toEqual([1, 5, 6])
})
