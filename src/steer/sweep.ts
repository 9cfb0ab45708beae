/** @file Which layer, which strength: a vector at each of its sites and at several strengths, judged on held-out prompts and on neutral text. For Node only where cells are kept. */

import { existsSync } from 'node:fs'
import { join } from 'node:path'
import { EditError, RuntimeFailure, throwIfCancelled, UsageError } from '../base/errors.ts'
import { makeFolder, readJson, writeFileWhole } from '../base/files.ts'
import { sha256 } from '../base/hash.ts'
import { meanOf } from '../base/numbers.ts'
import type { WorkOptions } from '../base/progress.ts'
import type { Model } from '../run/model.ts'
import type { Where } from '../sites/index.ts'
import type { ContrastExamples } from './examples.ts'
import { judged, type SteeringJudge, type WrittenText } from './judges/judge.ts'
import { distinct, divergence, perplexity, repetition, tokenLosses } from './measures.ts'
import { type ExtractVectorOptions, extractVector } from './methods.ts'
import { canonicalJson } from './record.ts'
import { frontier, recommend, type SweepCell, type SweepChoice, type SweepLimits } from './sweep-choice.ts'
import type { SteeringVector } from './vector.ts'

/** Options of {@link steerSweep}. */
export interface SteerSweepOptions extends WorkOptions {
  /** A vector with one direction for each site to try, or what to extract one by. */
  readonly vector: SteeringVector | ExtractVectorOptions
  /** Examples from which a given vector was made, so that prompts can be checked against them. */
  readonly examples?: ContrastExamples
  readonly strengths: readonly number[]
  /**
   * What a strength of 1 is: the vector as it is, or one as long as the activations of the neutral texts at the site are in the median
   * (default), so that layers can be compared.
   */
  readonly unit?: 'vector' | 'activation'
  readonly judge: SteeringJudge
  /** Prompts to write on from; none may be an example of the vector. */
  readonly prompts: readonly string[]
  /** Texts that the steering should leave alone; none may be an example of the vector. */
  readonly neutral: readonly string[]
  /** Tokens to write (default 40). */
  readonly maxNewTokens?: number
  /** Seeds of the sampling, each writes every prompt once (default [0]). */
  readonly seeds?: readonly number[]
  /** Default 0.7; 0 is greedy. */
  readonly temperature?: number
  readonly where?: Where
  readonly keepNorm?: boolean
  readonly limits?: SweepLimits
  /** Folder in which finished cells are kept by content; a sweep that was broken off goes on from them. */
  readonly folder?: string
  /** Receives each cell as it is done. */
  readonly onCell?: (cell: SweepCell) => void
}

/** A finished sweep. */
export interface SteerSweep {
  readonly judge: { readonly name: string; readonly unit: string }
  readonly vector: SteeringVector
  /** The model without steering. */
  readonly baseline: SweepCell
  readonly cells: readonly SweepCell[]
  readonly frontier: readonly SweepCell[]
  readonly recommendation: SweepChoice
  /** What a reader should know: overflows, strengths left out, what could not be checked. */
  readonly notes: readonly string[]
  readonly settings: Readonly<Record<string, unknown>>
}

/**
 * Measures effect, divergence, perplexity, repetition and coherence for every site of a vector and every strength. Where a strength
 * overflows, the cell says so and larger ones of the same sign at that site are left out.
 * @throws UsageError for prompts or neutral texts that the vector was made of: a vector always does well on its own examples.
 */
