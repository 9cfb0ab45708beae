/** @file Loading a sparse autoencoder from a folder, a file or the hub, and saving one (Node). */
import { join } from 'node:path'
import { FormatError, listed, UsageError } from '../../base/errors.ts'
import { sizeOrKind } from '../../base/files.ts'
import type { WorkOptions } from '../../base/progress.ts'
import { fetchHubModel, type HubFile, type HubOptions, parseModelSource } from '../../models/hub/index.ts'
import { formatOf, readSae, type SaeFormat, saeFormats } from '../../models/sae/read.ts'
import { writeSaelens } from '../../models/sae/saelens.ts'
import type { SaeWeights } from '../../models/sae/weights.ts'
import { Sae, type SaeRuntime } from './sae.ts'

/** Options of {@link loadSae}. */
export interface LoadSaeOptions extends WorkOptions, SaeRuntime {
  /** Folder inside a hub repository; the same as `org/name#folder`. */
  readonly folder?: string
  /** Factor on activations that it was trained on, where its files do not hold it; folded into the weights. */
  readonly scale?: number
  /** Never use the network. */
  readonly offline?: boolean
  /** How the hub is reached. */
  readonly hub?: Omit<HubOptions, keyof WorkOptions | 'offline' | 'choose'>
}

/**
 * Loads an autoencoder of any known format: a folder, a file in it, or `org/name#folder` on the hub.
 * @throws FormatError, ShapeError for what is missing, truncated or does not fit together.
 */
export async function loadSae(source: string, options: LoadSaeOptions = {}): Promise<Sae> {
  return new Sae(await loadSaeWeights(source, options), options)
}

/** The same, without making it ready to run. */
export async function loadSaeWeights(source: string, options: LoadSaeOptions = {}): Promise<SaeWeights> {
  const { scale, folder, signal, onProgress, offline, hub } = options
  const scaled = scale === undefined ? {} : { scale }
  if (source.trim() === '') throw new UsageError('No autoencoder was named: give a folder, a file, or org/name#folder of the hub.')
  const here = folder === undefined ? source : join(source, folder)
  if ((await sizeOrKind(here)) !== undefined) return readSae(here, scaled)
  const parsed = parseSource(source)
  const wanted = (folder ?? parsed.file ?? '').replace(/\/+$/, '')
  const found = await fetchHubModel(
    {
      repo: parsed.repo,
      ...(parsed.revision === undefined ? {} : { revision: parsed.revision }),
      ...(wanted === '' ? {} : { file: wanted }),
    },
    {
      ...hub,
      ...(offline === undefined ? {} : { offline }),
      ...(signal ? { signal } : {}),
      ...(onProgress ? { onProgress } : {}),
      choose: (files) => filesOf(parsed.repo, wanted, files),
    },
  )
  return readSae(join(found.folder, ...wanted.split('/')), scaled, wanted === '' ? parsed.repo : `${parsed.repo}#${wanted}`)
}

function parseSource(source: string): { repo: string; revision?: string | undefined; file?: string | undefined } {
  const parsed = parseModelSource(source)
  if (parsed.kind !== 'hub')
    throw new UsageError(`'${source}' is no sparse autoencoder: give its folder, a file in it, or org/name#folder of the hub.`)
  return parsed
}

/** The files of the autoencoder in a folder of a repository; where there is none, the refusal names those that there are. */
function filesOf(repo: string, folder: string, files: readonly HubFile[]): HubFile[] {
  const under = (place: string) => {
    const prefix = place === '' ? '' : `${place}/`
    return files.filter((f) => f.path.startsWith(prefix)).map((f) => ({ file: f, name: f.path.slice(prefix.length) }))
  }
  const here = under(folder)
  const format = formatOf(here.map((f) => f.name))
  if (format !== undefined) {
    const { files: needed, also = [] } = saeFormats[format] as SaeFormat
    return here.filter((f) => needed.includes(f.name) || also.includes(f.name)).map((f) => f.file)
  }
  const parents = [...new Set(files.map((f) => f.path.split('/').slice(0, -1).join('/')))]
  const offer = parents.filter((p) => formatOf(under(p).map((f) => f.name)) !== undefined)
  throw new FormatError(
    offer.length === 0
      ? `${repo} holds no sparse autoencoder in a format that we read (${listed(Object.values(saeFormats).map((f) => f.doc))}).`
      : `${repo} holds no autoencoder ${folder === '' ? 'at its top' : `in '${folder}'`}, but in ${listed(offer, 20)}; name one as ${repo}#${offer[0]}.`,
  )
}

/** Writes an autoencoder to a folder in SAELens' format. */
export async function saveSae(folder: string, sae: Sae | SaeWeights): Promise<void> {
  await writeSaelens(folder, sae instanceof Sae ? sae.weights : sae)
}
