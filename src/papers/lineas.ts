/** @file LinEAS (arXiv:2503.10679): does fitting all maps together move the distribution where fitting them one by one does not? */

import { RandomStream } from '../nn/index.ts'
import type { Model } from '../run/index.ts'
import { AffineMaps, closedFormMaps, type LineasOptions, lineas, type MapsRecord, perplexity } from '../steer/index.ts'
import { mapDistance } from '../steer/maps/lineas.ts'
import { mappableSites, modelNetwork, pooledRows } from '../steer/maps/pooled.ts'
import { definePaper, type Figure, type Metrics, type Repeat } from './paper.ts'
import type { Study } from './study.ts'
import { topicModel, topicOf, topicStream, topicStreams, topics } from './toys/topics.ts'

const sites = ['attn_in.*', 'mlp_in.*']
const badTopic = 0

const m = (name: string) => (metrics: Metrics) => metrics[name] as number
const over = (a: string, b: string) => (metrics: Metrics) => (metrics[a] as number) / (metrics[b] as number)

/** The reproduction. */
export const paper = definePaper({
  slug: 'lineas',
  title: 'LinEAS: End-to-end Learning of Activation Steering with a Distributional Loss',
  authors: 'Rodríguez, Klein, Gualdoni, Maiorca, Blaas, Zappella, Cuturi, Suau (Apple), NeurIPS 2025',
  source: '2503.10679',
  family: 'steer',
  question:
    'Does learning the maps of all layers together keep steered activations distributed as the target’s, where maps fitted layer by layer drift apart?',
  claim: {
    text: 'Maps fitted together bring held-out source activations to at most 0.35 of their distance from the target, while independent shifts increase it.',
    metric: 'held-out distance, relative to no steering',
    threshold: 0.35,
  },
  ours: over('distance, lineas', 'distance, none'),
  baselines: {
    none: () => 1,
    'Mean-AcT, independent': over('distance, mean-act', 'distance, none'),
    'Lin-AcT, independent': over('distance, lin-act independent', 'distance, none'),
    'Lin-AcT, incremental': over('distance, lin-act', 'distance, none'),
  },
  controls: {
    'shuffled labels': over('distance, shuffled', 'distance, none'),
    'no steps': over('distance, no steps', 'distance, none'),
  },
  gates: [
    {
      name: 'learnt',
      role: 'setting',
      text: 'Unsteered, words of the topic come at least twice as often as by chance, per cent.',
      of: m('share, none'),
      atLeast: 25,
    },
    {
      name: 'distance',
      role: 'claim',
      text: 'LinEAS brings the held-out distance down.',
      of: over('distance, lineas', 'distance, none'),
      atMost: 0.35,
    },
    { name: 'share', role: 'claim', text: 'LinEAS leaves at most 5 % of the unwanted topic’s words.', of: m('share, lineas'), atMost: 5 },
    {
      name: 'utility',
      role: 'claim',
      text: 'LinEAS keeps the perplexity of clean streams within 1.7 times.',
      of: over('perplexity, lineas', 'perplexity, none'),
      atMost: 1.7,
    },
    {
      name: 'mean',
      role: 'claim',
      text: 'Independent mean shifts increase the held-out distance.',
      of: over('distance, mean-act', 'distance, none'),
      atLeast: 1,
    },
    {
      name: 'independent',
      role: 'claim',
      text: 'Independent least squares increase the held-out distance more than a hundredfold.',
      of: over('distance, lin-act independent', 'distance, none'),
      atLeast: 100,
    },
    {
      name: 'frontier',
      role: 'claim',
      text: 'At no more than 2 % of the unwanted words, LinEAS costs less perplexity than incremental least squares.',
      of: (r) => (r['best perplexity, lineas'] as number) / (r['perplexity, lin-act'] as number),
      atMost: 1,
    },
    {
      name: 'shuffled share',
      role: 'control',
      text: 'With shuffled labels the unwanted words stay.',
      of: m('share, shuffled'),
      atLeast: 20,
    },
    {
      name: 'shuffled ratio',
      role: 'control',
      text: 'With shuffled labels at least ten times as many of them are left.',
      of: (r) => (r['share, shuffled'] as number) / Math.max(r['share, lineas'] as number, 0.1),
      atLeast: 10,
    },
    {
      name: 'identity',
      role: 'control',
      text: 'Maps of no steps change nothing.',
      of: (r) => Math.abs((r['perplexity, no steps'] as number) - (r['perplexity, none'] as number)),
      atMost: 0,
    },
  ],
  data: 'A language of six topics with eight words each and eight fillers; 32 streams of the unwanted topic and 32 of the others fit the maps, 256 of each judge them. The model, three blocks of width 48, is trained here from the seeded generator.',
  scale:
    'The paper steers Qwen2.5 and Gemma-2 of 1.5 to 7 billion parameters away from toxicity. Here a word of the unwanted topic stands for a toxic word; the share of such words is counted, not judged by a classifier.',
  notReproduced: ['toxicity of language models, MMLU', 'text-to-image models', 'composition of concepts'],
  notes: [
    'How often a stream changes its topic sets how much the source varies, and with it how wild the slopes of independent least squares become: with a change in half of the streams they double the distance, with one in a quarter, which gives about the paper card’s share of words, see the table.',
    'LinEAS is not required to beat incremental least squares on the distance itself: on this model it does not do so reliably.',
    'Perplexity is measured with the maps on. The paper’s rate of 0.1 is not free of scale; rates on a grid are shown.',
  ],
  model: 'trained here: GPT-2 layout, 3 blocks, width 48',
  seeds: [0, 1, 2],
  revision: 2,
  repeat,
})

