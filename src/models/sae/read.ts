/** @file Reading a sparse autoencoder from a folder of any known format, which is told by the files in it (Node). */
import { readdir } from 'node:fs/promises'
import { basename, dirname, join } from 'node:path'
import { FormatError, listed, UsageError } from '../../base/errors.ts'
import { sizeOrKind } from '../../base/files.ts'
import { readDictionaryLearning } from './dictionary-learning.ts'
import type { ReadSaeOptions, SaeFolder } from './files.ts'
import { readGemmaScope, readGemmaScope2 } from './gemma-scope.ts'
import { readLlamaScope, readLlamaScopeR1 } from './llama-scope.ts'
import { readSaelens } from './saelens.ts'
import { readSparsify } from './sparsify.ts'
import type { SaeWeights } from './weights.ts'

/** A format of autoencoders on disk. */
export interface SaeFormat {
  readonly doc: string
  /** Files that are there; those that may be there besides. */
  readonly files: readonly string[]
  readonly also?: readonly string[]
  readonly read: (folder: SaeFolder, options: ReadSaeOptions) => Promise<SaeWeights>
  /** Takes a scale that its files do not hold. */
  readonly scale?: boolean
}

/** The formats, in the order in which they are looked for. */
export const saeFormats: Readonly<Record<string, SaeFormat>> = {
  saelens: { doc: 'SAELens', files: ['cfg.json', 'sae_weights.safetensors'], read: readSaelens, scale: true },
  sparsify: { doc: 'EleutherAI sparsify', files: ['cfg.json', 'sae.safetensors'], read: readSparsify },
  dictionary_learning: { doc: 'dictionary_learning', files: ['config.json', 'ae.pt'], read: readDictionaryLearning },
  gemma_scope: { doc: 'Gemma Scope', files: ['params.npz'], read: readGemmaScope },
  gemma_scope_2: { doc: 'Gemma Scope 2', files: ['params.safetensors'], also: ['config.json'], read: readGemmaScope2 },
  llama_scope: { doc: 'Llama Scope', files: ['hyperparams.json', 'checkpoints/final.safetensors'], read: readLlamaScope },
  llama_scope_r1: { doc: 'Llama Scope R1-Distill', files: ['config.json', 'sae_weights.safetensors'], read: readLlamaScopeR1, scale: true },
}

/** Names of the files of a format that are among these. */
export function formatOf(files: readonly string[]): string | undefined {
  return Object.keys(saeFormats).find((name) => (saeFormats[name] as SaeFormat).files.every((f) => files.includes(f)))
}

/**
 * Reads an autoencoder from its folder, or from one of the files in it.
 * @param name what to call it in records; the path by default. Its folders tell site and layer where files do not.
 * @throws FormatError for what is missing, truncated, misshapen or of a kind that is not read.
 */
export async function readSae(path: string, options: ReadSaeOptions = {}, name = path): Promise<SaeWeights> {
  const kind = await sizeOrKind(path)
  if (kind === undefined) throw new FormatError(`${path} does not exist; give the folder of a sparse autoencoder.`)
  if (kind !== 'folder') return readFile(path, options, name)
  const files = [...(await readdir(path)), ...(await readdir(join(path, 'checkpoints')).catch(() => [])).map((f) => `checkpoints/${f}`)]
  const format = formatOf(files)
  if (format === undefined)
    throw new FormatError(
      `${path} holds no sparse autoencoder that can be read: ${Object.values(saeFormats)
        .map((f) => `${f.doc} has ${f.files.join(' and ')}`)
        .join('; ')}. It holds ${files.length === 0 ? 'nothing' : listed(files)}.`,
    )
  const row = saeFormats[format] as SaeFormat
  if (options.scale !== undefined && !row.scale)
    throw new UsageError(`${name} is of the format ${row.doc}, whose files hold all of it; leave the scale out.`)
  return row.read({ path, files, name }, options)
}

function readFile(path: string, options: ReadSaeOptions, name: string): Promise<SaeWeights> {
  const [file, folder] = [basename(path), dirname(path)]
  if (file === 'final.safetensors') return readSae(dirname(folder), options, dirname(dirname(name)))
  if (Object.values(saeFormats).some((f) => f.files.includes(file))) return readSae(folder, options, dirname(name))
  throw new FormatError(`${path} is none of the files in which a sparse autoencoder is kept; give its folder.`)
}
