/** @file Checkpoints of training as safetensors files in a folder; each appears whole or not at all. */
import { readdir, readFile, rm } from 'node:fs/promises'
import { join } from 'node:path'
import { UsageError } from '../base/errors.ts'
import { makeFolder, readFailure, systemCode } from '../base/files.ts'
import { decodeSafetensors, writeSafetensors } from '../models/formats/index.ts'
import type { Checkpoint, CheckpointFiles } from '../nn/checkpoint.ts'

const ending = '.safetensors'

/** Checkpoints in a folder, which is made with the first one: `step-000000100.safetensors`. */
export function checkpointFolder(folder: string): CheckpointFiles {
  const pathOf = (name: string) => {
    if (!/^[\w.-]+$/.test(name)) throw new UsageError(`A checkpoint is named by letters, digits, dots and dashes, not '${name}'.`)
    return join(folder, `${name}${ending}`)
  }
  return {
    async write(name, { tensors, metadata }) {
      const path = pathOf(name)
      await makeFolder(folder)
      await writeSafetensors(path, tensors, metadata)
    },
    async read(name): Promise<Checkpoint> {
      const path = pathOf(name)
      const bytes = await readFile(path).catch((error: unknown) => {
        throw readFailure(error, path)
      })
      return decodeSafetensors(bytes, path)
    },
    async list() {
      const found = await readdir(folder).catch((error: unknown) => {
        if (systemCode(error) === 'ENOENT') return []
        throw readFailure(error, folder)
      })
      return found.filter((f) => f.endsWith(ending)).map((f) => f.slice(0, -ending.length))
    },
    remove: (name) => rm(pathOf(name), { force: true }),
  }
}
