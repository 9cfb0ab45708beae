/** @file The place that results are written to, checked before the work begins. */
import { access, constants, stat } from 'node:fs/promises'
import { dirname, resolve } from 'node:path'
import { writeFailure } from '../base/files.ts'

/** Refuses a path that cannot be written, before hours of work are spent on what could not be kept. */
export async function checkOutput(path: string): Promise<void> {
  const folder = dirname(resolve(path))
  const fail = (code: string) => writeFailure(Object.assign(new Error(code), { code }), path)
  const found = await stat(folder).catch((error: unknown) => {
    throw writeFailure(error, path)
  })
  if (!found.isDirectory()) throw fail('ENOTDIR')
  if ((await stat(path).catch(() => undefined))?.isDirectory()) throw fail('EISDIR')
  await access(folder, constants.W_OK).catch((error: unknown) => {
    throw writeFailure(error, path)
  })
}
