/** A folder of images as a corpus of a vision transformer. */
import { copyFile, mkdir, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { afterAll, beforeAll, expect, it } from 'vitest'
import { load, type Model } from '../run/index.ts'
import { tinyModel } from '../run/testing.ts'
import { openActivations } from './activation-store.ts'
import { capture } from './capture.ts'

const goldens = fileURLToPath(new URL('../../test/goldens/', import.meta.url))
const processor = {
  image_processor_type: 'ViTImageProcessor',
  size: { height: 16, width: 16 },
  resample: 3,
  image_mean: [0.5, 0.4, 0.3],
  image_std: [0.5, 0.25, 0.2],
}
let folder: string
let model: Model
const images: Uint8Array[] = []

beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'actlens-capture-images-'))
  await mkdir(join(folder, 'model'))
  await mkdir(join(folder, 'images'))
  for (const file of ['config.json', 'model.safetensors']) await copyFile(join(goldens, 'vit', file), join(folder, 'model', file))
  await writeFile(join(folder, 'model/preprocessor_config.json'), JSON.stringify(processor))
  const { files } = JSON.parse(await readFile(join(goldens, 'images/pil.json'), 'utf8')) as { files: Record<string, { bytes: string }> }
  for (const name of Object.keys(files)
    .filter((n) => /\.(png|jpe?g)$/.test(n))
    .sort()
    .slice(0, 3)) {
    const bytes = Buffer.from(files[name]?.bytes as string, 'base64')
    images.push(new Uint8Array(bytes))
    await writeFile(join(folder, 'images', name), bytes)
  }
  model = await load(join(folder, 'model'), { threads: 1 })
})
afterAll(async () => {
  await model.dispose()
  await rm(folder, { recursive: true })
})

it('is captured image by image, with where, and resumed', async () => {
  const { taps } = await model.run({ images }, { taps: ['resid_post.1'], logits: false })
  const want = taps['resid_post.1']?.data as Float32Array
  const width = want.length / images.length / 5
  const data = { path: join(folder, 'images') }
  const out = join(folder, 'all')
  const { manifest } = await capture(model, { data, sites: 'resid_post.1', out, batchTokens: 8 })
  expect(manifest).toMatchObject({ tokens: 5 * images.length, data: { source: 'images', documents: images.length }, complete: true })
  await using store = await openActivations(out)
  const rows = await store.rows('resid_post.1', 0, store.tokens)
  for (const [i, v] of want.entries()) expect(rows.values.data[i]).toBeCloseTo(v, 5)
  expect(Array.from(rows.document)).toEqual(images.flatMap((_, d) => new Array(5).fill(d)))
  expect(Array.from(rows.position)).toEqual(images.flatMap(() => [0, 1, 2, 3, 4]))
  expect(Array.from(rows.tokens).every((t) => t === -1)).toBe(true)
  expect((await capture(model, { data, sites: 'resid_post.1', out, batchTokens: 8, resume: true })).captured).toBe(0)
  const first = join(folder, 'first')
  await capture(model, { data, sites: 'resid_post.1', out: first, where: { positions: 0 } })
  await using ends = await openActivations(first)
  const one = await ends.row('resid_post.1', 1)
  for (let j = 0; j < width; j++) expect(one.data[j]).toBeCloseTo(want[5 * width + j] as number, 5)
})

it('is refused by models of text, and where something else lies in the folder or an image is broken', async () => {
  const data = { path: join(folder, 'images') }
  const out = join(folder, 'never')
  await expect(capture(await tinyModel(), { data, sites: 'resid_post.1', out })).rejects.toThrow(/reads no images/)
  await expect(capture(model, { data: ['text'], sites: 'resid_post.1', out })).rejects.toThrow(/tokenizer|reads images/)
  await writeFile(join(folder, 'images/labels.csv'), 'a')
  await expect(capture(model, { data, sites: 'resid_post.1', out })).rejects.toThrow(/is read as images, but holds labels\.csv/)
  await rm(join(folder, 'images/labels.csv'))
  await writeFile(join(folder, 'images/zz.png'), 'no image')
  await expect(capture(model, { data, sites: 'resid_post.1', out })).rejects.toThrow(/zz\.png/)
})
