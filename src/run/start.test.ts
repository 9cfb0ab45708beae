import { describe, expect, it } from 'vitest'
import { add, scale } from '../sites/edits.ts'
import { tinyGpt2, tinyLlama, tinyModel } from './testing.ts'

const rows = [
  [5, 17, 3, 44, 29, 8, 60],
  [9, 2, 33, 1],
]
const int64 = (shape: number[], values: number[]) => ({ dtype: 'int64' as const, shape, data: BigInt64Array.from(values.map(BigInt)) })
/** The two rows with padding in front of the second. */
const padded = {
  input_ids: int64([2, 7], [...(rows[0] as number[]), 0, 0, 0, ...(rows[1] as number[])]),
  attention_mask: int64([2, 7], [1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 1, 1, 1, 1]),
}
const close = (a: ArrayLike<number>, b: ArrayLike<number>, tolerance = 2e-5) => {
  expect(a.length).toBe(b.length)
  expect(Array.from(a).reduce((w, v, i) => (v === b[i] ? w : Math.max(w, Math.abs(v - (b[i] as number)))), 0)).toBeLessThan(tolerance)
}

describe.each([
  ['llama', tinyLlama, 'fused'],
  ['llama in segments', tinyLlama, 'segmented'],
  ['gpt2', tinyGpt2, 'segmented'],
] as const)('a run of %s from a site', (_, config, compile) => {
  it('gives what the whole run gives, wherever it starts and stops', async () => {
    await using model = await tinyModel(config, { compile })
    const starts = ['embeddings', 'resid_pre.1', 'resid_post.0', 'resid_mid.1', 'final_norm', 'attn_probs.1', 'z.1', 'mlp_act.0', 'q.1']
    const whole = await model.run(padded, { taps: [...starts, 'resid_post.1', 'mlp_in.1'] })
    for (const site of starts) {
      const value = whole.taps[site]!
      const taps = site === 'final_norm' ? [] : (['resid_post.1'] as const)
      const part = await model.run(padded, { from: { site, value }, taps })
      close(part.logits.data, whole.logits.data, 1e-4)
      if (taps.length > 0) close(part.taps['resid_post.1']!.data, whole.taps['resid_post.1']!.data)
    }
    // An alias, no logits, a plain array, and no tokens.
    const value = whole.taps['resid_post.0']!
    const plain = { dtype: value.dtype, shape: value.shape, data: value.data }
    const from = { site: 'blocks.0.hook_resid_post', value: plain }
    const short = await model.run({ attention_mask: padded.attention_mask }, { from, taps: ['mlp_in.1'], logits: false })
    close(short.taps['mlp_in.1'].data, whole.taps['mlp_in.1']!.data)
    expect(short.tokens).toEqual([])
  })

  it('acts on what follows: edits at the start and after it, and a value that is not the model’s', async () => {
    await using model = await tinyModel(config, { compile })
    const { taps } = await model.run({ rows }, { taps: ['resid_post.0'] })
    const value = taps['resid_post.0']
    const doubled = { ...value, dtype: 'float32' as const, shape: value.shape, data: value.data.map((v) => 2 * v) }
    const want = await model.with(scale('resid_post.0', 2)).run({ rows })
    close((await model.run({ rows }, { from: { site: 'resid_post.0', value: doubled } })).logits.data, want.logits.data, 1e-4)
    close(
      (await model.with(scale('resid_post.0', 2)).run({ rows }, { from: { site: 'resid_post.0', value } })).logits.data,
      want.logits.data,
      1e-4,
    )
  })

  it('has gradients at the start and after it', async () => {
    await using model = await tinyModel(config, { compile })
    const request = { of: { kind: 'next-token' as const }, at: ['resid_post.0', 'resid_mid.1'] }
    const whole = await model.gradient(request, padded)
    const part = await model.gradient(request, padded, { from: { site: 'resid_post.0', value: whole.activations['resid_post.0']! } })
    expect(part.value).toBeCloseTo(whole.value, 5)
    for (const site of request.at) close(part.sites[site]!.data, whole.sites[site]!.data)
  })

  it('compiles and runs only what follows', async () => {
    await using model = await tinyModel(config, { compile: 'segmented' })
    const layers = config.model_type === 'gpt2' ? 2 : 3
    const last = `resid_post.${layers - 2}`
    const value = { dtype: 'float32' as const, shape: [1, 4, 32], data: new Float32Array(128).fill(0.3) }
    await model.run({}, { from: { site: last, value } })
    expect(model.statistics.compiled).toBe(2)
  })

  it('refuses what does not follow from the start', async () => {
    await using model = await tinyModel(config, { compile })
    const { taps } = await model.run({ rows }, { taps: ['resid_post.0', 'z.1'] })
    const [post, z] = [taps['resid_post.0'], taps['z.1']]
    const refused = (make: () => Promise<unknown>, words: string | RegExp) => expect(make()).rejects.toThrow(words)
    await refused(
      () => model.run({ rows }, { from: { site: 'resid_post.0', value: post }, taps: ['mlp_in.0'] }),
      "'mlp_in.0' does not depend on 'resid_post.0'",
    )
    await refused(
      () => model.gradient({ of: { kind: 'next-token' }, at: 'z.0' }, { rows }, { from: { site: 'resid_post.0', value: post } }),
      'does not depend',
    )
    await refused(() => model.run({}, { from: { site: 'z.1', value: z } }), 'tokens are needed')
    await refused(() => model.run({ rows: [[1, 2]] }, { from: { site: 'resid_post.0', value: post } }), "along its axis 'batch'")
    await refused(() => model.run({ rows }, { from: { site: 'resid_post.0', value: z } }), 'must have shape [batch, pos, 32]')
    await refused(() => model.run({ rows }, { from: { site: 'resid_pst.0', value: post } }), 'did you mean')
    await refused(
      () => model.with(add('resid_pre.0', new Float32Array(32).fill(1))).run({ rows }, { from: { site: 'resid_post.0', value: post } }),
      'can never fire',
    )
    await refused(() => model.run({}, {}), /Give a text/)
    await refused(
      () =>
        model
          .with(add('resid_post.1', new Float32Array(32).fill(1), { where: { tokens: [3] } }))
          .run({}, { from: { site: 'resid_post.0', value: post } }),
      'acts where they match',
    )
    await refused(
      () => model.gradient({ of: { kind: 'next-token' }, at: 'resid_post.0' }, {}, { from: { site: 'resid_post.0', value: post } }),
      'needs them',
    )
  })
})
