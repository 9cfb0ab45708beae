/** @file Entropic activation steering (arXiv:2406.00244): does the direction of indecision make an agent explore? */
import { meanOf } from '../base/numbers.ts'
import { RandomStream } from '../nn/index.ts'
import type { Model } from '../run/index.ts'
import { add } from '../sites/index.ts'
import { choiceOf, type EntropicRun, entropicDirection, shuffledEntries } from '../steer/index.ts'
import { definePaper, type Figure, type Metrics, type Repeat } from './paper.ts'
import type { Study } from './study.ts'
import { armTokens, bandit, banditModel, Game } from './toys/bandit.ts'

/** Strengths as the length of what is added, relative to the median length of the residual stream there. */
const strengths = [-0.7, -0.35, 0.175, 0.35, 0.7, 1.4]
const chief = 0.35
const layers = [0, 1, 2, 3]
const steered = 2

const m = (name: string) => (r: Metrics) => r[name] as number
const least = (name: (layer: number) => string) => (r: Metrics) => Math.min(...layers.map((l) => r[name(l)] as number))
const most = (name: (layer: number) => string) => (r: Metrics) => Math.max(...layers.map((l) => r[name(l)] as number))
const change = (kind: string, layer: number, strength: number) => `Δ entropy, ${kind}, layer ${layer}, ${strength}`
const chosenLayer = (kind: string, strength: number) => m(change(kind, steered, strength))

/** The reproduction. */
export const paper = definePaper({
  slug: 'east',
  title: 'Controlling Large Language Model Agents with Entropic Activation Steering',
  authors: 'Rahn, D’Oro, Bellemare (2024), ICML workshop on mechanistic interpretability',
  source: '2406.00244',
  family: 'steer',
  question:
    'Is there a direction in an agent’s states that means “I am unsure which action to take”, so that adding it makes the agent explore and subtracting it makes it commit?',
  claim: {
    text: 'Adding the entropic direction at 0.35 of the residual norm raises the entropy of actions by at least 0.04 nats at every layer.',
    metric: 'change of action entropy at the least effective layer, nats',
    threshold: 0.04,
  },
  ours: least((l) => change('EAST', l, chief)),
  baselines: {
    'no steering': () => 0,
    'binary contrast of entropy quartiles (CAA)': chosenLayer('quartiles', chief),
    'not centred': chosenLayer('not centred', chief),
    'without the drift of time': chosenLayer('without time', chief),
  },
  controls: {
    'entries shuffled (mean |Δ| of 3)': m('mean |Δ| shuffled'),
    'random direction (mean |Δ| of 3)': m('mean |Δ| random'),
    'subtracted instead (most effective layer)': most((l) => change('EAST', l, -chief)),
  },
  gates: [
    {
      name: 'hesitates',
      role: 'setting',
      text: 'The agent hesitates on held-out prompts, neither always nor never.',
      of: m('entropy, unsteered'),
      atLeast: 0.1,
      atMost: 0.6,
    },
    { name: 'valid', role: 'setting', text: 'Unsteered, the agent answers with an action.', of: m('validity, 0'), atLeast: 0.98 },
    {
      name: 'raises',
      role: 'claim',
      text: 'Adding raises the entropy at every layer.',
      of: least((l) => change('EAST', l, chief)),
      atLeast: 0.04,
    },
    {
      name: 'lowers',
      role: 'claim',
      text: 'Subtracting lowers it at every layer.',
      of: most((l) => change('EAST', l, -chief)),
      atMost: -0.04,
    },
    { name: 'monotone', role: 'claim', text: 'Entropy grows with strength (smallest step, nats).', of: m('smallest step'), atLeast: 0 },
    {
      name: 'answers',
      role: 'claim',
      text: 'Up to 0.7 of the norm the agent still answers with an action.',
      of: m('validity, least'),
      atLeast: 0.98,
    },
    {
      name: 'switches',
      role: 'claim',
      text: 'On its own, the agent changes arms more often with every strength (smallest step, changes a game).',
      of: m('smallest step of switches'),
      atLeast: 0,
    },
    {
      name: 'cost',
      role: 'claim',
      text: 'Exploring costs the better arm, committing gains it (smallest step of its share).',
      of: m('smallest step of share'),
      atLeast: 0,
    },
    {
      name: 'shuffled',
      role: 'control',
      text: 'The direction does at least three times what its shuffled entries do.',
      of: (r) => (r[change('EAST', steered, chief)] as number) / Math.max(1e-9, r['mean |Δ| shuffled'] as number),
      atLeast: 3,
    },
  ],
  data: 'Games of a two-armed bandit with noisy rewards, demonstrated by probability matching; a model of four blocks of width 48 is trained on them here. The direction comes from 65 games of the model itself with equal arms; it is judged on 150 prompts of games with unequal arms.',
  scale:
    'The paper steers Mixtral-8x7B and DBRX, which write a thought before they act, and estimates entropies from 25 samples. Here an action is one token, so that its distribution is exact.',
  notReproduced: [
    'temperature, which only fails to raise entropy where a thought comes before the action',
    'transfer between descriptions of a task',
    'the peak at the middle layer, which four blocks do not show',
    'the vocabulary of thoughts',
  ],
  notes: [
    'A direction of equal length that is not centred steers about as well here; the paper says that it does not work. No gate rests on it.',
    'Much of the direction is the length of the history (cosine with time in the table): entropy falls as a game goes on.',
    'More exploration is not better reward: the share of the better arm falls.',
  ],
  model: 'trained here: GPT-2 layout, 4 blocks, width 48',
  seeds: [0, 1, 2],
  revision: 1,
  repeat,
})

