/** @file Control vectors for reasoning (arXiv:2504.19483): what does adding the state of solved examples do to accuracy, divergence and entropy? */
import { UsageError } from '../base/errors.ts'
import { RandomStream } from '../nn/index.ts'
import type { Model } from '../run/index.ts'
import { candidateScores, divergence, meanDifference, pcaCentred, pcaDifference, reading, SteeringVector } from '../steer/index.ts'
import { definePaper, type Figure, type Metrics, type Repeat, type Table } from './paper.ts'
import { mcnemarP, permutationP } from './statistics.ts'
import type { Study } from './study.ts'
import { type IoiItem, ioiItems, ioiModel, ioiNegatives, nameTokens } from './toys/ioi.ts'
import { englishItems } from './toys/ioi-english.ts'

const alphas = [-1, -0.5, -0.1, 0, 0.1, 0.5, 1]
const small = 0.1
const m = (name: string) => (r: Metrics) => r[name] as number
const key = (what: string, recipe: string, alpha: number) => `${what}, ${recipe}, α ${alpha}`
const both = (what: string, recipe: string, combine: (...v: number[]) => number) => (r: Metrics) =>
  combine(r[key(what, recipe, -1)] as number, r[key(what, recipe, 1)] as number)
const drift = (r: Metrics) =>
  Math.max(
    ...['R', 'R-C'].flatMap((recipe) =>
      [-small, small].map((a) => 100 * Math.abs((r[key('accuracy', recipe, a)] as number) - (r['accuracy, base'] as number))),
    ),
  )

/** The reproduction. */
export const paper = definePaper({
  slug: 'reasoning-control-vectors',
  title: 'Improving Reasoning Performance in Large Language Models via Representation Engineering',
  authors: 'Højer, Jarvis, Heinrich (IT University of Copenhagen), ICLR 2025',
  source: '2504.19483',
  family: 'steer',
  question: 'Does adding the state that a model has after solved examples change how it answers, and does it answer better?',
  claim: {
    text: 'The contrastive vector changes the next-token distribution by at least 0.05 nats at full strength, growing from nothing on both sides.',
    metric: 'divergence from the unsteered model at |α| = 1, nats (R-C, smaller side)',
    threshold: 0.05,
  },
  ours: both('kl', 'R-C', Math.min),
  baselines: {
    'no steering': () => 0,
    'reading (R)': both('kl', 'R', Math.min),
    'PCA of contrasts (PCA-C)': both('kl', 'PCA-C', Math.min),
    'PCA, not centred': both('kl', 'PCA', Math.min),
  },
  controls: { 'random direction, same length': m('kl, random, |α| 1'), 'shuffled contrast': both('kl', 'shuffled', Math.min) },
  gates: [
    {
      name: 'solves',
      role: 'setting',
      text: 'The model solves most questions and not all.',
      of: m('accuracy, base'),
      atLeast: 0.6,
      atMost: 0.985,
    },
    { name: 'zero', role: 'control', text: 'Strength zero changes nothing, nats.', of: m('kl, zero'), atLeast: 0, atMost: 0 },
    { name: 'R', role: 'claim', text: 'Reading changes the distribution at |α| = 1.', of: both('kl', 'R', Math.min), atLeast: 0.05 },
    {
      name: 'R-C',
      role: 'claim',
      text: 'The contrast changes the distribution at |α| = 1.',
      of: both('kl', 'R-C', Math.min),
      atLeast: 0.05,
    },
    {
      name: 'grows',
      role: 'claim',
      text: 'Divergence grows with |α| on both sides (smallest step, nats).',
      of: m('smallest step of kl'),
      atLeast: 0,
    },
    {
      name: 'entropy',
      role: 'claim',
      text: 'Entropy at |α| = 1 is not below that at zero (bits above).',
      of: (r) => Math.min(...['R', 'R-C'].map((x) => both('entropy', x, Math.max)(r))) - (r['entropy, base'] as number),
      atLeast: 0,
    },
    { name: 'small', role: 'claim', text: 'Small strengths leave accuracy within 1.5 points.', of: drift, atMost: 1.5 },
    {
      name: 'random',
      role: 'control',
      text: 'The contrast changes the distribution at least twice as much as random directions of its length.',
      of: (r) => both('kl', 'R-C', Math.min)(r) / Math.max(1e-9, r['kl, random, |α| 1'] as number),
      atLeast: 2,
    },
    {
      name: 'shuffled',
      role: 'control',
      text: 'The contrast changes it at least twice as much as a contrast of shuffled labels of its length.',
      of: (r) => both('kl', 'R-C', Math.min)(r) / Math.max(1e-9, both('kl', 'shuffled', Math.min)(r)),
      atLeast: 2,
    },
  ],
  data: 'Questions after the indirect object in a language of tokens, four templates; 400 solved examples against random tokens give the vectors, 1,000 other questions judge them. The model, four blocks of width 48, is trained here and stopped before it solves all.',
  scale: 'The paper uses Pythia of 14 million to 2.8 billion parameters and Mistral-7B on indirect objects, bAbI and GSM8K.',
  notReproduced: ['bAbI-15 and GSM8K', 'Mistral-7B', 'transfer between tasks'],
  notes: [
    'Any direction of such a length changes the distribution, so the size of the change alone says little: two controls hold it against random directions and against a contrast of shuffled labels. They were added after the first full run, in which all other gates held.',
    'Whether steering improves accuracy is no gate: in the calibration no recipe did by more than one point. The table of gains tells the best gain over the base on questions that did not choose the strength, McNemar’s p, and how many random directions do as well.',
    'PCA of contrasts as coded by the authors is centred: it leaves out the very shift that the contrast is, and is then scaled by its length.',
  ],
  model: 'trained here: GPT-2 layout, 4 blocks, width 48',
  ownModel: 'reads English questions after the indirect object, with names that are one token in its vocabulary',
  seeds: [0, 1, 2],
  revision: 3,
  repeat,
})

