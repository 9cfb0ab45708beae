/** Transforms of weights: recorded PyTorch values stay what they are, and what is no identity equals the edit that says the same. */
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { describe, expect, it } from 'vitest'
import type { NDArray } from '../base/types.ts'
import { inverse, transformOf } from '../models/transforms/index.ts'
import { add, affine, projectOut, scale, zero } from '../sites/edits.ts'
import type { Model } from './model.ts'
import { tinyGpt2, tinyLlama, tinyModel } from './testing.ts'
import { foldEdits, undo } from './transform.ts'
import { errorOf, foldsAndUnfolds, openGolden, weightsOf } from './transform-testing.ts'

const goldens = fileURLToPath(new URL('../../test/goldens/', import.meta.url))

const fold = transformOf('fold_norms', {})

const ids = { ids: [3, 17, 8, 40, 22, 5] }
const logitsOf = async (m: Model) => (await m.run(ids)).logits

describe.each(['gpt2', 'gpt_neox', 'gemma2', 'falcon-7b', 'qwen2_moe', 'olmo2', 'bloom'])('%s', (name) => {
  it('keeps the logits of PyTorch when gains are folded, and its weights when that is undone', () => foldsAndUnfolds(join(goldens, name)))
})

describe('transforms that keep what the model computes', () => {
  it('folded gains are gone from the norms, in the sites and in the record', async () => {
    await using model = await tinyModel(tinyGpt2)
    await using folded = await model.transformed(fold, transformOf('fold_value_biases', {}), transformOf('centre_writing', {}))
    expect(errorOf(await logitsOf(folded), await logitsOf(model))).toBeLessThan(1e-5)
    const weights = await weightsOf(folded)
    expect(new Set(weights['transformer.h.1.ln_2.weight'])).toEqual(new Set([1]))
    expect(new Set(weights['transformer.h.0.attn.c_attn.bias']?.slice(64))).toEqual(new Set([0]))
    const { taps } = await folded.run(ids, { taps: ['resid_post.*', 'attn_out.1'] })
    for (const site of ['resid_post.0', 'resid_post.1', 'attn_out.1'])
      for (let p = 0; p < 6; p++) {
        const row = (taps[site] as { data: Float32Array }).data.subarray(p * 32, p * 32 + 32)
        expect(Math.abs(row.reduce((s, v) => s + v, 0) / 32)).toBeLessThan(1e-6)
      }
    expect(folded.origin.transforms.map((t) => t.kind)).toEqual(['fold_norms', 'fold_value_biases', 'centre_writing'])
    expect(folded.origin.id).toBe('tiny [fold_norms, fold_value_biases, centre_writing]')
    expect(await folded.origin.hash()).not.toBe(await model.origin.hash())
    expect(model.origin.transforms).toEqual([])
  })

  it('a centred unembedding moves all logits of a position by one number', async () => {
    await using model = await tinyModel(tinyLlama)
    await using centred = await model.transformed(transformOf('centre_unembedding', {}))
    const [a, b] = [await logitsOf(model), await logitsOf(centred)]
    for (let p = 0; p < 6; p++) {
      const [x, y] = [a.data.subarray(p * 61, p * 61 + 61), b.data.subarray(p * 61, p * 61 + 61)]
      const mean = x.reduce((s, v) => s + v, 0) / 61
      expect(errorOf({ data: y }, { data: x.map((v) => v - mean) })).toBeLessThan(1e-5)
    }
  })

  it('is refused where a family reads the mean, or caps its logits', async () => {
    await using model = await tinyModel(tinyLlama)
    await expect(model.transformed(transformOf('centre_writing', {}))).rejects.toThrow("'llama' reads the mean of its residual stream")
    await expect(model.transformed(transformOf('fold_value_biases', {}))).rejects.toThrow("'llama' have no bias to fold")
    await using capped = await openGolden(join(goldens, 'gemma2'))
    await expect(capped.transformed(transformOf('centre_unembedding', {}))).rejects.toThrow('caps its logits')
    await expect(
      capped.transformed(transformOf('orthogonalise', { direction: new Float32Array(capped.spec.dModel).fill(1) })),
    ).rejects.toThrow('a norm after attention or MLP stands between')
  })
})

