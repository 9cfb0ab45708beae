import { mkdtempSync, readdirSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { describe, expect, it, onTestFinished, vi } from 'vitest'
import type { NDArray } from '../base/types.ts'
import type { Config } from '../models/config.ts'
import { conversionFolder } from '../models/convert.ts'
import { encodeSafetensors, f16ToF32, f32ToBf16, f32ToF16, fromBytes, openSafetensors } from '../models/formats/index.ts'
import { blockTensor, type Precision } from '../models/quantised.ts'
import { add } from '../sites/index.ts'
import { evaluate, SessionCache } from '../tensor/index.ts'
import { assemble } from './load.ts'
import type { Model } from './model.ts'
import { load } from './open.ts'
import { tinyGpt2, tinyLlama, tinyTensors } from './testing.ts'

const ids = [3, 17, 42, 5, 60, 8, 11]
/** All rows are whole blocks. */
const wide: Config = { ...tinyLlama, intermediate_size: 64 }
const tied: Config = { ...wide, tie_word_embeddings: true }

async function modelOf(config: Config, tensors: Record<string, NDArray>, precision: Precision = 'f32'): Promise<Model> {
  const store = await openSafetensors(fromBytes(encodeSafetensors(tensors)))
  return assemble({ id: 'tiny', hash: async () => 'tiny', store, config }, { threads: 1, precision })
}

const tensorsOf = (config: Config): Record<string, NDArray> => {
  const all = tinyTensors(config)
  if (config.tie_word_embeddings) delete all['lm_head.weight']
  return all
}

/** The tensors of a model whose packed weights were written as floats. */
async function unpacked(model: Model, config: Config): Promise<Record<string, NDArray>> {
  const tensors = { ...tensorsOf(config) }
  for (const [name, block] of model.internals.weights.blocks) {
    const { w } = await evaluate({ w: blockTensor(block) }, {}, { cache: new SessionCache(1e8), device: 'cpu' })
    tensors[name] = w
  }
  return tensors
}

const errorOf = (ours: NDArray, theirs: NDArray) => {
  const top = (theirs.data as Float32Array).reduce((t, v) => Math.max(t, Math.abs(v)), 0)
  return (theirs.data as Float32Array).reduce((e, v, i) => Math.max(e, Math.abs(v - (ours.data[i] as number))), 0) / top
}

/** Length of the difference relative to that of the reference. */
const distanceOf = (ours: NDArray, theirs: NDArray) => {
  const length = (f: (v: number, i: number) => number) => Math.hypot(...Array.from(theirs.data as Float32Array, f))
  return length((v, i) => v - (ours.data[i] as number)) / length((v) => v)
}

describe.each([
  ['llama', wide, 23],
  ['tied llama', tied, 22],
  // Rows of 48 values are no whole blocks: the three down projections stay as they are.
  ['llama with odd rows', tinyLlama, 20],
  ['gpt2, whose matrices lie the other way', tinyGpt2, 9],
] as const)('%s', (_, config, count) => {
  describe.each(['q8', 'q4'] as const)('in %s', (precision) => {
    it('has the values and gradients of its rounded weights', async () => {
      await using model = await modelOf(config, tensorsOf(config), precision)
      await using plain = await modelOf(config, await unpacked(model, config))
      await using original = await modelOf(config, tensorsOf(config))
      expect(model.precision).toBe(precision)
      expect(model.internals.weights.blocks.size).toBe(count)
      const taps = ['resid_post.0', 'mlp_act.1', 'q.1']
      const [ours, theirs, before] = [
        await model.run({ ids }, { taps }),
        await plain.run({ ids }, { taps }),
        await original.run({ ids }, { taps }),
      ]
      // Activations are rounded to 8 bits in each product, which is all that may differ.
      for (const site of taps) expect(distanceOf(ours.taps[site] as NDArray, theirs.taps[site] as NDArray), site).toBeLessThan(0.05)
      expect(distanceOf(ours.logits, theirs.logits)).toBeLessThan(0.05)
      const rounding = errorOf(theirs.logits, before.logits)
      expect(rounding).toBeGreaterThan(precision === 'q4' ? 0.01 : 1e-4)
      expect(rounding).toBeLessThan(precision === 'q4' ? 0.5 : 0.05)
      const request = { of: { kind: 'next-token' }, at: 'resid_post.0' } as const
      const [g, h] = [await model.gradient(request, { ids }), await plain.gradient(request, { ids })]
      expect(distanceOf(g.sites['resid_post.0'] as NDArray, h.sites['resid_post.0'] as NDArray)).toBeLessThan(0.05)
      expect(g.value).toBeCloseTo(h.value, 1)
    })

    it('takes edits, and generates as it computes without a cache', async () => {
      await using model = await modelOf(config, tensorsOf(config), precision)
      const width = model.spec.dModel
      const edited = model.with(
        add(
          'resid_post.0',
          Float32Array.from({ length: width }, (_v, i) => Math.sin(i)),
        ),
      )
      const [a, b] = [await model.run({ ids }), await edited.run({ ids })]
      expect(errorOf(a.logits, b.logits)).toBeGreaterThan(0.01)
      const result = await edited.generate({ ids }, { maxNewTokens: 4, ignoreEos: true }).result()
      const whole = await edited.run({ ids: [...ids, ...result.tokens] })
      const vocab = model.spec.vocab
      for (const [i, id] of result.tokens.entries()) {
        const row = (whole.logits.data as Float32Array).slice((ids.length - 1 + i) * vocab, (ids.length + i) * vocab)
        const top = Math.max(...row)
        expect(top - (row[id] as number)).toBeLessThan(0.05 * Math.abs(top))
      }
    })
  })
})

describe('packed weights', () => {
  it('of a file are those of memory, gradients included', async () => {
    const folder = mkdtempSync(join(tmpdir(), 'actlens-precision-'))
    vi.stubEnv('ACTLENS_HOME', join(folder, 'home'))
    onTestFinished(() => {
      vi.unstubAllEnvs()
      rmSync(folder, { recursive: true, force: true })
    })
    writeFileSync(join(folder, 'config.json'), JSON.stringify(wide))
    writeFileSync(join(folder, 'model.safetensors'), encodeSafetensors(tensorsOf(wide)))
    await using memory = await modelOf(wide, tensorsOf(wide), 'q4')
    // The second load finds the packed file.
    for (let time = 0; time < 2; time++) {
      await using model = await load(folder, { threads: 1, precision: 'q4' })
      expect(readdirSync(conversionFolder())).toHaveLength(1)
      expect((await model.run({ ids })).logits.data).toEqual((await memory.run({ ids })).logits.data)
      const request = { of: { kind: 'next-token' }, at: 'resid_post.0' } as const
      const [g, h] = [await model.gradient(request, { ids }), await memory.gradient(request, { ids })]
      expect(g.sites['resid_post.0']?.data).toEqual(h.sites['resid_post.0']?.data)
    }
  })

  it('say what was rounded, and refuse a gradient at a packed matrix by name', async () => {
    await using model = await modelOf(tinyLlama, tensorsOf(tinyLlama), 'q4')
    expect(model.origin.checks).toEqual(
      expect.arrayContaining([
        '2 matrices were rounded to 8 bits in blocks of 32 (F32: 2)',
        '18 matrices were rounded to 4 bits in blocks of 32 (F32: 18)',
        '3 matrices stay float32, since their rows are not whole blocks of 32',
      ]),
    )
    const of = { kind: 'next-token' } as const
    await expect(model.gradient({ of, parameters: ['model.layers.1.self_attn.q_proj.weight'] }, { ids })).rejects.toThrow(
      "'model.layers.1.self_attn.q_proj.weight' is packed in 4-bit blocks, which are frozen",
    )
    const g = await model.gradient({ of, parameters: ['model.norm.weight'] }, { ids })
    expect(g.parameters['model.norm.weight']?.shape).toEqual([32])
  })

  it('refuse a model without whole blocks', async () => {
    const config = { ...tinyLlama, hidden_size: 24, intermediate_size: 24, head_dim: 4, num_attention_heads: 6 }
    await expect(modelOf(config, tensorsOf(config), 'q4')).rejects.toThrow('has no matrix whose rows are whole blocks of 32')
  })
})

describe('weights of 16 bits', () => {
  it.each([
    ['float32', 'float16'],
    ['bfloat16', 'bfloat16'],
  ] as const)('of a %s checkpoint are kept as %s, and give the values of rounded weights', async (stored, kept) => {
    const matrices = (make: (t: NDArray) => NDArray) =>
      Object.fromEntries(Object.entries(tensorsOf(wide)).map(([n, t]) => [n, t.shape.length > 1 ? make(t) : t]))
    const bf16 = (t: NDArray): NDArray => ({ ...t, dtype: 'bfloat16', data: f32ToBf16(t.data as Float32Array) })
    const rounded = (t: NDArray): NDArray => ({ ...t, data: f16ToF32(f32ToF16(t.data as Float32Array)) })
    const checkpoint = stored === 'bfloat16' ? matrices(bf16) : tensorsOf(wide)
    await using model = await modelOf(wide, checkpoint, 'f16')
    await using plain = await modelOf(wide, stored === 'bfloat16' ? checkpoint : matrices(rounded))
    expect(model.origin.checks).toContain(`23 matrices are kept as ${kept}`)
    expect([...model.weights.values()].filter((w) => w.dtype === kept)).toHaveLength(23)
    const [a, b] = [await model.run({ ids }), await plain.run({ ids })]
    expect(errorOf(a.logits, b.logits)).toBeLessThan(1e-5)
    const request = { of: { kind: 'next-token' }, at: 'resid_post.0', parameters: ['model.layers.0.mlp.up_proj.weight'] } as const
    const [g, h] = [await model.gradient(request, { ids }), await plain.gradient(request, { ids })]
    expect(errorOf(g.sites['resid_post.0'] as NDArray, h.sites['resid_post.0'] as NDArray)).toBeLessThan(1e-5)
    const name = 'model.layers.0.mlp.up_proj.weight'
    expect(errorOf(g.parameters[name] as NDArray, h.parameters[name] as NDArray)).toBeLessThan(1e-5)
  })

  it('refuse values that float16 cannot hold', async () => {
    const tensors = tensorsOf(wide)
    ;(tensors['lm_head.weight'] as NDArray).data[5] = 1e5
    await expect(modelOf(wide, tensors, 'f16')).rejects.toThrow("'lm_head.weight' holds 100000, which float16 cannot")
  })
})
