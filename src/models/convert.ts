/** @file Weights that cannot be used as they lie in their file are converted once, into a file of the cache that the runtime maps. */
import { createHash } from 'node:crypto'
import { existsSync, mkdirSync, statSync, utimesSync } from 'node:fs'
import { join } from 'node:path'
import { throwIfCancelled } from '../base/errors.ts'
import { homeFolders, writeFileWhole } from '../base/files.ts'
import type { WorkOptions } from '../base/progress.ts'
import type { ByteSource, WeightStore } from './formats/index.ts'
import type { Section } from './weights.ts'

/** Sections start at multiples of a cache line. */
const ALIGN = 64

/** Folder of the converted weights. */
export const conversionFolder = () => join(homeFolders().cache, 'converted')

/**
 * Writes sections into one file of the cache, unless it is there already.
 * @returns where each section lies, by its key.
 */
export async function convertWeights(
  store: WeightStore,
  sections: readonly Section[],
  options: WorkOptions = {},
): Promise<ReadonlyMap<string, { path: string; offset: number }>> {
  const folder = conversionFolder()
  const path = join(folder, `${fingerprint(store, sections)}.weights`)
  const places = new Map<string, { path: string; offset: number }>()
  let total = 0
  for (const { key, bytes } of sections) {
    places.set(key, { path, offset: total })
    total += Math.ceil(bytes / ALIGN) * ALIGN
  }
  if (existsSync(path) && statSync(path).size === total) {
    const now = new Date()
    utimesSync(path, now, now)
    return places
  }
  mkdirSync(folder, { recursive: true })
  await writeFileWhole(path, written(sections, total, options), options)
  return places
}

async function* written(sections: readonly Section[], total: number, options: WorkOptions): AsyncGenerator<Uint8Array> {
  let done = 0
  for (const section of sections) {
    for await (const piece of section.pieces()) {
      throwIfCancelled(options.signal)
      yield piece
      done += piece.byteLength
      options.onProgress?.({ task: 'converting weights', done, total, unit: 'bytes' })
    }
    const padding = -done & (ALIGN - 1)
    if (padding > 0) yield new Uint8Array(padding)
    done += padding
  }
}

/** Paths of the files that bytes come from; of bytes that are made, what they are made by as well. */
function pathsOf(source: ByteSource, otherwise: string): string[] {
  return source.basis ? [source.name, ...source.basis.flatMap((b) => pathsOf(b, otherwise))] : [source.path ?? otherwise]
}

/** Tells checkpoints apart by path, size and time of change of their files. */
export function fingerprintOf(store: WeightStore): string {
  const paths = new Set([...store.tensors.values()].flatMap((t) => pathsOf(t.source, store.name)))
  return [...paths]
    .map((path) => {
      const s = existsSync(path) ? statSync(path) : undefined
      return `${path}|${s?.size}|${s?.mtimeMs}\n`
    })
    .join('')
}

/** Tells uses of a checkpoint apart by its files and by what is made of which tensor. */
function fingerprint(store: WeightStore, sections: readonly Section[]): string {
  const hash = createHash('sha256').update(fingerprintOf(store))
  for (const { key, of, bytes } of sections) hash.update(`${key}|${store.get(of).offset}|${bytes}\n`)
  return hash.digest('hex').slice(0, 32)
}
