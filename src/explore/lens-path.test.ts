/** The path lens adds up to the logits; vectors are read as the model's head reads them; patchscopes put states where they say. */
import { describe, expect, it } from 'vitest'
import { tinyGpt2, tinyLlama, tinyModel } from '../run/testing.ts'
import { lens, patchscope, pathLens, readVectors } from './index.ts'
import { errorOf } from './testing.ts'

const ids = [5, 17, 3, 44, 29, 8]

describe.each([
  ['llama', tinyLlama],
  ['gpt2', tinyGpt2],
])('on %s', (_, config) => {
  it('the paths and the bias add up to the logits, and heads to their attention', async () => {
    await using model = await tinyModel(config)
    const { vocab, layers, heads } = model.spec
    const { paths, logits, bias, topIds, topLogits, bottomIds, bottomLogits } = await pathLens(model, { ids }, { logits: true, top: 3 })
    expect(paths).toHaveLength(2 * layers + (config === tinyGpt2 ? 2 : 1))
    expect(logits!.shape).toEqual([paths.length, ids.length, vocab])
    const own = (await model.run({ ids })).logits
    const size = ids.length * vocab
    const sum = Float32Array.from({ length: size }, (_, i) =>
      paths.reduce((s, __, c) => s + (logits!.data[c * size + i] as number), bias!.data[i % vocab] as number),
    )
    const centred = Float32Array.from(own.data)
    for (let p = 0; p < ids.length; p++) {
      const row = centred.subarray(p * vocab, (p + 1) * vocab)
      const mean = row.reduce((a, v) => a + v) / vocab
      for (let i = 0; i < vocab; i++) row[i] = (row[i] as number) - mean
    }
    expect(errorOf(sum, centred)).toBeLessThan(1e-4)
    const place = logits!.data.subarray(size + 2 * vocab, size + 3 * vocab)
    const order = [...place.keys()].sort((a, b) => (place[b] as number) - (place[a] as number))
    const at = (1 * ids.length + 2) * 3
    expect([...topIds.data.subarray(at, at + 3)].map(Number)).toEqual(order.slice(0, 3))
    expect([...bottomIds.data.subarray(at, at + 3)].map(Number)).toEqual(order.toReversed().slice(0, 3))
    expect(topLogits.data[at]).toBeCloseTo(place[order[0] as number] as number, 5)
    expect(bottomLogits.data[at]).toBeCloseTo(place[order.at(-1) as number] as number, 5)

    const split = await pathLens(model, { ids }, { by: 'heads', logits: true })
    expect(split.paths).toHaveLength(layers * heads)
    expect(split.logits!.shape).toEqual([layers * heads, ids.length, vocab])
    // Without a bias of the output projection the heads of a layer are its attention; GPT-2's bias says the same everywhere.
    const attention = logits!.data.subarray(paths.indexOf('1_attn_out') * size, (paths.indexOf('1_attn_out') + 1) * size)
    const first = split.paths.indexOf('L1H0')
    const together = attention.map((__, i) =>
      Array.from({ length: heads }, (___, h) => split.logits!.data[(first + h) * size + i] as number).reduce((a, v) => a + v),
    )
    if (config === tinyLlama) expect(errorOf(together, attention)).toBeLessThan(1e-4)
    await expect(pathLens(model, { ids }, { top: 0 })).rejects.toThrow('between 1 and 61')
  })

  it('vectors read what the lens reads', async () => {
    await using model = await tinyModel(config)
    const site = 'resid_post.0'
    const { taps } = await model.run({ ids }, { taps: [site] })
    const want = await lens(model, { ids }, { sites: site, top: 3, tokens: [7] })
    const { topIds, topProbs, probabilities } = await readVectors(model, taps[site].data, { top: 3, of: ids.map(() => 7) })
    expect([...topIds.data]).toEqual([...want.topIds.data])
    expect(errorOf(topProbs.data, want.topProbs.data)).toBeLessThan(1e-5)
    expect(errorOf(probabilities!.data, want.probabilities!.data)).toBeLessThan(1e-5)
    const one = await readVectors(model, taps[site].at(0, 4), { top: 1 })
    expect(one.topIds.data[0]).toBe(want.topIds.data[4 * 3])
    await expect(readVectors(model, new Float32Array(5))).rejects.toThrow('32 wide')
    await expect(readVectors(model, taps[site].data, { of: [1] })).rejects.toThrow('one for each')
  })

  it('a patchscope of the source into itself changes nothing, and into another text it is the edit it says', async () => {
    await using model = await tinyModel(config)
    const { vocab, layers, dModel } = model.spec
    const same = await patchscope(model, { source: { ids }, target: { ids }, positions: [-1], placeholder: -1, top: 4, maxNewTokens: 3 })
    const [own, plain] = [
      await lens(model, { ids }, { top: 4 }),
      await model.generate({ ids }, { maxNewTokens: 3, temperature: 0 }).result(),
    ]
    expect(same.topIds.shape).toEqual([layers, 1, 4])
    for (let l = 0; l < layers; l++) {
      expect([...same.topIds.data.subarray(l * 4, l * 4 + 4)]).toEqual([...own.topIds.data.slice(-4)])
      expect(same.written![l]![0]!.tokens).toEqual(plain.tokens)
    }
    const target = [9, 2, 30]
    const there = await patchscope(model, {
      source: { ids },
      sites: 'resid_post.*',
      positions: [1, 3],
      target: { ids: target },
      placeholder: 1,
      into: 'resid_post.0',
      top: vocab,
      batch: 2,
    })
    const state = (await model.run({ ids }, { taps: ['resid_post.1'] })).taps['resid_post.1'].at(0, 3)
    expect(there.positions).toEqual([1, 3])
    const data = new Float32Array(3 * dModel)
    data.set(state, dModel)
    const value = { dtype: 'float32' as const, shape: [1, 3, dModel], data }
    const edited = model.with({ op: 'replace', site: 'resid_post.0', params: { value }, where: { positions: 1 } })
    const logits = (await edited.run({ ids: target })).logits.at(0, 2)
    const total = logits.reduce((s, v) => s + Math.exp(v), 0)
    for (let i = 0; i < 5; i++) {
      const at = (1 * 2 + 1) * vocab + i
      expect(there.topProbs.data[at]).toBeCloseTo(Math.exp(logits[Number(there.topIds.data[at])] as number) / total, 5)
    }
    await expect(patchscope(model, { source: { ids }, target: { ids }, placeholder: 9 })).rejects.toThrow('no position 9')
    await expect(patchscope(model, { source: { ids }, target: { ids }, sites: 'z.*' })).rejects.toThrow('d_model wide')
  })
})
