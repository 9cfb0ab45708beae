/** @file The planted language of self-corrections at work: strengths, calibration, off-topic detectors, for the paper on resistance to steering. */
import { meanOf } from '../base/numbers.ts'
import { memoryRows, Sae, trainSae } from '../decompose/index.ts'
import type { Model } from '../run/index.ts'
import { meanDifference } from '../steer/index.ts'
import {
  type AnswerPairs,
  ablation,
  type Detector,
  type FeatureSource,
  findDetectors,
  type Judge,
  type ResistanceRun,
  ResistanceStudy,
  randomSets,
  splitTokens,
} from '../steer/resistance/index.ts'
import type { Figure, Metrics, Repeat, Table } from './paper.ts'
import { mcnemarP } from './statistics.ts'
import type { Study } from './study.ts'
import { attemptScores, corrections, correctionsModel, oopsToken, question } from './toys/corrections.ts'

/** Strengths, in lengths of the topics' vectors. */
export const alphas = [0, 0.6, 0.75, 0.9, 1.2, 1.5] as const
const shares = [0, 0.1, 0.3] as const
const site = 'resid_post.1'
const readSites = ['mlp_act.1', 'mlp_act.2'] as const
const saeSite = 'resid_post.2'
const ablated = 0.75

const topics = Array.from({ length: corrections.topics }, (_, i) => i)
const judge: Judge = ({ prompt, tokens }) => attemptScores(prompt, splitTokens(tokens, [oopsToken]))
const percent = (x: number) => 100 * x

/** Everything that is measured on the planted models. */
export async function esrToy(study: Study): Promise<Repeat> {
  const metrics: Record<string, number> = {}
  const points: Point[] = []
  for (const share of shares) {
    const name = `corrections, ${share}`
    const model = await study.trained(name, correctionsModel(study.seed, study.size(500, 120), share))
    const found = await study.step(`strengths, ${name}`, { alphas: [...alphas] }, async () =>
      sweep(await ready(model, study), share, study),
    )
    points.push(...found.points)
    if (share === 0.3) metrics['answers changed by a boost of zero'] = found.changed
  }
  for (const p of points) {
    metrics[`multi-attempt, ${p.share}, α ${p.alpha}`] = p.multi
    metrics[`ESR, ${p.share}, α ${p.alpha}`] = p.esr
    metrics[`first score, ${p.share}, α ${p.alpha}`] = p.first
  }
  const model = await study.trained('corrections, 0.3', correctionsModel(study.seed, study.size(500, 120), 0.3))
  const calibrated = await study.step('calibration', {}, async () => calibrations(await ready(model, study), study))
  metrics['calibrated strength'] = calibrated[0] as number
  metrics['calibrated strengths within 0.75 and 1, share'] = calibrated.filter((b) => b >= 0.75 && b <= 1).length / calibrated.length
  metrics['strength at which first attempts score 30'] = crossing(points.filter((p) => p.share === 0.3))
  const causal = await study.step('detectors', { ablated }, async () => causality(await ready(model, study), study))
  return {
    metrics: { ...metrics, ...causal.metrics },
    tables: [strengthTable(points), calibrationTable(calibrated, metrics['strength at which first attempts score 30']), ...causal.tables],
    figures: [...strengthFigures(points), ...causal.figures],
  }
}

/** A model with its study and its own unsteered answers. */
interface Ready {
  readonly model: Model
  readonly protocol: ResistanceStudy
  readonly pairs: AnswerPairs
  /** Mean length of the topics' vectors, and of the stream where they are added. */
  readonly lengths: { readonly vector: number; readonly stream: number }
}

