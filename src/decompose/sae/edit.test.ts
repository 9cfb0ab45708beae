import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { EditError } from '../../base/errors.ts'
import type { NDArray } from '../../base/types.ts'
import type { SaeKind, SaeWeights } from '../../models/sae/weights.ts'
import { saeWeights } from '../../models/sae/weights.ts'
import { RandomStream } from '../../nn/random.ts'
import { describeEdits, readEditsFile } from '../../run/edits-file.ts'
import type { Model } from '../../run/index.ts'
import { tinyModel } from '../../run/testing.ts'
import { add, plainEdits, sae as saeEdit } from '../../sites/index.ts'
import { saveSae } from './load.ts'
import { Sae } from './sae.ts'
import { errorOf } from './testing.ts'

const ids = { ids: [3, 17, 42, 8, 23] }
const folder = mkdtempSync(join(tmpdir(), 'actlens-sae-edit-'))
let model: Model
beforeAll(async () => {
  model = await tinyModel()
})
afterAll(async () => {
  rmSync(folder, { recursive: true, force: true })
  await model.dispose()
})

function random(kind: SaeKind, over: Partial<SaeWeights> = {}, dIn = 32, dSae = 48): SaeWeights {
  const stream = RandomStream.of(7)
  const array = (...shape: number[]): NDArray<Float32Array> => ({
    dtype: 'float32',
    shape,
    data: Float32Array.from({ length: shape.reduce((p, n) => p * n, 1) }, () => 0.4 * stream.normal()),
  })
  const more: Record<string, NDArray<Float32Array>> = kind === 'gated'
    ? { b_gate: array(dSae), b_mag: array(dSae), r_mag: array(dSae) }
    : { b_enc: array(dSae), ...(kind === 'jumprelu' ? { threshold: { ...array(dSae), data: new Float32Array(dSae).fill(0.3) } } : {}) }
  const tensors = { W_enc: array(dIn, dSae), W_dec: array(dSae, dIn), b_dec: array(dIn), ...more }
  return saeWeights({ kind, k: 6, subtractsBias: true, tensors, ...over })
}

/** h′ by the long way: encode, change, decode, and put the error back. */
async function oracle(weights: SaeWeights, h: NDArray<Float32Array>, change: (f: number, j: number) => number, error: boolean) {
  const sae = new Sae(weights)
  const { acts, output } = await sae.forward(h)
  const changed = { ...acts, data: acts.data.map((f, i) => change(f, i % sae.dSae)) }
  const after = await sae.decode(changed, h)
  return after.data.map((v, i) => v + (error ? (h.data[i] as number) - (output.data[i] as number) : 0))
}

const site = 'resid_post.1'
const read = async (m: Model, at = site) => {
  const { taps } = await m.run(ids, { taps: [at], logits: false })
  const a = taps[at] as unknown as { shape: readonly number[]; data: Float32Array }
  return { dtype: 'float32' as const, shape: a.shape, data: a.data }
}

const variants: readonly (readonly [string, SaeWeights])[] = [
  ['standard', random('standard')],
  ['topk', random('topk')],
  ['topk with rescaling', random('topk', { rescales: true })],
  ['jumprelu with rescaling', random('jumprelu', { rescales: true })],
  ['jumprelu, no bias taken off', random('jumprelu', { subtractsBias: false })],
  ['gated', random('gated')],
  ['standard with layer norm', random('standard', { normalize: 'layer_norm' })],
  ['standard with constant norm', random('standard', { normalize: 'constant_norm_rescale' })],
]

