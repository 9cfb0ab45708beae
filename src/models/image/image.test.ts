/** Images against what PIL and the reference's processors make of them; the values are made by test/goldens/images/make.py. */
import { readFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import { describe, expect, it } from 'vitest'
import type { Config } from '../config.ts'
import { decodeImage, pixelValues, type Resampling, readProcessor, resize } from './index.ts'

interface Recorded {
  width: number
  height: number
  pixels: string
  files: Record<string, { bytes: string; pixels: string }>
  resized: { how: Resampling; width: number; height: number; pixels: string }[]
  processed: { config: Config; shape: number[]; values: string }[]
}
const recorded = JSON.parse(
  readFileSync(fileURLToPath(new URL('../../../test/goldens/images/pil.json', import.meta.url)), 'utf8'),
) as Recorded
const bytesOf = (text: string) => new Uint8Array(Buffer.from(text, 'base64'))
const picture = { width: recorded.width, height: recorded.height, data: bytesOf(recorded.pixels) }

describe('decodeImage', () => {
  it.each(Object.entries(recorded.files))('%s', (name, { bytes, pixels }) => {
    const { width, height, data } = decodeImage(bytesOf(bytes))
    expect([width, height]).toEqual([picture.width, picture.height])
    const want = bytesOf(pixels)
    // Decoders of JPEG round their cosine transforms differently.
    const most = name.endsWith('.jpg') ? 4 : 0
    expect(data.reduce((e, v, i) => Math.max(e, Math.abs(v - (want[i] as number))), 0)).toBeLessThanOrEqual(most)
    expect(data.length).toBe(want.length)
  })

  it('refuses what is no image, and what is damaged', () => {
    expect(() => decodeImage(Uint8Array.of(1, 2, 3), 'a.gif')).toThrow(/a\.gif is neither/)
    for (const { bytes } of Object.values(recorded.files)) {
      const whole = bytesOf(bytes)
      expect(() => decodeImage(whole.slice(0, Math.floor(whole.length / 2)), 'half')).toThrow(/half cannot be read/)
    }
    const huge = bytesOf((recorded.files['rgb.png'] as { bytes: string }).bytes)
    new DataView(huge.buffer).setUint32(16, 0x7fffffff)
    expect(() => decodeImage(huge)).toThrow(/100 million pixels/)
  })
})

describe('resize', () => {
  it.each(recorded.resized)('$how to $width×$height', ({ how, width, height, pixels }) => {
    expect(Buffer.from(resize(picture, width, height, how).data).equals(Buffer.from(bytesOf(pixels)))).toBe(true)
  })
})

describe('pixelValues', () => {
  it.each(recorded.processed)('$config.image_processor_type, size $config.size', ({ config, shape, values }) => {
    const ours = pixelValues(readProcessor(config), [picture])
    expect(ours.shape).toEqual(shape)
    const want = new Float32Array(bytesOf(values).buffer)
    // One grey level at most: processors that do not use PIL round once instead of twice.
    expect(ours.data.reduce((e, v, i) => Math.max(e, Math.abs(v - (want[i] as number))), 0)).toBeLessThan(1e-5)
  })

  it('refuses steps and sizes that it does not know', () => {
    const { config } = recorded.processed[0] as { config: Config }
    expect(() => readProcessor({ ...config, do_pad: true })).toThrow(/do_pad/)
    expect(() => readProcessor({ ...config, size: { longest_edge: 4 } })).toThrow(/longest_edge/)
    expect(() => readProcessor({ ...config, image_std: [1] })).toThrow(/three numbers/)
    expect(() => pixelValues(readProcessor({ ...config, do_resize: false }), [picture, { ...picture, width: 5, height: 5 }])).toThrow(
      /Image 1/,
    )
  })
})
