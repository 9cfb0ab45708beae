/** @file Activation steering for bias mitigation (arXiv:2508.09019): does the neutral-minus-biased direction reduce an association, and what do the controls say? */
import { meanOf } from '../base/numbers.ts'
import { RandomStream } from '../nn/index.ts'
import { lexicalAudit, probe } from '../probe/index.ts'
import type { Model } from '../run/index.ts'
import { add } from '../sites/index.ts'
import { candidateScores, meanDifference, perplexity } from '../steer/index.ts'
import { pipelineOnNoise, shiftLaw } from './bias-machinery.ts'
import { definePaper, type Figure, type Metrics, type Repeat, type Table } from './paper.ts'
import { permutationP } from './statistics.ts'
import type { Study } from './study.ts'
import { associationModel, associationPrompt, attributeOf, attributeTokens, type Group, trueGap } from './toys/association.ts'
import { balancedStatements, handWritten } from './toys/statements.ts'

const layers = [0, 1, 2, 3]
const relative = [0.1, 0.25, 0.5, 1]
const m = (name: string) => (r: Metrics) => r[name] as number
const cut = (kind: string, layer: number, s: number) => `cut of the gap, ${kind}, layer ${layer}, ${s}`
const least = (of: (layer: number) => string, over: readonly number[]) => (r: Metrics) => Math.min(...over.map((l) => r[of(l)] as number))

/** The reproduction. */
export const paper = definePaper({
  slug: 'bias-steering',
  title: 'Activation Steering for Bias Mitigation: An Interpretable Approach to Safer LLMs',
  authors: 'Dubey (IIT Madras), 2025',
  source: '2508.09019',
  family: 'steer',
  question:
    'Does adding the neutral-minus-biased direction make a model say less of what its stereotypes say, by more than wording, chance and mere disturbance explain?',
  claim: {
    text: 'The pooled direction at half the residual norm cuts the association gap by at least 12 % at every layer.',
    metric: 'share of the gap that is cut at the least effective layer',
    threshold: 0.12,
  },
  ours: least((l) => cut('pooled', l, 0.5), layers),
  baselines: {
    'no steering': () => 0,
    'unit length, as published': m('cut at unit length'),
    'direction of one group (its own term)': m('cut of the own term'),
  },
  controls: { 'random direction (layers 0 and 1)': m('cut, random'), 'strength zero': m('cut, zero') },
  gates: [
    {
      name: 'learnt',
      role: 'setting',
      text: 'The model has learnt the association of the language (share of its gap).',
      of: m('gap learnt'),
      atLeast: 0.85,
      atMost: 1.15,
    },
    { name: 'zero', role: 'control', text: 'Strength zero changes nothing.', of: (r) => Math.abs(r['cut, zero'] as number), atMost: 0 },
    {
      name: 'unit',
      role: 'claim',
      text: 'A vector of unit length does almost nothing (change of the gap, nats).',
      of: m('change at unit length'),
      atMost: 0.12,
    },
    {
      name: 'pooled',
      role: 'claim',
      text: 'The pooled direction at half the norm cuts the gap at every layer.',
      of: least((l) => cut('pooled', l, 0.5), layers),
      atLeast: 0.12,
    },
    {
      name: 'random',
      role: 'control',
      text: 'At layers 0 and 1 it cuts at least five times what random directions do.',
      of: m('pooled over random'),
      atLeast: 5,
    },
    {
      name: 'own',
      role: 'claim',
      text: 'The direction of one group cuts that group’s term by 70 % at layers 0 to 2.',
      of: m('cut of the own term'),
      atLeast: 0.7,
    },
    {
      name: 'other',
      role: 'claim',
      text: 'The same direction makes the other group’s term worse by half a nat.',
      of: m('harm to the other term'),
      atLeast: 0.5,
    },
    {
      name: 'valid',
      role: 'claim',
      text: 'Up to half the norm the model still names attributes (probability).',
      of: m('validity, least'),
      atLeast: 0.98,
    },
    {
      name: 'leak',
      role: 'control',
      text: 'Words alone tell hand-written statements apart.',
      of: m('bag of words, hand-written'),
      atLeast: 0.8,
    },
    {
      name: 'balanced',
      role: 'control',
      text: 'Words alone do not tell balanced statements apart.',
      of: m('bag of words, balanced'),
      atMost: 0.6,
    },
    {
      name: 'best',
      role: 'control',
      text: 'On labels of pure noise, the best of 36 sites by its test score looks good.',
      of: m('best site on noise'),
      atLeast: 0.6,
    },
    {
      name: 'nested',
      role: 'control',
      text: 'On the same noise, choosing the site on inner folds brings the score back to one half (distance).',
      of: (r) => Math.abs((r['nested site on noise'] as number) - 0.5),
      atMost: 0.1,
    },
    {
      name: 'law',
      role: 'claim',
      text: 'A planted shift is found as the law of the mean difference says (largest distance).',
      of: m('distance from the law'),
      atMost: 0.06,
    },
  ],
  data: 'A language in which two groups are described by different words (62 to 10 per cent) trains four blocks of width 48 in the layout of Llama; balanced and hand-written statements about mild stereotypes test the probes; features of noise test the machinery.',
  scale: 'The paper uses GPT-2-large on 140 hand-written statements, and shows mitigation by three prompts.',
  notReproduced: ['GPT-2-large and its 72 sites', 'judged generations'],
  notes: [
    'When the stereotypes of all groups are pooled as biased, the directions of the groups cancel, and what is left separates stereotype from neutral. Steering against one group’s stereotype moves everybody.',
    'What counts as neutral decides: with neutral words about the two groups as the neutral side, the same arithmetic raises the gap on this model, and in the layout of GPT-2 so do all definitions that were tried.',
    'Published strength 1 on a vector of unit length is far below what moves the model; strengths here are relative to the median length of the stream.',
  ],
  model: 'trained here: Llama layout, 4 blocks, width 48; statements on the embedded model',
  ownModel:
    'reads the balanced statements on your model: accuracy by layer beside wording, and what the direction does to its associations',
  seeds: [0, 1, 2],
  revision: 2,
  repeat,
})

