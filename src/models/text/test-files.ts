/** @file For tests: references recorded beside them, and real files that may be absent. */

import { existsSync, readFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { modelCacheFolder } from '../hub/cache.ts'
import { embedded } from '../hub/embedded.ts'

const here = dirname(fileURLToPath(import.meta.url))
const repository = join(here, '..', '..', '..')

/** The parsed content of a recorded reference in `gen/`. */
export function recorded<T>(name: string): T {
  return JSON.parse(readFileSync(join(here, 'gen', name), 'utf8')) as T
}

/** A file of `../shared` beside the repository, or undefined. */
export function sharedFile(...path: string[]): string | undefined {
  return firstThere([join(repository, '..', 'shared', ...path)])
}

/** A file that `shared/models/fetch.sh` gets, or undefined. */
export function fetchedFile(...path: string[]): string | undefined {
  const folders = [process.env.ACTLENS_TEST_MODELS, join(repository, '.models')].filter((folder) => folder !== undefined)
  return firstThere(folders.map((folder) => join(folder, ...path)))
}

/** stories15M's tokenizer file, from the model cache or as fetched, or undefined. */
export function stories15mTokenizer(): Uint8Array | undefined {
  const cached = firstThere([join(modelCacheFolder(), embedded.sha256, 'llama2.data')])
  if (cached) return new Uint8Array(readFileSync(cached)).subarray(embedded.tokenizer.from)
  const fetched = fetchedFile('stories15m', 'tokenizer.bin')
  return fetched ? new Uint8Array(readFileSync(fetched)) : undefined
}

function firstThere(paths: readonly string[]): string | undefined {
  return paths.find((path) => existsSync(path))
}
