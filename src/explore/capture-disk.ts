/** @file How much a disk has room for. */
import { statfs } from 'node:fs/promises'
import { dirname, resolve } from 'node:path'

/** Bytes that are free where a path lies or will lie; undefined where the system does not say. */
export async function freeBytes(path: string): Promise<number | undefined> {
  for (let at = resolve(path); ; at = dirname(at)) {
    const found = await statfs(at).catch(() => undefined)
    if (found) return found.bavail * found.bsize
    if (at === dirname(at)) return undefined
  }
}
