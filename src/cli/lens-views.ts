/** @file What a lens read, as JSON, as tensors of a file, and as tables to look at. */
import type { NDArray } from '../base/types.ts'
import type { LensResult, PatchscopeResult, PathLensResult } from '../explore/index.ts'
import type { Model } from '../run/index.ts'
import { quoted, short, table } from './table.ts'

/** A result in all its forms. */
export interface View {
  readonly json: object
  readonly text: string
  readonly tensors: Readonly<Record<string, NDArray>>
  /** What the axes of the tensors stand for. */
  readonly labels: Readonly<Record<string, unknown>>
}

const pieceOf = (model: Model, id: number) => (model.hasTokenizer ? { piece: model.tokenizer.piece(id) } : {})
const named = (model: Model, id: number) => (model.hasTokenizer ? quoted(model.tokenizer.piece(id)) : String(id))
const tokensOf = (model: Model, ids: readonly number[]) => ids.map((id) => ({ id, ...pieceOf(model, id) }))

/** Tokens that are shown of each place. */
const shownTokens = 5

/** The tokens at a place of arrays [row, pos, top], with their numbers under `key`. */
function tokensAt<K extends string>(
  model: Model,
  ids: NDArray<BigInt64Array>,
  values: NDArray<Float32Array>,
  key: K,
  row: number,
  pos: number,
) {
  const [, width, top] = ids.shape as [number, number, number]
  const start = (row * width + pos) * top
  return Array.from({ length: top }, (_, i) => {
    const id = Number(ids.data[start + i])
    return { id, ...pieceOf(model, id), [key]: values.data[start + i] as number } as { id: number; piece?: string } & Record<K, number>
  })
}

const places = <T>(rows: readonly unknown[], columns: readonly unknown[], value: (row: number, column: number) => T) =>
  rows.map((_, r) => columns.map((__, c) => value(r, c)))

/** A table of the first choices at every place. */
function grid(model: Model, rows: readonly string[], columns: readonly string[], first: (row: number, column: number) => number): string {
  return table(
    ['site', ...columns],
    rows.map((r, i) => [r, ...columns.map((_, c) => named(model, first(i, c)))]),
  )
}

/** A result of `lens`. */
export function lensView(model: Model, r: LensResult): View {
  const at = (array: NDArray<Float32Array>) => places(r.sites, r.tokens, (l, p) => array.data[l * r.tokens.length + p] as number)
  const top = (l: number, p: number) => tokensAt(model, r.topIds, r.topProbs, 'p', l, p)
  const rows = r.sites.map((site, l) => [
    site,
    ...top(l, r.tokens.length - 1)
      .slice(0, shownTokens)
      .map((t) => `${named(model, t.id)} ${(100 * t.p).toFixed(0)} %`),
  ])
  const head = ['site', ...(rows[0] as string[]).slice(1).map((_, i) => `${i + 1}.`)]
  const columns = r.tokens.map((id) => named(model, id))
  return {
    json: { sites: r.sites, tokens: tokensOf(model, r.tokens), top: places(r.sites, r.tokens, top), entropy: at(r.entropy), kl: at(r.kl) },
    text: `next token after the whole text\n${table(head, rows)}\nfirst choice after each token\n${grid(model, r.sites, columns, (l, p) => (top(l, p)[0] as { id: number }).id)}`,
    tensors: { 'lens.top_ids': r.topIds, 'lens.top_probs': r.topProbs, 'lens.entropy': r.entropy, 'lens.kl': r.kl },
    labels: { sites: r.sites },
  }
}

/** A result of `pathLens`. */
export function pathView(model: Model, r: PathLensResult): View {
  const top = (c: number, p: number) => tokensAt(model, r.topIds, r.topLogits, 'logit', c, p)
  const bottom = (c: number, p: number) => tokensAt(model, r.bottomIds, r.bottomLogits, 'logit', c, p)
  const said = (tokens: readonly { id: number; logit: number }[]) =>
    tokens
      .slice(0, 3)
      .map((t) => `${named(model, t.id)} ${short(t.logit)}`)
      .join('  ')
  const last = r.tokens.length - 1
  const rows = r.paths.map((path, c) => [path, said(top(c, last)), said(bottom(c, last))])
  return {
    json: {
      paths: r.paths,
      tokens: tokensOf(model, r.tokens),
      top: places(r.paths, r.tokens, top),
      bottom: places(r.paths, r.tokens, bottom),
    },
    text: `what each path adds to the logits after the whole text, against the mean of the vocabulary\n${table(['path', 'most', 'least'], rows)}`,
    tensors: {
      'lens.top_ids': r.topIds,
      'lens.top_logits': r.topLogits,
      'lens.bottom_ids': r.bottomIds,
      'lens.bottom_logits': r.bottomLogits,
    },
    labels: { paths: r.paths },
  }
}

/** A result of `patchscope`. */
export function patchscopeView(model: Model, r: PatchscopeResult): View {
  const top = (l: number, p: number) => tokensAt(model, r.topIds, r.topProbs, 'p', l, p)
  const sources = r.positions.map((p) => r.tokens.source[p] as number)
  const columns = sources.map((id) => named(model, id))
  const written = r.written
    ? `\nwhat was written on\n${table(
        ['site', ...columns],
        r.sites.map((s, l) => [s, ...(r.written?.[l] ?? []).map((w) => (model.hasTokenizer ? quoted(w.text) : w.tokens.join(' ')))]),
      )}`
    : ''
  return {
    json: {
      sites: r.sites,
      positions: r.positions,
      tokens: tokensOf(model, sources),
      target: tokensOf(model, r.tokens.target),
      top: places(r.sites, r.positions, top),
      ...(r.written ? { written: r.written } : {}),
    },
    text: `first choice after the target, by where the state comes from\n${grid(model, r.sites, columns, (l, p) => (top(l, p)[0] as { id: number }).id)}${written}`,
    tensors: { 'lens.top_ids': r.topIds, 'lens.top_probs': r.topProbs },
    labels: { sites: r.sites, positions: r.positions, target: r.tokens.target },
  }
}
