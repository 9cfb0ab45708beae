/** Patching on language models: subject–verb number in stories15M, countries and capitals in SmolLM2-135M. */
import { dirname } from 'node:path'
import { describe, expect, it } from 'vitest'
import { fetchedFile } from '../models/text/test-files.ts'
import { load, type Model } from '../run/index.ts'
import { attribute, compareAttribution, patch } from './index.ts'

const smollm = fetchedFile('smollm2-135m', 'SmolLM2-135M-Instruct.Q4_1.gguf')

const tokenOf = (model: Model, text: string) => {
  const ids = model.tokenizer.encode(text)
  return ids.at(-1) as number
}

describe('stories15M', () => {
  it('keeps the number of the subject at the subject until a late layer brings it to the verb', async () => {
    await using model = await load('embedded', { threads: 2 })
    const [was, were] = [tokenOf(model, 'a was'), tokenOf(model, 'a were')]
    const pairs = [
      ['The girl in the park', 'The girls in the park'],
      ['The bird in the tree', 'The birds in the tree'],
    ] as const
    const rows = (side: 0 | 1) => ({ rows: pairs.map((p) => model.tokenizer.encode(p[side])) })
    const options = {
      clean: rows(0),
      corrupt: rows(1),
      metric: { kind: 'logit-difference', answer: was, wrong: were } as const,
      sites: ['resid_pre.*', 'z.*'],
    }
    const swept = await patch(model, options)
    const { clean, corrupt } = swept.metric
    expect(clean).toBeGreaterThan(1)
    expect(corrupt).toBeLessThan(-1)
    const table = swept.tables['resid_pre.*']!
    const share = (layer: number, pos: number) => ((table.data[layer * 6 + pos] as number) - corrupt) / (clean - corrupt)
    // <s> The girl in the park: the subject is token 2, the verb is told at token 5.
    for (const layer of [0, 1, 2, 3]) expect(share(layer, 2), `layer ${layer}`).toBeGreaterThan(0.8)
    expect(share(5, 2)).toBeLessThan(share(0, 2) - 0.2)
    expect(share(5, 5)).toBeGreaterThan(share(3, 5) + 0.2)
    for (const pos of [0, 1]) for (let l = 0; l < 6; l++) expect(Math.abs(share(l, pos))).toBeLessThan(0.05)
    const estimate = await attribute(model, options)
    const { correlation } = compareAttribution(estimate, swept)
    console.info(`attribution against patching: correlation ${correlation.toFixed(3)}`)
    expect(correlation).toBeGreaterThan(0.5)
  })
})

describe.skipIf(!smollm)('SmolLM2-135M', () => {
  it('knows capitals from the country token until they are moved to the end', { timeout: 300_000 }, async () => {
    await using model = await load(dirname(smollm as string), { threads: 2 })
    for (const [a, b, right, wrong] of [
      ['France', 'Italy', ' Paris', ' Rome'],
      ['Germany', 'Japan', ' Berlin', ' Tokyo'],
    ] as const) {
      const prompt = (country: string) => ({ ids: model.tokenizer.encode(`The capital of ${country} is the city of`) })
      const metric = { kind: 'logit-difference', answer: tokenOf(model, right), wrong: tokenOf(model, wrong) } as const
      const { tables, metric: ends } = await patch(model, {
        clean: prompt(a),
        corrupt: prompt(b),
        metric,
        sites: 'resid_pre.{0,8,16,24,28}',
      })
      expect(ends.clean).toBeGreaterThan(3)
      expect(ends.corrupt).toBeLessThan(-3)
      const table = Object.values(tables)[0]!
      const width = table.shape[1] as number
      const share = (layer: number, pos: number) =>
        ((table.data[layer * width + pos] as number) - ends.corrupt) / (ends.clean - ends.corrupt)
      for (const layer of [0, 1, 2]) expect(share(layer, 3), `${a}, row ${layer}`).toBeGreaterThan(0.85)
      expect(share(3, 3)).toBeLessThan(0.1)
      expect(share(3, width - 1)).toBeGreaterThan(0.5)
    }
  })
})