/** A task: questions with candidates. */
interface Task {
  readonly train: readonly IoiItem[]
  readonly dev: readonly IoiItem[]
  readonly test: readonly IoiItem[]
  readonly candidates: readonly number[]
  readonly negative: (item: IoiItem, random: RandomStream) => readonly number[]
}

async function repeat(study: Study): Promise<Repeat> {
  const own = study.hasOwnModel
  const model = own ? await study.model() : await study.trained('indirect objects', ioiModel(study.seed, study.size(270, 260)))
  const task = own ? englishTask(model, study) : toyTask(study)
  return study.step('measure', {}, () => measure(model, task, study, own ? Math.floor(model.spec.layers / 2) : 1))
}

function toyTask({ seed, quick }: Study): Task {
  const items = (name: string, count: number) => ioiItems(RandomStream.named(seed, name), quick ? Math.ceil(count / 5) : count)
  return {
    train: items('train', 400),
    dev: items('dev', 500),
    test: items('test', 1000),
    candidates: nameTokens,
    negative: ioiNegatives.random,
  }
}

function englishTask(model: Model, study: Study): Task {
  const { items, candidates } = englishItems(model, RandomStream.named(study.seed, 'english'), study.size(500, 90))
  const part = (from: number, to: number) => items.slice(Math.floor(from * items.length), Math.floor(to * items.length))
  const vocab = model.spec.vocab
  return {
    train: part(0, 0.4),
    dev: part(0.4, 0.6),
    test: part(0.6, 1),
    candidates,
    negative: (item, random) => [...item.prompt, item.answer].map(() => random.below(vocab)),
  }
}

interface Measured {
  readonly accuracy: number
  readonly kl: number
  readonly entropy: number
  /** Share of the candidates' probability that the right one has. */
  readonly mass: number
  readonly right: readonly boolean[]
}