async function repeat(study: Study): Promise<Repeat> {
  const { seed } = study
  const model = await study.trained('topic language', topicModel(seed, study.size(900, 250)))
  const other = (random: RandomStream) => 1 + random.below(topics.count - 1)
  const source = topicStreams(seed, 'source', 32, () => badTopic)
  const target = topicStreams(seed, 'target', 32, other)
  const held = study.size(256, 64)
  const task = await judgeOf(model, {
    source: topicStreams(seed, 'held-out source', held, () => badTopic),
    target: topicStreams(seed, 'held-out target', held, other),
    prompts: Array.from({ length: study.size(200, 60) }, (_, i) => topicStream(RandomStream.named(seed, `prompt ${i}`), badTopic, 5)),
    seed,
  })
  const steps = study.size(1000, 150)
  const fit = { source, target, sites, seed, ...study.work }
  const rows: Judged[] = []
  const judged = async (name: string, maps: AffineMaps | undefined) => {
    const found = await study.step(
      `judge ${name}`,
      { maps: maps ? [...maps.maps].map(([s, x]) => [s, [...x.scale], [...x.shift]]) : null, held },
      () => task(name, maps),
    )
    rows.push(found)
    return found
  }
  // A fit takes up to a minute, so an interrupted run must not make it twice.
  const fitted = async (name: string, work: () => Promise<AffineMaps>): Promise<AffineMaps> => {
    const kept = await study.step<KeptMaps>(`fit ${name}`, { steps }, async () => keep(await work()))
    const maps = restore(kept)
    await judged(name, maps)
    return maps
  }
  const lin = (name: string, options: Partial<LineasOptions>) => fitted(name, () => lineas(model, { ...fit, steps, ...options }))
  const adam = { optimizer: 'adam', rate: 0.01 } as const
  await judged('none', undefined)
  await lin('no steps', { steps: 0 })
  await fitted('mean-act', () => closedFormMaps(model, 'mean-act', { ...fit, mode: 'independent' }))
  await fitted('lin-act independent', () => closedFormMaps(model, 'lin-act', { ...fit, mode: 'independent' }))
  await fitted('lin-act', () => closedFormMaps(model, 'lin-act', { ...fit, mode: 'incremental' }))
  for (const rate of study.size([0.1, 0.02, 0.005, 0.001], [0.02])) await lin(`lineas sgd ${rate}`, { rate })
  const chief = await lin('lineas', adam)
  for (const gamma of study.size([0.1, 0.3], [0.1])) await lin(`lineas, gamma ${gamma}`, { ...adam, gamma })
  const order = RandomStream.named(seed, 'shuffle').permutation(64)
  const all = [...source, ...target]
  const half = (from: number) => Array.from(order.slice(from, from + 32), (i) => all[i] as number[])
  await lin('shuffled', { ...adam, source: half(0), target: half(32) })
  const strengths: Judged[] = []
  for (const lambda of study.size([0, 0.25, 0.5, 0.75, 1], [0, 0.5, 1])) strengths.push(await task(`λ = ${lambda}`, chief.strength(lambda)))
  return { metrics: metricsOf(rows), tables: [tableOf(rows)], figures: figuresOf(rows, strengths) }
}

/** Maps as a cached step holds them. */
interface KeptMaps {
  readonly maps: readonly (readonly [string, readonly number[], readonly number[]])[]
  readonly record: MapsRecord
}

