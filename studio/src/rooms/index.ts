/** @file The rooms of the studio; a new one is a row here, a row in `states.ts` for what its link carries, and a folder beside. */
import type { Component } from 'svelte'
import Attribute from './attribute/Attribute.svelte'
import Capture from './capture/Capture.svelte'
import Look from './look/Look.svelte'
import Papers from './papers/Papers.svelte'
import Patch from './patch/Patch.svelte'
import Probe from './probe/Probe.svelte'
import Steer from './steer/Steer.svelte'

/** One room. */
export interface Room {
  /** Its name in the address; the first room has none. */
  readonly slug: string
  readonly title: string
  /** What one does there, in a sentence. */
  readonly about: string
  readonly component: Component
}

/** All rooms, in the order of the navigation. */
export const rooms: readonly Room[] = [
  { slug: '', title: 'Look & steer', about: 'Read a text as the model does, and push what it writes in a direction.', component: Look },
  {
    slug: 'steer',
    title: 'Steer',
    about: 'Make directions by any method, mix them, see what each token pays, and keep them as files.',
    component: Steer,
  },
  {
    slug: 'patch',
    title: 'Patch',
    about: 'Copy activations from one text into another and see where a difference lives.',
    component: Patch,
  },
  { slug: 'attribute', title: 'Attribute', about: 'Which tokens and which parts of the model an answer comes from.', component: Attribute },
  {
    slug: 'probe',
    title: 'Probe',
    about: 'Train a read-out on labelled texts, judge it against controls, read it on new text.',
    component: Probe,
  },
  {
    slug: 'capture',
    title: 'Capture',
    about: 'Write activations to disk, and find the texts that a neuron or direction fires on.',
    component: Capture,
  },
  {
    slug: 'papers',
    title: 'Papers',
    about: 'Claims of papers, held against numbers made here; run one yourself.',
    component: Papers,
  },
]
