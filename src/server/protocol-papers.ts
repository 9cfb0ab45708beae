/** @file What page and server say to each other about papers and their quick runs. */
import { z } from 'zod'
import type { Progress } from '../base/progress.ts'
import type { Gate, Paper, PaperResult, Verdict } from '../papers/index.ts'
import type { ErrorAnswer } from './protocol.ts'

const slug = z.string().regex(/^[a-z0-9-]{1,80}$/)

/** Bodies of requests, by route. */
export const paperBodies = {
  paper: z.strictObject({ slug }),
  'paper-run': z.strictObject({ slug, action: z.enum(['run', 'fresh', 'cancel']) }),
} as const

/** Which result of a paper is meant: the one that ships, or that of the quick run on this machine. */
export type PaperResultKind = 'committed' | 'quick'

/** The last quick run of a paper on this machine. */
export interface PaperJob {
  /** `waiting`: another paper runs. `stopped`: by the reader or with the server; it goes on from its finished steps. */
  readonly state: 'waiting' | 'running' | 'done' | 'stopped' | 'failed'
  readonly startedAt: string
  readonly progress?: Progress
  /** Seconds since it began to run. */
  readonly seconds?: number
  readonly error?: ErrorAnswer['error']
}

/** A paper in the list. */
export interface PaperRow extends Pick<Paper, 'slug' | 'title' | 'authors' | 'family' | 'question'> {
  readonly verdict?: Verdict
}

/** `GET /api/papers` */
export interface PapersAnswer {
  readonly papers: readonly PaperRow[]
}

/** `GET /api/paper-jobs`: by slug, those that were ever run here. */
export interface PaperJobsAnswer {
  readonly jobs: Readonly<Record<string, PaperJob>>
}

/** `POST /api/paper` */
export interface PaperAnswer {
  readonly paper: Pick<
    Paper,
    'slug' | 'title' | 'authors' | 'source' | 'family' | 'question' | 'claim' | 'data' | 'scale' | 'notReproduced' | 'model' | 'seeds'
  > & {
    readonly notes: readonly string[]
    readonly baselines: readonly string[]
    readonly controls: readonly string[]
    readonly gates: readonly (Pick<Gate, 'name' | 'role' | 'text'> & { readonly bound: string })[]
  }
  readonly results: Readonly<Partial<Record<PaperResultKind, PaperResult>>>
  /** The commands of the quick and of the full run. */
  readonly commands: { readonly quick: string; readonly full: string }
}
