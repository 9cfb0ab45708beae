/** @file What heads look at: the share of attention that goes to places of a known kind, for each head. */
import { UsageError } from '../base/errors.ts'
import type { NDArray } from '../base/types.ts'
import { randomStream } from '../models/sampling.ts'
import type { Model, ModelInput } from '../run/index.ts'
import { input, mul, sum, type Tensor, unsqueeze } from '../tensor/index.ts'
import { editedModel, rowFeeds, stackableRows } from './patch-graph.ts'

/** A kind of place that a query may look at: keys of a row of tokens, for each query. */
export interface HeadPattern {
  readonly doc: string
  readonly keys: (tokens: readonly number[], query: number) => readonly number[]
}

const before = (query: number) => Array.from({ length: query }, (_, k) => k)

/** The catalogue of patterns. */
export const headPatterns = {
  previous: { doc: 'the token before', keys: (_, q) => (q > 0 ? [q - 1] : []) },
  current: { doc: 'the token itself', keys: (_, q) => [q] },
  first: { doc: 'the first token', keys: (_, q) => (q > 0 ? [0] : []) },
  duplicate: { doc: 'earlier occurrences of the same token', keys: (tokens, q) => before(q).filter((k) => tokens[k] === tokens[q]) },
  induction: {
    doc: 'tokens after earlier occurrences of the same token',
    keys: (tokens, q) =>
      before(q)
        .filter((k) => tokens[k] === tokens[q] && k + 1 < q)
        .map((k) => k + 1),
  },
} as const satisfies Readonly<Record<string, HeadPattern>>

/** Options of {@link headScores}. */
export interface HeadScoreOptions {
  /** Texts that are read; random tokens that are repeated once when left out, on which induction heads show. */
  readonly texts?: ModelInput
  readonly patterns?: Readonly<Record<string, HeadPattern>>
  /** Of the random texts: tokens before the repetition (24), texts (4), seed (0). */
  readonly length?: number
  readonly rows?: number
  readonly seed?: number
}

/** Scores of all heads. */
export interface HeadScores {
  readonly patterns: readonly string[]
  /** Mean attention that goes to the pattern's keys over the queries that have any, 0 to 1, [pattern, layer, head]. */
  readonly scores: NDArray<Float32Array>
  /** Queries that have such keys, by pattern. */
  readonly queries: Readonly<Record<string, number>>
}

/** Scores every head's attention pattern against a catalogue of patterns, in one program. */
export async function headScores(model: Model, options: HeadScoreOptions = {}): Promise<HeadScores> {
  const patterns: Readonly<Record<string, HeadPattern>> = options.patterns ?? headPatterns
  const rows = options.texts === undefined ? repeatedRandom(model, options) : stackableRows(model, options.texts, 'The input')
  const names = Object.keys(patterns)
  const width = Math.max(...rows.map((r) => r.length))
  const masks = names.map((n) => maskOf(patterns[n] as HeadPattern, rows, width))
  const empty = names.filter((_, i) => masks[i]?.queries === 0)
  if (empty.length > 0)
    throw new UsageError(
      `No token of these texts has a place of the kind ${empty.join(', ')}; give longer texts, or leave them out for random ones that repeat.`,
    )
  const edited = editedModel(model)
  const { layers, heads } = model.spec
  const program = await edited.core.compiled(JSON.stringify(['heads', edited.structure, names]), () => {
    const sites = Array.from({ length: layers }, (_, l) => `attn_probs.${l}`)
    const graph = edited.graph({ taps: sites, lastOnly: false })
    return Object.fromEntries(
      sites.flatMap((site, l) =>
        names.map((name) => {
          const probs = graph.taps.get(site) as Tensor
          const [batch, , pos, key] = probs.shape
          const mask = input(`pattern:${name}`, 'float32', [batch as string, pos as string, key as string])
          return [`${name}.${l}`, sum(mul(probs, unsqueeze(mask, 1)), [0, 2, 3])]
        }),
      ),
    )
  })
  const feeds = Object.fromEntries(names.map((n, i) => [`pattern:${n}`, (masks[i] as { mask: NDArray }).mask]))
  const out = await program.run({ ...rowFeeds(edited, rows), ...feeds })
  const data = new Float32Array(names.length * layers * heads)
  for (const [i, name] of names.entries())
    for (let l = 0; l < layers; l++) data.set(out[`${name}.${l}`]?.data as Float32Array, (i * layers + l) * heads)
  return {
    patterns: names,
    scores: { dtype: 'float32', shape: [names.length, layers, heads], data },
    queries: Object.fromEntries(names.map((n, i) => [n, masks[i]?.queries as number])),
  }
}

/** Rows of random tokens, said twice, after the token that begins texts where the model has one. */
function repeatedRandom(model: Model, { length = 24, rows = 4, seed = 0 }: HeadScoreOptions): number[][] {
  const random = randomStream(seed)
  const bos = model.hasTokenizer ? model.tokenizer.bos : undefined
  const start = bos === undefined ? [] : [bos]
  if (2 * length + start.length > model.contextLength)
    throw new UsageError(`Twice ${length} tokens do not fit into the context of ${model.contextLength}; give a smaller length.`)
  return Array.from({ length: rows }, () => {
    const once = Array.from({ length }, () => Math.floor(random() * model.spec.vocab))
    return [...start, ...once, ...once]
  })
}

/** The keys of a pattern, weighted so that a product with attention, summed, is the mean over queries. */
function maskOf({ keys }: HeadPattern, rows: readonly (readonly number[])[], width: number): { mask: NDArray; queries: number } {
  const data = new Float32Array(rows.length * width * width)
  let queries = 0
  for (const [b, row] of rows.entries())
    for (let q = 0; q < row.length; q++) {
      const found = keys(row, q)
      if (found.length > 0) queries++
      for (const k of found) data[(b * width + q) * width + k] = 1
    }
  return { mask: { dtype: 'float32', shape: [rows.length, width, width], data: data.map((v) => v / Math.max(1, queries)) }, queries }
}
