/** @file Recorded reference values against ours: every tensor of a golden file that we understand, at positions that hold tokens. For Node only. */
import { join } from 'node:path'
import { FormatError, throwIfCancelled } from '../base/errors.ts'
import { readJson, sizeOrKind } from '../base/files.ts'
import type { WorkOptions } from '../base/progress.ts'
import { tensorNames } from '../models/architecture.ts'
import { openSafetensors, type WeightStore } from '../models/formats/index.ts'
import type { Precision } from '../models/quantised.ts'

import type { Model } from './model.ts'
import { widening } from './validate-compare.ts'
import { gradientsAt } from './validate-gradients.ts'
import { type Golden, type GoldenFacts, type Group, type Job, jobOf, reasonOf } from './validate-recipes.ts'

/** How one recorded tensor fared. */
export interface TensorCheck {
  readonly name: string
  readonly shape: readonly number[]
  readonly status: 'pass' | 'fail' | 'not checked'
  /** Largest absolute difference at unmasked positions; for token ids, how many differ. */
  readonly error?: number
  /** Largest difference that passes: 1e-4 of the largest recorded value, 1e-3 for gradients, 0 for token ids; wider in fewer bits than f32. */
  readonly tolerance?: number
  /** Why it was not checked, or what is wrong. */
  readonly note?: string
}

/** What a validation found. */
export interface Validation {
  readonly model: string
  readonly precision: Precision
  /** The file with the recorded values. */
  readonly against: string
  readonly checks: readonly TensorCheck[]
  readonly passed: number
  readonly failed: number
  readonly notChecked: number
}

/** Options of {@link validate}. */
export interface ValidateOptions extends WorkOptions {
  /** Name of the file in the folder (default `golden.safetensors`). */
  readonly file?: string
}

/**
 * Compares a model with recorded values: runs the recorded inputs, and looks at every tensor whose name it understands.
 * A tensor passes where max |ours − recorded| ≤ 1e-4 · max |recorded| over unmasked positions (1e-3 for gradients), tokens where all are equal.
 * In f16 these are 100 times, in q8 1,000 and in q4 2,500 times as wide, and tokens that differ count as not checked.
 * @throws FormatError where the file is missing, damaged, or holds nothing that can be checked.
 */
export async function validate(model: Model, folder: string, options: ValidateOptions = {}): Promise<Validation> {
  const path = join(folder, options.file ?? 'golden.safetensors')
  const store = await openSafetensors(path)
  try {
    const golden = { store, facts: await factsBeside(path), groups: await groupsOf(store, model) }
    const checks = await checkAll(model, golden, options)
    const count = (status: TensorCheck['status']) => checks.filter((c) => c.status === status).length
    const [passed, failed, notChecked] = [count('pass'), count('fail'), count('not checked')]
    if (passed + failed === 0)
      throw new FormatError(
        `${path} holds no tensor that could be checked: it needs the model's inputs (${tensorNames(model.architecture).join(', ')}), and values under names of sites (resid_post.0, logits).`,
      )
    return { model: model.origin.id, precision: model.precision, against: path, checks, passed, failed, notChecked }
  } finally {
    await store.close()
  }
}

async function factsBeside(path: string): Promise<GoldenFacts> {
  const json = path.replace(/\.safetensors$/, '.json')
  return typeof (await sizeOrKind(json)) === 'number' ? ((await readJson(json)) as GoldenFacts) : {}
}

async function groupsOf(store: WeightStore, model: Model): Promise<Group[]> {
  const inputs = groupInputs(model)
  const main = inputs[0] as string
  const prefixes = [...store.tensors.keys()].filter((n) => n === main || n.endsWith(`.${main}`)).map((n) => n.slice(0, -main.length))
  const read = async (prefix: string): Promise<Group> => {
    const found = inputs.filter((name) => store.has(prefix + name))
    const tensors = Object.fromEntries(await Promise.all(found.map(async (name) => [name, await store.readRaw(prefix + name)] as const)))
    return { prefix, tensors, batch: model.tokens(tensors) }
  }
  // Longest first, so that a name goes to the most specific prompts.
  return (await Promise.all(prefixes.map(read))).sort((a, b) => b.prefix.length - a.prefix.length)
}

/** Names of the tensors that are fed, that which must be there first. */
function groupInputs({ architecture }: Model): string[] {
  const names = tensorNames(architecture)
  const needed = architecture.sequences.flatMap((s) => (s.kind === 'pixels' ? [s.pixels] : s.start ? [] : [s.tensors.ids]))
  return [...new Set([...needed, ...names])]
}

async function checkAll(model: Model, golden: Golden, options: ValidateOptions): Promise<TensorCheck[]> {
  const checks = new Map<string, TensorCheck>()
  const jobs = new Map<string, Job[]>()
  const inputs = groupInputs(model)
  const names = [...golden.store.tensors.keys()].filter((name) => !isInput(name, golden, inputs))
  for (const name of names) {
    const { shape } = golden.store.get(name)
    try {
      const job = await jobOf(model, golden, name, shape)
      const key = `${job.group.prefix}/${job.variant}`
      jobs.set(key, [...(jobs.get(key) ?? []), job])
    } catch (error) {
      checks.set(name, { name, shape, status: 'not checked', note: reasonOf(error) })
    }
  }
  for (const shared of jobs.values())
    for await (const check of runJobs(model, golden.store, shared, options.signal)) {
      checks.set(check.name, check)
      options.onProgress?.({ task: 'comparing tensors', done: checks.size, total: names.length, unit: 'tensors' })
    }
  return names.map((name) => checks.get(name) as TensorCheck)
}

function isInput(name: string, { groups }: Golden, inputs: readonly string[]): boolean {
  return name === 'steer.vector' || groups.some((g) => inputs.some((input) => name === g.prefix + input))
}

async function* runJobs(
  model: Model,
  store: WeightStore,
  jobs: readonly Job[],
  signal: AbortSignal | undefined,
): AsyncGenerator<TensorCheck> {
  const { group, edits } = jobs[0] as Job
  const edited = model.with(edits)
  const sites = [...new Set(jobs.flatMap((j) => j.sites))]
  throwIfCancelled(signal)
  const values = sites.length > 0 ? (await edited.run(group.tensors, { taps: sites, logits: false })).taps : {}
  throwIfCancelled(signal)
  const gradient = await gradientsAt(
    edited,
    group,
    jobs.flatMap((j) => j.gradient ?? []),
  )
  for (const job of jobs) {
    throwIfCancelled(signal)
    const { name, shape } = job
    try {
      const difference = await job.compare(await store.readFloat32(name), { model: edited, group, values, gradient, signal })
      const { error, note } = difference
      const tolerance = difference.tolerance * widening[model.precision]
      if (name.endsWith('greedy') && model.precision !== 'f32' && error > 0) {
        yield { name, shape, status: 'not checked', error, note: `tokens need f32 to agree, and this is ${model.precision}: ${note}` }
        continue
      }
      // Written so that an error that is no number fails.
      const status = error <= tolerance ? 'pass' : 'fail'
      yield { name, shape, status, error, tolerance, ...(note ? { note } : {}) }
    } catch (error) {
      yield { name, shape, status: 'not checked', note: reasonOf(error) }
    }
  }
}
