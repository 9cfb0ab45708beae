/** Every decoder family against values that PyTorch recorded. ACTLENS_GOLDENS names a further folder of such folders. */
import { existsSync, readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { describe, expect, it } from 'vitest'
import type { NDArray } from '../base/types.ts'
import { families } from '../models/families/index.ts'
import { openSafetensors } from '../models/formats/index.ts'
import { type SelfCheckRun, selfCheck } from '../models/self-check.ts'
import { add, scale, zero } from '../sites/edits.ts'
import { assemble } from './load.ts'
import type { Model } from './model.ts'

const shared = fileURLToPath(new URL('../../../shared/goldens/', import.meta.url))
const own = fileURLToPath(new URL('../../test/goldens/', import.meta.url))
const roots = [shared, own, ...(process.env.ACTLENS_GOLDENS ? [process.env.ACTLENS_GOLDENS] : [])]

const typeOf = (folder: string) => JSON.parse(readFileSync(join(folder, 'config.json'), 'utf8')).model_type as string

/** Folders with a checkpoint of a known decoder family and recorded values. */
const folders = roots
  .filter((root) => existsSync(root))
  .flatMap((root) => readdirSync(root).map((name) => ({ name, folder: join(root, name) })))
  .filter(({ folder }) => ['config.json', 'golden.safetensors'].every((f) => existsSync(join(folder, f))))
  .filter(({ folder }) => Object.hasOwn(families, typeOf(folder)))

/** Largest difference at positions that hold a token, by the largest recorded value there. */
function errorOf(ours: { data: Float32Array; shape: readonly number[] }, want: NDArray<Float32Array>, mask: BigInt64Array): number {
  expect(ours.shape).toEqual(want.shape)
  const [rows, columns] = [want.shape[0] as number, mask.length / (want.shape[0] as number)]
  const inner = want.shape.at(-1) as number
  let [error, top] = [0, 0]
  for (const [i, w] of want.data.entries()) {
    const line = Math.floor(i / inner)
    const row = Math.floor(line / (want.data.length / inner / rows))
    if (mask[row * columns + (line % columns)] === 0n) continue
    top = Math.max(top, Math.abs(w))
    error = Math.max(error, Math.abs(w - (ours.data[i] as number)))
  }
  return error === 0 ? 0 : error / top
}

async function open(folder: string) {
  const golden = await openSafetensors(join(folder, 'golden.safetensors'))
  const get = async (n: string) => (await golden.readRaw(n)) as NDArray<Float32Array>
  const model = await assemble(
    {
      id: folder,
      hash: async () => '',
      store: await openSafetensors(join(folder, 'model.safetensors')),
      config: JSON.parse(readFileSync(join(folder, 'config.json'), 'utf8')),
    },
    { threads: 2 },
  )
  const input = {
    input_ids: await get('input_ids'),
    attention_mask: await get('attention_mask'),
    ...(golden.has('position_ids') ? { position_ids: await get('position_ids') } : {}),
  }
  const mask = input.attention_mask.data as unknown as BigInt64Array
  return { golden, get, model, input, mask }
}

describe.skipIf(!existsSync(shared))('goldens of ../shared', () => {
  it('has the decoder families', () => {
    expect(folders.filter((f) => f.folder.startsWith(shared)).length).toBeGreaterThanOrEqual(14)
  })
})

describe.skipIf(folders.length === 0).each(folders)('$name', ({ folder }) => {
  it('has the recorded values at every site', async () => {
    const { golden, get, model, input, mask } = await open(folder)
    const sites = [...golden.tensors.keys()].filter((n) => /^(resid|attn|mlp|router|expert|logits)/.test(n))
    const result = await model.run(input, { taps: sites })
    const errors = await Promise.all(sites.map(async (n) => [n, errorOf(result.taps[n]!, await get(n), mask)] as const))
    expect(errors.filter(([, e]) => !(e < 1e-4))).toEqual([])
    // The same without a look inside, so that fused operators run.
    expect(errorOf((await model.run(input)).logits, await get('logits'), mask)).toBeLessThan(1e-4)
  })

  it('passes its self-check, and does not with an attention that leaks', async () => {
    const { model } = await open(folder)
    const on =
      (m: Model): SelfCheckRun =>
      async (ids, sites) =>
        (await m.run({ ids }, { taps: sites })).taps
    expect((await selfCheck(model.spec, on(model))).length).toBeGreaterThan(2)
    await expect(selfCheck(model.spec, on(model.with(scale('z.0', 1.01))))).rejects.toThrow(/z\.0/)
  })

  it('answers to edits as recorded', async () => {
    const { golden, get, model, input, mask } = await open(folder)
    const steered = model.with(add('resid_post.1', (await get('steer.vector')).data))
    expect(errorOf((await steered.run(input)).logits, await get('steered.logits'), mask)).toBeLessThan(1e-4)
    if (golden.has('ablated.logits'))
      expect(errorOf((await model.with(zero('mlp_out.0')).run(input)).logits, await get('ablated.logits'), mask)).toBeLessThan(1e-4)
  })

  it('writes the recorded tokens', async () => {
    const { get, model, input } = await open(folder)
    const columns = input.input_ids.shape[1] as number
    const ids = Array.from((input.input_ids.data as unknown as BigInt64Array).slice(0, columns), Number)
    const written = await model.generate({ ids }, { maxNewTokens: 16, ignoreEos: true }).result()
    expect(written.tokens).toEqual(Array.from((await get('greedy')).data as unknown as BigInt64Array, Number))
  })
})
