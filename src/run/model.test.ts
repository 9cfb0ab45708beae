import { describe, expect, it } from 'vitest'
import { randomStream } from '../models/sampling.ts'
import {
  add,
  affine,
  clamp,
  type Edit,
  edit,
  meanAblate,
  noise,
  projectOut,
  projectTo,
  replace,
  rotate,
  scale,
  set,
  zero,
} from '../sites/edits.ts'
import { tinyGpt2, tinyLlama, tinyModel } from './testing.ts'

const vector = (n: number, seed = 5) => {
  const r = randomStream(seed)
  return Float32Array.from({ length: n }, () => r() * 2 - 1)
}
const ids = [5, 17, 3, 44, 29, 8, 60]
const close = (a: ArrayLike<number>, b: ArrayLike<number>, tolerance = 2e-5) => {
  expect(a.length).toBe(b.length)
  let worst = 0
  for (let i = 0; i < a.length; i++) {
    if (a[i] === b[i]) continue
    worst = Math.max(worst, Math.abs((a[i] as number) - (b[i] as number)))
  }
  expect(worst).toBeLessThan(tolerance)
}
const worstOf = (a: ArrayLike<number>, b: ArrayLike<number>) =>
  Array.from(a).reduce((w, v, i) => Math.max(w, Math.abs(v - (b[i] as number))), 0)

