import { expect, test } from 'vitest'
import type { NDArray } from '../base/types.ts'
import type { Config } from '../models/config.ts'
import { temporaryFolder } from '../models/formats/testing.ts'
import { batches, RandomStream } from '../nn/index.ts'
import { load } from './open.ts'
import { tinyGpt2, tinyLlama } from './testing.ts'
import { generatedRows, modelOf, saveDecoder, trainDecoder, trainingRows } from './train-decoder.ts'

const copy = (random: RandomStream) => {
  const word = Array.from({ length: 4 }, () => 2 + random.below(20))
  return { ids: [0, ...word, 1, ...word] }
}

test.each([
  ['llama', tinyLlama],
  ['gpt2', tinyGpt2],
])(
  'a small %s learns to copy, and its folder gives the same logits',
  async (_, config) => {
    const small = { ...config, vocab_size: 24, num_hidden_layers: 2, n_layer: 2 }
    const trained = await trainDecoder({
      config: small,
      data: generatedRows(copy, { batch: 32 }),
      steps: 250,
      rate: 5e-3,
      runtime: { threads: 1 },
    })
    expect(trained.losses[0]).toBeGreaterThan(2.5)
    expect(trained.losses.at(-1)).toBeLessThan((trained.losses[0] as number) - 0.8)
    const model = await modelOf(trained, { threads: 1 })
    const folder = temporaryFolder()
    await saveDecoder(folder, trained)
    const again = await load(folder, { threads: 1 })
    const ids = copy(RandomStream.of(7)).ids
    const [a, b] = [await model.run({ ids }), await again.run({ ids })]
    expect([...b.logits.data]).toEqual([...a.logits.data])
    await model.dispose()
    await again.dispose()
  },
  60_000,
)

test('the loss is the mean cross-entropy over the weights, as the model itself gives it', async () => {
  const rows = [{ ids: [3, 4, 5, 6], weights: [0, 0, 1, 1] }, { ids: [7, 8, 9, 1, 2, 3] }]
  const options = { config: tinyLlama, data: batches(trainingRows(rows), { batch: 2 }), steps: 1, rate: 0, runtime: { threads: 1 } }
  const trained = await trainDecoder(options)
  const model = await modelOf(trained, { threads: 1 })
  const { logits } = await model.run({ rows: rows.map((r) => r.ids) })
  let [sum, count] = [0, 0]
  for (const [b, { ids, weights }] of rows.entries())
    for (let i = 1; i < ids.length; i++) {
      const x = logits.at(b, i - 1)
      const w = weights?.[i] ?? 1
      sum += w * (Math.log(x.reduce((s, v) => s + Math.exp(v), 0)) - (x[ids[i] as number] as number))
      count += w
    }
  expect(trained.losses[0]).toBeCloseTo(sum / count, 4)
  await model.dispose()
})

test('training goes on from weights, and a row of one token is refused', async () => {
  const data = () => generatedRows(copy, { batch: 8, seed: 3 })
  const config = { ...tinyLlama, vocab_size: 24 }
  const base = { config, rate: 1e-3, runtime: { threads: 1 } }
  const first = await trainDecoder({ ...base, data: data(), steps: 5 })
  const on = await trainDecoder({ ...base, data: data(), steps: 1, rate: 0, from: first.tensors })
  expect(on.losses[0]).toBeLessThan(first.losses[0] as number)
  expect(on.tensors['model.norm.weight']?.data).toEqual(first.tensors['model.norm.weight']?.data)
  await expect(trainDecoder({ ...base, data: batches(trainingRows([{ ids: [1] }]), { batch: 1 }), steps: 1 })).rejects.toThrow(
    /at least two tokens/,
  )
})

const imageToken = 1
const tinyLlava: Config = {
  model_type: 'llava',
  image_token_index: imageToken,
  vision_feature_select_strategy: 'full',
  vision_feature_layer: -1,
  text_config: { ...tinyLlama, vocab_size: 8, num_hidden_layers: 1 },
  vision_config: {
    model_type: 'siglip_vision_model',
    hidden_size: 16,
    intermediate_size: 32,
    num_hidden_layers: 1,
    num_attention_heads: 2,
    image_size: 4,
    patch_size: 2,
  },
}

/** Four patches, one of which is bright; the text names it. */
function brightPatch(random: RandomStream) {
  const at = random.below(4)
  const data = Float32Array.from({ length: 3 * 16 }, (_, i) => {
    const [row, column] = [Math.floor((i % 16) / 4), i % 4]
    return (2 * Math.floor(row / 2) + Math.floor(column / 2) === at ? 1 : 0) + 0.1 * random.normal()
  })
  const image: NDArray<Float32Array> = { dtype: 'float32', shape: [3, 4, 4], data }
  return { ids: [imageToken, imageToken, imageToken, imageToken, 2, 3 + at], weights: [0, 0, 0, 0, 0, 1], images: [image] }
}

test('a model that reads images learns from their pixels, and reads them again from its folder', async () => {
  const trained = await trainDecoder({
    config: tinyLlava,
    data: generatedRows(brightPatch, { batch: 16 }),
    steps: 120,
    rate: 5e-3,
    runtime: { threads: 1 },
  })
  expect(trained.losses[0]).toBeGreaterThan(1)
  expect(trained.losses.at(-1)).toBeLessThan(0.1)
  const folder = temporaryFolder()
  await saveDecoder(folder, trained)
  const model = await load(folder, { threads: 1 })
  const rows = Array.from({ length: 4 }, (_, i) => brightPatch(RandomStream.of(100 + i)))
  const ids = rows.flatMap((r) => r.ids.slice(0, -1))
  const { logits } = await model.run({
    input_ids: { dtype: 'int64', shape: [4, 5], data: BigInt64Array.from(ids, BigInt) },
    pixel_values: {
      dtype: 'float32',
      shape: [4, 3, 4, 4],
      data: Float32Array.from(rows.flatMap((r) => [...(r.images[0] as NDArray<Float32Array>).data])),
    },
  })
  for (const [b, r] of rows.entries()) {
    const last = logits.at(b, -1)
    expect(last.indexOf(Math.max(...last))).toBe(r.ids.at(-1))
  }
  await model.dispose()
}, 60_000)

test('images that do not fit their texts, and models that cannot be trained, are refused', async () => {
  const row = brightPatch(RandomStream.of(1))
  const learn = (config: Config, change: object) =>
    trainDecoder({ config, data: batches(trainingRows([{ ...row, ...change }]), { batch: 1 }), steps: 1, rate: 0, runtime: { threads: 1 } })
  await expect(learn(tinyLlava, { images: [] })).rejects.toThrow(/no text to learn brings one/)
  await expect(learn(tinyLlava, { images: [...row.images, ...row.images] })).rejects.toThrow(/4 image tokens .* 2 images take 8/)
  await expect(learn(tinyLlama, {})).rejects.toThrow(/reads no images/)
  await expect(learn(tinyLlava.vision_config as Config, {})).rejects.toThrow(/another kind \(encoder\)/)
})
