/** PEFT adapters against what PEFT computes with them (test/peft/make.py). */
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { afterAll, describe, expect, it } from 'vitest'
import type { NDArray } from '../base/types.ts'
import { openSafetensors } from '../models/formats/index.ts'
import { readPeftAdapter, writePeftAdapter } from '../models/peft.ts'
import { transformOf } from '../models/transforms/index.ts'
import { adapterEdits, adapterOf } from './adapters.ts'
import { undo } from './transform.ts'
import { errorOf, openGolden, weightsOf } from './transform-testing.ts'

const recorded = fileURLToPath(new URL('../../test/peft/', import.meta.url))
const temporary = mkdtempSync(join(tmpdir(), 'actlens-peft-'))
afterAll(() => rmSync(temporary, { recursive: true, force: true }))

async function open(name: string) {
  const folder = join(recorded, name)
  const store = await openSafetensors(join(folder, 'golden.safetensors'))
  const [input_ids, logits] = [await store.readRaw('input_ids'), (await store.readRaw('logits')) as NDArray<Float32Array>]
  return { folder, input: { input_ids }, logits, model: await openGolden(folder), adapter: await readPeftAdapter(join(folder, 'adapter')) }
}

describe('a PEFT adapter', () => {
  it.each(['llama', 'gpt2'])('merged into %s gives what PEFT gives, and can be taken out', async (name) => {
    const { model, adapter, input, logits } = await open(name)
    await using merged = await model.transformed(transformOf('merge_lora', { adapter }))
    expect(errorOf((await merged.run(input)).logits, logits)).toBeLessThan(1e-4)
    expect(errorOf((await model.run(input)).logits, logits)).toBeGreaterThan(0.01)
    const [before, after] = [await weightsOf(model), await weightsOf(await undo(merged))]
    for (const [n, values] of Object.entries(before))
      expect([n, errorOf({ data: after[n] as Float32Array }, { data: values }) < 1e-6]).toEqual([n, true])
    await model.dispose()
  })

  it('live on a model is the same, and comes back as it was', async () => {
    const { model, adapter, input, logits } = await open('llama')
    const live = adapterEdits(model, adapter)
    expect(errorOf((await model.with(live.edits).run(input)).logits, logits)).toBeLessThan(1e-4)
    const out = join(temporary, 'adapter')
    await writePeftAdapter(out, adapterOf(model, live.parameters))
    const again = await readPeftAdapter(out)
    expect([...again.modules.keys()].sort()).toEqual([...adapter.modules.keys()].sort())
    for (const [module, layer] of again.modules) {
      expect(layer.a).toEqual(adapter.modules.get(module)?.a)
      expect(layer.b).toEqual(adapter.modules.get(module)?.b)
      expect(layer.scale).toBe(1)
    }
    await model.dispose()
  })

  it('of a fused projection is refused as edits, with the way out', async () => {
    const { model, adapter } = await open('gpt2')
    expect(() => adapterEdits(model, adapter)).toThrow(/c_attn.*merge_lora/)
  })

  it('is refused where it computes something else, or is another model’s', async () => {
    const { folder, adapter } = await open('llama')
    const config = JSON.parse(readFileSync(join(folder, 'adapter', 'adapter_config.json'), 'utf8'))
    const out = join(temporary, 'other')
    const withConfig = async (more: object) => {
      await writePeftAdapter(out, adapter)
      writeFileSync(join(out, 'adapter_config.json'), JSON.stringify({ ...config, ...more }))
      return readPeftAdapter(out)
    }
    await expect(withConfig({ use_dora: true })).rejects.toThrow("'use_dora'")
    await expect(withConfig({ bias: 'all' })).rejects.toThrow("'bias'")
    await expect(withConfig({ modules_to_save: ['lm_head'] })).rejects.toThrow("'modules_to_save'")
    await expect(withConfig({ peft_type: 'IA3' })).rejects.toThrow('only LORA is read')
    await expect(withConfig({ rank_pattern: {} })).rejects.toThrow('are not those of rank 3')
    await expect(withConfig({ alpha_pattern: { '(a+)+': 3 } })).rejects.toThrow('is not read')
    const { model } = await open('gpt2')
    await expect(model.transformed(transformOf('merge_lora', { adapter }))).rejects.toThrow('belongs to another model')
  })
})
