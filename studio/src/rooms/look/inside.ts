/** @file What is looked into: which tokens, under which edits, and the answers of the server as the grid wants them. */
import type { GridLine, ModelAnswer, RequestOf, SiteAnswer, TokensAnswer, TopToken, VectorRecipe } from '../../../../src/server/protocol.ts'
import { lines, post, postForBytes } from '../../lib/api.ts'
import { tokenLabel } from '../../lib/format.ts'
import { readValues, type Values } from '../../lib/safetensors.ts'
import { differenceOf, type GridKind, type View } from '../../lib/view.ts'
import type { GridData } from '../../parts/grid-draw.ts'
import { activeEdits, inputOf, type Stories } from './stories.ts'

/** The part of a request that says what is looked at. */
export type Looked = Pick<RequestOf<'tokens'>, 'model' | 'text' | 'ids' | 'promptLength'> & {
  edits: NonNullable<RequestOf<'tokens'>['edits']>
}

/** What a view looks into; undefined until the story that it asks for is written. */
export function lookedAt(view: View, stories: Stories | undefined): Looked | undefined {
  const model = view.model === '' ? {} : { model: view.model }
  if (view.look === 'prompt')
    return view.text.trim() === '' ? undefined : { ...model, ...inputOf(view.text), edits: view.withEdits ? activeEdits(view.edits) : [] }
  const row = stories?.rows[view.look === 'plain' ? 0 : 1]
  if (!stories?.done || !row) return undefined
  return {
    ...model,
    // The last token was written, not read: nothing was computed at its position.
    ids: [...stories.ids, ...row.slice(0, -1).map((t) => t.id)],
    promptLength: stories.ids.length,
    edits: view.look === 'steered' ? activeEdits(view.edits) : [],
  }
}

/** The recipe that cosines are taken to; undefined when steering is meant and there is none. */
export function vectorOf(view: View): VectorRecipe | undefined {
  if (view.vector !== 'steering') return view.vector
  for (const { edit } of view.edits) {
    const difference = differenceOf(edit)
    if (difference && difference.positive.length > 0 && difference.negative.length > 0) return { difference }
  }
  return undefined
}

/** Kinds of sites that a grid can show: those as wide as the residual stream. */
export const gridKinds = (spec: ModelAnswer | undefined) =>
  (spec?.sites ?? []).filter((s) => s.per === 'layer' && !s.absent && s.axes.length === 3 && s.axes[2] === 'd_model')

/** A grid as it has come so far. */
export interface Grid {
  readonly what: GridKind
  readonly sites: readonly string[]
  readonly ids: readonly number[]
  readonly pieces: readonly string[]
  readonly values: readonly (readonly number[] | undefined)[]
  readonly top: readonly (readonly (readonly TopToken[])[] | undefined)[]
  readonly done: boolean
  readonly unfired: readonly string[]
}

/** Asks for a grid and hands it on row by row; rows of an older one of the same size stay until theirs come. */
export async function readGrid(
  request: RequestOf<'grid'>,
  before: Grid | undefined,
  signal: AbortSignal,
  put: (grid: Grid) => void,
): Promise<void> {
  let grid: Grid | undefined
  for await (const batch of lines<GridLine>('grid', request, signal)) {
    for (const line of batch) {
      if (line.type === 'head') {
        const same = before?.what === request.what && before.ids.length === line.ids.length && before.sites.join() === line.sites.join()
        const none = line.sites.map(() => undefined)
        grid = {
          what: request.what,
          sites: line.sites,
          ids: line.ids,
          pieces: line.pieces,
          values: same ? before.values : none,
          top: same ? before.top : none,
          done: false,
          unfired: [],
        }
      } else if (!grid) continue
      else if (line.type === 'row') {
        const at = grid.sites.indexOf(line.site)
        grid = {
          ...grid,
          values: grid.values.map((row, i) => (i === at ? line.values : row)),
          top: grid.top.map((row, i) => (i === at ? line.top : row)),
        }
      } else grid = { ...grid, done: true, unfired: line.unfired }
    }
    if (grid?.values.some((row) => row)) put(grid)
  }
}

/** A grid as it is drawn. */
export function drawable(grid: Grid, whitespace: boolean): GridData {
  return {
    rows: grid.sites.map((s) => s.split('.')[1] ?? s),
    columns: grid.pieces.map((p) => tokenLabel(p, whitespace)),
    values: grid.values,
    ...(grid.what === 'lens' ? { words: grid.top.map((row) => row?.map((tops) => tokenLabel(tops[0]?.piece ?? '', whitespace))) } : {}),
  }
}

/** Tokens first, since they are there at once; then how surprising each is. */
export async function readTokens(
  looked: Looked,
  before: TokensAnswer | undefined,
  signal: AbortSignal,
  put: (answer: TokensAnswer) => void,
) {
  const bare = await post<TokensAnswer, 'tokens'>('tokens', looked, signal)
  // While the same tokens are measured anew the old colours stay.
  const same = before?.ids.join() === bare.ids.join()
  if (!same) put(bare)
  put(await post<TokensAnswer, 'tokens'>('tokens', { ...looked, surprise: true }, signal))
}

/** One site at one position. */
export const readSite = (looked: Looked, site: string, position: number, vector: VectorRecipe | undefined, signal: AbortSignal) =>
  post<SiteAnswer, 'site'>('site', { ...looked, site, position, ...(vector ? { vector } : {}) }, signal)

/** The attention pattern of a layer. */
export async function readAttention(looked: Looked, layer: number, signal: AbortSignal): Promise<Values> {
  return readValues(await postForBytes('values', { ...looked, site: `attn_probs.${layer}` }, signal))
}
