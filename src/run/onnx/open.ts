/** @file Opening ONNX files from disk: the file itself, the files beside it that hold weights, and what else lies there. For Node only. */
import { open, realpath, stat } from 'node:fs/promises'
import { dirname, isAbsolute, join, parse, relative, resolve, sep } from 'node:path'
import { FormatError } from '../../base/errors.ts'
import { readFailure } from '../../base/files.ts'
import { externalFiles, externalPlace, isExternal, type OnnxFile, readOnnx, tensorsOf } from '../../tensor/index.ts'

/** Longest file that is read: what one protobuf message may hold. */
const maxBytes = 2 ** 31 - 1

/** An ONNX file whose external weights were found. */
export interface OpenedOnnx {
  readonly file: OnnxFile
  /** Real paths of the files that hold weights. */
  readonly external: readonly string[]
}

/**
 * Reads an ONNX file and checks the files that it names: they must lie in its folder, links followed, and be long enough.
 * @throws FormatError
 */
export async function openOnnx(path: string): Promise<OpenedOnnx> {
  const file = readOnnx(await readWhole(path), path)
  const folder = dirname(await realpath(path))
  const real = new Map<string, string>()
  for (const [location, end] of externalFiles(file.model)) real.set(location, await externalPath(path, folder, location, end))
  // The runtime looks files up from the root of the file system, so that weights of several folders can be used together.
  for (const t of tensorsOf(file.model)) {
    if (!isExternal(t)) continue
    const { location } = externalPlace(t)
    const target = real.get(location) as string
    for (const entry of t.externalData)
      if (entry.key === 'location') entry.value = relative(parse(target).root, target).split(sep).join('/')
  }
  return { file, external: [...real.values()] }
}

async function readWhole(path: string): Promise<Uint8Array> {
  try {
    const { size } = await stat(path)
    if (size > maxBytes)
      throw new FormatError(
        `${path} has ${size} bytes, more than one ONNX message may have (2 GiB); its weights must lie in a file beside it.`,
      )
    const handle = await open(path)
    try {
      return await handle.readFile()
    } finally {
      await handle.close()
    }
  } catch (error) {
    if (error instanceof FormatError) throw error
    throw readFailure(error, path)
  }
}

async function externalPath(model: string, folder: string, location: string, end: number): Promise<string> {
  const refused = (why: string) =>
    new FormatError(`${model} names the file '${location}' for its weights, which ${why}; such a file is not opened.`)
  const inside = (path: string) => {
    const way = relative(folder, path)
    return way !== '' && !way.startsWith('..') && !isAbsolute(way)
  }
  if (isAbsolute(location) || /^[A-Za-z]:|\\|\0/.test(location)) throw refused('is not a path relative to its folder')
  const path = resolve(join(folder, location))
  if (!inside(path)) throw refused('lies outside its folder')
  let real: string
  let size: number
  try {
    real = await realpath(path)
    const found = await stat(real)
    if (!found.isFile()) throw refused('is no file')
    size = found.size
  } catch (error) {
    if (error instanceof FormatError) throw error
    throw new FormatError(`${model} keeps weights in '${location}', which is not beside it; get that file, too.`, { cause: error })
  }
  if (!inside(real)) throw refused('is a link that leads out of its folder')
  if (size < end) throw new FormatError(`${path} has ${size} bytes, but ${model} reads ${end} from it; the file was cut off.`)
  return real
}
