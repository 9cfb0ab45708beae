/** @file Fitted lenses as files: ours in safetensors, and tuned lenses in the published layout of the `tuned-lens` package. */
import { join } from 'node:path'
import { FormatError, UsageError } from '../base/errors.ts'
import { makeFolder, readJson, sizeOrKind, writeFileWhole } from '../base/files.ts'
import type { NDArray } from '../base/types.ts'
import { encodePickle, openPickle, openSafetensors, type WeightStore, writeSafetensors } from '../models/formats/index.ts'
import { type LensMaps, lensKinds } from './lens.ts'

const format = 'actlens-lens-1'
const biasPrefix = 'bias:'

/** Writes a fitted lens: safetensors, M [d_model, d_model] under each canonical site and b [d_model] under `bias:SITE`. */
export async function saveLens(path: string, lens: LensMaps, record: Readonly<Record<string, unknown>> = {}): Promise<void> {
  const biases = Object.entries(lens.biases ?? {}).map(([site, b]) => [biasPrefix + site, b] as const)
  const tensors = { ...lens.maps, ...Object.fromEntries(biases) }
  await writeSafetensors(path, tensors, { actlens: JSON.stringify({ format, kind: lens.kind, ...record }) })
}

/** Reads a fitted lens: a file of ours, or a folder of the `tuned-lens` package. */
export async function loadLens(path: string): Promise<LensMaps> {
  if ((await sizeOrKind(path)) === 'folder') return loadTunedLens(path)
  const store = await openSafetensors(path)
  try {
    const { format: found, kind } = JSON.parse(String(store.metadata.get('actlens') ?? '{}')) as { format?: string; kind?: string }
    if (found !== format || kind === undefined || !Object.hasOwn(lensKinds, kind))
      throw new FormatError(`${path} is no fitted lens of ours; make one with 'lens --kind tuned --save' or 'lens --kind jacobian --save'.`)
    const maps: Record<string, NDArray<Float32Array>> = {}
    const biases: Record<string, NDArray<Float32Array>> = {}
    for (const { name, shape } of store.tensors.values()) {
      const value = { dtype: 'float32', shape, data: await store.readFloat32(name) } as const
      if (name.startsWith(biasPrefix)) biases[name.slice(biasPrefix.length)] = value
      else maps[name] = value
    }
    return { kind: kind as LensMaps['kind'], maps, ...(Object.keys(biases).length > 0 ? { biases } : {}) }
  } finally {
    await store.close()
  }
}

/** What each block reads, in the package's order: its translator i reads the i-th hidden state. */
export const translatedSites = (layers: number): string[] =>
  Array.from({ length: layers }, (_, l) => (l === 0 ? 'resid_pre.0' : `resid_post.${l - 1}`))

/**
 * Reads a tuned lens as the `tuned-lens` package publishes it: a folder with `config.json` and `params.pt`, whose `0.weight`
 * [d_model, d_model] and `0.bias` read the embeddings, `1.weight` what follows the first block, and so on (arXiv 2303.08112).
 */
export async function loadTunedLens(folder: string): Promise<LensMaps> {
  const config = (await readJson(join(folder, 'config.json'))) as { num_hidden_layers?: unknown; d_model?: unknown; lens_type?: unknown }
  const { num_hidden_layers: layers, d_model: width, lens_type: type = 'linear_tuned_lens' } = config
  if (typeof layers !== 'number' || typeof width !== 'number' || type !== 'linear_tuned_lens')
    throw new FormatError(
      `${join(folder, 'config.json')} describes no linear tuned lens (it needs d_model, num_hidden_layers and lens_type 'linear_tuned_lens'); give a folder that the tuned-lens package wrote.`,
    )
  const store = await openPickle(join(folder, 'params.pt'))
  try {
    const maps: Record<string, NDArray<Float32Array>> = {}
    const biases: Record<string, NDArray<Float32Array>> = {}
    for (const [i, site] of translatedSites(layers).entries()) {
      maps[site] = await read(store, `${i}.weight`, [width, width], folder)
      if (store.has(`${i}.bias`)) biases[site] = await read(store, `${i}.bias`, [width], folder)
    }
    const known = Object.keys(maps).length + Object.keys(biases).length
    if (store.tensors.size !== known)
      throw new FormatError(
        `${join(folder, 'params.pt')} holds ${store.tensors.size} tensors, but its config explains ${known}; fetch the lens again.`,
      )
    return { kind: 'tuned', maps, biases }
  } finally {
    await store.close()
  }
}

async function read(store: WeightStore, name: string, shape: readonly number[], folder: string): Promise<NDArray<Float32Array>> {
  const found = store.tensors.get(name)
  if (!found || found.shape.join() !== shape.join())
    throw new FormatError(
      `params.pt in ${folder} has ${found ? `[${found.shape.join(', ')}]` : 'nothing'} where '${name}' [${shape.join(', ')}] should be; fetch the lens again.`,
    )
  return { dtype: 'float32', shape, data: await store.readFloat32(name) }
}

/** Writes a tuned lens as the `tuned-lens` package reads it; refuses one that does not read what every block reads. */
export async function saveTunedLens(
  folder: string,
  lens: LensMaps,
  model: { readonly id: string; readonly layers: number },
): Promise<void> {
  if (lens.kind !== 'tuned') throw new UsageError(`Only a tuned lens can be written in the published layout, not a ${lens.kind} one.`)
  const sites = translatedSites(model.layers)
  const missing = sites.find((s) => !lens.maps[s])
  if (missing !== undefined || Object.keys(lens.maps).length !== sites.length)
    throw new UsageError(
      `The published layout has a translator for each of ${sites.join(', ')}${missing ? `, but '${missing}' has none` : ' and no others'}; train it with the sites left out, or save it as .safetensors.`,
    )
  const width = lens.maps[sites[0] as string]?.shape[0] as number
  const none: NDArray = { dtype: 'float32', shape: [width], data: new Float32Array(width) }
  const tensors = sites.flatMap((site, i) => [
    [`${i}.weight`, lens.maps[site] as NDArray] as const,
    [`${i}.bias`, lens.biases?.[site] ?? none] as const,
  ])
  await makeFolder(folder)
  await writeFileWhole(join(folder, 'params.pt'), encodePickle(Object.fromEntries(tensors)))
  const config = {
    base_model_name_or_path: model.id,
    d_model: width,
    num_hidden_layers: sites.length,
    bias: true,
    base_model_revision: null,
    unembed_hash: null,
    lens_type: 'linear_tuned_lens',
  }
  await writeFileWhole(join(folder, 'config.json'), JSON.stringify(config))
}
