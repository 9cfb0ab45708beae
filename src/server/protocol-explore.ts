/** @file What page and server say to each other about patching and attribution. */
import { z } from 'zod'
import { metricKinds } from '../explore/patch-metric.ts'
import type { ErrorAnswer, TopToken } from './protocol.ts'
import { editList, lookedText, modelName, siteName } from './protocol-parts.ts'

/** A text or its token ids. */
const side = z.strictObject(lookedText)
const token = z.string().min(1).max(500)

/** Two texts that differ in what matters. */
const pair = { ...modelName, clean: side, corrupt: side, edits: editList }

/** What is measured of each run; tokens by their text or as `ids:7`. */
const measured = {
  metric: z.enum(Object.keys(metricKinds) as [keyof typeof metricKinds]).default('logit-difference'),
  answer: token.optional(),
  wrong: token.optional(),
  direction: z.enum(['denoise', 'noise']).default('denoise'),
}

const swept = { sites: z.array(siteName).min(1).max(16), positions: z.enum(['each', 'all']).default('each') }

/** Bodies of requests, by route. */
export const exploreBodies = {
  pair: z.strictObject({ ...pair, top: z.int().min(1).max(50).default(8) }),
  patch: z.strictObject({ ...pair, ...measured, ...swept }),
  patched: z.strictObject({
    ...pair,
    ...measured,
    site: siteName,
    position: z.int().nonnegative().optional(),
    head: z.int().nonnegative().optional(),
    top: z.int().min(1).max(50).default(8),
  }),
  attribute: z.strictObject({
    ...pair,
    ...measured,
    ...swept,
    method: z.enum(['gradient', 'integrated']).default('gradient'),
    steps: z.int().min(1).max(256).default(8),
  }),
  edges: z.strictObject({ ...pair, ...measured, count: z.int().min(1).max(2000).default(60) }),
  components: z.strictObject({ ...modelName, ...lookedText, edits: editList, answer: token, wrong: token.optional() }),
} as const

/** One text of a pair. */
export interface PairSide {
  readonly ids: readonly number[]
  readonly pieces: readonly string[]
  /** What the model would say next. */
  readonly next: readonly TopToken[]
}

/** `POST /api/pair`: how two texts lie side by side. */
export interface PairAnswer {
  readonly clean: PairSide
  readonly corrupt: PairSide
}

/** A table of a sweep without its numbers. */
export interface TableHead {
  /** The pattern as it was given. */
  readonly name: string
  readonly sites: readonly string[]
  readonly axes: readonly { readonly name: 'layer' | 'pos' | 'head' | 'kv_head'; readonly labels: readonly number[] }[]
}

/** The metric of the two runs without changes. */
export interface MetricEnds {
  readonly clean: number
  readonly corrupt: number
}

/** Lines of `POST /api/patch`: the tables, cells as they are done, an end. */
export type PatchLine =
  | { readonly type: 'head'; readonly tables: readonly TableHead[]; readonly metric: MetricEnds; readonly pieces: readonly string[] }
  | { readonly type: 'cells'; readonly table: string; readonly places: readonly number[]; readonly values: readonly number[] }
  | { readonly type: 'end'; readonly ms: number }
  | ({ readonly type: 'error' } & ErrorAnswer)

/** `POST /api/patched`: the runs behind a cell. */
export interface PatchedAnswer {
  readonly clean: readonly TopToken[]
  readonly corrupt: readonly TopToken[]
  readonly patched: readonly TopToken[]
  /** Logits and probabilities of the answer and the wrong token in the three runs, where they are named. */
  readonly named: readonly {
    readonly role: 'answer' | 'wrong'
    readonly id: number
    readonly piece: string
    readonly clean: TokenScore
    readonly corrupt: TokenScore
    readonly patched: TokenScore
  }[]
}

/** A token's logit and probability in a run. */
export interface TokenScore {
  readonly logit: number
  readonly p: number
}

/** `POST /api/attribute` */
export interface AttributeAnswer {
  readonly tables: readonly (TableHead & { readonly values: readonly number[] })[]
  readonly metric: MetricEnds
  readonly pieces: readonly string[]
  /** By canonical site: sum of its attributions, and what replacing the whole of it changes. */
  readonly completeness?: Readonly<Record<string, { readonly sum: number; readonly change: number }>>
  readonly ms: number
}

/** `POST /api/edges`: the strongest edges between writes and readings of the residual stream. */
export interface EdgesAnswer {
  readonly senders: readonly string[]
  readonly receivers: readonly string[]
  readonly edges: readonly { readonly from: number; readonly to: number; readonly score: number }[]
  /** Edges in all, and the sum of the sizes of their scores. */
  readonly count: number
  readonly size: number
  readonly metric: MetricEnds
}

/** `POST /api/components`: what each part of the residual stream adds to a logit directly, at the last position. */
export interface ComponentsAnswer {
  readonly pieces: readonly string[]
  readonly components: readonly { readonly label: string; readonly value: number }[]
  /** [layer][head] */
  readonly heads: readonly (readonly number[])[]
  readonly bias: number
  readonly metric: number
  readonly answer: { readonly id: number; readonly piece: string }
  readonly wrong?: { readonly id: number; readonly piece: string }
}
