/** @file What page and server say to each other about captures and the contexts that activate a direction. */
import { z } from 'zod'
import type { ErrorAnswer } from './protocol.ts'
import { editList, modelName, siteName, vectorRecipe } from './protocol-parts.ts'

/** Texts: as they are, or a file on the server's machine. */
const corpus = {
  /** A text a line, CSV or TSV with a column `text`, or JSONL. */
  data: z.string().max(12_000_000).optional(),
  path: z.string().max(4096).optional(),
}

/** Bodies of requests, by route. */
export const captureBodies = {
  capture: z.strictObject({
    ...modelName,
    ...corpus,
    sites: z.array(siteName).min(1).max(64),
    dtype: z.enum(['f32', 'f16', 'bf16', 'int8']).default('f16'),
    maxTokens: z.int().positive().optional(),
    edits: editList,
  }),
  'capture-job': z.strictObject({ id: z.string().regex(/^[0-9a-z-]{8,40}$/), action: z.enum(['cancel', 'resume', 'remove']) }),
  contexts: z.strictObject({
    ...modelName,
    ...corpus,
    site: siteName,
    /** A coordinate of the site, or a direction. */
    neuron: z.int().nonnegative().optional(),
    vector: vectorRecipe.optional(),
    keep: z.int().min(1).max(100).default(12),
    maxTokens: z.int().positive().max(50_000_000).default(200_000),
    edits: editList,
  }),
} as const

/** A capture: what was asked for, and how far it is. */
export interface CaptureJob {
  readonly id: string
  readonly createdAt: string
  readonly model: string
  readonly sites: readonly string[]
  readonly dtype: string
  /** What the texts are, in a few words. */
  readonly source: string
  /** Folder of shards and manifest on the server's machine. */
  readonly folder: string
  readonly state: 'running' | 'done' | 'stopped' | 'failed'
  /** Positions in finished shards, and bytes of these. */
  readonly tokens: number
  readonly bytes: number
  readonly progress?: {
    readonly done: number
    readonly total: number
    readonly bytes: number
    readonly totalBytes: number
    readonly tokensPerSecond: number
    readonly secondsLeft: number
  }
  readonly error?: ErrorAnswer['error']
}

/** `GET /api/captures`, newest first. */
export interface CapturesAnswer {
  readonly jobs: readonly CaptureJob[]
}

/** A place where a direction is strongly active. */
export interface ContextAnswer {
  readonly value: number
  readonly document: number
  readonly position: number
  readonly pieces: readonly string[]
  /** Index of the active token in `pieces`. */
  readonly at: number
}

/** Lines of `POST /api/contexts`. */
export type ContextsLine =
  | { readonly type: 'progress'; readonly done: number; readonly total?: number }
  | {
      readonly type: 'end'
      readonly site: string
      readonly width: number
      readonly tokens: number
      readonly contexts: readonly ContextAnswer[]
      readonly ms: number
    }
  | ({ readonly type: 'error' } & ErrorAnswer)
