import { mkdtempSync, rmSync } from 'node:fs'
import { cp, readFile, truncate, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { FormatError } from '../../base/errors.ts'
import type { NDArray } from '../../base/types.ts'
import { readSae } from '../../models/sae/read.ts'
import { foldDecoderNorms, foldScale, type SaeWeights, saeWeights } from '../../models/sae/weights.ts'
import { loadSaeWeights, saveSae } from './load.ts'
import { Sae } from './sae.ts'
import { cellsOf, errorOf, goldenRoot, jsonOf, tensorsOf } from './testing.ts'

const root = goldenRoot('sae-formats')
const folder = mkdtempSync(join(tmpdir(), 'actlens-sae-'))
afterAll(() => rmSync(folder, { recursive: true, force: true }))

/** Cells whose architecture has no place here, and a word of the refusal. */
const refused: Readonly<Record<string, RegExp>> = {
  'saelens/matching-pursuit': /matching_pursuit/,
  'saelens/temporal': /temporal/,
  'gemma_scope_2/clt-layer': /holds no sparse autoencoder/,
}

interface Meta {
  readonly repo_id?: string
  readonly folder?: string
  readonly norm_scaling_factor?: number | null
  readonly hook_name?: string
  readonly hook_name_out?: string
}

async function open(cell: string, meta: Meta): Promise<SaeWeights> {
  const inner = meta.repo_id === undefined ? 'ckpt' : `ckpt/${meta.repo_id}/${meta.folder}`
  const place = cell === 'gemma_scope_2/clt-layer' ? dirname(inner) : inner
  const scale = cell === 'llama_scope/r1-distill' ? { scale: meta.norm_scaling_factor as number } : {}
  return readSae(`${root}${cell}/${place}`, scale)
}

const formats = ['saelens', 'dictionary_learning', 'sparsify', 'gemma_scope', 'gemma_scope_2', 'llama_scope']

for (const format of formats)
  describe(format, () => {
    for (const name of cellsOf(`${root}${format}`)) {
      const cell = `${format}/${name}`
      if (refused[cell]) {
        it(`refuses ${name}`, () => expect(open(cell, jsonOf(`${root}${cell}/meta.json`))).rejects.toThrow(refused[cell]))
        continue
      }
      it(`${name}: latents and reconstruction are those of its library`, async () => {
        const meta = jsonOf(`${root}${cell}/meta.json`) as Meta
        await using sae = new Sae(await open(cell, meta))
        const want = await tensorsOf(`${root}${cell}/expected.safetensors`)
        const x = want.x as NDArray<Float32Array>
        const { acts, output } = await sae.forward(x)
        // Checkpoints of a BatchTopK training were evaluated by batch; ours use their threshold, which makes a row independent of others.
        if (name === 'checkpoint-batchtopk') {
          expect(errorOf(output.data, (await sae.decode(acts)).data)).toBe(0)
          return
        }
        expect(acts.shape).toEqual((want.acts as NDArray).shape)
        expect(errorOf(acts.data, (want.acts as NDArray<Float32Array>).data)).toBeLessThan(1e-5)
        expect(output.shape).toEqual((want.recon as NDArray).shape)
        expect(errorOf(output.data, (want.recon as NDArray<Float32Array>).data)).toBeLessThan(1e-5)
        expect(errorOf((await sae.reconstruct(x)).data, output.data)).toBeLessThan(2e-6)
        expect(errorOf((await sae.decode(acts, x)).data, output.data)).toBeLessThan(2e-6)
        if (meta.hook_name !== undefined && format !== 'gemma_scope_2') expect(sae.weights.hook).toBe(meta.hook_name)
      })
    }
  })

const cell = (name: string) => `${root}dictionary_learning/${name}/ckpt/acme/dictionaries/tiny-random/${name}/resid_post_layer_3/trainer_0`

describe('folding', () => {
  it('decoder norms leave the reconstruction alone, and multiply latents', async () => {
    for (const name of ['standard', 'gated', 'batchtopk'].filter((n) => cellsOf(`${root}dictionary_learning`).includes(n))) {
      const plain = await readSae(cell(name))
      const [a, b] = [new Sae(plain), new Sae(foldDecoderNorms(plain))]
      const { x } = (await tensorsOf(`${root}dictionary_learning/${name}/expected.safetensors`)) as { x: NDArray<Float32Array> }
      const [before, after] = [await a.forward(x), await b.forward(x)]
      expect(errorOf(after.output.data, before.output.data)).toBeLessThan(1e-5)
      for (let i = 0; i < b.dSae; i++) expect(Math.hypot(...b.direction(i))).toBeCloseTo(1, 5)
    }
    await expect(async () => foldDecoderNorms(await readSae(cell('topk')))).rejects.toThrow(/another 8 latents would be kept/)
  })

  it('a scale: latents of x are those of scale · x before, and the output is scaled back', async () => {
    const plain = await readSae(cell('topk'))
    const { x } = (await tensorsOf(`${root}dictionary_learning/topk/expected.safetensors`)) as { x: NDArray<Float32Array> }
    const [a, b] = [new Sae({ ...plain, subtractsBias: false }), new Sae(foldScale({ ...plain, subtractsBias: false }, 2.5))]
    const scaled = await a.forward({ ...x, data: x.data.map((v) => 2.5 * v) })
    const folded = await b.forward(x)
    expect(errorOf(folded.acts.data, scaled.acts.data)).toBeLessThan(1e-5)
    expect(
      errorOf(
        folded.output.data,
        scaled.output.data.map((v) => v / 2.5),
      ),
    ).toBeLessThan(1e-5)
  })
})

describe('writing', () => {
  it('what is written as SAELens is read again, number for number', async () => {
    for (const name of ['topk', 'gated', 'batchtopk']) {
      const before = { ...(await readSae(cell(name))), hook: 'resid_post.3' }
      const out = join(folder, name)
      await saveSae(out, before)
      const after = await loadSaeWeights(out)
      expect(after.tensors).toEqual(before.tensors)
      expect(after.hook).toBe('resid_post.3')
      for (const key of ['kind', 'k', 'subtractsBias', 'normalize', 'rescales', 'transcoder'] as const) expect(after[key]).toBe(before[key])
    }
  })
})

describe('bad files', () => {
  const broken = async (name: string, change: (at: string) => Promise<void>) => {
    const out = join(folder, `broken-${name}`)
    await cp(join(folder, 'base'), out, { recursive: true })
    await change(out)
    return readSae(out)
  }
  beforeAll(async () => saveSae(join(folder, 'base'), await readSae(cell('topk'))))

  it('refuses what is truncated, of another width, of an unknown kind, or missing', async () => {
    const cfg = (change: object) => async (at: string) =>
      writeFile(join(at, 'cfg.json'), JSON.stringify({ ...jsonOf(join(at, 'cfg.json')), ...change }))
    const size = (await readFile(join(folder, 'base', 'sae_weights.safetensors'))).length
    await expect(broken('cut', (at) => truncate(join(at, 'sae_weights.safetensors'), size - 40))).rejects.toThrow(FormatError)
    await expect(broken('width', cfg({ d_in: 32 }))).rejects.toThrow(/says d_in 32, but its weights have 24/)
    await expect(broken('kind', cfg({ architecture: 'fancy' }))).rejects.toThrow(/architecture 'fancy', which cannot be read/)
    await expect(broken('jump', cfg({ architecture: 'jumprelu' }))).rejects.toThrow(/lacks threshold/)
    await expect(broken('k', cfg({ k: 900 }))).rejects.toThrow(/k = 900 latents of 72/)
    await expect(broken('norm', cfg({ normalize_activations: 'odd' }))).rejects.toThrow(/normalize_activations "odd"/)
    await expect(broken('json', (at) => writeFile(join(at, 'cfg.json'), '{'))).rejects.toThrow(/not valid JSON/)
    await expect(readSae(join(folder, 'nowhere'))).rejects.toThrow(/does not exist/)
    await expect(readSae(folder)).rejects.toThrow(/holds no sparse autoencoder that can be read: SAELens has cfg.json/)
  })

  it('refuses numbers that are none, shapes that do not fit, and a truncated ae.pt', async () => {
    const whole = await readSae(cell('topk'))
    const b = whole.tensors.b_enc as NDArray<Float32Array>
    expect(() => saeWeights({ ...whole, tensors: { ...whole.tensors, b_enc: { ...b, data: b.data.map(() => Number.NaN) } } })).toThrow(
      /NaN in b_enc/,
    )
    expect(() => saeWeights({ ...whole, tensors: { ...whole.tensors, b_enc: { ...b, shape: [71], data: b.data.slice(1) } } })).toThrow(
      /b_enc of shape \[71\] where \[72\]/,
    )
    const out = join(folder, 'pickle')
    await cp(cell('topk'), out, { recursive: true })
    await truncate(join(out, 'ae.pt'), 3000)
    await expect(readSae(out)).rejects.toThrow(FormatError)
  })

  it('refuses rows of another width', async () => {
    const sae = new Sae(await readSae(cell('topk')))
    await expect(sae.encode({ dtype: 'float32', shape: [2, 23], data: new Float32Array(46) })).rejects.toThrow(/rows of 24 numbers/)
    await expect(sae.decode({ dtype: 'float32', shape: [2, 70], data: new Float32Array(140) })).rejects.toThrow(/rows of 72 numbers/)
    expect(() => sae.direction(72)).toThrow(/latents 0 to 71/)
  })
})