describe.each([
  ['llama', tinyLlama],
  ['gpt2', tinyGpt2],
])('a run of %s', (_, config) => {
  it('is the same for a row alone, in a batch, and with padding on either side', async () => {
    await using model = await tinyModel(config)
    const taps = ['resid_post.*', 'attn_probs.1', 'z.0', 'attn_scores.0', 'q.1'] as const
    const short = ids.slice(0, 4)
    const alone = await model.run({ ids: short }, { taps })
    const batch = await model.run({ rows: [ids, short] }, { taps })
    const W = ids.length
    const pad = (left: boolean) => ({
      input_ids: {
        dtype: 'int64' as const,
        shape: [2, W],
        data: BigInt64Array.from([...ids, ...(left ? [0, 0, 0, ...short] : [...short, 0, 0, 0])].map(BigInt)),
      },
      attention_mask: {
        dtype: 'int64' as const,
        shape: [2, W],
        data: BigInt64Array.from([...ids.map(() => 1), ...(left ? [0, 0, 0, 1, 1, 1, 1] : [1, 1, 1, 1, 0, 0, 0])].map(BigInt)),
      },
    })
    const right = await model.run(pad(false), { taps })
    const left = await model.run(pad(true), { taps })
    for (const site of Object.keys(alone.taps)) {
      const want = alone.taps[site]?.row(0).data as Float32Array
      for (const r of [batch, right, left]) close(r.taps[site]?.row(1).data as Float32Array, want)
    }
    close(left.logits.row(1).data, alone.logits.row(0).data, 1e-4)
    // Padding holds no data: zeros, or -inf among scores.
    expect([...left.taps['resid_post.0']!.data.slice(W * 32, (W + 3) * 32)].every((v) => v === 0)).toBe(true)
  })

  it('has identities: residual sums, rows of attention, norms, probabilities times values', async () => {
    await using model = await tinyModel(config)
    const { taps } = await model.run({ ids }, { taps: ['*.1', 'logits', 'final_norm'] })
    const t = (n: string) => (taps[n] as { data: Float32Array }).data
    close(
      t('resid_mid.1'),
      t('resid_pre.1').map((v, i) => v + (t('attn_out_post.1')[i] as number)),
    )
    close(
      t('resid_post.1'),
      t('resid_mid.1').map((v, i) => v + (t('mlp_out_post.1')[i] as number)),
    )
    const n = ids.length
    for (let row = 0; row < 4 * n; row++) {
      const probs = t('attn_probs.1').slice(row * n, (row + 1) * n)
      expect(probs.reduce((a, b) => a + b, 0)).toBeCloseTo(1, 5)
      expect(probs.slice((row % n) + 1).every((v) => v === 0)).toBe(true)
      expect(Number.isFinite(t('attn_scores.1')[row * n + n - 1])).toBe(row % n === n - 1)
    }
    close(
      t('attn_in_normalized.1').map((v, i) => v * (t('attn_in_scale.1')[Math.floor(i / 32)] as number)),
      config === tinyLlama
        ? t('resid_pre.1')
        : t('resid_pre.1').map((v, i, x) => v - x.slice(i - (i % 32), i - (i % 32) + 32).reduce((a, b) => a + b) / 32),
    )
  })

  it('is not changed by edits of strength zero, and edit then inverse is none', async () => {
    await using model = await tinyModel(config)
    const v = vector(32)
    const plain = await model.run({ ids })
    const nothing: Edit[][] = [
      [add('resid_post.*', v, { scale: 0 })],
      [scale('mlp_out.1', 1)],
      [affine('resid_mid.0', { scale: 1, shift: 0 })],
      [rotate('resid_post.1', v, vector(32, 9), 0)],
      [noise('resid_post.0', 0, { seed: 3 })],
      [clamp('resid_post.0', { min: -1e9, max: 1e9 })],
      [add('resid_pre.1', v, { scale: 3 }), add('resid_pre.1', v, { scale: -3 })],
      [rotate('resid_post.0', v, vector(32, 9), 0.7), rotate('resid_post.0', v, vector(32, 9), -0.7)],
      [scale('attn_probs.1', 2), scale('attn_probs.1', 0.5)],
      [add('resid_post.0', v, { where: { rows: [1] } })],
    ]
    for (const edits of nothing) close((await model.with(edits).run({ ids })).logits.data, plain.logits.data, 1e-4)
    expect(model.edits).toEqual([])
  })

  it('edits what it says, where it says', async () => {
    await using model = await tinyModel(config)
    const site = 'resid_post.1'
    const v = vector(32)
    const plain = await model.run({ ids }, { taps: [site, 'resid_pre.0'] })
    const [base, pre] = [plain.taps[site].data, plain.taps['resid_pre.0'].data]
    const value = async (...edits: Edit[]) => (await model.with(...edits).run({ ids }, { taps: [site] })).taps[site].data
    const dot = (x: ArrayLike<number>) => v.reduce((s, a, i) => s + a * (x[i] as number), 0) / Math.hypot(...v)
    const at = (x: Float32Array, p: number) => x.slice(p * 32, (p + 1) * 32)
    close(
      await value(add(site, v, { scale: 2 })),
      base.map((x, i) => x + 2 * (v[i % 32] as number)),
    )
    close(
      await value(zero(site)),
      base.map(() => 0),
    )
    close(
      await value(set(site, 7)),
      base.map(() => 7),
    )
    close(
      await value(meanAblate(site, v)),
      base.map((_, i) => v[i % 32] as number),
    )
    close(
      await value(clamp(site, { min: -0.5, max: 0.25 })),
      base.map((x) => Math.min(0.25, Math.max(-0.5, x))),
    )
    expect(Math.abs(dot(at(await value(projectOut(site, v)), 3)))).toBeLessThan(1e-4)
    expect(dot(at(await value(projectTo(site, v, 4.5)), 2))).toBeCloseTo(4.5, 3)
    const turned = await value(rotate(site, v, vector(32, 9), 1.1))
    expect(Math.hypot(...at(turned, 4))).toBeCloseTo(Math.hypot(...at(base, 4)), 3)
    const some = await value(add(site, v, { where: { positions: [1, -1] } }))
    close(
      some,
      base.map((x, i) => x + ([1, ids.length - 1].includes(Math.floor(i / 32)) ? (v[i % 32] as number) : 0)),
    )
    close(
      await value(add(site, v, { where: { tokens: [44] } })),
      base.map((x, i) => x + (Math.floor(i / 32) === 3 ? (v[i % 32] as number) : 0)),
    )
    close(
      await value(add(site, v, { where: { positions: { from: 2, to: -2 } } })),
      base.map((x, i) => x + (Math.floor(i / 32) >= 2 && Math.floor(i / 32) < 5 ? (v[i % 32] as number) : 0)),
    )
    const threshold = [...Array(7).keys()].map((p) => dot(at(base, p))).sort((a, b) => a - b)[3] as number
    const gated = await value(
      add(site, v, { where: { when: { site, vector: v.map((x) => x / Math.hypot(...v)), above: threshold + 1e-4 } } }),
    )
    close(
      gated,
      base.map((x, i) => x + (dot(at(base, Math.floor(i / 32))) > threshold + 1e-4 ? (v[i % 32] as number) : 0)),
    )
    const other = (await model.run({ ids: [9, 9, 2, 1, 50, 30, 7] }, { taps: [site] })).taps[site]
    close(await value(replace(site, other)), other.data)
    close(
      await value(edit(site, (x) => x.mul(3).add(1))),
      base.map((x) => 3 * x + 1),
    )
    close(
      await value(edit(site, (x, c) => x.add(c.read('resid_pre.0')), { reads: ['resid_pre.0'] })),
      base.map((x, i) => x + (pre[i] as number)),
    )
  })

  it('refuses edits and taps that cannot be honoured, with a sentence', async () => {
    await using model = await tinyModel(config)
    const v = vector(32)
    const refused = async (make: () => unknown, words: string) => expect(async () => make()).rejects.toThrow(words)
    await refused(() => model.with(add('resid_post.9', v)), 'layers 0 to')
    await refused(() => model.with(add('resid_pst.1', v)), "did you mean 'resid_post.1'")
    await refused(() => model.with(add('resid_post.1', vector(31))), 'must be 32 wide')
    await refused(() => model.with(add('resid_post.1', v.with(3, Number.NaN))), 'NaN')
    await refused(() => model.with({ op: 'addd' as 'add', site: 'resid_post.1', params: {} }), "did you mean 'add'")
    await refused(() => model.with({ op: 'add', site: 'resid_post.1', params: { vektor: [1] } }), 'unknown parameter')
    await refused(() => model.with(add('resid_post.1', v, { where: { layer: 1 } as object })), "unknown key 'layer'")
    await refused(() => model.with(add('resid_post.*', v, { where: { layers: [7] } })), 'can never fire')
    await refused(
      () => model.with(add('resid_post.0', v, { where: { when: { site: 'resid_post.1', vector: v, above: 0 } } })).run({ ids }),
      'can never fire',
    )
    await refused(
      () => model.with(add('resid_post.1', v)).run({ ids }, { taps: ['resid_post.0'], logits: false }),
      'acts behind all that is read (resid_post.0), so it would change nothing',
    )
    await refused(() => model.with(projectOut('resid_post.1', new Float32Array(32))), 'zero vector')
    await refused(() => model.run({ rows: [] }), 'The batch is empty')
    await refused(() => model.run({ ids: [] }), 'holds no token')
    await refused(() => model.run({ ids: [61] }), 'ids 0 to 60')
    await refused(() => model.run({ ids: Array(65).fill(1) }), 'the context holds 64')
    await refused(() => model.run({ ids }, { taps: ['mlp_pre_linear.0', 'pos_embeddings'] }), 'does not exist in this model')
    const r = await model
      .with(add('resid_post.1', v, { where: { positions: 12 } }))
      .run({ ids }, { taps: [{ site: 'z.0', where: { tokens: [2] } }] })
    expect(r.unfired).toHaveLength(2)
  })

  it('compiles once for a structure, whatever the numbers', async () => {
    await using model = await tinyModel(config)
    const run = (s: number, p: number) => model.with(add('resid_post.1', vector(32, s), { scale: s, where: { positions: p } })).run({ ids })
    await run(1, 2)
    const before = model.statistics.compiled
    const results = [await run(2, 3), await run(3, 4)]
    expect(model.statistics.compiled).toBe(before)
    expect(worstOf(results[0]?.logits.data as Float32Array, results[1]?.logits.data as Float32Array)).toBeGreaterThan(1e-3)
  })

  it('is the same in segments; an edit at a new site compiles one of them', async () => {
    await using fused = await tinyModel(config)
    await using model = await tinyModel(config, { compile: 'segmented' })
    const plain = await model.run({ ids })
    close(plain.logits.data, (await fused.run({ ids })).logits.data)
    const before = model.statistics.compiled
    await model.with(zero('mlp_out.1')).run({ ids })
    expect(model.statistics.compiled - before).toBe(1)
    const masked = add('resid_mid.0', vector(32), { where: { positions: 1 } })
    const edited = await model.with(masked).run({ ids })
    expect(model.statistics.compiled - before).toBe(2)
    close(edited.logits.data, (await fused.with(masked).run({ ids })).logits.data)
  })
})

