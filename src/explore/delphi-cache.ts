/** @file Latents that delphi has cached (`LatentCache.save_splits`, `save`): safetensors of locations and activations, read in pieces (Node). */
import { readdir } from 'node:fs/promises'
import { join } from 'node:path'
import { FormatError, listed, nearest, throwIfCancelled, UsageError } from '../base/errors.ts'
import { readFailure, readJson, sizeOrKind } from '../base/files.ts'
import type { WorkOptions } from '../base/progress.ts'
import { bf16ToF32, f16ToF32, openSafetensors, type StoredTensor } from '../models/formats/index.ts'
import { isElementType, storedTypes, viewOf } from '../models/formats/stored-types.ts'
import type { FeatureRows } from './features.ts'

/** Cached latents of a folder. */
export interface CachedLatents {
  readonly folder: string
  /** Hook points, as the file system names them. */
  readonly modules: readonly string[]
  /** `config.json` beside the splits, where there is one. */
  config(module: string): Promise<Readonly<Record<string, unknown>> | undefined>
  /**
   * The active latents of a module, split by split: what `writeFeatures` takes. Documents are sequences; token ids are −1 and pieces
   * empty where the cache keeps no tokens.
   */
  features(module: string, options?: WorkOptions): AsyncGenerator<FeatureRows>
}

/** Activations that are read at once. */
const atOnce = 2 ** 17

interface Split {
  readonly path: string
  /** Number of its first latent; locations count from it. */
  readonly first: number
}

/** Opens a folder of delphi: one folder `MODULE/START_END.safetensors` for each module, or files `MODULE.safetensors`. */
export async function openDelphiLatents(folder: string): Promise<CachedLatents> {
  const names = await readdir(folder).catch((error: unknown) => {
    throw readFailure(error, folder)
  })
  const splits = new Map<string, Split[]>()
  for (const name of names.sort()) {
    const path = join(folder, name)
    if ((await sizeOrKind(path)) === 'folder') {
      const found = (await readdir(path)).flatMap((file) => {
        const range = /^(\d+)_(\d+)\.safetensors$/.exec(file)
        return range ? [{ path: join(path, file), first: Number(range[1]) }] : []
      })
      if (found.length > 0)
        splits.set(
          name,
          found.sort((a, b) => a.first - b.first),
        )
    } else if (name.endsWith('.safetensors')) splits.set(name.slice(0, -'.safetensors'.length), [{ path, first: 0 }])
  }
  if (splits.size === 0)
    throw new FormatError(
      `${folder} holds no cached latents of delphi: no folder with files START_END.safetensors, and no MODULE.safetensors.`,
    )
  const known = (module: string) => {
    const found = splits.get(module)
    if (found) return found
    const near = nearest(module, splits.keys())
    throw new UsageError(
      `${folder} has no latents of '${module}'${near ? `; did you mean '${near}'?` : '.'} It has ${listed(splits.keys())}.`,
    )
  }
  return {
    folder,
    modules: [...splits.keys()],
    async config(module) {
      known(module)
      const path = join(folder, module, 'config.json')
      return typeof (await sizeOrKind(path)) === 'number' ? ((await readJson(path)) as Record<string, unknown>) : undefined
    },
    async *features(module, { signal, onProgress } = {}) {
      const all = known(module)
      for (const [done, split] of all.entries()) {
        onProgress?.({ task: 'reading latents', done, total: all.length, unit: 'files' })
        for await (const rows of splitRows(split, signal)) yield rows
      }
    },
  }
}

async function* splitRows({ path, first }: Split, signal: AbortSignal | undefined): AsyncGenerator<FeatureRows> {
  const store = await openSafetensors(path)
  try {
    const [locations, activations] = [store.get('locations'), store.get('activations')]
    const count = activations.shape[0] ?? 0
    if (activations.shape.length !== 1 || locations.shape.join() !== `${count},3`)
      throw new FormatError(
        `${path} holds locations [${locations.shape.join(', ')}] and activations [${activations.shape.join(', ')}], but must hold [n, 3] and [n].`,
      )
    const tokens = store.has('tokens') ? store.get('tokens') : undefined
    const width = tokens?.shape[1] ?? 0
    const ids = tokens && (await numbers(tokens, path, 0, (tokens.shape[0] as number) * width))
    for (let at = 0; at < count; at += atOnce) {
      throwIfCancelled(signal)
      const size = Math.min(atOnce, count - at)
      const places = await numbers(locations, path, at * 3, size * 3)
      const value = Float32Array.from(await numbers(activations, path, at, size))
      const column = (c: number) => Int32Array.from({ length: size }, (_, i) => places[i * 3 + c] as number)
      const [document, position] = [column(0), column(1)]
      const token = new Int32Array(size).fill(-1)
      if (ids)
        for (let i = 0; i < size; i++) {
          const id = (position[i] as number) < width ? ids[(document[i] as number) * width + (position[i] as number)] : undefined
          if (id === undefined)
            throw new FormatError(
              `${path} holds a latent at sequence ${document[i]}, position ${position[i]}, where its tokens [${tokens.shape.join(', ')}] have none.`,
            )
          token[i] = id
        }
      yield { feature: column(2).map((f) => f + first), document, position, token, piece: new Array<string>(size).fill(''), value }
    }
  } finally {
    await store.close()
  }
}

/** Elements of a tensor from one on, as numbers. */
async function numbers(
  { name, type, source, offset }: StoredTensor,
  path: string,
  from: number,
  count: number,
): Promise<ArrayLike<number>> {
  if (!isElementType(type)) throw new FormatError(`'${name}' in ${path} is ${type}, which no cache of delphi holds.`)
  const size = storedTypes[type].bytes
  const { dtype, data } = viewOf(type, await source.read(offset + from * size, count * size))
  if (dtype === 'float16') return f16ToF32(data as Uint16Array)
  if (dtype === 'bfloat16') return bf16ToF32(data as Uint16Array)
  return Array.from(data as ArrayLike<number | bigint>, Number)
}