async function repeat(study: Study): Promise<Repeat> {
  const model = await study.trained('bandit agent', banditModel(study.seed, study.size(1100, 300)))
  return study.step('measure', {}, () => measure(model, study))
}

/** The site at which states are read and changed, at a layer. */
const site = (layer: number) => `resid_post.${layer}`

async function measure(model: Model, study: Study): Promise<Repeat> {
  const { seed } = study
  const logs = await collect(model, RandomStream.named(seed, 'collect'), study.size(65, 24))
  const prompts = await validationPrompts(model, RandomStream.named(seed, 'validate'), study.size(150, 48))
  const plain = await entropies(model, prompts)
  const metrics: Record<string, number> = {
    'entropy, unsteered': meanOf(plain.map((p) => p.entropy)),
    'validity, 0': meanOf(plain.map((p) => p.mass)),
  }
  const figureRows: { strength: number; change: number; kind: string }[] = []
  let validity = 1
  const judge = async (kind: string, layer: number, direction: Float64Array, strength: number) => {
    const vector = scaled(direction, strength * (logs.norms[layer] as number))
    const found = await entropies(steer(model, layer, vector), prompts)
    const delta = meanOf(found.map((f, i) => f.entropy - (plain[i]?.entropy as number)))
    metrics[change(kind, layer, strength)] = delta
    if (kind === 'EAST' && strength > 0 && strength <= 0.7) validity = Math.min(validity, meanOf(found.map((f) => f.mass)))
    return delta
  }
  for (const layer of layers) {
    const { direction, cosineWithTime } = entropicDirection(logs.runs[layer] as EntropicRun[])
    metrics[`cosine with time, layer ${layer}`] = cosineWithTime
    metrics[`‖u‖, layer ${layer}`] = Math.hypot(...direction)
    for (const s of layer === steered ? strengths : [-chief, chief]) {
      const delta = await judge('EAST', layer, direction, s)
      if (layer === steered) figureRows.push({ strength: s, change: delta, kind: 'EAST' })
    }
  }
  const runs = logs.runs[steered] as EntropicRun[]
  const { direction } = entropicDirection(runs)
  await judge('not centred', steered, entropicDirection(runs, { centre: 'none' }).direction, chief)
  await judge('without time', steered, entropicDirection(runs, { removeTime: true }).direction, chief)
  await judge('quartiles', steered, quartileContrast(runs), chief)
  const random = RandomStream.named(seed, 'controls')
  const sizes: Record<'shuffled' | 'random', number[]> = { shuffled: [], random: [] }
  for (let i = 0; i < 3; i++) {
    const controls = {
      shuffled: shuffledEntries(direction, random.permutation(direction.length)),
      random: direction.map(() => random.normal()),
    }
    for (const kind of ['shuffled', 'random'] as const)
      for (const s of kind === 'shuffled' && i === 0 ? strengths : [chief]) {
        const delta = await judge(`${kind} ${i}`, steered, controls[kind], s)
        if (s === chief) sizes[kind].push(Math.abs(delta))
        if (kind === 'shuffled' && i === 0) figureRows.push({ strength: s, change: delta, kind: 'entries shuffled' })
      }
  }
  metrics['mean |Δ| shuffled'] = meanOf(sizes.shuffled)
  metrics['mean |Δ| random'] = meanOf(sizes.random)
  metrics['validity, least'] = validity
  const along = strengths.slice(1, 5).map((s) => metrics[change('EAST', steered, s)] as number)
  metrics['smallest step'] = smallestStep(along)
  const policy = await onPolicy(model, study, direction, logs.norms[steered] as number)
  return { metrics: { ...metrics, ...policy.metrics }, tables: [policy.table], figures: [figureOf(figureRows), ...policy.figures] }
}

