/** @file What recorded names mean: for each tensor of a golden file what is computed, under which edits, and how it is compared. */
import { ModelError, messageOf, SiteError, throwIfCancelled } from '../base/errors.ts'
import type { NDArray } from '../base/types.ts'
import type { WeightStore } from '../models/formats/index.ts'
import { add, type Edit, zero } from '../sites/edits.ts'
import type { Activation, Batch, ModelTensors } from './batch.ts'
import type { Loss } from './losses.ts'
import type { Model } from './model.ts'
import { compareLast, compareSite, compareTokens, type Difference, differenceOf, negativeLogLikelihoods } from './validate-compare.ts'

/** Prompts of a golden file; a file has one without a prefix, or several such as `chat.`. */
export interface Group {
  readonly prefix: string
  readonly tensors: ModelTensors
  readonly batch: Batch
}

export interface Golden {
  readonly store: WeightStore
  readonly facts: GoldenFacts
  readonly groups: readonly Group[]
}

/** What we read of `golden.json`. */
export interface GoldenFacts {
  /** Where and how strongly the steered values were steered; without it the vector was added as it is at resid_post.1. */
  readonly steering?: { readonly site: string; readonly scales: readonly number[] }
}

/** Why a tensor cannot be checked. */
export class NotChecked extends Error {}

/** What is computed for a tensor, from a run or a generation under some edits. */
export interface Job {
  readonly name: string
  readonly shape: readonly number[]
  readonly group: Group
  /** Name of the edits, by which runs are shared: '' for none. */
  readonly variant: string
  readonly edits: readonly Edit[]
  /** What the shared run must read. */
  readonly sites: readonly string[]
  /** What the shared gradient must be taken at. */
  readonly gradient?: GradientTarget
  readonly compare: (golden: Float32Array, place: Place) => Promise<Difference> | Difference
}

/** What a job may compare with. */
export interface Place {
  /** The model with the edits of the job. */
  readonly model: Model
  readonly group: Group
  /** Values of one run, by canonical site. */
  readonly values: Readonly<Record<string, Activation>>
  /** The gradient at a target; refuses where there is none. */
  readonly gradient: (target: GradientTarget) => Activation | NDArray
  readonly signal: AbortSignal | undefined
}

/** What a recipe says of a job. */
type Computed = Pick<Job, 'sites' | 'gradient' | 'compare'>

type Recipe = (context: { shape: readonly number[]; group: Group; model: Model; match: RegExpExecArray }) => Computed

