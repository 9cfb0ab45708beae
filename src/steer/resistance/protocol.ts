/** @file The whole protocol on a model of one's own: references, judge, calibration, steering, controls, detectors. */
import { UsageError } from '../../base/errors.ts'
import { RandomStream } from '../../nn/index.ts'
import type { Model } from '../../run/index.ts'
import type { Calibration } from './bisection.ts'
import { ablation, type Detector, findDetectors, randomSets } from './detectors.ts'
import { referenceJudge } from './judge.ts'
import { type FeatureSource, pooledFeatures } from './pooled.ts'
import { type Condition, type ResistanceOptions, type ResistanceRun, ResistanceStudy } from './trials.ts'

/** Settings of {@link measureResistance}. */
export interface ProtocolOptions extends Omit<ResistanceOptions, 'judge' | 'prompts'> {
  readonly prompts: readonly string[]
  /** Splits and scores answers (default: {@link referenceJudge} with the model's own unsteered answers). */
  readonly judge?: ResistanceOptions['judge']
  /** Score of first attempts that boosts are calibrated to, from 0 to 1 (default 0.3), in so many rounds (default 10) of so many prompts (default 5). */
  readonly target?: number
  readonly rounds?: number
  readonly roundPrompts?: number
  /** Boosts between which is looked (default: from 0 to that which adds three times the length of the stream). */
  readonly range?: readonly [number, number]
  /** Mean and deviation of the boost beforehand (default: a third and a quarter of the range). */
  readonly prior?: readonly [number, number]
  /** Trials of each distractor (default 5). */
  readonly each?: number
  /** Also runs the trials with this appended to the prompts. */
  readonly suffix?: string
  /** Also holds the best detectors among some sources, and random ones like them in so many sets (default 3). */
  readonly hold?: {
    readonly sources: readonly FeatureSource[]
    readonly count: number
    readonly sets?: number
    readonly to?: 'mean' | 'zero'
  }
  readonly seed?: number
}

/** What the protocol gives. */
export interface ResistanceReport {
  /** How well the judge tells unsteered answers to a prompt from those to others (area under the curve); absent with a judge of one's own. */
  readonly separation?: number
  readonly distractors: readonly { readonly name: string; readonly calibration: Calibration }[]
  /** Runs of the same trials: `unsteered`, `boosted`, `suffix`, `detectors held`, `random set 0`, … */
  readonly runs: Readonly<Record<string, ResistanceRun>>
  /** The detectors that were held, best first. */
  readonly detectors: readonly Detector[]
}

/** Unsteered answers to each prompt: the judge needs two. */
const references = 2

/** Calibrates a boost for each distractor, steers, and repeats the same trials under the controls (arXiv:2602.06941). */
export async function measureResistance(model: Model, options: ProtocolOptions): Promise<ResistanceReport> {
  const { seed = 0, suffix, hold, each = 5 } = options
  const found = options.judge ? { judge: options.judge, separation: undefined } : await ownJudge(model, options, seed)
  const study = new ResistanceStudy(model, { ...options, judge: found.judge })
  const { range, prior } = await rangeOf(study, options)
  const distractors: { name: string; calibration: Calibration }[] = []
  for (const [i, { name }] of options.distractors.entries()) {
    const { target, rounds, roundPrompts: prompts, onProgress, signal } = options
    const given = Object.fromEntries(Object.entries({ target, rounds, prompts, onProgress, signal }).filter(([, v]) => v !== undefined))
    distractors.push({ name, calibration: await study.calibrate(i, { range, prior, seed: seed + 10_000 * (i + 1), ...given }) })
  }
  const trials = study.trials(
    distractors.map((d) => d.calibration.boost),
    { each, seed: seed + 1_000_000 },
  )
  const runs: Record<string, ResistanceRun> = {}
  const run = async (name: string, condition: Condition) => {
    runs[name] = await study.run(trials, condition)
  }
  await run('unsteered', { unsteered: true })
  await run('boosted', {})
  if (suffix !== undefined) await run('suffix', { suffix })
  const detectors: Detector[] = []
  if (hold) {
    const { sources, count, sets = 3, to = 'mean' } = hold
    const pairs = study.pairs(runs.unsteered as ResistanceRun, { seed })
    const all = await findDetectors(model, { ...pairs, sources, ...(options.signal ? { signal: options.signal } : {}) })
    if (!(Number.isInteger(count) && count > 0 && count <= all.length))
      throw new UsageError(`From 1 to ${all.length} detectors can be held, not ${count}.`)
    detectors.push(...all.slice(0, count))
    await run('detectors held', { edits: ablation(model, detectors, to) })
    for (const [k, set] of randomSets(all, detectors, { sets, seed }).entries())
      await run(`random set ${k}`, { edits: ablation(model, set, to) })
  }
  return { ...(found.separation === undefined ? {} : { separation: found.separation }), distractors, runs, detectors }
}