/** Adds a vector from the last token of the prompt on, which is where the state was read; the history before it is untouched. */
const steer = (model: Model, layer: number, vector: Float64Array): Model =>
  model.with(add(site(layer), Float32Array.from(vector), { where: { positions: -1 } }))

function scaled(direction: Float64Array, length: number): Float64Array {
  const size = Math.hypot(...direction)
  return direction.map((x) => (x * length) / size)
}

const smallestStep = (v: readonly number[]) => Math.min(...v.slice(1).map((x, i) => x - (v[i] as number)))

/** Exact action distributions after each prompt. */
async function entropies(model: Model, prompts: readonly (readonly number[])[]) {
  const { logits } = await model.run({ rows: prompts })
  return prompts.map((_, i) => choiceOf(logits.at(i, -1), armTokens))
}

/** Plays games at once, one round of all of them in each pass; `look` sees every pass. */
async function play(
  model: Model,
  games: readonly Game[],
  random: RandomStream,
  taps: readonly string[] = [],
  look?: (game: number, choice: ReturnType<typeof choiceOf>, states: readonly Float32Array[]) => void,
): Promise<void> {
  for (let t = 0; t < bandit.rounds; t++) {
    const result = await model.run({ rows: games.map((g) => g.ids) }, { taps })
    for (const [k, game] of games.entries()) {
      const choice = choiceOf(result.logits.at(k, -1), armTokens)
      look?.(
        k,
        choice,
        taps.map((s) => (result.taps[s] as { at(row: number, position: number): Float32Array }).at(k, -1)),
      )
      game.play(random.next() < (choice.probabilities[1] as number) ? 1 : 0)
    }
  }
}

/** Games with equal arms, with the state and the entropy before every action. */
async function collect(model: Model, random: RandomStream, count: number) {
  const games = Array.from({ length: count }, () => new Game(0, random))
  const runs = layers.map(() => games.map(() => [] as { state: Float32Array; entropy: number }[]))
  await play(model, games, random, layers.map(site), (game, { entropy }, states) => {
    for (const [l, state] of states.entries()) runs[l]?.[game]?.push({ state, entropy })
  })
  const norms = runs.map((r) => {
    const sizes = r
      .flat()
      .map((s) => Math.hypot(...s.state))
      .sort((a, b) => a - b)
    return sizes[Math.floor(sizes.length / 2)] as number
  })
  return { runs, norms }
}

/** Prompts at three rounds of games with unequal arms, which the model plays unsteered. */
async function validationPrompts(model: Model, random: RandomStream, count: number): Promise<number[][]> {
  const gaps = [-4, -2, -1, 1, 2, 4]
  const games = Array.from({ length: count }, (_, i) => new Game(gaps[i % gaps.length] as number, random))
  await play(model, games, random)
  const rounds = [5, 9, 13]
  return games.map((g, i) => g.ids.slice(0, 1 + 2 * ((rounds[Math.floor(i / gaps.length) % rounds.length] as number) - 1)))
}

