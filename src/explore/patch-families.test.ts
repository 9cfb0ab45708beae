import { existsSync, readFileSync } from 'node:fs'
import { describe, expect, it } from 'vitest'
import { openSafetensors } from '../models/formats/index.ts'
import { assemble } from '../run/index.ts'
import { attribute, attributeEdges, attributeLogits, lens, patch } from './index.ts'
import { errorOf } from './testing.ts'

const root = new URL('../../../shared/goldens/', import.meta.url).pathname
const clean = [5, 17, 3, 44, 29, 8]
const pair = {
  clean: { ids: clean },
  corrupt: { ids: clean.with(2, 21) },
  metric: { kind: 'logit-difference', answer: 7, wrong: 40 },
} as const

/** Families whose blocks differ: post-norms and soft-caps, parallel blocks, a norm after the embeddings, biases, norms of q and k. */
const families = ['gemma2', 'gemma3', 'gpt_neox', 'bloom', 'opt', 'qwen2', 'qwen3', 'mistral', 'phi3']

describe.skipIf(!existsSync(root)).each(families)('exploring %s', (family) => {
  it('parts add up to logits, edges to attributions, and the last layer of a lens and of a sweep is the model', async () => {
    await using model = await assemble({
      id: family,
      hash: async () => '',
      store: await openSafetensors(`${root}${family}/model.safetensors`),
      config: JSON.parse(readFileSync(`${root}${family}/config.json`, 'utf8')),
    })
    const end = `resid_post.${model.spec.layers - 1}`
    const { tables, metric } = await patch(model, { ...pair, sites: [end, 'z.*'], positions: 'all' })
    expect(tables[end]?.data[0]).toBeCloseTo(metric.clean, 3)
    expect((await lens(model, { ids: clean })).kl.data.at(-1)).toBeCloseTo(0, 4)
    const { values, bias, metric: whole } = await attributeLogits(model, { ids: clean }, { answer: 7, wrong: 40 })
    const sums = clean.map((_, p) =>
      Array.from({ length: values.shape[0] as number }, (_, c) => values.data[c * clean.length + p] as number).reduce(
        (a, v) => a + v,
        bias,
      ),
    )
    expect(errorOf(sums, whole.data)).toBeLessThan(1e-3)
    const edges = await attributeEdges(model, pair)
    const heads = await attribute(model, { ...pair, sites: 'z.*', positions: 'all' })
    const width = edges.receivers.length
    const rows = edges.senders.flatMap((s, i) =>
      s.startsWith('head') ? [edges.scores.data.subarray(i * width, (i + 1) * width).reduce((a, v) => a + v, 0)] : [],
    )
    expect(errorOf(rows, heads.tables['z.*']!.data)).toBeLessThan(2e-3)
  })
})
