import { describe, expect, it } from 'vitest'
import { tinyGpt2, tinyLlama, tinyModel } from '../run/testing.ts'
import { scale } from '../sites/index.ts'
import { attribute, attributeEdges } from './index.ts'
import { errorOf } from './testing.ts'

const pair = {
  clean: { ids: [5, 17, 3, 44, 29, 8] },
  corrupt: { ids: [5, 17, 21, 44, 29, 8] },
  metric: { kind: 'logit-difference', answer: 7, wrong: 40 },
} as const

describe.each([
  ['llama', tinyLlama],
  ['gpt2', tinyGpt2],
])('edges of %s', (_, config) => {
  it('of a sender add up to its own attribution, and none runs backwards', async () => {
    await using model = await tinyModel(config)
    const { layers, heads, kvHeads } = model.spec
    for (const edited of [model, model.with(scale('attn_out.1', 2))]) {
      const { senders, receivers, scores, metric } = await attributeEdges(edited, pair)
      expect(scores.shape).toEqual([1 + layers * (heads + 1), layers * (heads + 2 * kvHeads + 1) + 1])
      expect([senders.length, receivers.length]).toEqual(scores.shape)
      const nodes = await attribute(edited, { ...pair, sites: ['resid_pre.0', 'z.*', 'mlp_out_post.*'], positions: 'all' })
      expect(metric.clean).toBeCloseTo(nodes.metric.clean, 4)
      const sums = senders.map((_, s) => scores.data.subarray(s * receivers.length, (s + 1) * receivers.length).reduce((a, v) => a + v, 0))
      const at = (name: string) => nodes.tables[name]!.data
      const want = senders.map((name) => {
        const [kind, place] = name.split(' ')
        if (kind === 'embeddings') return at('resid_pre.0')[0] as number
        const [l, h] = (place as string).split('.').map(Number)
        return (kind === 'mlp' ? at('mlp_out_post.*')[l as number] : at('z.*')[(l as number) * heads + (h as number)]) as number
      })
      expect(errorOf(sums, want)).toBeLessThan(1e-3)
      const edge = (s: string, r: string) => scores.data[senders.indexOf(s) * receivers.length + receivers.indexOf(r)]
      expect(edge('head 1.0', 'q 1.2')).toBe(0)
      expect(edge('mlp 1', 'v 0.0')).toBe(0)
      expect(edge('head 0.1', 'mlp 0')).not.toBe(0)
    }
  })
})
