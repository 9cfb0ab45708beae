/** The tuned lens: trained, resumed, saved, and translated to and from the published layout. */
import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { randomStream } from '../models/sampling.ts'
import { checkpointFolder } from '../run/checkpoints.ts'
import { tinyGpt2, tinyLlama, tinyModel } from '../run/testing.ts'
import { lens, lensDivergence, loadLens, saveLens, saveTunedLens, trainTunedLens } from './index.ts'
import { errorOf } from './testing.ts'

let folder = ''
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'actlens-tuned-'))
})
afterAll(() => rm(folder, { recursive: true }))

/** Rows of tokens in which each follows from the one before. */
function corpus(rows: number, seed: number): number[][] {
  const random = randomStream(seed)
  return Array.from({ length: rows }, () => {
    let token = Math.floor(random() * 61)
    return Array.from({ length: 24 }, () => {
      token = (token * 7 + 3 + Math.floor(random() * 3)) % 61
      return token
    })
  })
}

describe.each([
  ['llama', tinyLlama],
  ['gpt2', tinyGpt2],
])('a tuned lens of %s', (_, config) => {
  it('is nearer to the model than the logit lens on texts that it has not seen, and the same after a stop', async () => {
    await using model = await tinyModel(config)
    const options = { steps: 120, rate: 1e-2, length: 16, batch: 4 }
    const { lens: trained, losses } = await trainTunedLens(model, corpus(60, 1), options)
    expect(losses).toHaveLength(120)
    expect(losses.at(-1)).toBeLessThan(0.7 * (losses[0] as number))
    const held = { rows: corpus(8, 2) }
    const sites = ['resid_pre.0', ...Array.from({ length: model.spec.layers - 1 }, (_, l) => `resid_post.${l}`)]
    expect(Object.keys(trained.maps)).toEqual(sites)
    const [tuned, logit] = [await lensDivergence(model, held, { sites, maps: trained }), await lensDivergence(model, held, { sites })]
    for (const site of sites) expect(tuned[site], site).toBeLessThan(0.9 * (logit[site] as number))

    const files = checkpointFolder(join(folder, `checkpoints-${config.model_type}`))
    const stop = new AbortController()
    const onProgress = ({ done }: { done: number }) => void (done === 50 && stop.abort())
    const checkpoints = { files, every: 1000, resume: 'newest' }
    const cut = trainTunedLens(model, corpus(60, 1), { ...options, checkpoints, signal: stop.signal, onProgress })
    await expect(cut).rejects.toThrow('cancelled after step 50')
    const resumed = await trainTunedLens(model, corpus(60, 1), { ...options, checkpoints })
    expect(resumed.losses).toHaveLength(70)
    expect(resumed.lens).toEqual(trained)
  })

  it('is the logit lens before training, and is saved in both layouts', async () => {
    await using model = await tinyModel(config)
    const { dModel, layers } = model.spec
    const random = randomStream(5)
    const value = (shape: number[]) => ({
      dtype: 'float32' as const,
      shape,
      data: Float32Array.from({ length: shape.reduce((a, n) => a * n, 1) }, () => random() - 0.5),
    })
    const sites = ['resid_pre.0', ...Array.from({ length: layers - 1 }, (_, l) => `resid_post.${l}`)]
    const of = (shape: number[]) => Object.fromEntries(sites.map((s) => [s, value(shape)]))
    const made = { kind: 'tuned' as const, maps: of([dModel, dModel]), biases: of([dModel]) }
    await saveLens(join(folder, 'lens.safetensors'), made)
    expect(await loadLens(join(folder, 'lens.safetensors'))).toEqual(made)
    await saveTunedLens(join(folder, 'published'), made, { id: 'tiny', layers })
    expect(await loadLens(join(folder, 'published'))).toEqual(made)
    const partial = { ...made, maps: { 'resid_pre.0': made.maps['resid_pre.0']! } }
    await expect(saveTunedLens(join(folder, 'partial'), partial, { id: 'tiny', layers })).rejects.toThrow("'resid_post.0' has none")

    const ids = [5, 17, 3, 44]
    const zero = (shape: number[]) => ({ dtype: 'float32' as const, shape, data: new Float32Array(shape.reduce((a, n) => a * n, 1)) })
    const none = { kind: 'tuned' as const, maps: Object.fromEntries(sites.map((s) => [s, zero([dModel, dModel])])) }
    const [before, plain] = [
      await lens(model, { ids }, { sites, maps: none, logits: true }),
      await lens(model, { ids }, { sites, logits: true }),
    ]
    expect(errorOf(before.logits!.data, plain.logits!.data)).toBeLessThan(1e-5)
    // By hand at one place: x + x·Mᵀ + b, through the head of the model.
    const seen = await lens(model, { ids }, { sites, maps: made, logits: true })
    const x = (await model.run({ ids }, { taps: ['resid_pre.0'] })).taps['resid_pre.0'].at(0, 2)
    const [map, bias] = [made.maps['resid_pre.0']!.data, made.biases['resid_pre.0']!.data]
    const moved = x.map((v, i) => v + (bias[i] as number) + x.reduce((s, u, j) => s + u * (map[i * dModel + j] as number), 0))
    const data = new Float32Array(4 * dModel)
    data.set(moved, 2 * dModel)
    const edit = {
      op: 'replace' as const,
      site: `resid_post.${layers - 1}`,
      params: { value: { dtype: 'float32' as const, shape: [1, 4, dModel], data } },
    }
    const want = (await model.with(edit).run({ ids })).logits.at(0, 2)
    for (const [i, w] of want.entries()) expect(seen.logits!.data[2 * model.spec.vocab + i]).toBeCloseTo(w, 3)
  })
})

