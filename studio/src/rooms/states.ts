/** @file What the link of each room carries, as a newcomer finds it; a new room adds its row. Values are texts, numbers and switches. */

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
}

/** Values that are one of a few. */
export const stateChoices: Readonly<Record<string, readonly string[]>> = {
  'pair.metric': ['logit-difference', 'logit', 'probability', 'log-probability', 'kl', 'loss'],
  'pair.direction': ['denoise', 'noise'],
  'patch.positions': ['each', 'all'],
  'attribute.show': ['tokens', 'parts', 'paths'],
  'attribute.method': ['gradient', 'integrated'],
}

/** What rooms keep in the link. */
export type RoomStates = typeof usualStates
/** The two texts and what is measured of them. */
export type PairState = RoomStates['pair']
