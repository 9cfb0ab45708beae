import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, describe, expect, it } from 'vitest'
import { CancelledError } from '../../base/errors.ts'
import type { NDArray } from '../../base/types.ts'
import { saeWeights } from '../../models/sae/weights.ts'
import { RandomStream } from '../../nn/index.ts'
import { checkpointFolder } from '../../run/checkpoints.ts'
import { tinyModel } from '../../run/testing.ts'
import { saeMetrics, spliceScores } from './evaluate.ts'
import { liveRows } from './live-rows.ts'
import { memoryRows, type RowStream } from './rows.ts'
import { Sae } from './sae.ts'
import { trainSae } from './train.ts'

const folder = mkdtempSync(join(tmpdir(), 'actlens-sae-train-'))
afterAll(() => rmSync(folder, { recursive: true, force: true }))

/** 64 random unit features in 32 dimensions, 3 of them active in a row with amplitudes from ½ to 1½. */
function planted(rows: number, seed = 1): { features: Float32Array; x: NDArray<Float32Array> } {
  const random = RandomStream.of(seed)
  const [count, d] = [64, 32]
  const features = Float32Array.from({ length: count * d }, () => random.normal())
  for (let f = 0; f < count; f++) {
    const row = features.subarray(f * d, (f + 1) * d)
    const length = Math.hypot(...row)
    for (let i = 0; i < d; i++) row[i] = (row[i] as number) / length
  }
  const data = new Float32Array(rows * d)
  for (let r = 0; r < rows; r++)
    for (const f of random.permutation(count).subarray(0, 3)) {
      const amplitude = 0.5 + random.next()
      for (let i = 0; i < d; i++) data[r * d + i] = (data[r * d + i] as number) + amplitude * (features[f * d + i] as number)
    }
  return { features, x: { dtype: 'float32', shape: [rows, d], data } }
}

/** Mean over true features of the largest cosine with a decoder row, and the share above 0.9. */
function recovery(features: Float32Array, sae: Sae): { mmcs: number; recovered: number } {
  const d = sae.dIn
  const rows = Array.from({ length: sae.dSae }, (_, i) => sae.direction(i))
  const norms = rows.map((r) => Math.hypot(...r) || 1)
  const best = Array.from({ length: features.length / d }, (_, f) =>
    rows.reduce((m, r, i) => {
      let dot = 0
      for (let j = 0; j < d; j++) dot += (features[f * d + j] as number) * (r[j] as number)
      return Math.max(m, dot / (norms[i] as number))
    }, -1),
  )
  return { mmcs: best.reduce((s, v) => s + v, 0) / best.length, recovered: best.filter((v) => v > 0.9).length / best.length }
}

