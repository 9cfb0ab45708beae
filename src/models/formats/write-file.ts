/** @file Files that are written piece by piece and appear whole or not at all: written beside their final place, then renamed (Node). */
import { UsageError } from '../../base/errors.ts'

/** A file that is being written; nothing is seen at its path before {@link FileWriter.commit}. */
export interface FileWriter {
  /** Writes bytes at a position. */
  write(position: number, bytes: Uint8Array): Promise<void>
  /** Forces the bytes to the disk and gives the file its name. */
  commit(): Promise<void>
  /** Removes what was written so far; does nothing after a commit. */
  abort(): Promise<void>
}

/** Begins a file; a file that already has this name stays as it is until the new one is whole. */
export async function createFile(path: string): Promise<FileWriter> {
  const { crypto, files, fsPromises } = await import('../../base/node.ts')
  const { open, rm } = fsPromises
  const { renameFirmly, sizeOrKind, writeFailure } = files
  if ((await sizeOrKind(path)) === 'folder') throw writeFailure(Object.assign(new Error('is a folder'), { code: 'EISDIR' }), path)
  const temporary = `${path}.${crypto.randomUUID().slice(0, 8)}.partial`
  const file = await open(temporary, 'wx').catch((error: unknown) => {
    throw writeFailure(error, path)
  })
  let state: 'open' | 'closed' | 'ended' = 'open'

  async function abort(): Promise<void> {
    if (state === 'ended') return
    if (state === 'open') await file.close()
    state = 'ended'
    await rm(temporary, { force: true })
  }

  async function orAbort(work: () => Promise<void>): Promise<void> {
    if (state === 'ended') throw new UsageError(`${path} was already finished or given up; begin it again.`)
    try {
      await work()
    } catch (error) {
      await abort()
      throw writeFailure(error, path)
    }
  }

  return {
    write: (position, bytes) =>
      orAbort(async () => {
        for (let done = 0; done < bytes.length; ) {
          const { bytesWritten } = await file.write(bytes, done, Math.min(bytes.length - done, 2 ** 30), position + done)
          done += bytesWritten
        }
      }),
    commit: () =>
      orAbort(async () => {
        await file.sync()
        await file.close()
        state = 'closed'
        await renameFirmly(temporary, path)
        state = 'ended'
      }),
    abort,
  }
}
