/** Models as Hugging Face folders: what is written is what was loaded. */
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, describe, expect, it } from 'vitest'
import { transformOf } from '../models/transforms/index.ts'
import { zero } from '../sites/edits.ts'
import { load } from './open.ts'
import { tinyGpt2, tinyLlama, tinyModel } from './testing.ts'
import { errorOf, openGolden } from './transform-testing.ts'

const temporary = mkdtempSync(join(tmpdir(), 'actlens-save-'))
afterAll(() => rmSync(temporary, { recursive: true, force: true }))
const ids = { ids: [3, 17, 8, 40, 22, 5] }
const json = (folder: string, name: string) => JSON.parse(readFileSync(join(folder, name), 'utf8'))

describe('a saved model', () => {
  it('in shards has an index, the same logits, and a record of its transforms', async () => {
    await using model = await tinyModel(tinyLlama)
    await using folded = await model.transformed(transformOf('fold_norms', {}), transformOf('keep_layers', { layers: [0, 2] }))
    const folder = join(temporary, 'shards')
    const saved = await folded.save(folder, { shardBytes: 20_000 })
    const index = json(folder, 'model.safetensors.index.json')
    const shards = new Set(Object.values(index.weight_map as Record<string, string>))
    expect(shards.size).toBeGreaterThan(2)
    for (const name of shards) expect(name).toMatch(/^model-0000\d-of-0000\d\.safetensors$/)
    expect(index.metadata.total_size).toBe(saved.bytes)
    expect(json(folder, 'config.json')).toMatchObject({ num_hidden_layers: 2, torch_dtype: 'float32' })
    expect(json(folder, 'actlens.json').transforms).toEqual([
      { kind: 'fold_norms', params: {} },
      { kind: 'keep_layers', params: { layers: [0, 2] } },
    ])
    await using again = await load(folder, { threads: 1 })
    expect(errorOf((await again.run(ids)).logits, (await folded.run(ids)).logits)).toBeLessThan(1e-6)
    expect(again.origin.transforms.map((t) => t.kind)).toEqual(['fold_norms', 'keep_layers'])
    expect(again.origin.checks.join()).toContain('its weights were transformed before it was saved: fold_norms, keep_layers')
  })

  it.each(['f16', 'bf16'] as const)('as %s has the values that the transform `cast` gives', async (dtype) => {
    await using model = await tinyModel(tinyGpt2)
    const folder = join(temporary, dtype)
    await model.save(folder, { dtype })
    await using again = await openGolden(folder)
    await using cast = await model.transformed(transformOf('cast', { dtype: dtype === 'f16' ? 'float16' : 'bfloat16' }))
    const name = 'transformer.h.0.mlp.c_fc.weight'
    const value = (m: typeof model) => m.internals.source.opened.store.readFloat32(name)
    expect(await value(again)).toEqual(await value(cast))
    expect(errorOf({ data: await value(again) }, { data: await value(model) })).toBeGreaterThan(1e-6)
  })

  it('brings along what reads text, and refuses edits and its own folder', async () => {
    const [first, second] = [join(temporary, 'first'), join(temporary, 'second')]
    await using model = await tinyModel(tinyGpt2)
    await model.save(first)
    writeFileSync(join(first, 'tokenizer.json'), '{}')
    const config = readFileSync(join(first, 'config.json'), 'utf8')
    // A fraction that happens to be whole stays one, since transformers insists on it.
    writeFileSync(join(first, 'config.json'), config.replace('{', '{"resid_pdrop": 1.0, "bos_token_id": 1,'))
    await using again = await openGolden(first)
    const { files } = await again.save(second)
    expect(files).toEqual(['model.safetensors', 'tokenizer.json', 'actlens.json', 'config.json'])
    expect(readFileSync(join(second, 'config.json'), 'utf8')).toMatch(/"resid_pdrop": 1\.0,\n.*"bos_token_id": 1,/)
    expect(readFileSync(join(second, 'tokenizer.json'), 'utf8')).toBe('{}')
    await expect(again.save(`${first}/`)).rejects.toThrow('is the folder that the model is read from')
    await using folded = await again.transformed(transformOf('fold_norms', {}))
    await expect(folded.save(first)).rejects.toThrow('is the folder that the model is read from')
    await expect(model.with(zero('mlp_out.0')).save(join(temporary, 'edited'))).rejects.toThrow('has 1 edits (zero at mlp_out.0)')
    expect(existsSync(join(temporary, 'edited'))).toBe(false)
  })

  it('of pairs that rotate as neighbours is one of halves, which is how transformers reads it', async () => {
    await using model = await tinyModel({ ...tinyLlama, rope_interleaved: true })
    const folder = join(temporary, 'halves')
    await model.save(folder)
    expect(json(folder, 'config.json')).not.toHaveProperty('rope_interleaved')
    await using again = await openGolden(folder)
    expect(errorOf((await again.run(ids)).logits, (await model.run(ids)).logits)).toBeLessThan(1e-5)
    await using unturned = await tinyModel(tinyLlama)
    expect(errorOf((await unturned.run(ids)).logits, (await model.run(ids)).logits)).toBeGreaterThan(1e-3)
  })
})
