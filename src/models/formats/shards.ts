/** @file Checkpoints in several files: the index of Hugging Face folders, and which file of a folder to open (Node). */
import { FormatError, listed, messageOf } from '../../base/errors.ts'
import { type ByteSource, openFailure, openFile } from './bytes.ts'
import { closingOnFailure, type MetadataValue, type StoredTensor, WeightStore } from './store.ts'

/** How one file of a format is read: its tensors and metadata. */
export type PartReader = (source: ByteSource) => Promise<{ tensors: StoredTensor[]; metadata: ReadonlyMap<string, MetadataValue> }>

/** Names of the files that a format uses in a folder. */
export interface FolderLayout {
  /** Short name of the format. */
  readonly format: string
  /** Whole checkpoint in one file: `model.safetensors`. */
  readonly single: string
  /** Index of a checkpoint in several files: `model.safetensors.index.json`. */
  readonly index: string
  /** How files of this format end. */
  readonly endings: readonly string[]
}

/** Largest index that is read: far above any real one, which has a line per tensor. */
const LARGEST_INDEX = 100_000_000

/** Reads what a path or sources name, one file after the other, into one store. */
export async function openParts(
  layout: FolderLayout,
  from: string | ByteSource | readonly ByteSource[],
  read: PartReader,
): Promise<WeightStore> {
  if (typeof from !== 'string') return join(layout, 'read' in from ? [from] : from, read, undefined)
  const { fsPromises, path: paths } = await import('../../base/node.ts')
  const { basename, dirname, join: joinPath } = paths
  const found = await fsPromises.stat(from).catch((error: unknown) => {
    throw openFailure(from, error)
  })
  const path = found.isDirectory() ? joinPath(from, await pick(from, layout)) : from
  if (!path.endsWith('.json')) return join(layout, [await openFile(path)], read, undefined)
  const folder = dirname(path)
  const index = await readIndex(path)
  const files = [...new Set(index.values())]
  const sources: ByteSource[] = []
  await closingOnFailure(sources, async () => {
    for (const file of files) {
      sources.push(
        await openFile(joinPath(folder, file)).catch((error: unknown) => {
          throw new FormatError(`The index ${path} names ${file}, which cannot be opened: ${messageOf(error)} Fetch the missing file.`)
        }),
      )
    }
  })
  return join(layout, sources, read, { path, fileOf: index, fileNames: sources.map((source) => basename(source.name)) })
}

interface Index {
  readonly path: string
  readonly fileOf: ReadonlyMap<string, string>
  /** Names of the files, in the order of the sources. */
  readonly fileNames: readonly string[]
}

async function join(
  layout: FolderLayout,
  sources: readonly ByteSource[],
  read: PartReader,
  index: Index | undefined,
): Promise<WeightStore> {
  return closingOnFailure(sources, async () => {
    if (sources.length === 0) throw new FormatError(`No ${layout.format} file was given; give at least one.`)
    const tensors: StoredTensor[] = []
    // The first file speaks for all: shards repeat the metadata.
    const metadata = new Map<string, MetadataValue>()
    const foundIn = new Map<string, string | undefined>()
    for (const [i, source] of sources.entries()) {
      const part = await read(source)
      for (const tensor of part.tensors) tensors.push(tensor)
      for (const { name } of part.tensors) foundIn.set(name, index?.fileNames[i])
      for (const [key, value] of part.metadata) if (!metadata.has(key)) metadata.set(key, value)
    }
    const store = new WeightStore({ format: layout.format, name: index?.path ?? sources[0]!.name, tensors, metadata, sources })
    for (const [name, file] of index?.fileOf ?? []) {
      if (foundIn.get(name) !== file) {
        throw new FormatError(
          `The index ${index!.path} says that ${name} is in ${file}, but it is not; fetch the index and that file again.`,
        )
      }
    }
    return store
  })
}

async function pick(folder: string, { format, single, index, endings }: FolderLayout): Promise<string> {
  const { fsPromises } = await import('../../base/node.ts')
  const names = await fsPromises.readdir(folder)
  for (const name of [single, index]) if (names.includes(name)) return name
  const others = names.filter((name) => endings.some((ending) => name.endsWith(ending)))
  if (others.length === 1) return others[0]!
  const problem =
    others.length === 0
      ? `has no ${format} file; fetch ${single}`
      : `has several ${format} files (${listed(others.toSorted())}) and no ${index}; name one file, or fetch the index`
  throw new FormatError(`The folder ${folder} ${problem}.`)
}

async function readIndex(path: string): Promise<Map<string, string>> {
  const source = await openFile(path)
  const bytes = await closingOnFailure([source], () => {
    if (source.size > LARGEST_INDEX) throw new FormatError(`${path} has ${source.size} bytes, too many for an index; fetch it again.`)
    return source.read(0, source.size)
  })
  await source.close()
  const weightMap = weightMapOf(bytes)
  if (weightMap === undefined) {
    throw new FormatError(`${path} is not an index: it must be JSON with a "weight_map" from tensor to file; fetch it again.`)
  }
  const map = new Map<string, string>()
  for (const [name, file] of Object.entries(weightMap)) {
    // An index is downloaded too: it may only name files beside itself.
    if (typeof file !== 'string' || file === '' || file === '.' || file === '..' || /[/\\\0]/.test(file)) {
      throw new FormatError(`${path} places ${name} in ${JSON.stringify(file)}, which is no file beside the index; fetch it again.`)
    }
    map.set(name, file)
  }
  if (map.size === 0) throw new FormatError(`${path} names no tensors; fetch it again.`)
  return map
}

function weightMapOf(bytes: Uint8Array): object | undefined {
  try {
    const parsed: unknown = JSON.parse(new TextDecoder('utf-8', { fatal: true }).decode(bytes))
    const map = (parsed as { weight_map?: unknown } | null)?.weight_map
    return typeof map === 'object' && map !== null && !Array.isArray(map) ? map : undefined
  } catch {
    return undefined
  }
}
