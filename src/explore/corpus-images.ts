/** @file A folder of images as a corpus: a document for each, in the order of their names (Node). */
import { readdir, readFile } from 'node:fs/promises'
import { extname, join } from 'node:path'
import { FormatError, listed } from '../base/errors.ts'
import { readFailure } from '../base/files.ts'
import { decodeImage } from '../models/image/index.ts'
import type { CorpusPart } from './corpus.ts'

/** What an image's name ends in. */
const endings: ReadonlySet<string> = new Set(['.png', '.jpg', '.jpeg'])

/** The images of a folder; on the first reading each is decoded once, so that a broken one does not stop the work halfway. Hidden files are passed over. */
export async function* imageParts(folder: string, from: number, seen?: (bytes: Uint8Array) => void): AsyncGenerator<CorpusPart> {
  const names = await readdir(folder).catch((error: unknown) => {
    throw readFailure(error, folder)
  })
  const shown = names.filter((n) => !n.startsWith('.')).sort()
  const others = shown.filter((n) => !endings.has(extname(n).toLowerCase()))
  if (others.length > 0)
    throw new FormatError(
      `${folder} is read as images, but holds ${listed(others, 3)}; keep only .png and .jpg files in it, or give a file of texts.`,
    )
  for (let document = from; document < shown.length; document++) {
    const name = shown[document] as string
    const image = join(folder, name)
    if (seen) {
      const bytes = await readFile(image).catch((error: unknown) => {
        throw readFailure(error, image)
      })
      seen(Buffer.from(`${name}\0`))
      seen(bytes)
      decodeImage(bytes, image)
    }
    yield { document, first: true, content: '', image }
  }
}
