/** @file Weights that are not float32 in their file are converted once, into a file of the cache that the runtime maps. */
import { createHash } from 'node:crypto'
import { existsSync, mkdirSync, statSync, utimesSync } from 'node:fs'
import { join } from 'node:path'
import { throwIfCancelled } from '../base/errors.ts'
import { homeFolders, writeFileWhole } from '../base/files.ts'
import type { WorkOptions } from '../base/progress.ts'
import type { WeightStore } from './formats/index.ts'

/** Values converted at a time. */
const CHUNK = 1 << 20
/** Tensors start at multiples of a cache line. */
const ALIGN = 64

/** Folder of the converted weights. */
export const conversionFolder = () => join(homeFolders().cache, 'converted')

/**
 * Converts tensors to float32 in one file of the cache, unless it is there already.
 * @returns where each tensor lies.
 */
export async function convertToFloat32(
  store: WeightStore,
  names: readonly string[],
  options: WorkOptions = {},
): Promise<ReadonlyMap<string, { path: string; offset: number }>> {
  const folder = conversionFolder()
  const path = join(folder, `${fingerprint(store, names)}.f32`)
  const places = new Map<string, { path: string; offset: number }>()
  let total = 0
  for (const name of names) {
    places.set(name, { path, offset: total })
    const bytes = store.get(name).shape.reduce((p, n) => p * n, 4)
    total += Math.ceil(bytes / ALIGN) * ALIGN
  }
  if (existsSync(path) && statSync(path).size === total) {
    const now = new Date()
    utimesSync(path, now, now)
    return places
  }
  mkdirSync(folder, { recursive: true })
  await writeFileWhole(path, converted(store, names, total, options), options)
  return places
}

async function* converted(store: WeightStore, names: readonly string[], total: number, options: WorkOptions): AsyncGenerator<Uint8Array> {
  let done = 0
  for (const name of names) {
    for await (const chunk of store.float32Chunks(name, CHUNK)) {
      throwIfCancelled(options.signal)
      yield new Uint8Array(chunk.buffer, chunk.byteOffset, chunk.byteLength)
      done += chunk.byteLength
      options.onProgress?.({ task: 'converting weights to float32', done, total, unit: 'bytes' })
    }
    const padding = -done & (ALIGN - 1)
    if (padding > 0) yield new Uint8Array(padding)
    done += padding
  }
}

/** Tells checkpoints apart by path, size and time of change of their files. */
function fingerprint(store: WeightStore, names: readonly string[]): string {
  const hash = createHash('sha256')
  for (const path of new Set(names.map((n) => store.get(n).source.path ?? store.name))) {
    const s = existsSync(path) ? statSync(path) : undefined
    hash.update(`${path}|${s?.size}|${s?.mtimeMs}\n`)
  }
  for (const n of names) hash.update(`${n}|${store.get(n).offset}\n`)
  return hash.digest('hex').slice(0, 32)
}
