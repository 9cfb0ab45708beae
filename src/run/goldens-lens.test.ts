/** TransformerLens' names give TransformerLens' values. */
import { existsSync, readFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import { describe, expect, it } from 'vitest'
import type { NDArray } from '../base/types.ts'
import { openSafetensors } from '../models/formats/index.ts'
import { assemble } from './load.ts'

const root = fileURLToPath(new URL('../../../shared/goldens/', import.meta.url))

/** Hooks that are no sites: inputs that are not activations, tables, and the tuple that a module hands on. */
const noSites = /^(embed|pos_embed|rotary_emb)\.hook_in$|hook_(cos|sin)$|hook_hidden_states$/

describe.skipIf(!existsSync(root)).each(['gpt2', 'gpt_neox', 'llama', 'qwen2', 'gemma2'])('TransformerLens on %s', (name) => {
  it('has its values under its names', async () => {
    const store = await openSafetensors(`${root}transformer-lens/${name}.safetensors`)
    const get = async (n: string) => (await store.readRaw(n)) as NDArray<Float32Array>
    const model = await assemble({
      id: name,
      hash: async () => '',
      store: await openSafetensors(`${root}${name}/model.safetensors`),
      config: JSON.parse(readFileSync(`${root}${name}/config.json`, 'utf8')),
    })
    const hooks = [...store.tensors.keys()].filter((n) => n !== 'input_ids' && !noSites.test(n))
    const { taps } = await model.run({ input_ids: await get('input_ids') }, { taps: hooks })
    const wrong: [string, number][] = []
    for (const hook of hooks) {
      const [ours, want] = [taps[hook]!, await get(hook)]
      expect(ours.shape, hook).toEqual(want.shape)
      let [error, top] = [0, 0]
      for (const [i, w] of want.data.entries()) {
        const o = ours.data[i] as number
        if (w === o) continue
        top = Number.isFinite(w) ? Math.max(top, Math.abs(w)) : top
        error = Math.max(error, Math.abs(w - o))
      }
      if (!(error <= 1e-4 * top)) wrong.push([`${hook} = ${model.site(hook).site}`, error / top])
    }
    expect(wrong).toEqual([])
    expect(hooks.length).toBeGreaterThan(100)
  })
})