it('reads what torch wrote, and refuses what is not a lens', async () => {
  const published = join(folder, 'torch')
  await saveTunedLens(
    published,
    { kind: 'tuned', maps: { 'resid_pre.0': { dtype: 'float32', shape: [3, 3], data: new Float32Array(9) } } },
    { id: 'x', layers: 1 },
  )
  // torch.save of the state of two nn.Linear(3, 3), made after torch.manual_seed(0).
  await writeFile(join(published, 'params.pt'), Buffer.from(twoTranslators, 'base64'))
  await expect(loadLens(published)).rejects.toThrow('holds 4 tensors, but its config explains 2')
  const config = { base_model_name_or_path: 'gpt2', d_model: 3, num_hidden_layers: 2, bias: true, lens_type: 'linear_tuned_lens' }
  await writeFile(join(published, 'config.json'), JSON.stringify(config))
  const { maps, biases } = await loadLens(published)
  expect(Object.keys(maps)).toEqual(['resid_pre.0', 'resid_post.0'])
  expect(maps['resid_pre.0']!.data[1]).toBeCloseTo(0.3097158, 6)
  expect(biases!['resid_post.0']!.data[2]).toBeCloseTo(0.432038, 6)
  await writeFile(join(published, 'config.json'), JSON.stringify({ ...config, d_model: 4 }))
  await expect(loadLens(published)).rejects.toThrow("where '0.weight' [4, 4] should be")
  await writeFile(join(published, 'config.json'), JSON.stringify({ lens_type: 'mlp' }))
  await expect(loadLens(published)).rejects.toThrow('describes no linear tuned lens')
})

it('refuses what makes no sense', async () => {
  await using model = await tinyModel(tinyLlama)
  await expect(trainTunedLens(model, corpus(4, 1), { sites: 'resid_post.*' })).rejects.toThrow('needs no translator')
  await expect(trainTunedLens(model, corpus(4, 1), { length: 65 })).rejects.toThrow('do not fit into the context of 64')
  await expect(trainTunedLens(model, [[1, 2, 3]], { length: 16 })).rejects.toThrow('too few')
})

