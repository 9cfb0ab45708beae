/** @file Recorded reference values against ours: every tensor of a golden file that we understand, at positions that hold tokens. For Node only. */
import { join } from 'node:path'
import { FormatError, ModelError, messageOf, SiteError, throwIfCancelled } from '../base/errors.ts'
import { readJson, sizeOrKind } from '../base/files.ts'
import type { WorkOptions } from '../base/progress.ts'
import type { NDArray } from '../base/types.ts'
import { openSafetensors, type WeightStore } from '../models/formats/index.ts'
import { add, type Edit, zero } from '../sites/edits.ts'
import { type Activation, type Batch, batchOfTensors } from './batch.ts'
import type { Model } from './model.ts'
import { compareLast, compareSite, compareTokens, type Difference, differenceOf, negativeLogLikelihoods } from './validate-compare.ts'

/** How one recorded tensor fared. */
export interface TensorCheck {
  readonly name: string
  readonly shape: readonly number[]
  readonly status: 'pass' | 'fail' | 'not checked'
  /** Largest absolute difference at unmasked positions; for token ids, how many differ. */
  readonly error?: number
  /** Largest difference that passes: 1e-4 of the largest recorded value; 0 for token ids. */
  readonly tolerance?: number
  /** Why it was not checked, or what is wrong. */
  readonly note?: string
}

