/** @file Model files that were dropped into the page: written whole, under a size limit, to be loaded by the same readers as any other. */
import { randomBytes } from 'node:crypto'
import { createWriteStream } from 'node:fs'
import { mkdir, rename, rm } from 'node:fs/promises'
import { join } from 'node:path'
import { Readable } from 'node:stream'
import { pipeline } from 'node:stream/promises'
import type { Context } from 'hono'
import { UsageError } from '../base/errors.ts'
import { homeFolders, writeFailure } from '../base/files.ts'
import type { UploadAnswer } from './protocol.ts'

/** Bytes that one file may have. */
export const largestUpload = 8 * 2 ** 30

/** The folder of uploads: `uploads` in the cache folder. */
export const uploadsFolder = () => join(homeFolders().cache, 'uploads')

/**
 * Takes one file, `POST /api/upload?name=model.gguf`; several files of one model have the same `group`.
 * @throws UsageError for strange names and files above the limit.
 */
export async function takeUpload(c: Context, root = uploadsFolder()): Promise<UploadAnswer> {
  const name = c.req.query('name') ?? ''
  const group = c.req.query('group') ?? randomBytes(8).toString('hex')
  if (!/^[A-Za-z0-9_-][A-Za-z0-9._-]{0,120}$/.test(name))
    throw new UsageError(`'${name}' is no name for a model file: use letters, digits, dots, hyphens and underscores, as in model.gguf.`)
  if (!/^[0-9a-f]{16}$/.test(group)) throw new UsageError("The 'group' of an upload is 16 hexadecimal digits.")
  const refuseLarge = () => {
    throw new UsageError(
      `${name} is larger than the ${largestUpload / 2 ** 30} GiB that may be dropped into the page; give its path on the server's machine instead.`,
    )
  }
  if (Number(c.req.header('content-length') ?? 0) > largestUpload) refuseLarge()
  const { body } = c.req.raw
  if (!body) throw new UsageError('The upload has no content; choose the file again.')
  const folder = join(root, group)
  const path = join(folder, name)
  const part = join(folder, `.${name}.${randomBytes(4).toString('hex')}.tmp`)
  let bytes = 0
  try {
    await mkdir(folder, { recursive: true })
    await pipeline(
      Readable.fromWeb(body as Parameters<typeof Readable.fromWeb>[0]),
      async function* (chunks: AsyncIterable<Uint8Array>) {
        for await (const chunk of chunks) {
          bytes += chunk.byteLength
          if (bytes > largestUpload) refuseLarge()
          yield chunk
        }
      },
      createWriteStream(part),
      { signal: c.req.raw.signal },
    )
    await rename(part, path)
  } catch (error) {
    await rm(part, { force: true })
    throw error instanceof UsageError || c.req.raw.signal.aborted ? error : writeFailure(error, path)
  }
  return { group, path, folder, bytes }
}
