/** @file What page and server say to each other about probes. */
import { z } from 'zod'
import { type ProbeKind, probeKinds } from '../probe/kinds.ts'
import type { ErrorAnswer } from './protocol.ts'
import { editList, lookedText, modelName, siteName } from './protocol-parts.ts'

/** A study by what it is made from, so that a restarted server can make it again. */
const study = {
  ...modelName,
  /** Labelled texts: CSV or TSV with a header, or JSONL. */
  data: z.string().max(8_000_000),
  text: siteName.optional(),
  label: siteName.optional(),
  sites: z.array(siteName).min(1).max(64).default(['resid_post.*']),
  kind: z.enum(Object.keys(probeKinds) as [ProbeKind]).default('logistic'),
  position: z.union([z.enum(['last', 'mean']), z.int()]).default('last'),
  edits: editList,
  seed: z.int().nonnegative().default(0),
}

/** Bodies of requests, by route. */
export const probeBodies = {
  probe: z.strictObject(study),
  'probe-read': z.strictObject({ study: z.strictObject(study), site: siteName, ...lookedText }),
  'probe-direction': z.strictObject({ study: z.strictObject(study), site: siteName }),
} as const

/** A score with its interval. */
export interface ScoreAnswer {
  readonly value: number
  readonly low: number
  readonly high: number
}

/** What was found at one site. */
export interface ProbedSite {
  readonly site: string
  readonly layer?: number
  readonly scores: Readonly<Record<string, ScoreAnswer>>
  /** By name: shuffledLabels, randomFeatures, tokenIdentity. */
  readonly controls: Readonly<Record<string, number>>
}

/** Lines of `POST /api/probe`: what is known of the data, progress, sites as they are judged, an end. */
export type ProbeLine =
  | { readonly type: 'head'; readonly examples: number; readonly text: string; readonly label: string; readonly sites: number }
  | { readonly type: 'progress'; readonly task: string; readonly done: number; readonly total?: number; readonly unit: string }
  | ({ readonly type: 'site' } & ProbedSite)
  | {
      readonly type: 'end'
      readonly classes: readonly string[]
      readonly majority?: number
      readonly groups: number
      readonly folds: number
      readonly warnings: readonly string[]
      readonly ms: number
    }
  | ({ readonly type: 'error' } & ErrorAnswer)

/** `POST /api/probe-read`: the scores of a probe at each token of a text. */
export interface ProbeReadAnswer {
  readonly pieces: readonly string[]
  readonly classes: readonly string[]
  /** By token, one for two classes or a number (positive for the second class), else one for each class. */
  readonly scores: readonly (readonly number[])[]
  /** Calibrated probability of the second of two classes. */
  readonly p?: readonly number[]
}

/** `POST /api/probe-direction`: the probe as a direction to steer along, and as a condition. */
export interface ProbeDirectionAnswer {
  readonly site: string
  /** As long as the activations spread, pointing to the second class. */
  readonly vector: readonly number[]
  /** The condition that the probe holds. */
  readonly when: { readonly site: string; readonly vector: readonly number[]; readonly above: number }
}