/** The states of the most undecided quarter of the steps less those of the most decided, each less the mean of its run. */
function quartileContrast(runs: readonly EntropicRun[]): Float64Array {
  const centred = runs.flatMap((run) => {
    const mean = run.reduce((s, x) => s.map((v, i) => v + (x.state[i] as number) / run.length), new Float64Array(run[0]?.state.length ?? 0))
    return run.map(({ state, entropy }) => ({ state: Float64Array.from(state, (x, i) => x - (mean[i] as number)), entropy }))
  })
  const sorted = centred.sort((a, b) => a.entropy - b.entropy)
  const quarter = Math.floor(sorted.length / 4)
  const sum = (part: typeof sorted) =>
    part.reduce((s, x) => s.map((v, i) => v + (x.state[i] as number) / part.length), new Float64Array(sorted[0]?.state.length ?? 0))
  const [low, high] = [sum(sorted.slice(0, quarter)), sum(sorted.slice(-quarter))]
  return high.map((x, i) => x - (low[i] as number))
}

/** What the steered agent does on its own. */
async function onPolicy(model: Model, study: Study, direction: Float64Array, norm: number) {
  const used = [-0.7, -0.35, 0, 0.35, 0.7]
  const rows: { strength: number; switches: number; share: number }[] = []
  const games = study.size(160, 40)
  for (const s of used) {
    const agent = s === 0 ? model : steer(model, steered, scaled(direction, s * norm))
    const run = async (gap: number) => {
      // The same numbers for every strength, so that differences are the strength's.
      const random = RandomStream.named(study.seed, `on policy ${gap}`)
      const all = Array.from({ length: games }, () => new Game(gap, random))
      await play(agent, all, random)
      return all
    }
    const [equal, unequal] = [await run(0), await run(2)]
    rows.push({
      strength: s,
      switches: meanOf(equal.map((g) => g.arms.reduce((n, a, i) => n + (i > 0 && a !== g.arms[i - 1] ? 1 : 0), 0))),
      share: meanOf(unequal.flatMap((g) => g.arms)),
    })
  }
  const switches = rows.slice(0, 4).map((r) => r.switches)
  const share = [rows[3], rows[2], rows[1]].map((r) => r?.share as number)
  const figure: Figure = {
    name: 'policy',
    title: 'What the steered agent does',
    caption: `Changes of arm in ${bandit.rounds} rounds with equal arms, by strength; ${games} games each.`,
    kind: 'line',
    x: { key: 'strength', label: 'strength, relative to the residual norm' },
    y: { key: 'switches', label: 'changes of arm in a game' },
    data: rows.map(({ strength, switches: n }) => ({ strength, switches: n })),
  }
  return {
    metrics: {
      ...Object.fromEntries(
        rows.flatMap((r) => [
          [`switches, ${r.strength}`, r.switches],
          [`share of the better arm, ${r.strength}`, r.share],
        ]),
      ),
      'smallest step of switches': smallestStep(switches),
      'smallest step of share': smallestStep(share),
    },
    table: {
      name: 'policy',
      title: 'On its own, first seed',
      columns: ['strength', 'changes of arm, equal arms', 'share of the better arm, gap 2'],
      rows: rows.map((r) => [r.strength, r.switches, r.share]),
    },
    figures: [figure],
  }
}

const figureOf = (rows: readonly { strength: number; change: number; kind: string }[]): Figure => ({
  name: 'strength',
  title: 'Entropy of actions by strength',
  caption: `Change of the mean entropy at layer ${steered} on prompts of unequal games; the dots of the shuffled direction show what mere disturbance does.`,
  kind: 'line',
  x: { key: 'strength', label: 'strength, relative to the residual norm' },
  y: { key: 'change', label: 'change of entropy, nats' },
  series: { key: 'kind', label: 'direction' },
  data: rows,
})