describe('transforms that do what edits do', () => {
  const direction = Float32Array.from({ length: 32 }, (_, i) => Math.sin(3 * i + 1))

  it.each([
    ['llama', tinyLlama],
    ['gpt2', tinyGpt2],
  ] as const)('an orthogonalised %s writes nothing along the direction', async (_, config) => {
    await using model = await tinyModel(config)
    await using orthogonal = await model.transformed(transformOf('orthogonalise', { direction }))
    const sites = ['embeddings', 'attn_out_post.*', 'mlp_out_post.*', ...(config === tinyGpt2 ? ['pos_embeddings'] : [])]
    const edited = model.with(sites.map((s) => projectOut(s, direction)))
    const [ours, want] = [await logitsOf(orthogonal), await logitsOf(edited)]
    expect(errorOf(ours, want)).toBeLessThan(1e-5)
    expect(errorOf(ours, await logitsOf(model))).toBeGreaterThan(0.01)
  })

  it.each([
    ['llama', tinyLlama],
    ['gpt2', tinyGpt2],
  ] as const)('edits folded into the weights of %s are the edits, and can be undone', async (_, config) => {
    await using model = await tinyModel(config)
    const two = Float32Array.from({ length: 32 }, (_, i) => 1 + 0.3 * Math.cos(i))
    const edits = [
      add('resid_post.0', direction, { scale: 0.7 }),
      affine('attn_in.1', { scale: two, shift: direction }),
      affine('mlp_in.*', { scale: two }),
      affine('mlp_out.1', { scale: two, shift: direction }),
      affine('final_norm', { scale: two }),
      add(
        'mlp_act.0',
        Float32Array.from({ length: config === tinyLlama ? 48 : 128 }, (_, i) => Math.cos(i)),
      ),
      add('resid_pre.0', direction),
      scale('z.1', 0.5),
    ]
    await using folded = await model.transformed(foldEdits(model, edits))
    const [ours, want] = [await logitsOf(folded), await logitsOf(model.with(edits))]
    expect(errorOf(ours, want)).toBeLessThan(1e-5)
    expect(errorOf(ours, await logitsOf(model))).toBeGreaterThan(0.01)
    await using back = await undo(folded)
    expect(errorOf(await logitsOf(back), await logitsOf(model))).toBeLessThan(1e-5)
  })

  it('refuses edits that weights cannot do', async () => {
    await using model = await tinyModel(tinyLlama)
    expect(() => foldEdits(model, [projectOut('resid_post.0', direction)])).toThrow('is no affine map of a site')
    expect(() => foldEdits(model, [add('resid_post.0', direction, { where: { positions: -1 } })])).toThrow('weights act on every token')
    await expect(model.transformed(foldEdits(model, [scale('resid_post.0', 2)]))).rejects.toThrow('scales the whole residual stream')
    expect(() => foldEdits(model, [add('attn_scores.0', 1)])).toThrow('no coordinates of its own')
  })

  it('edits and taps work on the transformed model, and its own edits come along', async () => {
    await using model = await tinyModel(tinyLlama)
    const steered = model.with(add('resid_post.1', direction))
    await using folded = await steered.transformed(fold)
    expect(folded.edits).toHaveLength(1)
    expect(errorOf(await logitsOf(folded), await logitsOf(steered))).toBeLessThan(1e-5)
    const g = { of: { kind: 'next-token' }, at: 'resid_post.0' } as const
    const [a, b] = [await folded.gradient(g, ids), await steered.gradient(g, ids)]
    expect(errorOf(a.sites['resid_post.0'] as NDArray<Float32Array>, b.sites['resid_post.0'] as NDArray<Float32Array>)).toBeLessThan(1e-4)
  })

  it('ablated heads are heads with a z of zero; kept heads of the same weights give the same', async () => {
    await using model = await tinyModel(tinyLlama)
    await using ablated = await model.transformed(
      transformOf('ablate_heads', {
        heads: [0, 1, 2].flatMap(
          (l) =>
            [
              [l, 2],
              [l, 3],
            ] as [number, number][],
        ),
      }),
    )
    await using kept = await model.transformed(transformOf('keep_heads', { heads: [0, 1] }))
    expect(kept.spec.heads).toBe(2)
    expect(errorOf(await logitsOf(kept), await logitsOf(ablated))).toBeLessThan(1e-5)
    const factor = Float32Array.from({ length: 64 }, (_, i) => (i < 32 ? 1 : 0))
    const edited = model.with(scale('z.*', { dtype: 'float32', shape: [4, 16], data: factor }))
    expect(errorOf(await logitsOf(ablated), await logitsOf(edited))).toBeLessThan(1e-5)
    await expect(model.transformed(transformOf('keep_heads', { heads: [0] }))).rejects.toThrow('whole groups')
    await using gpt2 = await tinyModel(tinyGpt2)
    await expect(gpt2.transformed(transformOf('keep_heads', { heads: [0] }))).rejects.toThrow("use 'ablate_heads'")
  })

  it('a dropped layer is one that adds nothing', async () => {
    await using model = await tinyModel(tinyLlama)
    await using kept = await model.transformed(transformOf('keep_layers', { layers: [0, 2] }))
    expect(kept.spec.layers).toBe(2)
    expect(errorOf(await logitsOf(kept), await logitsOf(model.with(zero('attn_out.1'), zero('mlp_out.1'))))).toBeLessThan(1e-5)
    await expect(model.transformed(transformOf('keep_layers', { layers: [0, 3] }))).rejects.toThrow(
      'layer 3 is named twice or is none of 0 to 2',
    )
  })

  it('refuses to move layers that a family tells apart by their place', async () => {
    await using model = await openGolden(join(goldens, 'gpt_neo'))
    await using kept = await model.transformed(transformOf('keep_layers', { layers: [1] }))
    expect(kept.spec.block(0).attention.window).toBe(model.spec.block(1).attention.window)
    await using gemma = await openGolden(join(goldens, 'gemma2'))
    const moved = gemma.transformed(transformOf('keep_layers', { layers: [1] }))
    await expect(moved.then((m) => m.spec.block(0).attention.window)).resolves.toBe(gemma.spec.block(1).attention.window)
  })
})