async function measure(model: Model, task: Task, study: Study, layer: number): Promise<Repeat> {
  const site = `resid_post.${layer}`
  const random = RandomStream.named(study.seed, 'vectors')
  const positive = task.train.map((t) => [...t.prompt, t.answer])
  const negative = task.train.map((t) => task.negative(t, random))
  const options = { positive, negative, site, ...study.work }
  const contrast = await meanDifference(model, options)
  const length = contrast.norms.get(site) as number
  const swap = task.train.map(() => random.next() < 0.5)
  const shuffledSides = {
    positive: positive.map((p, i) => (swap[i] ? (negative[i] as readonly number[]) : p)),
    negative: positive.map((p, i) => (swap[i] ? p : (negative[i] as readonly number[]))),
  }
  const vectors: Readonly<Record<string, SteeringVector>> = {
    R: await reading(model, options),
    'R-C': contrast,
    'PCA-C': (await pcaDifference(model, options)).normalized(length),
    PCA: (await pcaCentred(model, options)).normalized(length),
    shuffled: (await meanDifference(model, { ...options, ...shuffledSides })).normalized(length),
  }
  const judge =
    (items: readonly IoiItem[]) =>
    async (v: SteeringVector | undefined, alpha: number): Promise<Measured> =>
      measured(model, v && alpha !== 0 ? model.with(v.edits({ scale: alpha })) : model, items, task.candidates, study)
  const [onTest, onDev] = [judge(task.test), judge(task.dev)]
  const base = await onTest(undefined, 0)
  if (!Number.isFinite(base.kl)) throw new UsageError('The model gives no finite numbers on the questions; choose another model.')
  const metrics: Record<string, number> = { 'accuracy, base': base.accuracy, 'entropy, base': base.entropy, 'mass, base': base.mass }
  const curves: { recipe: string; alpha: number; m: Measured }[] = []
  for (const [recipe, v] of Object.entries(vectors))
    for (const alpha of alphas) {
      const found = await onTest(v, alpha)
      curves.push({ recipe, alpha, m: found })
      for (const what of ['accuracy', 'kl', 'entropy', 'mass'] as const) metrics[key(what, recipe, alpha)] = found[what]
      study.onProgress?.({
        task: `steering with ${recipe}`,
        done: curves.length,
        total: alphas.length * Object.keys(vectors).length,
        unit: 'strengths',
      })
    }
  metrics['kl, zero'] = metrics[key('kl', 'R-C', 0)] as number
  metrics['smallest step of kl'] = Math.min(
    ...['R', 'R-C'].flatMap((r) =>
      [
        [-1, -0.5, -0.1, 0],
        [1, 0.5, 0.1, 0],
      ].flatMap((side) =>
        side.slice(1).map((a, i) => (metrics[key('kl', r, side[i] as number)] as number) - (metrics[key('kl', r, a)] as number)),
      ),
    ),
  )
  const bands = await randomBand(study, layer, length, contrast, onDev, onTest, base)
  metrics['kl, random, |α| 1'] = bands.kl
  const gains = await gainTable(vectors, onDev, onTest, base, bands.gains, metrics)
  return { metrics, tables: [gains], figures: figuresOf(curves, base) }
}

/** Accuracy, divergence, entropy and mass after the prompts. */
async function measured(
  base: Model,
  steered: Model,
  items: readonly IoiItem[],
  candidates: readonly number[],
  study: Study,
): Promise<Measured> {
  const rows = items.map((i) => i.prompt)
  const { logits } = await candidateScores(steered, { rows }, candidates, study.work)
  const { kl, entropy } = await divergence(base, steered, { rows }, { positions: 'last', ...study.work })
  let mass = 0
  const right = items.map((item, i) => {
    const scores = logits[i] as Float32Array
    const top = Math.max(...scores)
    const own = scores[candidates.indexOf(item.answer)] as number
    mass += Math.exp(own - top) / scores.reduce((s, v) => s + Math.exp(v - top), 0) / items.length
    return own === top
  })
  return { accuracy: right.filter(Boolean).length / items.length, kl, entropy, mass, right }
}