/** Topic vectors from unsteered answers, and the study with them. */
async function ready(model: Model, study: Study): Promise<Ready> {
  const asked = Array.from({ length: study.size(300, 90) }, (_, i) => i % corrections.topics)
  const rows = asked.map(question)
  const written = await model
    .generate({ rows }, { maxNewTokens: corrections.answer, temperature: 1, seed: 1000 + study.seed, ignoreEos: true })
    .results()
  const texts = rows.map((r, i) => [...r, ...(written[i]?.tokens ?? [])])
  const vectors: Float64Array[] = []
  for (const topic of topics) {
    const side = (own: boolean) => texts.filter((_, i) => (asked[i] === topic) === own)
    const v = await meanDifference(model, { positive: side(true), negative: side(false), site, position: 'mean' })
    // Less the mean of all topics instead of that of the others.
    vectors.push(Float64Array.from(v.at(site), (x) => (x * (corrections.topics - 1)) / corrections.topics))
  }
  const { taps } = await model.run({ rows: texts.slice(0, 12) }, { taps: [site], logits: false })
  const at = texts.slice(0, 12).flatMap((t, b) => t.slice(1).map((_, p) => Math.hypot(...taps[site].at(b, p + 1))))
  const protocol = new ResistanceStudy(model, {
    prompts: topics.map(question),
    distractors: topics.map((t) => ({ name: `topic ${t}`, vector: vectors[t] as Float64Array, relevantTo: [t] })),
    site,
    judge,
    maxNewTokens: corrections.answer,
    temperature: 1,
    ignoreEos: true,
    batch: 300,
    ...study.work,
  })
  const unsteered = await protocol.run(protocol.trials(0, { each: study.size(20, 10), seed: 50_000 + study.seed }))
  return {
    model,
    protocol,
    pairs: protocol.pairs(unsteered, { seed: study.seed }),
    lengths: { vector: meanOf(vectors.map((v) => Math.hypot(...v))), stream: meanOf(at) },
  }
}

/** Rates at one strength, in per cent, with intervals. */
interface Point {
  readonly share: number
  readonly alpha: number
  readonly first: number
  readonly multi: number
  readonly esr: number
  readonly low: number
  readonly high: number
  readonly improvement: number
  readonly answers: number
  /** Length of what is added, relative to the stream. */
  readonly length: number
}

async function sweep({ protocol, lengths }: Ready, share: number, study: Study): Promise<{ points: Point[]; changed: number }> {
  const points: Point[] = []
  let changed = 0
  for (const alpha of alphas) {
    const trials = protocol.trials(alpha, { each: study.size(100, 20), seed: 100_000 * (1 + study.seed) })
    const run = await protocol.run(trials)
    const { rates } = run
    points.push({
      share,
      alpha,
      first: rates.firstScore,
      multi: percent(rates.multiAttempt.value),
      esr: percent(rates.resistance.value),
      low: percent(rates.resistance.low),
      high: percent(rates.resistance.high),
      improvement: percent(rates.improvement.value),
      answers: rates.answers,
      length: (alpha * lengths.vector) / lengths.stream,
    })
    if (alpha === 0) {
      const plain = await protocol.run(trials, { unsteered: true })
      changed = plain.answers.filter((a, i) => a.tokens.join() !== run.answers[i]?.tokens.join()).length
    }
  }
  return { points, changed }
}

/** Strength at which first attempts score 30, between the strengths that were tried. */
function crossing(points: readonly Point[]): number {
  for (const [i, p] of points.entries()) {
    const before = points[i - 1]
    if (before && p.first < 30) return before.alpha + ((before.first - 30) / (before.first - p.first)) * (p.alpha - before.alpha)
  }
  return Number.NaN
}

/** Strengths that ten rounds of five answers find, over seeds. */
async function calibrations({ protocol }: Ready, study: Study): Promise<number[]> {
  const out: number[] = []
  for (let i = 0; i < study.size(5, 1); i++) {
    const seed = 1_000_000 * (1 + study.seed) + 1000 * i
    out.push((await protocol.calibrate(topics, { range: [0, 3], prior: [1, 0.4], target: 0.3, rounds: 10, prompts: 5, seed })).boost)
  }
  return out
}

interface Held {
  readonly name: string
  readonly run: ResistanceRun
  /** Score of unsteered answers under the same ablation. */
  readonly unsteered: number
}

