/** @file Recorded models for tests of transforms. */
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { expect } from 'vitest'
import type { NDArray } from '../base/types.ts'
import { openSafetensors } from '../models/formats/index.ts'
import { transformOf } from '../models/transforms/index.ts'
import { assemble } from './load.ts'
import type { Model } from './model.ts'
import { undo } from './transform.ts'

/** Largest difference by the largest value. */
export function errorOf(ours: { readonly data: ArrayLike<number> }, want: { readonly data: ArrayLike<number> }): number {
  expect(ours.data.length).toBe(want.data.length)
  let [error, top] = [0, 0]
  for (let i = 0; i < want.data.length; i++) {
    const w = want.data[i] as number
    if (!Number.isFinite(w)) continue
    top = Math.max(top, Math.abs(w))
    error = Math.max(error, Math.abs(w - (ours.data[i] as number)))
  }
  return error / top
}

async function golden(folder: string) {
  const store = await openSafetensors(join(folder, 'golden.safetensors'))
  const get = async (n: string) => (await store.readRaw(n)) as NDArray<Float32Array>
  const names = ['input_ids', 'attention_mask', 'position_ids'].filter((n) => store.has(n))
  const input = Object.fromEntries(await Promise.all(names.map(async (n) => [n, await get(n)] as const)))
  const logits = await get('logits')
  const mask = (input.attention_mask as NDArray | undefined)?.data
  // Zero where there is no token, as ours are.
  const width = logits.shape.at(-1) as number
  if (mask) for (let i = 0; i < mask.length; i++) if (mask[i] === 0n) logits.data.fill(0, i * width, (i + 1) * width)
  return { input: input as unknown as { input_ids: NDArray }, logits }
}

/** Values of all weights, to compare. */
export async function weightsOf(model: Model): Promise<Record<string, Float32Array>> {
  const { store } = model.internals.source.opened
  return Object.fromEntries(await Promise.all([...store.tensors.keys()].map(async (n) => [n, await store.readFloat32(n)] as const)))
}

/** The model of a folder of recorded values. */
export async function openGolden(folder: string): Promise<Model> {
  const config = JSON.parse(readFileSync(join(folder, 'config.json'), 'utf8'))
  const store = await openSafetensors(join(folder, 'model.safetensors'))
  return assemble({ id: folder, hash: async () => folder, store, config, folder }, { threads: 1 })
}

/** Folded gains change no recorded logit, and undone, no weight. */
export async function foldsAndUnfolds(folder: string): Promise<void> {
  const { input, logits } = await golden(folder)
  await using model = await openGolden(folder)
  let folded: Model
  try {
    folded = await model.transformed(transformOf('fold_norms', {}))
  } catch (error) {
    // Only where there is nothing to fold.
    expect(String(error)).toMatch(/has no norm before a layer whose gain could move|always uses its embedding/)
    return
  }
  expect(errorOf((await folded.run(input)).logits, logits)).toBeLessThan(1e-4)
  await folded.dispose()
  const back = await undo(folded)
  const [before, after] = [await weightsOf(model), await weightsOf(back)]
  expect(Object.keys(after).sort()).toEqual(
    Object.keys(before)
      .filter((n) => n in after)
      .sort(),
  )
  for (const [name, values] of Object.entries(before))
    if (after[name]) expect([name, errorOf({ data: after[name] }, { data: values }) < 1e-6]).toEqual([name, true])
  await back.dispose()
}