/** The judge that compares with the model's own unsteered answers. */
async function ownJudge(model: Model, options: ProtocolOptions, seed: number) {
  const silent = new ResistanceStudy(model, { ...options, judge: () => [] })
  const texts: string[][] = options.prompts.map(() => [])
  const trials = options.prompts.flatMap((_, prompt) =>
    Array.from({ length: references }, (_, k) => ({ prompt, distractor: 0, boost: 0, seed: seed + 500_000 + references * prompt + k })),
  )
  for (const { prompt, text } of (await silent.run(trials)).answers) texts[prompt]?.push(text)
  return referenceJudge(model, { references: texts, signal: options.signal })
}

/** Prompts by which the length of the stream is measured. */
const measured = 16

/** Boosts that add up to three times the stream's median length, where nobody says otherwise. */
async function rangeOf(study: ResistanceStudy, { range, prior, distractors, site }: ProtocolOptions) {
  if (range && prior) return { range, prior }
  const rows = study.rows().slice(0, measured)
  const { site: name } = study.model.site(site)
  const { taps } = await study.model.run({ rows }, { taps: [name], logits: false })
  const x = taps[name] as unknown as { at(row: number, position: number): Float32Array }
  // The first position is left out: many models make an outlier of it.
  const lengths = rows.flatMap((r, b) => r.slice(1).map((_, p) => Math.hypot(...x.at(b, p + 1)))).sort((a, b) => a - b)
  const stream = lengths[Math.floor(lengths.length / 2)]
  if (stream === undefined)
    throw new UsageError('All prompts are one token long, so the length of the stream is not known; give a range and a prior.')
  const shortest = Math.min(...distractors.map((d) => Math.hypot(...Array.from(d.vector))))
  const high = range?.[1] ?? (3 * stream) / shortest
  return { range: range ?? ([0, high] as const), prior: prior ?? ([high / 3, high / 4] as const) }
}

/**
 * Numbers of latents of an autoencoder that are silent on all tokens of the prompts, drawn at random: what they write is irrelevant to them.
 * @throws UsageError where too few are silent.
 */
export async function irrelevantLatents(
  model: Model,
  source: Required<FeatureSource>,
  prompts: readonly (readonly number[])[],
  { count, seed = 0 }: { readonly count: number; readonly seed?: number },
): Promise<number[]> {
  const [found] = await pooledFeatures(model.plain, prompts, { sources: [source] })
  const silent = Array.from({ length: source.sae.dSae }, (_, j) => j).filter((j) => found?.max.every((v) => (v[j] as number) <= 0))
  if (silent.length < count)
    throw new UsageError(
      `Only ${silent.length} latents are silent on all prompts, fewer than the ${count} that are wanted; ask for fewer, or name latents.`,
    )
  const order = RandomStream.named(seed, 'irrelevant latents').permutation(silent.length)
  return Array.from(order.slice(0, count), (i) => silent[i] as number)
}
