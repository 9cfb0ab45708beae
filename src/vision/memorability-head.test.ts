import { fileURLToPath } from 'node:url'
import { expect, test } from 'vitest'
import type { NDArray } from '../base/types.ts'
import { RandomStream } from '../nn/index.ts'
import { load } from '../run/index.ts'
import { tinyModel } from '../run/testing.ts'
import { imageFeatures, MemorabilityHead } from './index.ts'

const random = RandomStream.of(1)
const width = 8
/** Scores that follow one direction of the features, and bend. */
function planted(count: number) {
  const data = Float32Array.from({ length: count * width }, () => random.normal())
  const scores = Array.from(
    { length: count },
    (_, i) => 1 / (1 + Math.exp(-2 * (data[i * width] as number) * (data[i * width + 1] as number))),
  )
  return { features: { dtype: 'float32', shape: [count, width], data } as NDArray<Float32Array>, scores }
}

function correlation(a: ArrayLike<number>, b: ArrayLike<number>): number {
  const [x, y] = [Array.from(a), Array.from(b)]
  const [mx, my] = [x, y].map((v) => v.reduce((s, n) => s + n, 0) / v.length) as [number, number]
  const product = (p: number[], q: number[], mp: number, mq: number) => p.reduce((s, v, i) => s + (v - mp) * ((q[i] as number) - mq), 0)
  return product(x, y, mx, my) / Math.sqrt(product(x, x, mx, mx) * product(y, y, my, my))
}

test('a head learns a score that no linear one could, and gives it for images that it has not seen', async () => {
  const [seen, others] = [planted(512), planted(200)]
  const options = { ...seen, hidden: 32, epochs: 40, rate: 5e-3 }
  const head = await MemorabilityHead.train(options)
  const scores = await head.predict(others.features)
  expect(correlation(scores, others.scores)).toBeGreaterThan(0.9)
  expect(Math.min(...scores)).toBeGreaterThanOrEqual(0)
  expect(Math.max(...scores)).toBeLessThanOrEqual(1)
  expect((await MemorabilityHead.train({ ...options, epochs: 2 })).tensors).toEqual(
    (await MemorabilityHead.train({ ...options, epochs: 2 })).tensors,
  )
  expect(Object.keys(head.tensors).sort()).toEqual(['hidden.bias', 'hidden.weight', 'score.bias', 'score.weight'])
}, 60_000)

test('a head that normalises does not see lengths', async () => {
  const { features, scores } = planted(32)
  const longer = { ...features, data: features.data.map((v) => 3 * v) }
  const options = { features, scores, hidden: 4, epochs: 1 }
  const [plain, normalised] = [await MemorabilityHead.train(options), await MemorabilityHead.train({ ...options, normalise: true })]
  const [a, b] = [await normalised.predict(features), await normalised.predict(longer)]
  for (const [i, v] of a.entries()) expect(b[i]).toBeCloseTo(v, 5)
  expect(await plain.predict(longer)).not.toEqual(await plain.predict(features))
})

test('features are means over patches', async () => {
  await using model = await load(fileURLToPath(new URL('../../test/goldens/vit', import.meta.url)), { threads: 1 })
  const [s] = model.architecture.sequences
  const shape = (s as { shape: readonly number[] }).shape
  const images = (count: number): NDArray<Float32Array> => ({
    dtype: 'float32',
    shape: [count, ...shape],
    data: Float32Array.from({ length: count * shape.reduce((n, v) => n * v, 1) }, () => random.normal()),
  })
  const [two, one] = [{ pixel_values: images(2) }, { pixel_values: images(1) }]
  const features = await imageFeatures(model, [two, one])
  const { taps } = await model.run(two, { taps: ['last_hidden_state'] })
  const { shape: sizes, data } = taps.last_hidden_state.row(1)
  const [patches, d] = sizes as [number, number]
  expect(features.shape).toEqual([3, d])
  for (let i = 0; i < d; i++) {
    let mean = 0
    for (let p = 0; p < patches; p++) mean += Number(data[p * d + i]) / patches
    expect(features.data[d + i]).toBeCloseTo(mean, 5)
  }
  await using text = await tinyModel()
  await expect(imageFeatures(text, [])).rejects.toThrow(/reads no images/)
})

test('scores that are not from 0 to 1, or not as many as images, and features of another width are refused', async () => {
  const { features, scores } = planted(4)
  await expect(MemorabilityHead.train({ features, scores: [...scores.slice(1), 1.2] })).rejects.toThrow(/scores go from 0 to 1/)
  await expect(MemorabilityHead.train({ features, scores: [0.5] })).rejects.toThrow(/4 images and 1 scores/)
  const head = await MemorabilityHead.train({ features, scores, hidden: 2, epochs: 1 })
  await expect(head.predict({ dtype: 'float32', shape: [8, 4], data: features.data })).rejects.toThrow(/width 8/)
})
