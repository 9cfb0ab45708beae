import { existsSync, readFileSync } from 'node:fs'
import { describe, expect, it } from 'vitest'
import type { NDArray } from '../base/types.ts'
import { openSafetensors } from '../models/formats/index.ts'
import { add, zero } from '../sites/edits.ts'
import { assemble } from './load.ts'

const root = new URL('../../../shared/goldens/', import.meta.url).pathname
const open = (name: string) => openSafetensors(`${root}${name}/model.safetensors`)

describe.skipIf(!existsSync(root)).each(['llama', 'llama-tied-headdim', 'llama3-rope', 'gpt2'])('%s', (name) => {
  it('equals the recorded values', async () => {
    const golden = await openSafetensors(`${root}${name}/golden.safetensors`)
    const get = async (n: string) => (await golden.readRaw(n)) as NDArray<Float32Array>
    const model = await assemble(
      { id: name, hash: async () => '', store: await open(name), config: JSON.parse(readFileSync(`${root}${name}/config.json`, 'utf8')) },
      { threads: 2 },
    )
    const input = {
      input_ids: await get('input_ids'),
      attention_mask: await get('attention_mask'),
      ...(golden.has('position_ids') ? { position_ids: await get('position_ids') } : {}),
    }
    const mask = (await get('attention_mask')).data as unknown as BigInt64Array
    const names = [...golden.tensors.keys()].filter((n) => /^(resid|attn|mlp)/.test(n))
    const r = await model.run(input, { taps: names })
    const check = (ours: { data: Float32Array; shape: readonly number[] }, want: NDArray<Float32Array>, label: string) => {
      expect(ours.shape, label).toEqual(want.shape)
      const probs = want.shape.length === 4
      let top = 0
      let err = 0
      const inner = probs ? want.shape[3]! : want.shape[2]!
      for (let i = 0; i < want.data.length; i++) {
        const row = Math.floor(i / inner)
        const pos = row % 12
        const b = probs ? Math.floor(row / 12 / want.shape[1]!) : Math.floor(row / 12)
        if (mask[b * 12 + pos] === 0n) continue
        top = Math.max(top, Math.abs(want.data[i]!))
        err = Math.max(err, Math.abs(want.data[i]! - ours.data[i]!))
      }
      expect(err / top, label).toBeLessThan(1e-4)
    }
    for (const n of names) check(r.taps[n]!, await get(n), n)
    check(r.logits, await get('logits'), 'logits')
    const steered = await model.with(add('resid_post.1', (await get('steer.vector')).data)).run(input)
    check(steered.logits, await get('steered.logits'), 'steered')
    const ablated = await model.with(zero('mlp_out.0')).run(input)
    check(ablated.logits, await get('ablated.logits'), 'ablated')
    const ids = Array.from((await get('input_ids')).data.slice(0, 12) as unknown as BigInt64Array, Number)
    const g = await model.generate({ ids }, { maxNewTokens: 16, ignoreEos: true }).result()
    expect(g.tokens).toEqual(Array.from((await get('greedy')).data as unknown as BigInt64Array, Number))
  })
})