describe('fewer bits', () => {
  it('rounds matrices to the grid that was asked for', async () => {
    await using model = await tinyModel(tinyLlama)
    await using coarse = await model.transformed(transformOf('quantise', { bits: 4, block: 16 }))
    const name = 'model.layers.1.mlp.up_proj.weight'
    const [before, after] = [(await weightsOf(model))[name] as Float32Array, (await weightsOf(coarse))[name] as Float32Array]
    for (let at = 0; at < before.length; at += 16) {
      const block = before.subarray(at, at + 16)
      const step = block.reduce((m, v) => Math.max(m, Math.abs(v)), 0) / 7
      for (let i = 0; i < 16; i++) {
        const level = (after[at + i] as number) / step
        expect(Math.abs(level - Math.round(level))).toBeLessThan(1e-5)
        expect(Math.abs((after[at + i] as number) - (block[i] as number))).toBeLessThanOrEqual(step * 0.5001)
      }
    }
    await expect(model.transformed(transformOf('quantise', { bits: 4, block: 7 }))).rejects.toThrow('no whole blocks of 7')
  })
})

describe('values', () => {
  it('refuse what they are not', () => {
    expect(() => transformOf('fold_norms', { x: 1 } as object)).toThrow("has no parameter 'x'")
    expect(() => transformOf('orthogonalise', {} as never)).toThrow("needs the parameter 'direction'")
    expect(() => transformOf('fold_nroms' as 'fold_norms', {})).toThrow("did you mean 'fold_norms'?")
    expect(() => inverse(transformOf('orthogonalise', { direction: [1] }))).toThrow('loses what it takes out')
  })
})
