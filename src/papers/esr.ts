/** @file Endogenous steering resistance (arXiv:2602.06941): does a model that is pushed off topic notice, start again and recover, and what in it does that? */

import { alphas, esrToy } from './esr-toy.ts'
import { definePaper, type Metrics } from './paper.ts'
import type { Study } from './study.ts'

const m = (name: string) => (r: Metrics) => r[name] as number
const esr = (share: number, alpha: number) => `ESR, ${share}, α ${alpha}`
const multi = (share: number, alpha: number) => `multi-attempt, ${share}, α ${alpha}`
const peak = (r: Metrics) => Math.max(...alphas.map((a) => r[esr(0.3, a)] as number))
/** Rates of zero must not make a ratio infinite: as if one answer in a thousand had been seen. */
const over = (a: number, b: number) => a / Math.max(b, 0.1)
const cut = (name: string) => (r: Metrics) => 1 - (r[`multi-attempt, ${name}`] as number) / (r['multi-attempt, boosted'] as number)

/** The reproduction. */
export const paper = definePaper({
  slug: 'esr',
  title: 'Endogenous Resistance to Activation Steering in Language Models',
  authors: 'McKenzie, Pepper, Servaes, Leitgab, Cubuktepe, Vaiana, de Lucena, Rosenblatt, Graziano (AE Studio), 2026',
  source: '2602.06941',
  family: 'steer',
  question:
    'Does a model that has learnt to correct itself notice that it is being steered off topic, start again and do better while the steering goes on, and do detectors of being off topic cause it?',
  claim: {
    text: 'At the strength where it is greatest, at least 30 % of answers start again and do better, where a model that never saw a correction has none.',
    metric: 'answers that start again and improve (ESR), per cent, at the best strength',
    threshold: 30,
  },
  ours: peak,
  baselines: {
    'a third of the corrections in training, same strength': m(esr(0.1, 0.75)),
    'off-topic detectors held at their mean (12)': m('ESR, top 12 at mean'),
    'off-topic detectors held at their mean (24)': m('ESR, top 24 at mean'),
  },
  controls: {
    'no corrections in training, most at any strength': (r) => Math.max(...alphas.map((a) => r[esr(0, a)] as number)),
    'no steering': m(esr(0.3, 0)),
    'random neurons held at their mean (12), fewest': (r) => Math.min(...[0, 1, 2].map((k) => r[`ESR, random set ${k}`] as number)),
  },
  gates: [
    {
      name: 'learnt',
      role: 'setting',
      text: 'Unsteered, the model stays on the topic asked for (mean score of first attempts).',
      of: m('first score, 0.3, α 0'),
      atLeast: 90,
    },
    {
      name: 'masked',
      role: 'setting',
      text: 'The model learnt to correct itself and not to digress: unsteered, few answers start again, per cent.',
      of: m(multi(0.3, 0)),
      atMost: 10,
    },
    {
      name: 'derails',
      role: 'setting',
      text: 'The strongest steering leaves nothing of the first attempt (mean score).',
      of: m('first score, 0.3, α 1.5'),
      atMost: 10,
    },
    {
      name: 'none',
      role: 'control',
      text: 'A model that never saw a correction never starts again, at any strength (per cent of answers, the most).',
      of: (r) => Math.max(...alphas.map((a) => r[multi(0, a)] as number)),
      atMost: 1,
    },
    { name: 'peak', role: 'claim', text: 'At the best strength at least 30 % of answers recover.', of: peak, atLeast: 30 },
    {
      name: 'weak',
      role: 'claim',
      text: 'That is at least five times as many as without steering.',
      of: (r) => over(peak(r), r[esr(0.3, 0)] as number),
      atLeast: 5,
    },
    {
      name: 'strong',
      role: 'claim',
      text: 'It is at least five times as many as under the strongest steering.',
      of: (r) => over(peak(r), r[esr(0.3, 1.5)] as number),
      atLeast: 5,
    },
    {
      name: 'dose',
      role: 'claim',
      text: 'Three times the corrections in training give at least 1.3 times the recoveries.',
      of: (r) => over(r[esr(0.3, 0.75)] as number, r[esr(0.1, 0.75)] as number),
      atLeast: 1.3,
    },
    {
      name: 'calibrated',
      role: 'claim',
      text: 'Ten rounds of five answers find the strength at which first attempts score 30.',
      of: m('calibrated strength'),
      atLeast: 0.75,
      atMost: 1,
    },
    {
      name: 'twelve',
      role: 'claim',
      text: 'Holding the 12 best off-topic detectors at their mean cuts restarts by a quarter (share cut).',
      of: cut('top 12 at mean'),
      atLeast: 0.25,
    },
    {
      name: 'twenty-four',
      role: 'claim',
      text: 'Holding 24 cuts them by 45 % (share cut).',
      of: cut('top 24 at mean'),
      atLeast: 0.45,
    },
    {
      name: 'random',
      role: 'control',
      text: 'Holding 12 random neurons of like activity changes restarts by at most a tenth, whichever of three sets (largest relative change).',
      of: (r) => Math.max(...[0, 1, 2].map((k) => Math.abs(cut(`random set ${k}`)(r)))),
      atMost: 0.1,
    },
    {
      name: 'harmless',
      role: 'control',
      text: 'Holding the detectors leaves unsteered answers as good as they were (largest change of their score).',
      of: m('unsteered score, largest change'),
      atMost: 3,
    },
    {
      name: 'empty',
      role: 'control',
      text: 'A boost of zero gives the unsteered answers, token by token (answers that differ).',
      of: m('answers changed by a boost of zero'),
      atMost: 0,
    },
  ],
  data: 'A language of six topics with eight words each: a question names a topic, an answer of 25 tokens is about it. With probability 0, 0.1 or 0.3 an answer in training starts with 3 to 8 tokens of another topic, whose prediction is not learnt, then a token that says so, and begins again. Three models, of three blocks of width 48, are trained here from the seeded generator.',
  scale:
    'The paper boosts latents of autoencoders in models of 2 to 70 billion parameters and counts restarts by a language-model judge; there 3.8 % of the answers of the largest model recover. Here the corrections are planted, the directions are those of topics, and attempts are split and scored exactly.',
  notReproduced: [
    'models of 2 to 70 billion parameters and their latents',
    'a language model as a judge',
    'meta-prompts and fine-tuning (as library calls only)',
    'the second version’s controls of sustained resistance',
  ],
  notes: [
    'A strength of 1 adds the mean activation of a topic less that of all topics, at every position. The strengths of the card are kept, since first scores fall along them as there.',
    'The paper’s own ablation cuts restarts by a quarter, and one realisation of the detectors differs from the next; here neurons are read and held at the same layers.',
    'A planted correction shows that the protocol measures what it says, not that language models have one; `actlens resistance` asks a model of your own.',
  ],
  model: 'trained here: GPT-2 layout, 3 blocks, width 48; three shares of corrections',
  seeds: [0, 1, 2],
  revision: 1,
  repeat: (study: Study) => esrToy(study),
})
