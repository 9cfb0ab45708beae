/** @file Files under a running program, in Node: weights that are about to be mapped, and values that wait on disk. */
import { mkdir, open, rm } from 'node:fs/promises'
import { join } from 'node:path'
import { RuntimeFailure } from '../../base/errors.ts'
import { homeFolders, writeFailure } from '../../base/files.ts'
import type { FileRange, Scratch } from './runtime.ts'

const pieceBytes = 1 << 20
const pageBytes = 4096
/** A page that takes longer than this many milliseconds comes from the disk. */
const slowPage = 1

/** Brings ranges of files into the page cache. One page of each piece tells whether the piece is there already, so that this costs nothing then. */
export async function readAhead(ranges: readonly FileRange[]): Promise<void> {
  const piece = new Uint8Array(pieceBytes)
  for (const { path, offset, bytes } of ranges) {
    const file = await open(path, 'r')
    try {
      for (let at = offset; at < offset + bytes; at += pieceBytes) {
        const began = performance.now()
        await file.read(piece, 0, Math.min(pageBytes, offset + bytes - at), at)
        if (performance.now() - began > slowPage) await file.read(piece, 0, Math.min(pieceBytes, offset + bytes - at), at)
      }
    } finally {
      await file.close()
    }
  }
}

let count = 0

/** An empty file in the cache folder. Where the system allows it, it has no name any more once it is open, so that nothing is left behind by a process that dies. */
export async function makeScratch(): Promise<Scratch> {
  const folder = join(homeFolders().cache, 'scratch')
  const path = join(folder, `${process.pid}-${count++}.bin`)
  await mkdir(folder, { recursive: true })
  const file = await open(path, 'wx+')
  const named = await rm(path).then(
    () => false,
    () => true,
  )
  return {
    async write(offset, bytes) {
      try {
        for (let done = 0; done < bytes.length; ) done += (await file.write(bytes, done, bytes.length - done, offset + done)).bytesWritten
      } catch (error) {
        throw writeFailure(error, path)
      }
    },
    async read(offset, into) {
      for (let done = 0; done < into.length; ) {
        const { bytesRead } = await file.read(into, done, into.length - done, offset + done)
        if (bytesRead === 0) throw new RuntimeFailure(`The scratch file ${path} is shorter than what was written to it.`)
        done += bytesRead
      }
    },
    async close() {
      await file.close()
      if (named) await rm(path, { force: true })
    },
  }
}