describe('edit op sae', () => {
  for (const [name, weights] of variants)
    it(`${name}: the closed form is what encoding, changing and decoding gives`, async () => {
      const h = await read(model)
      const latents = { 3: 1.5, 20: -0.7, 41: 2 }
      const of = (j: number) => (latents as Record<number, number>)[j]
      const cases = [
        ['add', (f: number, j: number) => f + (of(j) ?? 0)],
        ['clamp', (f: number, j: number) => of(j) ?? f],
        ['scale', (f: number, j: number) => f * (of(j) ?? 1)],
        ['ablate', (f: number, j: number) => (of(j) === undefined ? f : 0)],
      ] as const
      for (const [mode, change] of cases)
        for (const error of [true, false]) {
          const got = await read(model.with(saeEdit(site, weights, { latents, mode, error })))
          expect(errorOf(got.data, await oracle(weights, h, change, error))).toBeLessThan(1e-5)
        }
      const spliced = await read(model.with(saeEdit(site, weights)))
      expect(errorOf(spliced.data, await oracle(weights, h, (f) => f, false))).toBeLessThan(1e-5)
    })

  it('a boost is the decoder row times the value; clamping to what is there is the identity', async () => {
    const weights = random('standard')
    const sae = new Sae(weights)
    const h = await read(model)
    const boosted = await read(model.with(saeEdit(site, sae, { latents: { 9: 4 } })))
    const row = sae.direction(9)
    expect(
      errorOf(
        boosted.data,
        h.data.map((v, i) => v + 4 * (row[i % 32] as number)),
      ),
    ).toBeLessThan(1e-5)
    const acts = await sae.encode(h)
    const here = acts.data[2 * 48 + 9] as number
    const clamped = await read(model.with(saeEdit(site, sae, { latents: { 9: here }, mode: 'clamp', where: { positions: 2 } })))
    expect(errorOf(clamped.data, h.data)).toBeLessThan(1e-6)
  })

  it('another value, another latent and another number of latents compile nothing', async () => {
    const weights = random('standard')
    for (const options of [{ mode: 'add' }, { mode: 'clamp' }, { mode: 'clamp', error: false }] as const) {
      await model.with(saeEdit(site, weights, { latents: { 1: 1, 2: 2 }, ...options })).run(ids)
      const before = model.statistics.compiled
      await model.with(saeEdit(site, weights, { latents: { 1: -3, 2: 5 }, ...options })).run(ids)
      await model.with(saeEdit(site, weights, { latents: { 40: 1 }, ...options })).run(ids)
      expect(model.statistics.compiled).toBe(before)
    }
  })

  it('acts where its clause says, on heads side by side, and while generating as without a cache', async () => {
    const weights = random('standard')
    const h = await read(model)
    const last = await read(model.with(saeEdit(site, weights, { latents: { 4: 3 }, where: { positions: -1 } })))
    expect(last.data.subarray(0, 4 * 32)).toEqual(h.data.subarray(0, 4 * 32))
    expect(last.data.subarray(4 * 32)).not.toEqual(h.data.subarray(4 * 32))
    const heads = random('standard', {}, 64)
    const z = await read(model, 'z.1')
    const edited = await read(model.with(saeEdit('z.1', heads)), 'z.1')
    expect(edited.shape).toEqual(z.shape)
    expect(errorOf(edited.data, (await new Sae(heads).reconstruct(z)).data)).toBeLessThan(1e-5)
    const steered = model.with(saeEdit(site, weights, { latents: { 4: 3, 5: 0 }, mode: 'clamp' }))
    const { tokens } = await steered.generate(ids, { maxNewTokens: 4, temperature: 0 }).result()
    const all = [...ids.ids, ...(tokens as unknown as number[])]
    const { logits } = await steered.run({ ids: all.slice(0, -1) })
    const row = logits.data.subarray((all.length - 2) * 61, (all.length - 1) * 61)
    expect(row.indexOf(Math.max(...row))).toBe(all.at(-1))
  })

  it('gradients run through it', async () => {
    const weights = random('topk')
    const edited = model.with(saeEdit(site, weights, { latents: { 4: 3, 9: 1 }, mode: 'clamp', error: false }))
    const request = { of: { kind: 'next-token' }, at: 'resid_post.0' } as unknown as Parameters<Model['gradient']>[0]
    const { sites } = await edited.gradient(request, ids)
    const grad = (sites['resid_post.0'] as unknown as { data: Float32Array }).data
    // Moved a little along a direction, the loss changes by what the gradient says.
    const direction = Float32Array.from({ length: 32 }, (_, i) => Math.sin(i + 1))
    const eps = 2e-3
    const at = async (s: number) => {
      const moved = model.with(
        add('resid_post.0', direction, { scale: s }),
        saeEdit(site, weights, { latents: { 4: 3, 9: 1 }, mode: 'clamp', error: false }),
      )
      return (await moved.gradient(request, ids)).value
    }
    const slope = ((await at(eps)) - (await at(-eps))) / (2 * eps)
    const along = grad.reduce((s, g, i) => s + g * (direction[i % 32] as number), 0)
    expect(Math.abs(slope - along)).toBeLessThan(0.02 * Math.max(Math.abs(along), 0.05))
  })

  it('comes from an edits file, and refuses to be sent while in memory only', async () => {
    const weights = random('jumprelu')
    await saveSae(join(folder, 'mine'), weights)
    const path = join(folder, 'edits.json')
    writeFileSync(path, JSON.stringify([{ op: 'sae', site, params: { weights: { file: 'mine' }, latents: { 7: 2 }, mode: 'clamp' } }]))
    const [edit] = await readEditsFile(path)
    const got = await read(model.with(edit as NonNullable<typeof edit>))
    const want = await read(model.with(saeEdit(site, weights, { latents: { 7: 2 }, mode: 'clamp' })))
    expect(got.data).toEqual(want.data)
    expect(plainEdits([edit as NonNullable<typeof edit>])[0]?.params).toMatchObject({
      weights: { file: join(folder, 'mine') },
      latents: { 7: 2 },
    })
    expect(() => plainEdits([saeEdit(site, weights)])).toThrow(/in memory only/)
    expect(describeEdits([saeEdit(site, weights, { latents: { 7: 2 } })])[0]).toMatchObject({
      params: { weights: { kind: 'jumprelu', dSae: 48 } },
    })
    writeFileSync(path, JSON.stringify([{ op: 'sae', site, params: { weights: { file: 'nowhere' } } }]))
    await expect(readEditsFile(path)).rejects.toThrow(/edit 0: .*nowhere does not exist/)
    writeFileSync(path, JSON.stringify([{ op: 'sae', site, params: { weights: { tensor: 'x' } } }]))
    await expect(readEditsFile(path)).rejects.toThrow(/must be \{ "file"/)
  })

  it('refuses what cannot be meant', () => {
    const weights = random('standard')
    const refuses = (options: object, pattern: RegExp, w: SaeWeights = weights, at = site) =>
      expect(() => model.with(saeEdit(at, w, options))).toThrow(pattern)
    refuses({ latents: { 48: 1 } }, /latents 0 to 47/)
    refuses({ latents: { 1.5: 1 } }, /latent 1.5/)
    refuses({ latents: { 1: Number.NaN } }, /not a finite number/)
    refuses({ latents: { 1: 1e39 } }, /not a finite number/)
    refuses({ latents: {} }, /names no latents/)
    refuses({ latents: [1, 1], mode: 'ablate' }, /twice/)
    refuses({ latents: [1] }, /only ablate takes/)
    refuses({ error: true }, /changes nothing/)
    refuses({ mode: 'clamp' }, /no latents/)
    refuses({ latents: { 1: 1 }, mode: 'boost' }, /one of add, clamp, scale, ablate/)
    refuses({}, /24 wide, but 'resid_post.1' is 32 wide/, random('standard', {}, 24))
    refuses({}, /one value for each position/, weights, 'attn_probs.1')
    expect(() => model.with({ op: 'sae', site, params: { weights: { file: 'x' } as never } })).toThrow(EditError)
    expect(() => model.with({ op: 'sae', site, params: {} })).toThrow(/needs the parameter 'weights'/)
  })
})
