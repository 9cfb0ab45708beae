/** Images into a model: a file goes through the processor file and gives what its pixel values give. */
import { copyFile, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { decodeImage, pixelValues, readProcessor } from '../models/image/index.ts'
import type { Activation } from './batch.ts'
import { load } from './open.ts'

const goldens = fileURLToPath(new URL('../../test/goldens/', import.meta.url))
const processor = {
  image_processor_type: 'ViTImageProcessor',
  size: { height: 16, width: 16 },
  resample: 3,
  image_mean: [0.5, 0.4, 0.3],
  image_std: [0.5, 0.25, 0.2],
}

describe('images', () => {
  let folder: string
  let png: Uint8Array
  beforeAll(async () => {
    folder = await mkdtemp(join(tmpdir(), 'images-'))
    for (const file of ['config.json', 'model.safetensors']) await copyFile(join(goldens, 'vit', file), join(folder, file))
    await writeFile(join(folder, 'preprocessor_config.json'), JSON.stringify(processor))
    const { files } = JSON.parse(await readFile(join(goldens, 'images/pil.json'), 'utf8'))
    png = new Uint8Array(Buffer.from(files['rgb.png'].bytes, 'base64'))
  })
  afterAll(() => rm(folder, { recursive: true }))

  it('become pixel values as the processor file says', async () => {
    await using model = await load(folder, { threads: 1 })
    const pixel_values = pixelValues(readProcessor(processor), [decodeImage(png)])
    const direct = await model.run({ pixel_values })
    const { taps, logits } = await model.run({ images: [png, decodeImage(png)] }, { taps: ['attn_probs.1'] })
    expect(logits).toBeUndefined()
    expect(taps['attn_probs.1'].shape).toEqual([2, 3, 5, 5])
    const want = direct.taps.last_hidden_state?.data as Float32Array
    for (const row of [0, 1])
      for (const [i, x] of (taps.last_hidden_state as Activation).row(row).data.entries()) expect(x).toBeCloseTo(want[i] as number, 5)
  })

  it('are refused by models that cannot take them, and text by models of images', async () => {
    await using model = await load(folder, { threads: 1 })
    await expect(model.run('Hello')).rejects.toThrow(/reads images, not text/)
    await expect(model.run({ images: [Uint8Array.of(1, 2)] })).rejects.toThrow(/Image 0 is neither/)
    await expect(model.run({ images: [png] }, { logits: true })).rejects.toThrow(/gives out no logits/)
    expect(() => model.site('logits')).toThrow(/encoder without an unembedding/)
    expect(() => model.generate({ images: [png] })).toThrow(/writes no text/)
    await using bare = await load(join(goldens, 'vit'), { threads: 1 })
    await expect(bare.run({ images: [png] })).rejects.toThrow(/preprocessor_config/)
    await using words = await load(join(goldens, 'bert'), { threads: 1 })
    await expect(words.run({ images: [png] })).rejects.toThrow(/reads no images/)
    expect(() => model.spec).toThrow(/decoder-only/)
  })
})