describe('planted features', () => {
  const { features, x } = planted(20_000)
  const rows = memoryRows(x, 3)

  it('TopK finds them; with a decoder that is not trained it does not', async () => {
    const options = {
      kind: 'topk',
      k: 3,
      width: 128,
      rows,
      batch: 256,
      steps: 1200,
      rate: 3e-3,
      warmup: 50,
      aux: 0,
      scale: 'none',
      threads: 2,
    } as const
    const { weights, last } = await trainSae(options)
    await using sae = new Sae(weights)
    const held = memoryRows(planted(2000, 1).x, 0)
    const metrics = await saeMetrics(sae, held)
    expect(metrics.fvu).toBeLessThan(0.07)
    expect(metrics.l0).toBeLessThanOrEqual(3)
    expect(recovery(features, sae).recovered).toBeGreaterThanOrEqual(0.95)
    expect(last?.fvu).toBeCloseTo(metrics.fvu, 1)
    const short = await trainSae({ ...options, steps: 1, rate: 1e-9 })
    await using untrained = new Sae(short.weights)
    expect((await saeMetrics(untrained, held)).fvu).toBeGreaterThan(0.4)
    expect(recovery(features, untrained).recovered).toBeLessThan(0.1)
  })

  it('more sparsity, fewer latents and more error, for L1', async () => {
    const by = []
    for (const sparsity of [0.05, 0.2, 0.6]) {
      const { weights } = await trainSae({
        kind: 'standard',
        decoder: 'unit',
        sparsity,
        width: 64,
        rows,
        batch: 256,
        steps: 400,
        rate: 3e-3,
        scale: 'none',
        threads: 2,
      })
      await using sae = new Sae(weights)
      by.push(await saeMetrics(sae, rows, { tokens: 4000 }))
    }
    const [a, b, c] = by as [(typeof by)[0], (typeof by)[0], (typeof by)[0]]
    expect(a.l0).toBeGreaterThan(b.l0)
    expect(b.l0).toBeGreaterThan(c.l0)
    expect(a.fvu).toBeLessThan(b.fvu)
    expect(b.fvu).toBeLessThan(c.fvu)
  })

  it('a folded scale and folded norms leave plain activations to be fed; BatchTopK keeps its k on the mean by threshold', async () => {
    const { weights } = await trainSae({
      kind: 'batchtopk',
      decoder: 'free',
      k: 3,
      width: 64,
      rows,
      batch: 256,
      steps: 600,
      rate: 3e-3,
      threads: 2,
    })
    expect(weights.kind).toBe('jumprelu')
    expect(weights.rescales).toBe(false)
    await using sae = new Sae(weights)
    const metrics = await saeMetrics(sae, rows, { tokens: 4000 })
    expect(metrics.fvu).toBeLessThan(0.15)
    expect(metrics.l0).toBeGreaterThan(1.5)
    expect(metrics.l0).toBeLessThan(4.5)
    for (let i = 0; i < 5; i++) expect(Math.hypot(...sae.direction(i))).toBeGreaterThan(0.01)
  })

  it('resampling and the auxiliary loss revive latents that died', async () => {
    const base = {
      kind: 'topk',
      k: 3,
      width: 96,
      rows,
      batch: 128,
      steps: 300,
      rate: 3e-3,
      scale: 'none',
      deadAfter: 30,
      threads: 2,
    } as const
    const start = {
      b_enc: { dtype: 'float32' as const, shape: [96], data: Float32Array.from({ length: 96 }, (_, i) => (i < 48 ? -20 : 0)) },
    }
    const revived = await trainSae({ ...base, aux: 0, start, resample: { every: 50, until: 120 } })
    expect(revived.last?.dead).toBeLessThan(12)
    // Of these the pre-activations are above zero now and then, though never among the largest.
    const milder = { b_enc: { ...start.b_enc, data: start.b_enc.data.map((v) => v / 30) } }
    const without = await trainSae({ ...base, aux: 0, start: milder })
    const withAux = await trainSae({ ...base, aux: 1, start: milder })
    expect(withAux.last?.dead as number).toBeLessThan((without.last?.dead as number) - 10)
  })

  it('goes on from a checkpoint as if it had not stopped, and keeps one when cancelled', async () => {
    const options = {
      kind: 'topk',
      k: 3,
      width: 64,
      rows,
      batch: 200,
      steps: 60,
      rate: 3e-3,
      deadAfter: 10,
      threads: 1,
      resample: { every: 25, until: 50 },
    } as const
    const whole = await trainSae(options)
    const files = checkpointFolder(join(folder, 'resume'))
    const stop = new AbortController()
    const cancelled = trainSae({
      ...options,
      checkpoints: { files, every: 20 },
      signal: stop.signal,
      onStep: (p) => p.step === 33 && stop.abort(),
    })
    await expect(cancelled).rejects.toThrow(CancelledError)
    expect((await files.list()).sort()).toEqual(['step-000000020', 'step-000000033'])
    const resumed = await trainSae({ ...options, checkpoints: { files, every: 20, resume: 'newest' } })
    expect(resumed.weights.tensors).toEqual(whole.weights.tensors)
  })

  it('refuses settings that mean nothing or contradict each other', async () => {
    const base = { rows, steps: 1, batch: 8 } as const
    const refuses = (o: object, pattern: RegExp) => expect(trainSae({ ...base, ...o })).rejects.toThrow(pattern)
    await refuses({ kind: 'topkk' }, /did you mean 'topk'/)
    await refuses({ kind: 'topk', sparsity: 1 }, /means nothing for a topk/)
    await refuses({ kind: 'standard', k: 3 }, /means nothing for a standard/)
    await refuses({ k: 500 }, /at most the width 256/)
    await refuses({ kind: 'matryoshka', groups: [8, 4] }, /rising whole numbers/)
    await refuses({ steps: undefined }, /give steps, or tokens/)
    await refuses({ tokens: 800 }, /give steps, or tokens/)
    await refuses({ batch: 30_000 }, /fewer rows than one batch/)
    await refuses({ rate: -1 }, /'rate' must be above zero/)
  })
})