/** What a validation found. */
export interface Validation {
  readonly model: string
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

/** Tensors that are fed, not compared. */
const inputNames = ['input_ids', 'attention_mask', 'position_ids', 'steer.vector']

/** Prompts of a golden file; a file has one without a prefix, or several such as `chat.`. */
interface Group {
  readonly prefix: string
  readonly tensors: { readonly input_ids: NDArray; readonly attention_mask?: NDArray; readonly position_ids?: NDArray }
  readonly batch: Batch
}

interface Golden {
  readonly store: WeightStore
  readonly facts: GoldenFacts
  readonly groups: readonly Group[]
}

/** What we read of `golden.json`. */
interface GoldenFacts {
  /** Where and how strongly the steered values were steered; without it the vector was added as it is at resid_post.1. */
  readonly steering?: { readonly site: string; readonly scales: readonly number[] }
}

/** Why a tensor cannot be checked. */
class NotChecked extends Error {}

/** What is computed for a tensor, from a run or a generation under some edits. */
interface Job {
  readonly name: string
  readonly shape: readonly number[]
  readonly group: Group
  /** Name of the edits, by which runs are shared: '' for none. */
  readonly variant: string
  readonly edits: readonly Edit[]
  /** What the shared run must read. */
  readonly sites: readonly string[]
  readonly compare: (golden: Float32Array, place: Place) => Promise<Difference> | Difference
}

/** What a job may compare with. */
interface Place {
  /** The model with the edits of the job. */
  readonly model: Model
  readonly group: Group
  /** Values of one run, by canonical site. */
  readonly values: Readonly<Record<string, Activation>>
  readonly signal: AbortSignal | undefined
}

type Recipe = (context: { shape: readonly number[]; group: Group; model: Model; match: RegExpExecArray }) => Pick<Job, 'sites' | 'compare'>

/** What recorded names mean; the first pattern that fits counts. Gradients will be one row here. */
const recipes: readonly (readonly [RegExp, Recipe])[] = [
  [/^grad\./, () => refuse('needs gradients')],
  [/^(decoder_input_ids|pixel_values|.*encoder\..*|decoder\..*|last_hidden_state)$/, () => refuse('belongs to another kind of model')],
  [/^greedy$/, ({ shape, group }) => greedy(shape, group)],
  [
    /^loss$/,
    () => ({
      sites: ['logits'],
      compare: (golden, { values, group }) => differenceOf([lossOf(values.logits as Activation, group)], golden),
    }),
  ],
  [/^nll$/, () => ({ sites: [], compare: likelihoods })],
  [/^(.+)\.last(\d*)$/, ({ shape, model, match }) => lastPositions(model, match[1] as string, Number(match[2] || 0), shape)],
  [/^.+$/, ({ shape, model, match }) => wholeSite(model, match[0], shape)],
]

/** What edits the names of variants mean. */
const variants: readonly (readonly [RegExp, (golden: Golden, group: Group, match: RegExpExecArray) => Promise<Edit[]>])[] = [
  [/^steered(\d*)\.(.+)$/, (golden, group, match) => steering(golden, group, match[1] as string)],
  [/^(ablated)\.(.+)$/, async () => [zero('mlp_out.0')]],
]

/**
 * Compares a model with recorded values: runs the recorded inputs, and looks at every tensor whose name it understands.
 * A tensor passes where max |ours − recorded| ≤ 1e-4 · max |recorded| over unmasked positions, tokens where all are equal.
 * @throws FormatError where the file is missing, damaged, or holds nothing that can be checked.
 */
export async function validate(model: Model, folder: string, options: ValidateOptions = {}): Promise<Validation> {
  const path = join(folder, options.file ?? 'golden.safetensors')
  const store = await openSafetensors(path)
  try {
    const golden = { store, facts: await factsBeside(path), groups: await groupsOf(store) }
    const checks = await checkAll(model, golden, options)
    const count = (status: TensorCheck['status']) => checks.filter((c) => c.status === status).length
    const [passed, failed, notChecked] = [count('pass'), count('fail'), count('not checked')]
    if (passed + failed === 0)
      throw new FormatError(
        `${path} holds no tensor that could be checked: it needs input_ids, and values under names of sites (resid_post.0, logits).`,
      )
    return { model: model.origin.id, against: path, checks, passed, failed, notChecked }
  } finally {
    await store.close()
  }
}

async function factsBeside(path: string): Promise<GoldenFacts> {
  const json = path.replace(/\.safetensors$/, '.json')
  return typeof (await sizeOrKind(json)) === 'number' ? ((await readJson(json)) as GoldenFacts) : {}
}

async function groupsOf(store: WeightStore): Promise<Group[]> {
  const prefixes = [...store.tensors.keys()].filter((n) => /^(.+\.)?input_ids$/.test(n)).map((n) => n.slice(0, -'input_ids'.length))
  const read = async (prefix: string): Promise<Group> => {
    const get = async (name: string) => (store.has(prefix + name) ? { [name]: await store.readRaw(prefix + name) } : {})
    const tensors = {
      input_ids: await store.readRaw(`${prefix}input_ids`),
      ...(await get('attention_mask')),
      ...(await get('position_ids')),
    } as Group['tensors']
    return { prefix, tensors, batch: batchOfTensors(tensors) }
  }
  // Longest first, so that a name goes to the most specific prompts.
  return (await Promise.all(prefixes.map(read))).sort((a, b) => b.prefix.length - a.prefix.length)
}

async function checkAll(model: Model, golden: Golden, options: ValidateOptions): Promise<TensorCheck[]> {
  const checks = new Map<string, TensorCheck>()
  const jobs = new Map<string, Job[]>()
  const names = [...golden.store.tensors.keys()].filter((name) => !isInput(name, golden))
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

function isInput(name: string, { groups }: Golden): boolean {
  return name === 'steer.vector' || groups.some((g) => inputNames.some((input) => name === g.prefix + input))
}

/** The sentence for what cannot be checked; anything else that was thrown goes on. */
function reasonOf(error: unknown): string {
  // The list of all sites belongs to a message of its own, not into every line.
  if (error instanceof NotChecked || error instanceof SiteError) return messageOf(error).replace(/ Sites are .*$/s, '')
  throw error
}

function refuse(reason: string): never {
  throw new NotChecked(reason)
}

async function jobOf(model: Model, golden: Golden, name: string, shape: readonly number[]): Promise<Job> {
  const group = golden.groups.find((g) => name.startsWith(g.prefix)) ?? refuse('there are no input_ids for it')
  let rest = name.slice(group.prefix.length)
  let variant = ''
  let edits: readonly Edit[] = []
  for (const [pattern, editsOf] of variants) {
    const match = pattern.exec(rest)
    if (!match) continue
    rest = match[2] as string
    variant = name.slice(group.prefix.length, name.length - rest.length)
    edits = await editsOf(golden, group, match)
  }
  // An edit at a site that the model lacks is told like a tensor at such a site.
  for (const edit of edits) model.resolve(edit.site)
  const [pattern, recipe] = recipes.find(([p]) => p.test(rest)) as (typeof recipes)[number]
  return { name, shape, group, variant, edits, ...recipe({ shape, group, model, match: pattern.exec(rest) as RegExpExecArray }) }
}

async function steering({ store, facts }: Golden, group: Group, strength: string): Promise<Edit[]> {
  const name = [`${group.prefix}steer.vector`, 'steer.vector'].find((n) => store.has(n)) ?? refuse('there is no steer.vector')
  const vector = await store.readFloat32(name)
  if (!facts.steering) return strength === '' ? [add('resid_post.1', vector)] : refuse('golden.json does not say how it was steered')
  const { site, scales } = facts.steering
  const scale = strength === '' ? scales[0] : scales.find((s) => String(s) === strength)
  if (scale === undefined) refuse(`golden.json names no strength ${strength}`)
  return [add(site, vector, { scale: (scale as number) / Math.sqrt(vector.reduce((sum, v) => sum + v * v, 0)) })]
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
  for (const job of jobs) {
    throwIfCancelled(signal)
    const { name, shape } = job
    const difference = await job.compare(await store.readFloat32(name), { model: edited, group, values, signal })
    const { error, tolerance, note } = difference
    // Written so that an error that is no number fails.
    const status = error <= tolerance ? 'pass' : 'fail'
    yield { name, shape, status, error, tolerance, ...(note ? { note } : {}) }
  }
}

function wholeSite(model: Model, name: string, shape: readonly number[]): Pick<Job, 'sites' | 'compare'> {
  const { site } = oneSite(model, name)
  return {
    sites: [site],
    compare(golden, { values, group }) {
      const value = values[site] as Activation
      if (value.shape.join() !== shape.join())
        return { error: Number.NaN, tolerance: 0, note: `ours has the shape [${value.shape.join(', ')}]` }
      return compareSite(value, golden, group.batch)
    },
  }
}

function oneSite(model: Model, name: string) {
  if (/[*{]/.test(name)) refuse('its name is a pattern')
  return model.site(name)
}

function lastPositions(model: Model, name: string, count: number, shape: readonly number[]): Pick<Job, 'sites' | 'compare'> {
  const { site, row } = oneSite(model, name)
  if (row.axes[1] !== 'pos') refuse(`the site '${site}' has no positions to take the last of`)
  // `logits.last` is [batch, …], `resid_post.3.last4` [batch, 4, …].
  if (count > 0 && shape[1] !== count) refuse(`its shape [${shape.join(', ')}] does not hold ${count} positions`)
  return { sites: [site], compare: (golden, { values }) => compareLast(values[site] as Activation, golden, Math.max(count, 1)) }
}

function greedy(shape: readonly number[], { batch }: Group): Pick<Job, 'sites' | 'compare'> {
  const [count, length] = shape
  if (count === undefined || length === undefined || shape.length !== 2 || count > batch.rows.length) refuse('it is not [batch, tokens]')
  const rows = batch.rows.slice(0, count)
  if (rows.some((row, b) => row.some((_, i) => (batch.positions?.[b]?.[i] ?? i) !== i)))
    refuse('its positions do not count from 0, as those of a generation do')
  return {
    sites: [],
    async compare(golden, { model, signal }) {
      const generation = model.generate({ rows }, { maxNewTokens: length as number, ignoreEos: true, ...(signal ? { signal } : {}) })
      const results = await generation.results()
      throwIfCancelled(signal)
      return compareTokens(
        results.map((r) => r.tokens),
        golden,
        length as number,
      )
    },
  }
}

/** Mean next-token cross-entropy over the first row. */
function lossOf(logits: Activation, { batch }: Group): number {
  const nll = negativeLogLikelihoods(logits.row(0), batch.rows[0] as readonly number[])
  return nll.reduce((sum, v) => sum + v, 0) / nll.length
}

/** Negative log-likelihood of every token but the first, of ids that may be one list to be cut into windows, [window, pos − 1]. */
async function likelihoods(golden: Float32Array, { model, group, signal }: Place): Promise<Difference> {
  const ids = group.batch.rows.flat()
  const windows = ids.length - golden.length
  const width = ids.length / windows
  if (!Number.isInteger(width) || width > model.contextLength)
    throw new ModelError(
      `${ids.length} tokens with ${golden.length} likelihoods do not fit windows of at most ${model.contextLength} tokens.`,
    )
  const ours: number[] = []
  // One window after the other: the logits of all would not fit.
  for (let w = 0; w < windows; w++) {
    throwIfCancelled(signal)
    const row = ids.slice(w * width, (w + 1) * width)
    ours.push(...negativeLogLikelihoods((await model.run({ ids: row })).logits.row(0), row))
  }
  return differenceOf(ours, golden)
}
