/** Speculative decoding: greedy text is the model's own, drawn text has the model's own distribution, whatever the draft model guesses. */
import { describe, expect, it } from 'vitest'
import { add, scale } from '../sites/edits.ts'
import type { GenerateOptions } from './index.ts'
import { tinyGpt2, tinyLlama, tinyModel } from './testing.ts'

const ids = [3, 14, 15, 9, 2, 6]
const v = Float32Array.from({ length: 32 }, (_, i) => Math.sin(i))

describe('speculative decoding', () => {
  it('writes greedily what the model writes, with edits, in rows of different lengths, to the end of the context', async () => {
    await using plain = await tinyModel(tinyLlama)
    await using small = await tinyModel(tinyGpt2)
    const model = plain.with(
      add('resid_post.1', v, { scale: 2, where: { phase: 'generated' } }),
      add('resid_post.0', v, { where: { rows: [1] } }),
    )
    for (const draft of [small, plain])
      for (const rows of [[ids], [ids, ids.slice(0, 2), [5]]]) {
        const options: GenerateOptions = { maxNewTokens: 17, endTokens: [1] }
        const own = await model
          .with(add('resid_post.0', v, { scale: 0.5 }))
          .generate({ rows }, options)
          .results()
        const edited = model.with(add('resid_post.0', v, { scale: 0.5 }))
        const helped = await edited.generate({ rows }, { ...options, draft: { model: draft, tokens: 3 } }).results()
        expect(helped.map((r) => r.tokens)).toEqual(own.map((r) => r.tokens))
        expect(helped.map((r) => r.finishReason)).toEqual(own.map((r) => r.finishReason))
      }
    const whole = await plain.generate({ ids }, { maxNewTokens: 100 }).result()
    const helped = await plain.generate({ ids }, { maxNewTokens: 100, draft: { model: plain } }).result()
    expect(helped.tokens).toEqual(whole.tokens)
    expect(helped.finishReason).toBe('context')
    // A model guesses itself rightly.
    expect(helped.draft?.accepted).toBe(helped.draft?.proposed)
    expect(helped.draft?.accepted).toBeGreaterThan(40)
  })

  it('keeps the distribution of what is drawn', async () => {
    await using model = await tinyModel(tinyLlama)
    // Guesses of a weakened copy: sometimes right, sometimes impossible.
    const draft = model.with(scale('mlp_out.2', 0.3))
    const rows = Array.from({ length: 200 }, () => ids)
    const count = async (seed: number, options: GenerateOptions) => {
      const counts = new Map<string, number>()
      let accepted = 0
      for (let n = 0; n < 4; n++)
        for (const r of await model
          .generate({ rows }, { maxNewTokens: 3, temperature: 0.7, topK: 4, seed: seed + n * 1000, ...options })
          .results()) {
          const key = r.tokens.join()
          counts.set(key, (counts.get(key) ?? 0) + 1)
          accepted += r.draft?.accepted ?? 0
        }
      return { counts, accepted }
    }
    // Expected frequencies from the model itself: topK 4 at each of three steps gives 64 texts.
    const expected = new Map<string, number>([['', 1]])
    for (let n = 0; n < 3; n++) {
      const texts = [...expected].filter(([k]) => k.split(',').filter(Boolean).length === n)
      const { logits } = await model.run({ rows: texts.map(([k]) => [...ids, ...k.split(',').filter(Boolean).map(Number)]) })
      for (const [b, [key, p]] of texts.entries()) {
        expected.delete(key)
        const last = Array.from(logits.at(b, -1), (x, id) => ({ id, w: Math.exp(x / 0.7) }))
        const best = last.sort((x, y) => y.w - x.w).slice(0, 4)
        const total = best.reduce((s, x) => s + x.w, 0)
        for (const x of best) expected.set(key === '' ? `${x.id}` : `${key},${x.id}`, (p * x.w) / total)
      }
    }
    const chiSquare = (counts: Map<string, number>) =>
      [...expected].reduce((s, [key, p]) => s + ((counts.get(key) ?? 0) - 800 * p) ** 2 / (800 * p), 0)
    const helped = await count(10, { draft: { model: draft, tokens: 2 } })
    expect([...helped.counts.keys()].every((k) => expected.has(k))).toBe(true)
    expect(helped.accepted).toBeGreaterThan(200)
    expect(helped.accepted).toBeLessThan(1400)
    // 63 degrees of freedom: the 99.9 % point is 103.4. Seeds are fixed, so this does not vary.
    expect(chiSquare(helped.counts)).toBeLessThan(103.4)
    // The statistic tells another distribution apart: that of the draft model's own texts.
    const wrong = new Map<string, number>()
    for (const r of await draft
      .generate({ rows: [...rows, ...rows, ...rows, ...rows] }, { maxNewTokens: 3, temperature: 0.7, topK: 4 })
      .results())
      wrong.set(r.tokens.join(), (wrong.get(r.tokens.join()) ?? 0) + 1)
    expect(chiSquare(wrong)).toBeGreaterThan(300)
  })

  it('refuses another vocabulary, and a context that is too short', async () => {
    await using model = await tinyModel(tinyLlama)
    await using other = await tinyModel({ ...tinyGpt2, vocab_size: 60 })
    await using short = await tinyModel({ ...tinyGpt2, n_positions: 16 })
    await expect(model.generate({ ids }, { draft: { model: other } }).result()).rejects.toThrow(
      'The draft model has 60 token ids, but the model has 61',
    )
    await expect(model.generate({ ids }, { draft: { model: short } }).result()).rejects.toThrow("the draft model's context holds 16")
  })
})
