/** GGUF files that llama.cpp's converter made of the models in test/goldens, against the same recorded values. */
import { readdirSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { describe, expect, it } from 'vitest'
import type { NDArray } from '../base/types.ts'
import { openGguf, openSafetensors } from '../models/formats/index.ts'
import { ggufModel } from '../models/gguf-model.ts'
import { assemble } from './load.ts'

const root = fileURLToPath(new URL('../../test/goldens/', import.meta.url))
const files = readdirSync(join(root, 'gguf')).map((f) => f.replace(/\.gguf$/, ''))

/** The format cannot say which layers have windows or rotate; its models are the released ones, these are not. Their first block is the same. */
const onlyFirstBlock = ['cohere2', 'gemma3-vision', 'exaone4', 'smollm3']

describe.each(files)('%s.gguf', (name) => {
  it('has the values recorded of the model it was made from', async () => {
    const golden = await openSafetensors(join(root, name, 'golden.safetensors'))
    const { config, store } = await ggufModel(await openGguf(join(root, 'gguf', `${name}.gguf`)))
    const model = await assemble({ id: name, hash: async () => '', store, config })
    const ids = (await golden.readRaw('input_ids')).data.slice(0, 12)
    const { taps, logits } = await model.run({ ids: Array.from(ids as BigInt64Array, Number) }, { taps: ['resid_post.0'] })
    for (const [site, ours] of [['resid_post.0', taps['resid_post.0']] as const, ['logits', logits] as const]) {
      if (site === 'logits' && onlyFirstBlock.includes(name)) continue
      const want = (await golden.readRaw(site)) as NDArray<Float32Array>
      const row = want.data.subarray(0, ours.data.length)
      const top = row.reduce((t, w) => Math.max(t, Math.abs(w)), 0)
      expect(row.reduce((e, w, i) => Math.max(e, Math.abs(w - (ours.data[i] as number))), 0) / top, site).toBeLessThan(1e-4)
    }
  })
})
