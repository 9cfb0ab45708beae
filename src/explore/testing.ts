/** @file What the tests of this floor share: recorded TransformerLens values, and errors relative to a tensor's scale. */
import { existsSync, readFileSync } from 'node:fs'
import type { NDArray } from '../base/types.ts'
import { openSafetensors } from '../models/formats/index.ts'
import { assemble, type Model } from '../run/index.ts'

const root = new URL('../../../shared/goldens/', import.meta.url).pathname

/** Whether the recorded values are there; tests that need them are skipped, visibly, where not. */
export const hasGoldens = existsSync(root)

/** A family's model with what TransformerLens derived from it. */
export interface Derived {
  readonly model: Model
  readonly get: (name: string) => Promise<NDArray<Float32Array>>
  readonly clean: readonly number[]
  readonly corrupt: readonly number[]
  readonly answer: number
  readonly wrong: number
  /** What the JSON beside the tensors says. */
  readonly facts: DerivedFacts
}

/** Labels and figures that were recorded with the tensors. */
export interface DerivedFacts {
  readonly labels: { readonly components: readonly string[]; readonly accumulated: readonly string[]; readonly heads: readonly string[] }
  readonly tensors: Readonly<Record<string, { readonly b_U_difference?: number }>>
  readonly attribution_vs_patching: { readonly correlation: number; readonly largest_difference: number }
}

/** Opens the recorded values of `gpt2` or `llama`. */
export async function derived(family: string): Promise<Derived> {
  const store = await openSafetensors(`${root}transformer-lens/${family}.derived.safetensors`)
  const get = async (name: string) => (await store.readRaw(name)) as NDArray<Float32Array>
  const ids = async (name: string) => Array.from((await get(name)).data as unknown as BigInt64Array, Number)
  const model = await assemble({
    id: family,
    hash: async () => '',
    store: await openSafetensors(`${root}${family}/model.safetensors`),
    config: JSON.parse(readFileSync(`${root}${family}/config.json`, 'utf8')),
  })
  const [answer, wrong] = (await ids('token_pair')) as [number, number]
  const facts = JSON.parse(readFileSync(`${root}transformer-lens/${family}.derived.json`, 'utf8')) as DerivedFacts
  return { model, get, facts, clean: await ids('clean.input_ids'), corrupt: await ids('corrupt.input_ids'), answer, wrong }
}

/** Largest error relative to the scale of the reference. */
export function errorOf(ours: ArrayLike<number>, want: ArrayLike<number>): number {
  if (ours.length !== want.length) return Number.POSITIVE_INFINITY
  let [scale, worst] = [0, 0]
  for (let i = 0; i < want.length; i++) {
    scale = Math.max(scale, Math.abs(want[i] as number))
    worst = Math.max(worst, Math.abs((ours[i] as number) - (want[i] as number)))
  }
  return worst / scale
}
