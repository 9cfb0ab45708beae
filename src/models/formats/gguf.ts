/** @file Opening GGUF files (versions 2 and 3), also split ones, as a store of weights; the packed blocks stay packed until they are asked for. */
import { FormatError, listed } from '../../base/errors.ts'
import { type ByteSource, openFile } from './bytes.ts'
import { type GgufFile, parseGguf } from './gguf-header.ts'
import { closingOnFailure, WeightStore } from './store.ts'

/** `name-00001-of-00003.gguf`: the stem, the part and the number of parts. */
const partName = /^(?<stem>.*)-(?<part>\d{5})-of-(?<total>\d{5})\.gguf$/

/** Opens a GGUF file; of a split file any part may be named, or all parts be given as sources. Tensor shapes are row-major. */
export async function openGguf(from: string | ByteSource | readonly ByteSource[]): Promise<WeightStore> {
  if (typeof from !== 'string') return assemble('read' in from ? [from] : from)
  const match = partName.exec(from)
  const sources: ByteSource[] = []
  return closingOnFailure(sources, async () => {
    const total = match === null ? 1 : Number(match.groups!.total)
    for (let part = 1; part <= total; part++) {
      const path = match === null ? from : `${match.groups!.stem}-${String(part).padStart(5, '0')}-of-${match.groups!.total}.gguf`
      sources.push(await openFile(path))
    }
    return assemble(sources)
  })
}

async function assemble(sources: readonly ByteSource[]): Promise<WeightStore> {
  return closingOnFailure(sources, async () => {
    if (sources.length === 0) throw new FormatError('No GGUF file was given; give at least one.')
    const files: GgufFile[] = []
    for (const source of sources) files.push(await parseGguf(source))
    const ordered = inOrder(files)
    const tensors = ordered.flatMap((file) => file.tensors)
    const promised = ordered[0]!.metadata.get('split.tensors.count')
    if (promised !== undefined && promised !== tensors.length) {
      throw new FormatError(
        `${sources[0]!.name} promises ${String(promised)} tensors, but its parts hold ${tensors.length}; fetch all parts again.`,
      )
    }
    return new WeightStore({ format: 'gguf', name: ordered[0]!.source.name, tensors, metadata: ordered[0]!.metadata, sources })
  })
}

/** The parts of a split file by their own numbering, after a check that each is there once; the first holds the metadata. */
function inOrder(files: readonly GgufFile[]): readonly GgufFile[] {
  const total = files[0]!.metadata.get('split.count') ?? 1
  const ordered = files.toSorted((a, b) => numberOf(a) - numberOf(b))
  const complete =
    ordered.length === total && ordered.every((file, i) => numberOf(file) === i && (file.metadata.get('split.count') ?? 1) === total)
  if (complete) return ordered
  throw new FormatError(
    `${files[0]!.source.name} is one of ${String(total)} parts, but here are the parts ${listed(ordered.map((file) => String(numberOf(file) + 1)))}; fetch all parts, under their own names.`,
  )
}

function numberOf(file: GgufFile): number {
  return Number(file.metadata.get('split.no') ?? 0)
}