describe('from a model and a corpus', () => {
  it('every activation comes once an epoch, in an order that its place gives back', async () => {
    const model = await tinyModel()
    const data = Array.from({ length: 40 }, (_, i) => Array.from({ length: 5 + (i % 7) }, (_, j) => (7 * i + 3 * j) % 61))
    const stream: RowStream = await liveRows(model, { data, site: 'resid_post.1', seed: 5, bufferTokens: 64, batchTokens: 48 })
    const read = async (epoch: number, skip: number) => {
      const rows: number[][] = []
      for await (const piece of stream.rows(epoch, skip))
        for (let at = 0; at < piece.length; at += 32) rows.push([...piece.subarray(at, at + 32)])
      return rows
    }
    const all = await read(0, 0)
    expect(all.length).toBe(data.reduce((n, d) => n + d.length, 0))
    const direct: string[] = []
    for (const ids of data) {
      const { taps } = await model.run({ ids }, { taps: ['resid_post.1'], logits: false })
      const { data: values } = taps['resid_post.1'] as unknown as { data: Float32Array }
      for (let p = 0; p < ids.length; p++) direct.push((values[p * 32] as number).toFixed(3))
    }
    expect(all.map((r) => (r[0] as number).toFixed(3)).sort()).toEqual(direct.sort())
    for (const skip of [1, 31, 32, 33, 90, 200, all.length]) expect(await read(0, skip)).toEqual(all.slice(skip))
    expect((await read(1, 0)).slice(0, 5)).not.toEqual(all.slice(0, 5))
    await model.dispose()
  })

  it('a perfect autoencoder recovers all of the loss, one of zeros none', async () => {
    const model = await tinyModel()
    const data = Array.from({ length: 6 }, (_, i) => Array.from({ length: 9 }, (_, j) => (5 * i + 11 * j) % 61))
    const eye = new Float32Array(32 * 64)
    const back = new Float32Array(64 * 32)
    // x = ReLU(x) − ReLU(−x).
    for (let i = 0; i < 32; i++) {
      eye[i * 64 + i] = 1
      eye[i * 64 + 32 + i] = -1
      back[i * 32 + i] = 1
      back[(32 + i) * 32 + i] = -1
    }
    const zeros = (...shape: number[]) => ({ dtype: 'float32' as const, shape, data: new Float32Array(shape.reduce((p, n) => p * n, 1)) })
    const tensors = {
      W_enc: { dtype: 'float32' as const, shape: [32, 64], data: eye },
      W_dec: { dtype: 'float32' as const, shape: [64, 32], data: back },
      b_enc: zeros(64),
      b_dec: zeros(32),
    }
    const perfect = new Sae(saeWeights({ kind: 'standard', subtractsBias: true, tensors, hook: 'blocks.1.hook_resid_post' }))
    const scores = await spliceScores(model, perfect, { data })
    expect(scores.ceRecovered).toBeCloseTo(1, 5)
    expect(scores.klScore).toBeCloseTo(1, 5)
    const metrics = await saeMetrics(perfect, await liveRows(model, { data, site: 'resid_post.1', seed: 0 }))
    expect(metrics.fvu).toBeLessThan(1e-9)
    expect(metrics.cosine).toBeCloseTo(1, 5)
    const nothing = new Sae(
      saeWeights({
        kind: 'standard',
        subtractsBias: true,
        tensors: { ...tensors, W_dec: zeros(64, 32) },
        hook: 'blocks.1.hook_resid_post',
      }),
    )
    expect((await spliceScores(model, nothing, { data })).ceRecovered).toBeCloseTo(0, 5)
    await model.dispose()
  })
})