const keep = ({ maps, record }: AffineMaps): KeptMaps => ({ maps: [...maps].map(([s, x]) => [s, [...x.scale], [...x.shift]]), record })
const restore = ({ maps, record }: KeptMaps): AffineMaps =>
  new AffineMaps(
    maps.map(([s, scale, shift]) => [s, { scale: Float64Array.from(scale), shift: Float64Array.from(shift) }]),
    record,
  )

interface Judged {
  readonly name: string
  readonly distance: number
  readonly share: number
  readonly perplexity: number
  /** Per cent of coordinates that are changed. */
  readonly support: number
  readonly bySite: Readonly<Record<string, number>>
}

/** What judges maps: distance on held-out streams, unwanted words in continuations, perplexity of clean streams. */
async function judgeOf(
  model: Model,
  data: { source: number[][]; target: number[][]; prompts: number[][]; seed: number },
): Promise<(name: string, maps: AffineMaps | undefined) => Promise<Judged>> {
  const resolved = mappableSites(model, sites)
  const network = modelNetwork(model, data.source, resolved, 'mean')
  const target = await pooledRows(modelNetwork(model, data.target, resolved, 'mean'))
  return async (name, maps) => {
    const steered = maps ? model.with(...maps.edits()) : model
    const distance = await mapDistance(network, target, maps?.maps)
    const texts = await steered
      .generate({ rows: data.prompts }, { maxNewTokens: 18, temperature: 1, seed: data.seed, ignoreEos: true })
      .results()
    const words = texts.flatMap((t) => t.tokens).map(topicOf)
    return {
      name,
      distance: distance.total,
      share: (100 * words.filter((t) => t === badTopic).length) / words.length,
      perplexity: await perplexity(steered, { rows: data.target }),
      support: maps ? (100 * maps.support.changed) / maps.support.of : 0,
      bySite: Object.fromEntries(distance.bySite),
    }
  }
}

function metricsOf(rows: readonly Judged[]): Metrics {
  const best = rows.filter((r) => r.name.startsWith('lineas') && r.share <= 2).map((r) => r.perplexity)
  return {
    ...Object.fromEntries(
      rows.flatMap((r) => [
        [`distance, ${r.name}`, r.distance],
        [`share, ${r.name}`, r.share],
        [`perplexity, ${r.name}`, r.perplexity],
      ]),
    ),
    'best perplexity, lineas': best.length > 0 ? Math.min(...best) : Number.NaN,
  }
}

const tableOf = (rows: readonly Judged[]) => ({
  name: 'methods',
  title: 'Methods, first seed',
  columns: ['method', 'held-out distance', 'unwanted words, %', 'perplexity of clean streams', 'support, %'],
  rows: rows.map((r) => [r.name, r.distance, r.share, r.perplexity, r.support]),
})

function figuresOf(rows: readonly Judged[], strengths: readonly Judged[]): Figure[] {
  const shown = rows.filter((r) => r.name !== 'no steps')
  return [
    {
      name: 'frontier',
      title: 'Unwanted words against perplexity',
      caption: 'Each dot is a method; down and to the left is better. The line is LinEAS from no strength to full strength.',
      kind: 'dot',
      x: { key: 'perplexity', label: 'perplexity of clean streams, maps on' },
      y: { key: 'share', label: 'unwanted words, %' },
      series: { key: 'kind', label: 'method' },
      data: [
        ...shown.map((r) => ({ ...plain(r), kind: r.name.split(/[ ,]/)[0] as string })),
        ...strengths.map((r) => ({ ...plain(r), kind: 'strength of lineas' })),
      ],
    },
    {
      name: 'sites',
      title: 'Where the distance lies',
      caption: 'Distance between steered source and target on held-out streams, by site in the order of the network.',
      kind: 'line',
      x: { key: 'site', label: 'site', domain: Object.keys(rows[0]?.bySite ?? {}) },
      y: { key: 'distance', label: 'distance (squared units)', scale: 'log' },
      series: { key: 'method', label: 'method' },
      data: shown
        .filter((r) => ['none', 'mean-act', 'lin-act', 'lineas'].includes(r.name))
        .flatMap((r) => Object.entries(r.bySite).map(([site, distance]) => ({ site, distance: Math.max(distance, 1e-6), method: r.name }))),
    },
  ]
}

const plain = ({ name, share, perplexity: p }: Judged) => ({ label: name, share, perplexity: p })