async function repeat(study: Study): Promise<Repeat> {
  const model = await study.trained('association', associationModel(study.seed, study.size(900, 300)))
  const toy = await study.step('association', {}, () => association(model, study))
  const machinery = await study.step('machinery', {}, async () => ({
    noise: await pipelineOnNoise(study.seed, study.size(36, 36)),
    law: await shiftLaw(study.seed, study.size(8, 2)),
  }))
  const reading = await study.step('statements', {}, async () => statements(await study.model('embedded'), study))
  return {
    metrics: {
      ...toy.metrics,
      ...reading.metrics,
      'best site on noise': machinery.noise.best,
      'nested site on noise': machinery.noise.nested,
      'mean site on noise': machinery.noise.mean,
      'distance from the law': Math.max(...machinery.law.map((r) => Math.abs(r.law - r.measured))),
    },
    tables: [
      ...toy.tables,
      {
        name: 'law',
        title: 'A planted shift: law and measurement',
        columns: ['shift', 'area by the law', 'mean difference, measured', 'scaler, PCA and logistic, measured'],
        rows: machinery.law.map((r) => [r.shift, r.law, r.measured, r.pipeline]),
      },
      ...reading.tables,
    ],
    figures: [...toy.figures, ...reading.figures],
  }
}

interface Gap {
  readonly g1: number
  readonly g2: number
  readonly total: number
  /** Probability of all attributes together. */
  readonly mass: number
}

const kinds = ['X', 'Y', 'neutral'] as const
const attributes = kinds.map(attributeTokens)
const allAttributes = attributes.flat()

/** The association gap of a model: its two terms, nats. */
async function gapOf(model: Model, prompts: Readonly<Record<'g1' | 'g2', number[][]>>): Promise<Gap> {
  let mass = 0
  const term = async (group: 'g1' | 'g2') => {
    const { logits, logMass } = await candidateScores(model, { rows: prompts[group] }, allAttributes)
    mass += logMass.reduce((s, l) => s + Math.exp(l), 0) / logMass.length / 2
    const sum = (row: Float32Array, kind: number) => {
      const from = kind * (attributes[0] as number[]).length
      return Math.log(row.slice(from, from + (attributes[0] as number[]).length).reduce((s, v) => s + Math.exp(v), 0))
    }
    return logits.reduce((s, row) => s + sum(row, 0) - sum(row, 1), 0) / logits.length
  }
  const [g1, g2] = [await term('g1'), await term('g2')]
  return { g1, g2, total: g1 - g2, mass }
}