/** What recorded names mean; the first pattern that fits counts. */
const recipes: readonly (readonly [RegExp, Recipe])[] = [
  [/^grad\.param\.(.+)$/, ({ shape, match }) => parameterGradient(match[1] as string, shape)],
  [/^grad\.(.+)$/, ({ shape, model, match }) => siteGradient(model, match[1] as string, shape)],
  [/^(decoder_input_ids|pixel_values|token_type_ids)$/, () => refuse('is an input of another kind of model')],
  [/^greedy$/, ({ shape, model, group }) => greedy(shape, model, group)],
  [
    /^loss$/,
    ({ model }) => {
      const output = model.architecture.outputs[0] as string
      const lossOf = losses[recordedLoss(model).kind]
      return {
        sites: [output],
        compare: (golden, { values, group }) => differenceOf([lossOf(values[output] as Activation, group)], golden),
      }
    },
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

/** The sentence for what cannot be checked; anything else that was thrown goes on. */
export function reasonOf(error: unknown): string {
  // The list of all sites belongs to a message of its own, not into every line.
  if (error instanceof NotChecked || error instanceof SiteError) return messageOf(error).replace(/ Sites are .*$/s, '')
  throw error
}

function refuse(reason: string): never {
  throw new NotChecked(reason)
}

/** What a recorded tensor asks for; throws {@link NotChecked}, or the error of a site that the model lacks. */
export async function jobOf(model: Model, golden: Golden, name: string, shape: readonly number[]): Promise<Job> {
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

function wholeSite(model: Model, name: string, shape: readonly number[]): Computed {
  const { site } = oneSite(model, name)
  return {
    sites: [site],
    compare(golden, { values }) {
      const value = values[site] as Activation
      if (value.shape.join() !== shape.join())
        return { error: Number.NaN, tolerance: 0, note: `ours has the shape [${value.shape.join(', ')}]` }
      return compareSite(value, golden)
    },
  }
}

function oneSite(model: Model, name: string) {
  if (/[*{]/.test(name)) refuse('its name is a pattern')
  return model.site(name)
}

function lastPositions(model: Model, name: string, count: number, shape: readonly number[]): Computed {
  const { site, row } = oneSite(model, name)
  if (row.axes[1] !== 'pos') refuse(`the site '${site}' has no positions to take the last of`)
  // `logits.last` is [batch, …], `resid_post.3.last4` [batch, 4, …].
  if (count > 0 && shape[1] !== count) refuse(`its shape [${shape.join(', ')}] does not hold ${count} positions`)
  return { sites: [site], compare: (golden, { values }) => compareLast(values[site] as Activation, golden, Math.max(count, 1)) }
}

function greedy(shape: readonly number[], model: Model, group: Group): Computed {
  const { batch } = group
  if (!model.architecture.writer) refuse('the model writes no text')
  const [count, length] = shape
  if (count === undefined || length === undefined || shape.length !== 2 || count > batch.rows.length) refuse('it is not [batch, tokens]')
  const rows = batch.rows.slice(0, count)
  if (rows.some((row, b) => row.some((_, i) => (batch.positions?.[b]?.[i] ?? i) !== i)))
    refuse('its positions do not count from 0, as those of a generation do')
  // A generation counts positions, and begins a decoder, itself.
  const own = model.architecture.sequences.flatMap((s) =>
    s.kind === 'tokens' ? [s.tensors.positions, ...(s.start ? [s.tensors.ids, s.tensors.mask] : [])] : [],
  )
  const prompt: ModelTensors = Object.fromEntries(Object.entries(firstRows(model, group, count)).filter(([name]) => !own.includes(name)))
  return {
    sites: [],
    async compare(golden, { model, signal }) {
      const generation = model.generate(prompt, { maxNewTokens: length as number, ignoreEos: true, ...(signal ? { signal } : {}) })
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

/** Losses of the first row, from what a model gives out. */
const losses: Readonly<Record<'next-token' | 'mean-square', (output: Activation, group: Group) => number>> = {
  'next-token': (logits: Activation, { batch }: Group) => {
    const nll = negativeLogLikelihoods(logits.row(0), batch.rows[0] as readonly number[])
    return nll.reduce((sum, v) => sum + v, 0) / nll.length
  },
  'mean-square': (output: Activation) => {
    const { data } = output.row(0)
    return data.reduce((sum, v) => sum + v * v, 0) / data.length
  },
}

/** The recorded loss, of the first row: mean next-token cross-entropy of a model that goes on with its own input, mean square of the output of others. */
export function recordedLoss({ architecture }: Model): Loss & { readonly kind: keyof typeof losses } {
  return { kind: architecture.writer && !architecture.sequences.some((s) => s.name === 'source') ? 'next-token' : 'mean-square' }
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

/** A gradient that a tensor asks for: at a site, or of a parameter. */
export interface GradientTarget {
  readonly kind: 'site' | 'parameter'
  /** Canonical site, or the checkpoint's name. */
  readonly name: string
}

/** The first rows of a group, as tensors: what recorded losses and generations look at. Of images, those that belong to these rows. */
export function firstRows(model: Model, { tensors, batch }: Group, count: number): ModelTensors {
  const [main, ...others] = model.architecture.sequences
  const held =
    main.kind === 'tokens' &&
    main.image &&
    batch.rows
      .slice(0, count)
      .flat()
      .filter((id) => id === main.image?.token).length
  const images = main.kind === 'tokens' && main.image ? (held as number) / main.image.positions : count
  const pixels = others.flatMap((s) => (s.kind === 'pixels' ? [s.pixels] : []))
  const rows = ({ dtype, shape, data }: NDArray, n: number): NDArray => ({
    dtype,
    shape: shape.with(0, n),
    data: data.slice(0, (n * data.length) / (shape[0] as number)),
  })
  return Object.fromEntries(Object.entries(tensors).map(([name, array]) => [name, rows(array, pixels.includes(name) ? images : count)]))
}

function siteGradient(model: Model, name: string, shape: readonly number[]): Computed {
  const { site } = oneSite(model, name)
  const gradient: GradientTarget = { kind: 'site', name: site }
  return {
    sites: [],
    gradient,
    compare(golden, place) {
      const ours = place.gradient(gradient) as Activation
      if (ours.shape.slice(1).join() !== shape.slice(1).join()) return wrongShape(ours.shape)
      // The other rows are zero, since the loss does not look at them.
      return compareSite(ours, golden.subarray(0, ours.data.length), 'gradient')
    },
  }
}

function parameterGradient(name: string, shape: readonly number[]): Computed {
  const gradient: GradientTarget = { kind: 'parameter', name }
  return {
    sites: [],
    gradient,
    compare(golden, place) {
      const ours = place.gradient(gradient)
      return ours.shape.join() === shape.join() ? differenceOf(ours.data as Float32Array, golden, 'gradient') : wrongShape(ours.shape)
    },
  }
}

function wrongShape(shape: readonly number[]): Difference {
  return { error: Number.NaN, tolerance: 0, note: `ours has the shape [${shape.join(', ')}]` }
}
