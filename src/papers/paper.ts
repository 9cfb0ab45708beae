/** @file What a reproduction is: question, claim with its rule, data, gates, figures. One file per paper fills this record; no method lives here. */
import type { Figure } from '../plot/index.ts'
import type { Study } from './study.ts'

export type { Axis, Figure } from '../plot/index.ts'

/** Numbers of one repeat, by name. Not finite means that the number could not be had. */
export type Metrics = Readonly<Record<string, number>>

/**
 * A number that decides. `claim`: what the paper says. `control`: what must not work, or must not move. `setting`: what has to hold
 * for the question to make sense at all, as that the model has learnt its task.
 */
export interface Gate {
  readonly name: string
  readonly role: 'claim' | 'control' | 'setting'
  /** A sentence: what must hold. */
  readonly text: string
  readonly of: (m: Metrics) => number
  readonly atLeast?: number
  readonly atMost?: number
}

/** A cell of a table. */
export type Cell = string | number | null

/** A table of a report. */
export interface Table {
  readonly name: string
  readonly title: string
  readonly columns: readonly string[]
  readonly rows: readonly (readonly Cell[])[]
  readonly note?: string
}

/** What one repeat gives. */
export interface Repeat {
  readonly metrics: Metrics
  readonly tables?: readonly Table[]
  readonly figures?: readonly Figure[]
}

/** A named number of the claim's metric. */
export type Reading = Readonly<Record<string, (m: Metrics) => number>>

/** The reproduction of one paper. */
export interface Paper {
  readonly slug: string
  readonly title: string
  /** Authors, venue, year. */
  readonly authors: string
  /** `2503.10679` on arXiv, or another address. */
  readonly source: string
  readonly family: 'steer' | 'attack' | 'read' | 'decompose' | 'compress' | 'transfer' | 'train' | 'vision'
  /** One sentence that ends with a question mark. */
  readonly question: string
  /** The claim as a number: `ours` is held against `threshold`. */
  readonly claim: { readonly text: string; readonly metric: string; readonly threshold: number }
  readonly ours: (m: Metrics) => number
  readonly baselines: Reading
  readonly controls: Reading
  readonly gates: readonly Gate[]
  /** What the data are and where they come from. */
  readonly data: string
  /** How far this scale is from the paper's. */
  readonly scale: string
  /** What of the paper is not reproduced here. */
  readonly notReproduced: readonly string[]
  /** Words on results that readers would otherwise misread. */
  readonly notes?: readonly string[]
  /** The model that is used without `--model`. */
  readonly model: string
  /** What `--model` does; without it the option is refused. */
  readonly ownModel?: string
  /** Seeds of a full run; the first one is that of a quick run. */
  readonly seeds: readonly number[]
  /** Raised when a change makes cached steps wrong. */
  readonly revision: number
  /** One repeat with one seed. */
  readonly repeat: (study: Study) => Promise<Repeat>
}

/** A record with its parts checked by the compiler. */
export const definePaper = (paper: Paper): Paper => paper

/** What a family of papers is called. */
export const paperFamilies: Readonly<Record<Paper['family'], string>> = {
  steer: 'Steering',
  attack: 'Attack and defence',
  read: 'Reading activations',
  decompose: 'Decomposition',
  compress: 'Compression',
  transfer: 'Transfer between models',
  train: 'Training',
  vision: 'Vision',
}