/** Off-topic detectors: the same trials with the best of them held, and with random neurons held. */
async function causality(made: Ready, study: Study): Promise<{ metrics: Metrics; tables: Table[]; figures: Figure[] }> {
  const { model, protocol, pairs } = made
  const trials = protocol.trials(ablated, { each: study.size(150, 20), seed: 2_000_000 * (1 + study.seed) })
  const quiet = protocol.trials(0, { each: study.size(30, 5), seed: 3_000_000 * (1 + study.seed) })
  const neurons = await findDetectors(model, { ...pairs, sources: readSites.map((s) => ({ site: s })), ...study.work })
  const best = (count: number) => neurons.slice(0, count)
  const held: Held[] = []
  const hold = async (name: string, set?: readonly Detector[], to: 'mean' | 'zero' = 'mean') => {
    const condition = set ? { edits: ablation(model, set, to) } : {}
    held.push({ name, run: await protocol.run(trials, condition), unsteered: (await protocol.run(quiet, condition)).rates.firstScore })
  }
  await hold('boosted')
  await hold('top 12 at mean', best(12))
  await hold('top 24 at mean', best(24))
  await hold('top 12 at zero', best(12), 'zero')
  for (const [k, set] of randomSets(neurons, best(12), { sets: 3, seed: study.seed }).entries()) await hold(`random set ${k}`, set)
  const source = await autoencoder(model, pairs, study)
  const latents = await findDetectors(model, { ...pairs, sources: [source], ...study.work })
  await hold('top 12 latents at mean', latents.slice(0, 12))
  for (const [k, set] of randomSets(latents, latents.slice(0, 12), { sets: 1, seed: study.seed }).entries())
    await hold(`random latents ${k}`, set)
  await source.sae?.dispose()
  const base = held[0] as Held
  const detectorsOnly = held.filter((h) => h.name.startsWith('top') && !h.name.includes('latents'))
  const clear = (all: readonly Detector[], where: string) => all.filter((d) => d.source.site === where && d.auc >= 0.99).length
  return {
    metrics: {
      ...Object.fromEntries(
        held.flatMap(({ name, run: { rates }, unsteered }) => [
          [`multi-attempt, ${name}`, percent(rates.multiAttempt.value)],
          [`ESR, ${name}`, percent(rates.resistance.value)],
          [`first score, ${name}`, rates.firstScore],
          [`unsteered score, ${name}`, unsteered],
        ]),
      ),
      ...Object.fromEntries(readSites.map((s) => [`detectors of area 0.99, ${s}`, clear(neurons, s)])),
      [`latents of area 0.99, ${saeSite}`]: clear(latents, saeSite),
      'unsteered score, largest change': Math.max(...detectorsOnly.map((h) => Math.abs(h.unsteered - base.unsteered))),
    },
    tables: [heldTable(held), detectorTable([...neurons.slice(0, 12), ...latents.slice(0, 4)])],
    figures: [heldFigure(held)],
  }
}

/** An autoencoder of eight times the width, trained on the stream of matched and mismatched texts alike. */
async function autoencoder(model: Model, pairs: AnswerPairs, study: Study): Promise<FeatureSource> {
  const rows = [...pairs.matched, ...pairs.mismatched]
  const { taps } = await model.run({ rows }, { taps: [saeSite], logits: false })
  const { shape, data } = taps[saeSite] as unknown as { shape: readonly number[]; data: Float32Array }
  const { weights } = await trainSae({
    rows: memoryRows({ dtype: 'float32', shape: [(shape[0] as number) * (shape[1] as number), shape[2] as number], data }, study.seed),
    kind: 'topk',
    k: 8,
    rate: 3e-3,
    batch: 512,
    steps: study.size(600, 60),
    seed: study.seed,
    place: { hook: saeSite },
    ...(study.threads ? { threads: study.threads } : {}),
    ...study.work,
  })
  return { site: saeSite, sae: new Sae(weights) }
}

const strengthTable = (points: readonly Point[]): Table => ({
  name: 'strengths',
  title: 'Strengths, first seed',
  columns: [
    'corrections in training',
    'strength α',
    'length, of the stream',
    'first score',
    'multi-attempt, %',
    'ESR, %',
    '95 % interval',
    'improvement, %',
    'answers',
  ],
  rows: points.map((p) => [
    p.share,
    p.alpha,
    p.length,
    p.first,
    p.multi,
    p.esr,
    `${p.low.toFixed(1)} to ${p.high.toFixed(1)}`,
    Number.isNaN(p.improvement) ? '–' : p.improvement,
    p.answers,
  ]),
})

