/** @file The self-check of a model that is loaded from files: run when they are first seen, remembered for as long as they stay as they are. */
import { existsSync, mkdirSync, readFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { homeFolders, writeFileWhole } from '../base/files.ts'
import { sha256 } from '../base/hash.ts'
import type { WorkOptions } from '../base/progress.ts'
import { selfCheck } from '../models/self-check.ts'
import type { RunOptions } from './model.ts'
import { Model } from './model.ts'

/** What is remembered of a check that was passed. */
interface Passed {
  readonly said: readonly string[]
}

/** Raised when the checks change, so that models are checked anew. */
const revision = 1

/**
 * Checks the identities that hold in every decoder, whatever its weights are, and returns the model with what was checked.
 * Other kinds of models and models that are streamed from disk are returned as they are.
 * @param identity what tells the files apart: paths, sizes, times of change, and how they are read.
 * @throws ModelError naming the site at which an identity does not hold.
 */
export async function selfChecked(model: Model, identity: string, options: WorkOptions = {}): Promise<Model> {
  if (model.internals.record.kind !== 'decoder' || model.internals.options.stream) return model
  const digest = await sha256(`${revision} ${identity}`)
  const path = join(homeFolders().cache, 'checked', `${digest.slice(0, 32)}.json`)
  return new Model(
    model.internals,
    { ...model.origin, checks: [...model.origin.checks, ...(remembered(path) ?? (await check(model, path, options)))] },
    model.edits,
  )
}

function remembered(path: string): readonly string[] | undefined {
  if (!existsSync(path)) return undefined
  try {
    return (JSON.parse(readFileSync(path, 'utf8')) as Passed).said
  } catch {
    // A damaged note is no reason to refuse a model: it is checked again.
    return undefined
  }
}

async function check(model: Model, path: string, { signal, onProgress }: WorkOptions): Promise<readonly string[]> {
  onProgress?.({ task: 'checking the model', done: 0, unit: 'sites' })
  const options: RunOptions = signal ? { signal } : {}
  const said = await selfCheck(model.spec, async (ids, sites) => (await model.run({ ids }, { ...options, taps: sites })).taps)
  // The program of the check reads more sites than anybody will ask for.
  await model.dispose()
  try {
    mkdirSync(dirname(path), { recursive: true })
    await writeFileWhole(path, JSON.stringify({ said } satisfies Passed))
  } catch {
    // A cache that cannot be written makes the next load check again.
  }
  return said
}
