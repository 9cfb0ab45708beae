/** @file What the page and the server say to each other: one schema for each request body, one type for each answer. */
import { z } from 'zod'
import type { AxisName } from '../sites/index.ts'
import { captureBodies } from './protocol-capture.ts'
import { exploreBodies } from './protocol-explore.ts'
import { paperBodies } from './protocol-papers.ts'
import { type edit, editList, looked, lookedText, modelName, siteName, vectorRecipe } from './protocol-parts.ts'
import { probeBodies } from './protocol-probe.ts'
import { steerBodies } from './protocol-steer.ts'

export type * from './protocol-capture.ts'
export type * from './protocol-explore.ts'
export type * from './protocol-papers.ts'
export type * from './protocol-probe.ts'
export type * from './protocol-steer.ts'

/** Bodies of requests, by route. */
export const bodies = {
  ...exploreBodies,
  ...probeBodies,
  ...captureBodies,
  ...paperBodies,
  ...steerBodies,
  model: z.strictObject({ model: siteName }),
  tokens: z.strictObject({ ...looked, surprise: z.boolean().default(false) }),
  grid: z.strictObject({
    ...looked,
    what: z.enum(['norm', 'lens', 'cosine']),
    /** Name of a site of every layer: `resid_post`. */
    site: siteName.default('resid_post'),
    vector: vectorRecipe.optional(),
    top: z.int().min(1).max(20).default(5),
  }),
  site: z.strictObject({
    ...looked,
    site: siteName,
    position: z.int(),
    top: z.int().min(1).max(50).default(12),
    vector: vectorRecipe.optional(),
  }),
  values: z.strictObject({ ...looked, site: siteName, positions: z.strictObject({ from: z.int(), to: z.int() }).optional() }),
  vector: z.strictObject({ ...modelName, vector: vectorRecipe }),
  edits: z.strictObject({ ...modelName, edits: editList }),
  generate: z.strictObject({
    ...modelName,
    ...lookedText,
    edits: editList,
    maxNewTokens: z.int().min(1).max(100_000).default(80),
    temperature: z.number().min(0).max(100).default(0),
    topP: z.number().positive().max(1).optional(),
    topK: z.int().positive().optional(),
    seed: z.int().default(0),
  }),
} as const

/** Name of a route with a body. */
export type RouteName = keyof typeof bodies
/** What a client sends to a route. */
export type RequestOf<R extends RouteName> = z.input<(typeof bodies)[R]>
/** What a route works with, defaults filled in. */
export type BodyOf<R extends RouteName> = z.output<(typeof bodies)[R]>
/** A direction by how it is made. */
export type VectorRecipe = z.output<typeof vectorRecipe>
/** An edit that may name its vectors by recipe. */
export type EditData = z.output<typeof edit>

/** What every failure looks like: the library's own sentence. */
export interface ErrorAnswer {
  readonly error: { readonly name: string; readonly message: string }
}

/** `GET /api/health` */
export interface HealthAnswer {
  readonly ok: true
  /** Changes when the server is started anew. */
  readonly instance: string
  /** The model that the server was started with. */
  readonly model: string
  readonly loaded: readonly string[]
}

/** One kind of site of a model. */
export interface SiteKind {
  readonly name: string
  readonly per: 'layer' | 'model'
  readonly axes: readonly AxisName[]
  /** Sizes; names stand for those known only at run time. */
  readonly shape: readonly (number | AxisName)[]
  readonly meaning: string
  /** Names elsewhere, with `{L}` for the layer. */
  readonly aliases: readonly string[]
  readonly absent?: string
}

/** The model, as `model` lines of `GET` and `POST /api/model` give it. */
export interface ModelAnswer {
  readonly id: string
  readonly name: string
  readonly family: string
  readonly layers: number
  readonly dModel: number
  readonly heads: number
  readonly kvHeads: number
  readonly headDim: number
  readonly dMlp: number
  readonly vocab: number
  readonly contextLength: number
  readonly precision: string
  readonly hasTokenizer: boolean
  readonly checks: readonly string[]
  readonly sites: readonly SiteKind[]
}