async function association(model: Model, study: Study): Promise<{ metrics: Metrics; tables: Table[]; figures: Figure[] }> {
  const { seed } = study
  const random = RandomStream.named(seed, 'prompts')
  const count = study.size(200, 60)
  const of = (group: Group) => Array.from({ length: count }, () => associationPrompt(random, group))
  const prompts = { g1: of('g1'), g2: of('g2') }
  const base = await gapOf(model, prompts)
  const statement = (group: Group, kind: Parameters<typeof attributeOf>[1]) => [
    ...associationPrompt(random, group),
    attributeOf(random, kind),
  ]
  const half = Array.from({ length: count })
  const biased = half.flatMap(() => [statement('g1', 'X'), statement('g2', 'Y')])
  // Neutral is what is said of people in general: neutral words about the groups would make the direction one of words.
  const neutral = half.flatMap(() => kinds.map((kind) => statement('people', kind)))
  const people = of('people')
  const metrics: Record<string, number> = { gap: base.total, 'gap learnt': base.total / trueGap, 'validity, 0': base.mass }
  const rows: (string | number)[][] = []
  let [validity, unit, own, harm] = [base.mass, 0, Infinity, Infinity]
  const ratios: number[] = []
  const figure: { strength: number; cut: number; kind: string }[] = []
  for (const layer of layers) {
    const site = `resid_post.${layer}`
    const norm = await medianNorm(model, prompts.g1, site)
    const pooled = (await meanDifference(model, { positive: neutral, negative: biased, site })).at(site)
    const single = (await meanDifference(model, { positive: people, negative: prompts.g1, site })).at(site)
    const steered = (v: ArrayLike<number>, length: number) => gapOf(model.with(add(site, unitOf(v), { scale: length })), prompts)
    const one = await steered(pooled, 1)
    unit = Math.max(unit, Math.abs(one.total - base.total))
    if (layer === 0) metrics['cut at unit length'] = 1 - one.total / base.total
    for (const s of relative) {
      const found = await steered(pooled, s * norm)
      metrics[cut('pooled', layer, s)] = 1 - found.total / base.total
      rows.push(['pooled', layer, s, found.g1, found.g2, found.total, found.mass])
      if (s <= 0.5) validity = Math.min(validity, found.mass)
      if (layer === 1) figure.push({ strength: s, cut: 1 - found.total / base.total, kind: 'pooled' })
      const specific = await steered(single, s * norm)
      rows.push(['people less g1', layer, s, specific.g1, specific.g2, specific.total, specific.mass])
      if (layer === 1) figure.push({ strength: s, cut: 1 - specific.total / base.total, kind: 'one group' })
      if (s === 0.5 && layer <= 2) {
        own = Math.min(own, 1 - Math.abs(specific.g1) / Math.abs(base.g1))
        harm = Math.min(harm, Math.abs(specific.g2) - Math.abs(base.g2))
      }
    }
    const controls: number[] = []
    for (let i = 0; i < study.size(8, 3); i++) {
      const direction = pooled.map(() => random.normal())
      const found = await steered(direction, 0.5 * norm)
      controls.push(Math.abs(1 - found.total / base.total))
    }
    const mean = meanOf(controls)
    metrics[cut('random', layer, 0.5)] = mean
    if (layer <= 1) ratios.push((metrics[cut('pooled', layer, 0.5)] as number) / Math.max(mean, 1e-6))
    if (layer === 1) figure.push({ strength: 0.5, cut: mean, kind: 'random (mean size)' })
  }
  const nothing = await gapOf(model.with(add('resid_post.1', new Float32Array(48).fill(1), { scale: 0 })), prompts)
  return {
    metrics: {
      ...metrics,
      'change at unit length': unit,
      'cut of the own term': own,
      'harm to the other term': harm,
      'validity, least': validity,
      'pooled over random': Math.min(...ratios),
      'cut, random': ((metrics[cut('random', 0, 0.5)] as number) + (metrics[cut('random', 1, 0.5)] as number)) / 2,
      'cut, zero': 1 - nothing.total / base.total,
    },
    tables: [
      {
        name: 'association',
        title: 'Terms of the gap by direction, layer and strength (first seed)',
        columns: ['direction', 'layer', 'strength, of the norm', 'term of g1', 'term of g2', 'gap, nats', 'probability of attributes'],
        rows: [['none', '–', 0, base.g1, base.g2, base.total, base.mass], ...rows],
      },
    ],
    figures: [
      {
        name: 'cut',
        title: 'How much of the gap is cut',
        caption: `At layer 1, by strength. The language’s gap is ${trueGap.toFixed(2)} nats, the model’s ${base.total.toFixed(2)}.`,
        kind: 'line',
        x: { key: 'strength', label: 'strength, relative to the residual norm' },
        y: { key: 'cut', label: 'share of the gap cut' },
        series: { key: 'kind', label: 'direction' },
        data: figure,
      },
    ],
  }
}

const unitOf = (v: ArrayLike<number>): Float32Array => {
  const size = Math.sqrt(Array.from(v).reduce((s, x) => s + x * x, 0))
  return Float32Array.from(v, (x) => x / size)
}

/** Median length of the stream at a site, the first position left out, which many models make an outlier. */
async function medianNorm(model: Model, rows: readonly (readonly number[])[], site: string): Promise<number> {
  const { taps } = await model.run({ rows }, { taps: [site], logits: false })
  const x = taps[site] as { at(row: number, position: number): Float32Array }
  const sizes = rows.flatMap((r, b) => r.slice(1).map((_, p) => Math.hypot(...x.at(b, p + 1)))).sort((a, b) => a - b)
  return sizes[Math.floor(sizes.length / 2)] as number
}

