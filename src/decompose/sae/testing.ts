/** @file What the tests of autoencoders share: recorded values, and errors relative to a tensor's scale. */
import { existsSync, readdirSync, readFileSync } from 'node:fs'
import type { NDArray } from '../../base/types.ts'
import { openSafetensors } from '../../models/formats/index.ts'

const kept = new URL('../../../test/goldens/', import.meta.url).pathname
const shared = new URL('../../../../shared/goldens/', import.meta.url).pathname

/** Folder of recorded values: the whole set where it is there, else the few that are kept with the tests. */
export const goldenRoot = (set: string): string => `${existsSync(`${shared}${set}`) ? shared : kept}${set}/`

/** Whether the whole set is there. */
export const hasShared = existsSync(`${shared}sae-formats`)

/** Recorded cells of a format. */
export const cellsOf = (folder: string): string[] => (existsSync(folder) ? readdirSync(folder).sort() : [])

/** JSON of a file. */
export const jsonOf = (path: string) => JSON.parse(readFileSync(path, 'utf8'))

/** All tensors of a safetensors file, as float32. */
export async function tensorsOf(path: string): Promise<Record<string, NDArray<Float32Array>>> {
  const store = await openSafetensors(path)
  const out: Record<string, NDArray<Float32Array>> = {}
  for (const { name, shape } of store.tensors.values())
    out[name] = { dtype: 'float32', shape: [...shape], data: await store.readFloat32(name) }
  await store.close()
  return out
}

/** Largest error relative to the scale of the reference. */
export function errorOf(ours: ArrayLike<number>, want: ArrayLike<number>): number {
  if (ours.length !== want.length) return Number.POSITIVE_INFINITY
  let [scale, worst] = [0, 0]
  for (let i = 0; i < want.length; i++) {
    scale = Math.max(scale, Math.abs(want[i] as number))
    worst = Math.max(worst, Math.abs((ours[i] as number) - (want[i] as number)))
  }
  return worst / (scale || 1)
}
