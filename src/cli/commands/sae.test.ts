import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { readFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { openSafetensors } from '../../models/formats/index.ts'
import { cli, writeModel, writeTokenizer } from '../testing.ts'

const folder = mkdtempSync(join(tmpdir(), 'actlens-sae-cli-'))
const model = join(folder, 'model')
const out = join(folder, 'sae')
const data = join(folder, 'texts.txt')
beforeAll(async () => {
  await writeModel(model)
  await writeTokenizer(model)
  writeFileSync(
    data,
    Array.from({ length: 60 }, (_, i) => Array.from({ length: 12 }, (_, j) => `w${(7 * i + 3 * j * j) % 61}`).join(' ')).join('\n'),
  )
})
afterAll(() => rmSync(folder, { recursive: true, force: true }))

const json = async (...argv: string[]) => {
  const { code, stdout, stderr } = await cli(['sae', ...argv, '--json', '--quiet', '--threads', '1'])
  expect(stderr).toBe('')
  expect(code).toBe(0)
  return JSON.parse(stdout)
}

describe('actlens sae', () => {
  it('trains, tells, measures, reads and encodes', async () => {
    const train = [
      'train',
      model,
      '--site',
      'blocks.0.hook_resid_post',
      '--data',
      data,
      '--width',
      '64',
      '--k',
      '4',
      '--batch',
      '64',
      '--steps',
      '120',
      '--rate',
      '3e-3',
      '--out',
      out,
    ]
    const trained = await json(...train)
    expect(trained).toMatchObject({ site: 'resid_post.0', kind: 'topk', width: 64, steps: 120 })
    const info = await json('info', '--sae', out)
    expect(info).toMatchObject({ kind: 'topk', k: 4, dIn: 32, dSae: 64, hook: 'resid_post.0', tensors: { W_enc: [32, 64] } })
    const measured = await json('eval', model, '--sae', out, '--data', data)
    expect(measured.l0).toBeLessThanOrEqual(4)
    expect(measured.fvu).toBeLessThan(0.7)
    expect(measured.splice.ce.sae).toBeGreaterThan(0)
    expect(measured.density).toHaveLength(64)
    const features = join(folder, 'features.json')
    const top = await json('top', model, '--sae', out, '--data', data, '--top', '3', '--neuronpedia', features)
    expect(top.latents).toHaveLength(3)
    const written = JSON.parse(await readFile(features, 'utf8'))
    expect(written[0]).toMatchObject({
      index: top.latents[0].latent,
      hookName: 'blocks.0.hook_resid_post',
      maxActApprox: top.latents[0].max,
    })
    expect(written[0].freq_hist_data_bar_values).toHaveLength(written[0].freq_hist_data_bar_heights.length)
    // Tokens with the largest logit weights come in falling order.
    expect(written[0].pos_values).toEqual([...written[0].pos_values].sort((a: number, b: number) => b - a))
    const acts = join(folder, 'acts.safetensors')
    const encoded = await json('encode', model, '--sae', out, '--text', 'w3 w9 w27', '--out', acts)
    expect(encoded.rows[0]).toHaveLength(3)
    expect(encoded.rows[0][0].active).toBeLessThanOrEqual(4)
    const store = await openSafetensors(acts)
    expect(store.get('resid_post.0.latents').shape).toEqual([1, 3, 64])
    await store.close()
    expect((await cli(['sae', 'top', model, '--sae', out, '--data', data, '--latents', '1', '--quiet'])).stdout).toMatch(
      /^latent 1: active at/,
    )
  })

  it('refuses options that an action does not have, and what it lacks', async () => {
    const fails = async (code: number, pattern: RegExp, ...argv: string[]) => {
      const ran = await cli(['sae', ...argv])
      expect(ran.stderr).toMatch(pattern)
      expect(ran.code).toBe(code)
    }
    await fails(2, /'sae info' takes no --k/, 'info', '--sae', out, '--k', '3')
    await fails(2, /needs --sae/, 'eval', model, '--data', data)
    await fails(2, /needs a MODEL/, 'eval', '--sae', out, '--data', data)
    await fails(2, /takes no MODEL/, 'info', model, '--sae', out)
    await fails(2, /Say how long/, 'train', model, '--site', 'resid_post.0', '--data', data, '--out', join(folder, 'other'))
    await fails(1, /holds no sparse autoencoder/, 'info', '--sae', model)
    await fails(1, /it belongs to another site/, 'encode', model, '--sae', out, '--site', 'mlp_act.0', '--text', 'w1')
  })
})
