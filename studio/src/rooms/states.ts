/** @file What the link of each room carries, as a newcomer finds it; a new room adds its row. Values are texts, numbers and switches. */

import { exampleData } from './probe/example.ts'

/** Two texts that differ in one thing, shared by the rooms that compare them. */
const pair = {
  clean: 'Tim was very happy and he started to',
  corrupt: 'Tim was very sad and he started to',
  answer: ' play',
  wrong: ' cry',
  metric: 'logit-difference',
  direction: 'denoise',
}

/** The states of all rooms, by name. */
export const usualStates = {
  pair,
  look: {
    /** All numbers of the open site as a heat-map, instead of those at one token. */
    heat: false,
  },
  patch: {
    site: 'resid_pre',
    positions: 'each',
    /** The open cell: `resid_pre.3@4`, `z.2@4.1`, or `z.2@.1` where all positions are patched at once. */
    at: '',
    /** A limit of the scale that was fixed by hand; 0 for none. */
    pin: 0,
  },
  attribute: {
    show: 'tokens',
    method: 'integrated',
    steps: 8,
    site: 'resid_pre',
    edges: 40,
    at: '',
    pin: 0,
  },
  probe: {
    data: exampleData,
    kind: 'mean-difference',
    position: 'mean',
    site: 'resid_post',
    /** The layer whose probe is read; the best one where −1. */
    layer: -1,
    text: 'Lily was sad because her ball was gone. Then her friend found it and she was so happy.',
  },
  capture: {
    data: '',
    /** A file on the server's machine, instead of texts. */
    path: '',
    site: 'resid_post',
    /** One layer, or all where −1. */
    layer: -1,
    dtype: 'f16',
    /** Site and coordinate whose contexts are shown. */
    at: 'mlp_act.2',
    neuron: 0,
    along: 'neuron',
  },
  steer: {
    /** Index of the edit whose vector is open; none where −1. */
    open: 0,
    samples: 3,
    temperature: 0.8,
    /** What colours the tokens of samples. */
    colour: 'kl',
  },
  papers: {
    /** The paper that is open; the list where empty. */
    paper: '',
    /** Which result is shown; the one that there is where empty. */
    result: '',
  },
}

/** Values that are one of a few. */
export const stateChoices: Readonly<Record<string, readonly string[]>> = {
  'pair.metric': ['logit-difference', 'logit', 'probability', 'log-probability', 'kl', 'loss'],
  'pair.direction': ['denoise', 'noise'],
  'patch.positions': ['each', 'all'],
  'attribute.show': ['tokens', 'parts', 'paths'],
  'attribute.method': ['gradient', 'integrated'],
  'capture.dtype': ['f32', 'f16', 'bf16', 'int8'],
  'capture.along': ['neuron', 'steering'],
  'papers.result': ['', 'committed', 'quick'],
  'probe.position': ['last', 'mean'],
  'steer.colour': ['none', 'kl', 'probe'],
  'probe.kind': ['logistic', 'mean-difference', 'ridge', 'lda', 'svm', 'regression'],
}

/** What rooms keep in the link. */
export type RoomStates = typeof usualStates
/** The two texts and what is measured of them. */
export type PairState = RoomStates['pair']