export async function steerSweep(model: Model, options: SteerSweepOptions): Promise<SteerSweep> {
  const notes: string[] = []
  checkSettings(options)
  const extraction = 'positive' in options.vector ? options.vector : options.examples
  checkHeldOut(model, options, extraction)
  if (!extraction)
    notes.push(
      'The examples of the vector are not known here, so nothing says that the prompts are not among them; give them, or keep prompts apart.',
    )
  const { signal, onProgress } = options
  const work = { ...(signal ? { signal } : {}), ...(onProgress ? { onProgress } : {}) }
  const vector = 'positive' in options.vector ? await extractVector(model, { ...work, ...options.vector }) : options.vector
  const lengths = await unitLengths(model, vector, options)
  const kept = await cellStore(model, options)
  const { strengths } = options
  const total = 1 + vector.sites.length * strengths.length
  let done = 0
  const report = (cell: SweepCell) => {
    done++
    options.onCell?.(cell)
    onProgress?.({ task: 'sweeping', done, total, unit: 'cells' })
  }
  onProgress?.({ task: 'sweeping', done: 0, total, unit: 'cells' })
  const measureWork = signal ? { signal } : {}
  const baseline = await kept({ unsteered: true }, () => measure(model, model, { strength: 0 }, options, measureWork))
  if (baseline.overflow !== undefined) throw new RuntimeFailure(`The model without steering overflows: ${baseline.overflow}`)
  report(baseline)
  const cells: SweepCell[] = []
  for (const site of vector.sites) {
    const direction = lengths ? vector.only([site]).normalized(lengths.get(site)) : vector.only([site])
    // From weak to strong on each side, so that what comes after an overflow is not tried.
    const order = [...strengths].sort((a, b) => Math.abs(a) - Math.abs(b))
    const over = new Set<number>()
    for (const strength of order) {
      throwIfCancelled(signal)
      if (over.has(Math.sign(strength))) {
        notes.push(`Strength ${strength} at ${site} was left out, since a weaker one overflows there.`)
        done++
        continue
      }
      const facts = { site, direction: direction.at(site), strength, where: options.where ?? null, keepNorm: options.keepNorm ?? false }
      const cell = await kept(facts, async () => {
        const { where, keepNorm } = options
        const place = { site, strength }
        try {
          const edits = direction.edits({ scale: strength, ...(where ? { where } : {}), ...(keepNorm === undefined ? {} : { keepNorm }) })
          return await measure(
            model,
            edits.reduce<Model>((m, e) => m.with(e), model),
            place,
            options,
            measureWork,
          )
        } catch (error) {
          if (error instanceof EditError && error.message.includes('overflows')) return overflowed(place, error.message)
          throw error
        }
      })
      if (cell.overflow !== undefined) {
        over.add(Math.sign(strength))
        notes.push(`Strength ${strength} at ${site} overflows: ${cell.overflow}`)
      }
      cells.push(cell)
      report(cell)
    }
  }
  const { judge, limits, unit = 'activation', maxNewTokens = 40, seeds = [0], temperature = 0.7, prompts, neutral } = options
  return {
    judge: { name: judge.name, unit: judge.unit },
    vector,
    baseline,
    cells,
    frontier: frontier([baseline, ...cells]),
    recommendation: recommend(baseline, cells, limits),
    notes,
    settings: { unit, strengths, maxNewTokens, seeds, temperature, prompts: prompts.length, neutral: neutral.length, limits: limits ?? {} },
  }
}

function checkSettings({ strengths, prompts, neutral, vector, maxNewTokens = 40, seeds = [0] }: SteerSweepOptions): void {
  const bad = strengths.find((s) => !Number.isFinite(s) || s === 0)
  if (bad !== undefined)
    throw new UsageError(`A strength must be a finite number other than 0, not ${bad}; no steering is measured anyway.`)
  if (strengths.length === 0) throw new UsageError('There are no strengths to try; give at least one.')
  if (new Set(strengths).size !== strengths.length) throw new UsageError('A strength is given twice; give each once.')
  if (prompts.length === 0) throw new UsageError('There are no prompts to judge the effect on; give at least one, better twenty.')
  if (neutral.length === 0) throw new UsageError('There are no neutral texts to measure the harm on; give at least one of some sentences.')
  if (!Number.isInteger(maxNewTokens) || maxNewTokens < 1)
    throw new UsageError(`maxNewTokens must be a positive integer, not ${maxNewTokens}.`)
  if (seeds.length === 0) throw new UsageError('There is no seed; give at least one.')
  if ('positive' in vector && !vector.site)
    throw new UsageError('Say at which sites the vector is to be tried: resid_post.* for all layers.')
}

/** Refuses prompts and neutral texts that the vector was made of. */
function checkHeldOut(model: Model, { prompts, neutral }: SteerSweepOptions, extraction: ContrastExamples | undefined): void {
  if (!extraction) return
  const key = (t: string | readonly number[]) => (typeof t === 'string' ? (model.tokens(t).rows[0] as readonly number[]) : t).join()
  const used = new Set([...extraction.positive, ...extraction.negative].map(key))
  for (const [what, texts] of [
    ['prompt', prompts],
    ['neutral text', neutral],
  ] as const) {
    const at = texts.findIndex((t) => used.has(key(t)))
    if (at >= 0)
      throw new UsageError(
        `The ${what} ${at} (${JSON.stringify((texts[at] as string).slice(0, 60))}) is one of the examples that the vector was made of, on which it does well by making; take others.`,
      )
  }
}