/** Statements on a model that reads English: accuracy by layer beside wording, and what the direction does to its associations. */
async function statements(model: Model, study: Study): Promise<{ metrics: Metrics; tables: Table[]; figures: Figure[] }> {
  const balanced = balancedStatements(study.seed, study.size(140, 60))
  const texts = balanced.map((s) => s.text)
  const labels = balanced.map((s) => s.label)
  const words = await lexicalAudit(texts, labels, { seed: study.seed })
  const byHand = handWritten()
  const leak = await lexicalAudit(
    byHand.map((s) => s.text),
    byHand.map((s) => s.label),
    { seed: study.seed },
  )
  const found = await probe(model, {
    texts,
    labels,
    site: 'resid_post.*',
    kind: 'ridge',
    C: 1,
    groups: texts,
    samples: 200,
    seed: study.seed,
    controls: false,
  })
  const curve = found.sites.map((s, layer) => ({
    layer,
    auroc: s.scores.auroc?.value as number,
    low: s.scores.auroc?.low as number,
    high: s.scores.auroc?.high as number,
  }))
  const middle = Math.floor(model.spec.layers / 2)
  const effect = await directionOnModel(model, balanced, `resid_post.${middle}`, study)
  return {
    metrics: {
      'bag of words, balanced': words.auroc['bag of words'].value,
      'bag of words, hand-written': leak.auroc['bag of words'].value,
      'best layer on statements': Math.max(...curve.map((c) => c.auroc)),
      'perplexity, quarter of the norm': effect.perplexity,
      'p among shuffled directions': effect.p,
    },
    tables: [
      {
        name: 'statements',
        title: `Statements on ${model.origin.id}`,
        columns: ['what', 'value'],
        rows: [
          ['area of words alone, hand-written statements', leak.auroc['bag of words'].value],
          ['area of words alone, balanced statements', words.auroc['bag of words'].value],
          ['best area of a probe by layer, balanced statements', Math.max(...curve.map((c) => c.auroc))],
          ['log-odds of biased over swapped statements, unsteered', effect.base],
          ['the same, steered at a quarter of the norm', effect.steered],
          ['p of that drop among directions of shuffled labels', effect.p],
          ['perplexity of neutral text at a quarter of the norm, relative', effect.perplexity],
        ],
        note: leak.warnings[0] ?? '',
      },
    ],
    figures: [
      {
        name: 'layers',
        title: 'Can bias be read, and where?',
        caption: `Area under the curve of held-out balanced statements by layer on ${model.origin.id}, with 95 % intervals; words alone reach ${words.auroc['bag of words'].value.toFixed(2)}.`,
        kind: 'line',
        x: { key: 'layer', label: 'layer' },
        y: { key: 'auroc', label: 'area under the curve' },
        data: curve,
      },
    ],
  }
}

/** How much likelier biased statements are than swapped ones, before and after steering, and how often shuffled labels do as much. */
async function directionOnModel(model: Model, all: readonly { text: string; label: 0 | 1 }[], site: string, study: Study) {
  const [biased, neutral] = [all.filter((s) => s.label === 1), all.filter((s) => s.label === 0)].map((l) => l.map((s) => s.text)) as [
    string[],
    string[],
  ]
  const plain = [
    'Once upon a time there was a little girl who liked to play in the park.',
    'The sun was bright and the birds sang in the tall tree near the house.',
    'Tom and his mom went to the store to buy some bread and milk.',
  ]
  const odds = async (x: Model) => Math.log((await perplexity(x, neutral)) / (await perplexity(x, biased)))
  const rows = all.map((s) => model.tokens(s.text).rows[0] as readonly number[])
  const norm = await medianNorm(model, rows, site)
  const steer = async (positive: string[], negative: string[]) => {
    const v = (await meanDifference(model, { positive, negative, site, position: 'mean' })).at(site)
    return model.with(add(site, unitOf(v), { scale: 0.25 * norm }))
  }
  const base = await odds(model)
  const chosen = await steer(neutral, biased)
  const steered = await odds(chosen)
  const drops: number[] = []
  const random = RandomStream.named(study.seed, 'shuffled statements')
  for (let i = 0; i < study.size(20, 3); i++) {
    const order = random.permutation(all.length)
    const mixed = Array.from(order, (k) => (all[k] as { text: string }).text)
    drops.push(base - (await odds(await steer(mixed.slice(0, neutral.length), mixed.slice(neutral.length)))))
  }
  return {
    base,
    steered,
    p: permutationP(base - steered, drops),
    perplexity: (await perplexity(chosen, plain)) / (await perplexity(model, plain)),
  }
}