const calibrationTable = (found: readonly number[], root: number): Table => ({
  name: 'calibration',
  title: 'Calibration to a first score of 30',
  columns: ['run', 'strength'],
  rows: [['between the strengths of the table', root], ...found.map((b, i) => [`ten rounds of five answers, ${i + 1}`, b])],
})

/** Pairs of one trial under two conditions of which only one started again. */
function paired(base: ResistanceRun, other: ResistanceRun): number {
  const again = (run: ResistanceRun, i: number) => (run.answers[i]?.scores.length ?? 0) > 1
  const only = (a: ResistanceRun, b: ResistanceRun) => a.answers.filter((_, i) => again(a, i) && !again(b, i)).length
  return mcnemarP(only(base, other), only(other, base))
}

function heldTable(held: readonly Held[]): Table {
  const base = held[0] as Held
  return {
    name: 'detectors',
    title: `Detectors held, the same ${base.run.answers.length} trials at α = ${ablated}, 0.3 of corrections, first seed`,
    columns: [
      'what is held',
      'multi-attempt, %',
      'ESR, %',
      '95 % interval of ESR',
      'first score',
      'unsteered score',
      'p of McNemar, restarts',
    ],
    rows: held.map(({ name, run, unsteered }) => [
      name,
      percent(run.rates.multiAttempt.value),
      percent(run.rates.resistance.value),
      `${percent(run.rates.resistance.low).toFixed(1)} to ${percent(run.rates.resistance.high).toFixed(1)}`,
      run.rates.firstScore,
      unsteered,
      run === base.run ? '–' : paired(base.run, run),
    ]),
    note: 'First scores that do not rise show that what is held does not weaken the steering.',
  }
}

const detectorTable = (detectors: readonly Detector[]): Table => ({
  name: 'areas',
  title: 'The best detectors',
  columns: ['site', 'neuron or latent', 'area under the curve', 'maximum, matched', 'maximum, mismatched'],
  rows: detectors.map((d) => [d.source.site, d.feature, d.auc, d.matched, d.mismatched]),
})

function strengthFigures(points: readonly Point[]): Figure[] {
  const label = (share: number) => `${share} of answers corrected in training`
  return [
    {
      name: 'bell',
      title: 'Recoveries by strength',
      caption:
        'Answers that start again and do better, with Wilson’s 95 % intervals: too little steering leaves nothing to correct, too much drowns the correction.',
      kind: 'line',
      x: { key: 'alpha', label: 'strength α' },
      y: { key: 'esr', label: 'ESR, % of answers' },
      series: { key: 'share', label: 'model' },
      data: points.map((p) => ({ alpha: p.alpha, esr: p.esr, low: p.low, high: p.high, share: label(p.share) })),
    },
    {
      name: 'first',
      title: 'First attempts by strength',
      caption: 'Mean score of first attempts: the same strengths derail all models alike.',
      kind: 'line',
      x: { key: 'alpha', label: 'strength α' },
      y: { key: 'first', label: 'score of the first attempt' },
      series: { key: 'share', label: 'model' },
      data: points.map((p) => ({ alpha: p.alpha, first: p.first, share: label(p.share) })),
    },
  ]
}

const heldFigure = (held: readonly Held[]): Figure => ({
  name: 'held',
  title: 'What holding detectors does to restarts',
  caption: 'Answers with two attempts or more, with Wilson’s 95 % intervals, over the same questions, seeds and strengths.',
  kind: 'bar',
  x: { key: 'multi', label: 'multi-attempt, % of answers' },
  y: { key: 'name', label: '', domain: held.map((h) => h.name) },
  data: held.map(({ name, run: { rates } }) => ({
    name,
    multi: percent(rates.multiAttempt.value),
    low: percent(rates.multiAttempt.low),
    high: percent(rates.multiAttempt.high),
  })),
})