const twoTranslators =
  'UEsDBAAACAgAAAAAAAAAAAAAAAAAAAAAAAAQABIAYXJjaGl2ZS9kYXRhLnBrbEZCDgBaWlpaWlpaWlpaWlpaWoACY2NvbGxlY3Rpb25zCk9yZGVyZWREaWN0CnEAKVJxAShYCAAAADAud2VpZ2h0cQJjdG9yY2guX3V0aWxzCl9yZWJ1aWxkX3RlbnNvcl92MgpxAygoWAcAAABzdG9yYWdlcQRjdG9yY2gKRmxvYXRTdG9yYWdlCnEFWAEAAAAwcQZYAwAAAGNwdXEHSwl0cQhRSwBLA0sDhnEJSwNLAYZxColoAClScQt0cQxScQ1YBgAAADAuYmlhc3EOaAMoKGgEaAVYAQAAADFxD2gHSwN0cRBRSwBLA4VxEUsBhXESiWgAKVJxE3RxFFJxFVgIAAAAMS53ZWlnaHRxFmgDKChoBGgFWAEAAAAycRdoB0sJdHEYUUsASwNLA4ZxGUsDSwGGcRqJaAApUnEbdHEcUnEdWAYAAAAxLmJpYXNxHmgDKChoBGgFWAEAAAAzcR9oB0sDdHEgUUsASwOFcSFLAYVxIoloAClScSN0cSRScSV1fXEmWAkAAABfbWV0YWRhdGFxJ2gAKVJxKChYAAAAAHEpfXEqWAcAAAB2ZXJzaW9ucStLAXNYAQAAADBxLH1xLWgrSwFzWAEAAAAxcS59cS9oK0sBc3VzYi5QSwcIghV7PckBAADJAQAAUEsDBAAACAgAAAAAAAAAAAAAAAAAAAAAAAAXADIAYXJjaGl2ZS8uZm9ybWF0X3ZlcnNpb25GQi4AWlpaWlpaWlpaWlpaWlpaWlpaWlpaWlpaWlpaWlpaWlpaWlpaWlpaWlpaWlpaWjFQSwcIt+/cgwEAAAABAAAAUEsDBAAACAgAAAAAAAAAAAAAAAAAAAAAAAAaADcAYXJjaGl2ZS8uc3RvcmFnZV9hbGlnbm1lbnRGQjMAWlpaWlpaWlpaWlpaWlpaWlpaWlpaWlpaWlpaWlpaWlpaWlpaWlpaWlpaWlpaWlpaWlpaNjRQSwcIP3dx6QIAAAACAAAAUEsDBAAACAgAAAAAAAAAAAAAAAAAAAAAAAARAD8AYXJjaGl2ZS9ieXRlb3JkZXJGQjsAWlpaWlpaWlpaWlpaWlpaWlpaWlpaWlpaWlpaWlpaWlpaWlpaWlpaWlpaWlpaWlpaWlpaWlpaWlpaWlpsaXR0bGVQSwcIhT3jGQYAAAAGAAAAUEsDBAAACAgAAAAAAAAAAAAAAAAAAAAAAAAOAD4AYXJjaGl2ZS9kYXRhLzBGQjoAWlpaWlpaWlpaWlpaWlpaWlpaWlpaWlpaWlpaWlpaWlpaWlpaWlpaWlpaWlpaWlpaWlpaWlpaWlpaWuijjbsTk54+fkvzvsmL2b6xtGO+U4kePkBrO7x6Yeo+Qt1RvVBLBwjSRyAIJAAAACQAAABQSwMEAAAICAAAAAAAAAAAAAAAAAAAAAAAAA4AIABhcmNoaXZlL2RhdGEvMUZCHABaWlpaWlpaWlpaWlpaWlpaWlpaWlpaWlpaWlpa0nAcPp6rMr7qa+i9UEsHCAVHxakMAAAADAAAAFBLAwQAAAgIAAAAAAAAAAAAAAAAAAAAAAAADgA4AGFyY2hpdmUvZGF0YS8yRkI0AFpaWlpaWlpaWlpaWlpaWlpaWlpaWlpaWlpaWlpaWlpaWlpaWlpaWlpaWlpaWlpaWlpaWlq9Mw2/1sXDvoS1c74INK88jblpPmZesT7SZsi+abmAvoO8Vj5QSwcIG//fPCQAAAAkAAAAUEsDBAAACAgAAAAAAAAAAAAAAAAAAAAAAAAOACAAYXJjaGl2ZS9kYXRhLzNGQhwAWlpaWlpaWlpaWlpaWlpaWlpaWlpaWlpaWlpaWid39T5DV/O9FTTdPlBLBwjIFpBbDAAAAAwAAABQSwMEAAAICAAAAAAAAAAAAAAAAAAAAAAAAA8ANwBhcmNoaXZlL3ZlcnNpb25GQjMAWlpaWlpaWlpaWlpaWlpaWlpaWlpaWlpaWlpaWlpaWlpaWlpaWlpaWlpaWlpaWlpaWlpaMwpQSwcI0Z5nVQIAAAACAAAAUEsDBAAACAgAAAAAAAAAAAAAAAAAAAAAAAAeADIAYXJjaGl2ZS8uZGF0YS9zZXJpYWxpemF0aW9uX2lkRkIuAFpaWlpaWlpaWlpaWlpaWlpaWlpaWlpaWlpaWlpaWlpaWlpaWlpaWlpaWlpaWloxMDc3ODYyNzI5Nzk5ODU0MTYyNTA2NDI2MjgxNDAwNDQ3NTIzNDE4UEsHCJSljQAoAAAAKAAAAFBLAQIAAAAACAgAAAAAAACCFXs9yQEAAMkBAAAQAAAAAAAAAAAAAAAAAAAAAABhcmNoaXZlL2RhdGEucGtsUEsBAgAAAAAICAAAAAAAALfv3IMBAAAAAQAAABcAAAAAAAAAAAAAAAAAGQIAAGFyY2hpdmUvLmZvcm1hdF92ZXJzaW9uUEsBAgAAAAAICAAAAAAAAD93cekCAAAAAgAAABoAAAAAAAAAAAAAAAAAkQIAAGFyY2hpdmUvLnN0b3JhZ2VfYWxpZ25tZW50UEsBAgAAAAAICAAAAAAAAIU94xkGAAAABgAAABEAAAAAAAAAAAAAAAAAEgMAAGFyY2hpdmUvYnl0ZW9yZGVyUEsBAgAAAAAICAAAAAAAANJHIAgkAAAAJAAAAA4AAAAAAAAAAAAAAAAAlgMAAGFyY2hpdmUvZGF0YS8wUEsBAgAAAAAICAAAAAAAAAVHxakMAAAADAAAAA4AAAAAAAAAAAAAAAAANAQAAGFyY2hpdmUvZGF0YS8xUEsBAgAAAAAICAAAAAAAABv/3zwkAAAAJAAAAA4AAAAAAAAAAAAAAAAAnAQAAGFyY2hpdmUvZGF0YS8yUEsBAgAAAAAICAAAAAAAAMgWkFsMAAAADAAAAA4AAAAAAAAAAAAAAAAANAUAAGFyY2hpdmUvZGF0YS8zUEsBAgAAAAAICAAAAAAAANGeZ1UCAAAAAgAAAA8AAAAAAAAAAAAAAAAAnAUAAGFyY2hpdmUvdmVyc2lvblBLAQIAAAAACAgAAAAAAACUpY0AKAAAACgAAAAeAAAAAAAAAAAAAAAAABIGAABhcmNoaXZlLy5kYXRhL3NlcmlhbGl6YXRpb25faWRQSwYGLAAAAAAAAAAeAy0AAAAAAAAAAAAKAAAAAAAAAAoAAAAAAAAAgwIAAAAAAAC4BgAAAAAAAFBLBgcAAAAAOwkAAAAAAAABAAAAUEsFBgAAAAAKAAoAgwIAALgGAAAAAA=='