/** Median length of the neutral texts' activations at each site, the first position left out, which is an outlier in many models. */
async function unitLengths(
  model: Model,
  vector: SteeringVector,
  { unit = 'activation', neutral, signal }: SteerSweepOptions,
): Promise<Map<string, number> | undefined> {
  if (unit === 'vector') return undefined
  const lengths = new Map(vector.sites.map((s) => [s, [] as number[]]))
  for (const text of neutral) {
    throwIfCancelled(signal)
    const { taps, tokens } = await model.run(text, { taps: vector.sites, logits: false })
    const count = (tokens[0] as readonly number[]).length
    for (const site of vector.sites)
      for (let p = count > 1 ? 1 : 0; p < count; p++)
        lengths.get(site)?.push(Math.hypot(...(taps[site] as { at(b: number, p: number): Float32Array }).at(0, p)))
  }
  return new Map([...lengths].map(([site, all]) => [site, all.sort((a, b) => a - b)[all.length >> 1] as number]))
}

const overflowed = (place: { readonly site?: string; readonly strength: number }, why: string): SweepCell => ({
  ...place,
  effect: Number.NaN,
  scores: [],
  kl: Number.NaN,
  perplexity: Number.NaN,
  overflow: why,
})

/** One cell: harm first, so that nothing is written by a model that gives no numbers. */
async function measure(
  unsteered: Model,
  steered: Model,
  place: { readonly site?: string; readonly strength: number },
  options: SteerSweepOptions,
  work: WorkOptions,
): Promise<SweepCell> {
  const { neutral, prompts, judge, maxNewTokens = 40, seeds = [0], temperature = 0.7 } = options
  const kl = steered === unsteered ? 0 : (await divergence(unsteered, steered, [...neutral], work)).kl
  if (!Number.isFinite(kl)) return overflowed(place, 'the model gives no finite probabilities with it.')
  const loss = await perplexity(steered, [...neutral], work)
  const texts: WrittenText[] = []
  const written: number[][] = []
  if (judge.reads === 'texts')
    for (const seed of seeds) {
      throwIfCancelled(work.signal)
      const results = await steered.generate([...prompts], { maxNewTokens, temperature, seed, ...work }).results()
      for (const [i, r] of results.entries()) {
        texts.push({ prompt: prompts[i] as string, text: r.text })
        written.push([...(unsteered.tokens(prompts[i] as string).rows[0] as readonly number[]), ...r.tokens])
      }
    }
  throwIfCancelled(work.signal)
  const scores = await judged(judge, { model: steered, unsteered, prompts, texts, ...work })
  return {
    ...place,
    effect: meanOf(scores),
    scores: [...scores],
    kl,
    perplexity: loss,
    ...(texts.length === 0
      ? {}
      : {
          repetition: meanOf(texts.map((t) => repetition(t.text))),
          distinct: distinct(texts.map((t) => t.text)),
          incoherence: await writtenPerplexity(unsteered, written, prompts, work),
          texts: texts.map((t) => t.text),
        }),
  }
}

/** Perplexity of what was written behind the prompts, under the unsteered model. */
async function writtenPerplexity(
  unsteered: Model,
  rows: readonly (readonly number[])[],
  prompts: readonly string[],
  work: WorkOptions,
): Promise<number> {
  const losses = await tokenLosses(unsteered, { rows }, work)
  const own = losses.flatMap((l, i) => [
    ...l.slice((unsteered.tokens(prompts[i % prompts.length] as string).rows[0] as readonly number[]).length - 1),
  ])
  return Math.exp(meanOf(own))
}

/** Finds a cell that was measured before by all that it depends on, or measures and keeps it. */
async function cellStore(model: Model, options: SteerSweepOptions) {
  const { folder, judge, prompts, neutral, maxNewTokens = 40, seeds = [0], temperature = 0.7 } = options
  if (folder === undefined) return (_: unknown, work: () => Promise<SweepCell>) => work()
  if (model.edits.some((e) => e.op === 'function'))
    throw new UsageError('A model with function edits cannot be kept by content; leave the folder of the sweep out.')
  await makeFolder(folder)
  const shared = {
    model: await model.origin.hash(),
    edits: model.edits,
    precision: model.precision,
    judge: { name: judge.name, key: judge.key },
    prompts,
    neutral,
    maxNewTokens,
    seeds,
    temperature,
  }
  return async (facts: unknown, work: () => Promise<SweepCell>): Promise<SweepCell> => {
    const path = join(folder, `${(await sha256(canonicalJson({ shared, facts }))).slice(0, 32)}.json`)
    if (existsSync(path)) {
      const found = (await readJson(path)) as SweepCell
      // JSON has no NaN.
      return found.overflow === undefined ? found : overflowed(found, found.overflow)
    }
    const cell = await work()
    await writeFileWhole(path, JSON.stringify(cell))
    return cell
  }
}
