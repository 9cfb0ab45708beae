/** @file The record of a steering vector: what it was made of and with, enough to make it again. */
import { sha256 } from '../base/hash.ts'
import type { NDArray } from '../base/types.ts'
import type { Edit } from '../sites/edits.ts'

/** Where a vector reads each example: its last token, the mean over its tokens, or a position (negative from the end). */
export type Position = 'last' | 'mean' | number

/** The model that a vector was measured on, as far as its file says. */
export interface RecordedModel {
  readonly id: string
  /** SHA-256 of the model's files; absent where a vector came from a format that keeps none. */
  readonly hash?: string
  /** `model_type` of its config, or what the file hints at. */
  readonly family?: string
  /** Number of its blocks. */
  readonly layers?: number
}

/** A number of a fit that tells how far to trust it, by name: `explained`, `accuracy`. */
export type FitFacts = Readonly<Record<string, number>>

/** How a steering vector was made. */
export interface VectorRecord {
  /** A key of `steeringMethods`; `combination`, `normalized`, … where algebra made it; `unknown` where a file does not say. */
  readonly method: string
  /** Settings of the method. */
  readonly options?: Readonly<Record<string, string | number | boolean>>
  readonly model: RecordedModel
  readonly sites: readonly string[]
  readonly prompts?: {
    /** SHA-256 of the canonical JSON of `{ positive, negative }`. */
    readonly hash: string
    readonly positive: number
    readonly negative: number
  }
  readonly position?: Position
  /** The token left out of a mean as the one that begins every text. */
  readonly excludedBos?: number
  /** Edits that were in force while the activations were read. */
  readonly edits?: { readonly labels: readonly string[]; readonly hash?: string }
  /** Precision of the activations. */
  readonly precision?: string
  readonly versions?: { readonly actlens: string; readonly runtime: string }
  /** ISO date; only where the caller asked for one, so that equal work gives equal bytes. */
  readonly created?: string
  /** What the fit says about itself, by site. */
  readonly fit?: Readonly<Record<string, FitFacts>>
  /** What algebra combined: the vector is (a function of) the sum of factor · part. */
  readonly parts?: readonly { readonly factor: number; readonly record: VectorRecord }[]
  /** The file that it was read from, where that format has its own conventions. */
  readonly source?: Readonly<Record<string, string | number>>
}

/** JSON with sorted keys, and typed arrays as lists, so that equal values give equal text. */
export function canonicalJson(value: unknown): string {
  return JSON.stringify(value, (_, v: unknown) => {
    if (ArrayBuffer.isView(v) && !(v instanceof DataView)) return Array.from(v as unknown as ArrayLike<number>)
    if (typeof v !== 'object' || v === null || Array.isArray(v)) return v
    return Object.fromEntries(Object.entries(v).sort(([a], [b]) => (a < b ? -1 : 1)))
  })
}

/** What a record says of the edits in force; function edits have no hash, since they are no data. */
export async function recordEdits(edits: readonly Edit[]): Promise<{ labels: readonly string[]; hash?: string } | undefined> {
  if (edits.length === 0) return undefined
  const labels = edits.map((e) => `${e.op} at ${e.site}`)
  return edits.some((e) => e.op === 'function') ? { labels } : { labels, hash: await sha256(canonicalJson(edits)) }
}

/** A vector as an array for a file. */
export const asArray = (data: Float32Array): NDArray<Float32Array> => ({ dtype: 'float32', shape: [data.length], data })