type Judge = (v: SteeringVector | undefined, alpha: number) => Promise<Measured>

/** The best strength on questions that choose it, and its gain on others. */
async function chosenGain(
  v: SteeringVector,
  onDev: Judge,
  onTest: Judge,
  base: Measured,
): Promise<{ alpha: number; gain: number; found: Measured }> {
  let best = { alpha: 0, accuracy: (await onDev(undefined, 0)).accuracy }
  for (const alpha of alphas) {
    if (alpha === 0) continue
    const { accuracy } = await onDev(v, alpha)
    if (accuracy > best.accuracy) best = { alpha, accuracy }
  }
  const found = await onTest(v, best.alpha)
  return { alpha: best.alpha, gain: 100 * (found.accuracy - base.accuracy), found }
}

async function randomBand(study: Study, layer: number, length: number, like: SteeringVector, onDev: Judge, onTest: Judge, base: Measured) {
  const site = `resid_post.${layer}`
  const random = RandomStream.named(study.seed, 'random directions')
  const gains: number[] = []
  let kl = 0
  const count = study.size(20, 3)
  for (let i = 0; i < count; i++) {
    const direction = Float64Array.from({ length: like.at(site).length }, () => random.normal())
    const v = new SteeringVector([[site, direction]], { ...like.record, method: 'random' }).normalized(length)
    gains.push((await chosenGain(v, onDev, onTest, base)).gain)
    kl += ((await onTest(v, 1)).kl + (await onTest(v, -1)).kl) / (2 * count)
    study.onProgress?.({ task: 'random directions', done: i + 1, total: count, unit: 'directions' })
  }
  return { gains, kl }
}

async function gainTable(
  vectors: Readonly<Record<string, SteeringVector>>,
  onDev: Judge,
  onTest: Judge,
  base: Measured,
  random: readonly number[],
  metrics: Record<string, number>,
): Promise<Table> {
  const rows: (string | number)[][] = []
  for (const [recipe, v] of Object.entries(vectors)) {
    const { alpha, gain, found } = await chosenGain(v, onDev, onTest, base)
    const lost = base.right.filter((r, i) => r && !found.right[i]).length
    const won = found.right.filter((r, i) => r && !base.right[i]).length
    const p = permutationP(gain, random)
    metrics[`gain, ${recipe}`] = gain
    metrics[`p among random, ${recipe}`] = p
    rows.push([recipe, alpha, gain, mcnemarP(lost, won), p])
  }
  return {
    name: 'gains',
    title: 'Does it answer better? (first seed)',
    columns: ['recipe', 'α chosen on other questions', 'gain, points', 'McNemar p', 'p among random directions'],
    rows,
    note: `The best of ${random.length} random directions of equal length gains ${Math.max(...random).toFixed(1)} points by the same choice of strength.`,
  }
}

function figuresOf(curves: readonly { recipe: string; alpha: number; m: Measured }[], base: Measured): Figure[] {
  const figure = (what: 'accuracy' | 'kl' | 'entropy' | 'mass', title: string, label: string): Figure => ({
    name: what,
    title,
    caption: `${label} on questions that did not make the vectors, by strength; unsteered ${base[what].toPrecision(3)}.`,
    kind: 'line',
    x: { key: 'alpha', label: 'α' },
    y: { key: 'value', label },
    series: { key: 'recipe', label: 'recipe' },
    data: curves.map((c) => ({ alpha: c.alpha, value: c.m[what], recipe: c.recipe })),
  })
  return [
    figure('accuracy', 'Accuracy', 'share of right answers'),
    figure('kl', 'Divergence from the unsteered model', 'nats'),
    figure('entropy', 'Entropy of the next token', 'bits'),
    figure('mass', 'Probability of the right name among names', 'share'),
  ]
}