/** Lines of `GET` and `POST /api/model`. */
export type ModelLine =
  | { readonly type: 'progress'; readonly task: string; readonly done: number; readonly total?: number; readonly unit: string }
  | { readonly type: 'model'; readonly model: ModelAnswer }
  | ({ readonly type: 'error' } & ErrorAnswer)

/** `GET /api/models` */
export interface ModelsAnswer {
  readonly models: readonly { readonly id: string; readonly bytes: number; readonly fetchedAt: string }[]
  readonly loaded: readonly string[]
}

/** `POST /api/upload`: where a file of a model was put; its path, or the folder of several, loads it. */
export interface UploadAnswer {
  readonly group: string
  readonly path: string
  readonly folder: string
  readonly bytes: number
}

/** `POST /api/tokens` */
export interface TokensAnswer {
  readonly ids: readonly number[]
  readonly pieces: readonly string[]
  /** [start, end) of each token in the text; absent for ids. */
  readonly offsets?: readonly (readonly [number, number])[]
  /** −log₂ of the probability that the model gave to each token, in bits; null for the first. */
  readonly surprise?: readonly (number | null)[]
}

/** A token that the lens reads out. */
export interface TopToken {
  readonly id: number
  readonly piece: string
  readonly p: number
}

/** Lines of `POST /api/grid`: a head, a row for each layer as it is ready, an end. */
export type GridLine =
  | { readonly type: 'head'; readonly sites: readonly string[]; readonly ids: readonly number[]; readonly pieces: readonly string[] }
  | {
      readonly type: 'row'
      readonly layer: number
      readonly site: string
      readonly values: readonly number[]
      readonly top?: readonly (readonly TopToken[])[]
    }
  | { readonly type: 'end'; readonly ms: number; readonly unfired: readonly string[] }
  | ({ readonly type: 'error' } & ErrorAnswer)

/** `POST /api/site`: one position of one site. */
export interface SiteAnswer {
  readonly site: string
  readonly layer?: number
  readonly meaning: string
  readonly axes: readonly AxisName[]
  /** Sizes on this text. */
  readonly shape: readonly number[]
  readonly aliases: readonly string[]
  readonly position: number
  readonly piece: string
  /** Over the coordinates at this position. */
  readonly stats: {
    readonly count: number
    readonly norm: number
    readonly mean: number
    readonly std: number
    readonly min: number
    readonly max: number
  }
  readonly histogram: readonly { readonly from: number; readonly to: number; readonly count: number }[]
  /** Largest coordinates by magnitude; `index` has one number for each axis after `pos`. */
  readonly top: readonly { readonly index: readonly number[]; readonly value: number }[]
  /** What the final norm and the unembedding make of the vector, for sites as wide as the residual stream. */
  readonly lens?: readonly TopToken[]
  /** Cosine to the vector that was sent along. */
  readonly cosine?: number
  readonly unfired: readonly string[]
}

/** `POST /api/vector` */
export interface VectorAnswer {
  readonly site: string
  readonly width: number
  readonly norm: number
  /** Its length at each layer of the same kind of site, for differences. */
  readonly norms: Readonly<Record<string, number>>
}

/** `POST /api/edits`: recipes written out as numbers, as an edits file holds them. */
export interface EditsAnswer {
  readonly edits: readonly EditData[]
}

/** One token of one side. */
export interface WrittenToken {
  /** 0: plain; 1: under the edits. */
  readonly row: number
  readonly id: number
  readonly text: string
  readonly p: number
}

/** Lines of `POST /api/generate`. */
export type GenerateLine =
  | { readonly type: 'start'; readonly ids: readonly number[]; readonly pieces: readonly string[]; readonly rows: number }
  | ({ readonly type: 'token' } & WrittenToken)
  | {
      readonly type: 'end'
      readonly rows: readonly { readonly finishReason: string; readonly tokensPerSecond: number; readonly unfired: readonly string[] }[]
      readonly ms: number
    }
  | ({ readonly type: 'error' } & ErrorAnswer)
