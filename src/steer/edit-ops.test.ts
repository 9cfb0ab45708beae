/** @file Additions with a schedule, for each row, and of a kept norm; clamped projections; low-rank linear maps: against the same arithmetic by hand. */
import { afterAll, describe, expect, it } from 'vitest'
import type { Model } from '../run/model.ts'
import { tinyModel } from '../run/testing.ts'
import { add, addKeepNorm, type Edit, linear, projectClamp } from '../sites/index.ts'
import { gaussianRows } from './testing.ts'

const ids = [3, 9, 27, 14]
const d = 32
const v = gaussianRows(1, d, 3)[0] as number[]

describe('edit ops', async () => {
  const model: Model = await tinyModel()
  afterAll(() => model.dispose())
  const site = 'resid_post.1'
  const value = async (edits: readonly Edit[], input: { rows: number[][] } = { rows: [ids] }) => {
    const { taps } = await edits.reduce<Model>((m, e) => m.with(e), model).run(input, { taps: [site] })
    return taps[site] as { data: Float32Array }
  }
  const byHand = async (change: (x: number[]) => number[]) => {
    const { data } = await value([])
    return ids.flatMap((_, p) => change(Array.from(data.slice(p * d, (p + 1) * d))))
  }
  const close = (ours: { data: Float32Array }, wanted: readonly number[]) => {
    expect(ours.data.length).toBe(wanted.length)
    for (const [i, w] of wanted.entries()) expect(ours.data[i]).toBeCloseTo(w, 4)
  }
  const dot = (a: readonly number[], b: readonly number[]) => a.reduce((s, x, i) => s + x * (b[i] as number), 0)

  it('keeps the norm of a sum', async () => {
    const wanted = await byHand((x) => {
      const y = x.map((a, i) => a + 2 * (v[i] as number))
      const f = Math.sqrt(dot(x, x) / dot(y, y))
      return y.map((a) => a * f)
    })
    close(await value([addKeepNorm(site, v, { scale: 2 })]), wanted)
  })

  it('clamps the component along a vector', async () => {
    const n = Math.sqrt(dot(v, v))
    const u = v.map((a) => a / n)
    const before = await byHand((x) => [dot(x, u)])
    const [low, high] = [Math.min(...before) + 1e-2, Math.max(...before) - 1e-2]
    const wanted = await byHand((x) => {
      const along = dot(x, u)
      return x.map((a, i) => a + (Math.min(high, Math.max(low, along)) - along) * (u[i] as number))
    })
    close(await value([projectClamp(site, v, { min: low, max: high })]), wanted)
  })

  it('maps by two thin factors', async () => {
    const [down, up, [center, shift]] = [gaussianRows(d, 3, 5), gaussianRows(3, d, 6), gaussianRows(2, d, 7)] as [
      number[][],
      number[][],
      [number[], number[]],
    ]
    const wanted = await byHand((x) => {
      const c = x.map((a, i) => a - (center[i] as number))
      const low = [0, 1, 2].map((r) => c.reduce((s, a, i) => s + a * (down[i]?.[r] as number), 0))
      return x.map((a, j) => a + 0.5 * (low.reduce((s, l, r) => s + l * (up[r]?.[j] as number), 0) + (shift[j] as number)))
    })
    close(await value([linear(site, { down, up, center, shift, scale: 0.5 })]), wanted)
    expect(() => model.with(linear(site, { down: up, up }))).toThrow(/must be \[32, rank\]/)
    expect(() => model.with(linear(site, { down, up: gaussianRows(2, d, 6) }))).toThrow(/must be \[3, 32\]/)
  })

  it('adds another vector to each row, through the slot and beside it', async () => {
    const rows = [ids, [5, 6], [7, 8, 9]]
    const vectors = gaussianRows(3, d, 9)
    const perRow = { dtype: 'float32' as const, shape: [3, 1, d], data: Float32Array.from(vectors.flat()) }
    const one = rows.map((_, b) => add(site, vectors[b] as number[], { scale: 2, where: { rows: [b] } }))
    const wanted = await value(one, { rows })
    expect((await value([add(site, perRow, { scale: 2 })], { rows })).data).toEqual(wanted.data)
    const beside = await value([add(site, perRow, { scale: 2 }), projectClamp(site, v, { max: 1e6 })], { rows })
    for (const [i, w] of wanted.data.entries()) expect(beside.data[i]).toBeCloseTo(w, 4)
    await expect(value([add(site, perRow)], { rows: [ids] })).rejects.toThrow('has values for 3 rows, but the batch has 1')
  })

  it('follows a schedule over generated tokens, the last factor holding on', async () => {
    const schedule = [1, 0.5, 0, 2]
    const steps = async (edits: readonly Edit[]) => {
      const out: Float32Array[] = []
      const m = edits.reduce<Model>((a, e) => a.with(e), model)
      // What is written must be the same in both, so that the activations can be compared.
      const processors = [(logits: Float32Array) => logits.fill(0).fill(1, 4, 5)]
      for await (const s of m.generate({ ids }, { maxNewTokens: 7, taps: [site], processors, ignoreEos: true }).steps())
        out.push(Float32Array.from(s.taps[site]?.at(0, -1) as Float32Array))
      return out
    }
    const [plain, scheduled, kept] = await Promise.all([
      steps([]),
      steps([add(site, v, { scale: 3, schedule })]),
      steps([add(site, v, { scale: 3, schedule }), projectClamp(site, v, { max: 1e6 })]),
    ])
    for (const [t, x] of scheduled.entries()) {
      // Step 0 reads the prompt; step t reads the generated token t − 1.
      const factor = t === 0 ? 0 : (schedule[Math.min(t - 1, schedule.length - 1)] as number)
      for (let i = 0; i < d; i++) {
        const wanted = (plain[t]?.[i] as number) + 3 * factor * (v[i] as number)
        expect(x[i]).toBeCloseTo(wanted, 4)
        expect(kept[t]?.[i]).toBeCloseTo(wanted, 4)
      }
    }
    expect(() => model.with(add(site, v, { schedule, where: { phase: 'prompt' } }))).toThrow('schedule is for generated tokens')
    expect(() => model.with(add(site, v, { schedule: [] }))).toThrow('one for each generated token')
  })
})