describe.each([
  ['llama', tinyLlama],
  ['gpt2', tinyGpt2],
])('generation with %s', (_, config) => {
  const v = vector(32, 11)
  const cases: [string, Edit[]][] = [
    ['no edit', []],
    [
      'every residual site',
      [add('resid_post.*', v, { scale: 0.4 }), add('resid_mid.*', v, { scale: 0.2 }), add('resid_pre.*', v, { scale: -0.3 })],
    ],
    ['generated positions only', [add('resid_post.0', v, { scale: 2, where: { phase: 'generated' } })]],
    ['the prompt only', [add('resid_post.0', v, { scale: 2, where: { phase: 'prompt', positions: [0, -1] } })]],
    [
      'inside attention',
      [
        scale('attn_probs.1', 0.5),
        add('q.0', vector(config === tinyLlama ? 64 : 32, 12)),
        set('attn_scores.0', 0.1, { where: { positions: 3 } }),
        add('z.1', vector(config === tinyLlama ? 16 : 8, 13)),
        add('v.1', vector(config === tinyLlama ? 16 : 8), { scale: 0.5 }),
      ],
    ],
    ['a probe as condition', [add('resid_post.0', v, { scale: 3, where: { when: { site: 'resid_pre.0', vector: v, above: 0 } } })]],
    ['noise', [noise('resid_mid.1', 0.5, { seed: 7 })]],
    ['chosen tokens', [zero('mlp_out.0', { where: { tokens: [17, 29, 40, 3] } })]],
  ]
  it.each(cases)('with %s equals the uncached recomputation, token for token', async (_, edits) => {
    await using model = (await tinyModel(config)).with(edits)
    const { tokens } = await model.generate({ ids }, { maxNewTokens: 20 }).result()
    // Additive edits through slots, as large models have them.
    await using slotted = (await tinyModel(config, { compile: 'fused' })).with(edits)
    expect((await slotted.generate({ ids }, { maxNewTokens: 20 }).result()).tokens).toEqual(tokens)
    const row = [...ids]
    for (const token of tokens) {
      const { logits } = await model.run({ ids: row }, { promptLength: ids.length })
      const last = logits.at(0, -1)
      expect(token).toBe(last.indexOf(Math.max(...last)))
      row.push(token)
    }
    expect(tokens.length).toBe(20)
  })

  it('turns to another layer without compiling, where it has slots', async () => {
    await using model = await tinyModel(config, { compile: 'fused' })
    const at = (site: string) =>
      model
        .with(add(site, v, { scale: 3, where: { phase: 'generated' } }))
        .generate({ ids }, { maxNewTokens: 8 })
        .result()
    const first = await at('resid_post.0')
    const before = model.statistics.compiled
    expect((await at('resid_mid.1')).tokens).not.toEqual(first.tokens)
    expect(model.statistics.compiled).toBe(before)
  })

  it('gives each row of a batch what it gives alone', async () => {
    await using model = await tinyModel(config)
    const rows = [ids, ids.slice(0, 3), [7, 7, 2, 55]]
    const steered = model.with(add('resid_post.1', v, { where: { rows: [2] } }), scale('attn_probs.0', 0.9))
    const together = await steered.generate({ rows }, { maxNewTokens: 12 }).results()
    for (const [b, row] of rows.entries()) {
      const alone = model.with(...(b === 2 ? [add('resid_post.1', v)] : []), scale('attn_probs.0', 0.9))
      expect((await alone.generate({ ids: row }, { maxNewTokens: 12 }).result()).tokens).toEqual(together[b]?.tokens)
    }
  })

  it('samples reproducibly, taps every step, and can be cancelled', async () => {
    await using model = await tinyModel(config)
    const options = { maxNewTokens: 15, temperature: 1, topK: 20, topP: 0.9, minP: 0.01, repetitionPenalty: 1.1, seed: 3 }
    const a = await model.generate({ ids }, options).result()
    expect((await model.generate({ ids }, options).result()).tokens).toEqual(a.tokens)
    expect((await model.generate({ ids }, { ...options, seed: 4 }).result()).tokens).not.toEqual(a.tokens)
    const row = [...ids]
    for await (const step of model.generate({ ids }, { maxNewTokens: 5, taps: ['resid_post.1', 'attn_probs.0'] }).steps()) {
      const { taps } = await model.run({ ids: row }, { taps: ['resid_post.1', 'attn_probs.0'] })
      close(step.taps['resid_post.1']?.at(0, -1) as Float32Array, taps['resid_post.1'].at(0, -1))
      close((step.taps['attn_probs.0'] as { data: Float32Array }).data.slice(-row.length), taps['attn_probs.0'].data.slice(-row.length))
      row.push(step.token)
    }
    const stop = new AbortController()
    const cancelled = model.generate({ ids }, { maxNewTokens: 50, signal: stop.signal })
    const seen: number[] = []
    await expect(async () => {
      for await (const step of cancelled.steps()) if (seen.push(step.token) === 3) stop.abort()
    }).rejects.toThrow('cancelled')
    expect((await cancelled.result()).finishReason).toBe('cancelled')
    expect((await cancelled.result()).tokens).toEqual(seen)
  })

  it('stops at the end of the context', async () => {
    await using model = await tinyModel(config)
    const r = await model.generate({ ids }, { maxNewTokens: 500 }).result()
    expect(r.finishReason).toBe('context')
    expect(r.tokens.length).toBe(64 - ids.length)
  })
})

describe('loading', () => {
  it('refuses an unlisted family, and takes one by its declared facts when told to', async () => {
    const martian = { ...tinyLlama, model_type: 'martian' }
    await expect(tinyModel(martian)).rejects.toThrow("The family 'martian' is not known")
    await expect(tinyModel({ ...martian, attn_logit_softcapping: 5 }, { family: 'declared' })).rejects.toThrow('attn_logit_softcapping')
    await using model = await tinyModel(martian, { family: 'declared' })
    await using llama = await tinyModel(tinyLlama)
    expect((await model.run({ ids })).logits.data).toEqual((await llama.run({ ids })).logits.data)
  })
})
