/** @file Programs of one's own over a model: the graph with its edits and further ones, and what must be fed to it. */
import { UsageError } from '../base/errors.ts'
import { type NDArray, sizeOf } from '../base/types.ts'
import { inputNames } from '../models/traced.ts'
import { type Batch, batchOfRows, checkBatch, type ModelInput, passOf, stepFeeds } from '../run/batch.ts'
import type { ModelCore } from '../run/core.ts'
import type { Model } from '../run/index.ts'
import type { SiteInfo } from '../sites/address.ts'
import type { Edit, FunctionEdit } from '../sites/edits.ts'
import { type FireCounts, feedsOf, type PreparedEdit, prepareEdits } from '../sites/prepare.ts'
import { type EditedGraph, rewriteModel } from '../sites/rewrite.ts'
import { gatherRows, input, type Program, type Tensor, unsqueeze } from '../tensor/index.ts'

/** A model's edits and further ones, for programs that are built here. */
export interface EditedModel {
  readonly core: ModelCore
  /** The model's own edits, which must be fed. */
  readonly own: readonly PreparedEdit[]
  /** What of the edits is part of a compiled program. */
  readonly structure: readonly unknown[]
  /** The graph with the model's edits and further ones, which act after them. */
  graph(request: GraphRequest): EditedGraph
}

/** What a graph is asked for. */
export interface GraphRequest {
  readonly edits?: readonly FunctionEdit[]
  /** Canonical sites to read. */
  readonly taps: readonly string[]
  /** Final norm and logits at one position of each row only. */
  readonly lastOnly: boolean
}

/** Makes a model's graph ready for programs over stacked rows. */
export function editedModel(model: Model): EditedModel {
  const core = model.internals
  for (const e of model.edits)
    if (e.where?.rows)
      throw new UsageError(`The edit ${e.op} at ${e.site} names rows of a batch, but here rows are stacked anew; take 'where.rows' out.`)
  const prepare = (edits: readonly Edit[]) => prepareEdits(edits, core.resolver)
  const own = prepare(model.edits)
  return {
    core,
    own,
    structure: own.map((e) => [e.key, e.structure]),
    graph: ({ edits = [], taps, lastOnly }) =>
      rewriteModel(core.trace({ cache: false, explicitPositions: false, slots: false, lastOnly }), {
        edits: prepare([...model.edits, ...edits]),
        taps: [...new Set(taps)],
        uses: { logits: true, caches: false },
      }),
  }
}

/** Feeds of rows of tokens, and of the model's own edits over them. `index` is the position that is read of each row, the last one by default. */
export function rowFeeds(edited: EditedModel, rows: readonly (readonly number[])[], index?: number): Record<string, NDArray> {
  const { core, own } = edited
  const batch = batchOfRows(rows)
  const start = rows.map(() => 0)
  const step = stepFeeds(rows, start, undefined)
  const layout = { rows, start, width: step.width, prompt: rows.map((r) => r.length) }
  const fired: FireCounts = new Map()
  const feeds: Record<string, NDArray> = { ...core.constantFeeds, ...step.feeds }
  for (const e of own) Object.assign(feeds, feedsOf(e, { text: { step: layout, caller: batch, total: step.total } }, fired))
  if (index !== undefined) feeds[inputNames.lastIndex] = int64(rows.map((r) => placeIn(r, index)))
  return feeds
}

/** Feeds of a batch of anything that the model reads, images too, and of the model's own edits over it. */
export function batchFeeds({ core, own }: EditedModel, batch: Batch): Record<string, NDArray> {
  const pass = passOf(core.architecture, batch)
  const fired: FireCounts = new Map()
  const feeds: Record<string, NDArray> = { ...core.constantFeeds, ...pass.feeds }
  for (const e of own) Object.assign(feeds, feedsOf(e, pass.places, fired))
  return feeds
}

function placeIn(row: readonly number[], index: number): number {
  const place = index < 0 ? index + row.length : index
  if (!Number.isInteger(place) || place < 0 || place >= row.length)
    throw new UsageError(`The metric reads position ${index}, but the text has ${row.length} tokens.`)
  return place
}

/** Token rows of an input that is to be stacked: checked, without positions of its own. `what` names it in a sentence. */
export function stackableRows(model: Model, input: ModelInput, what: string): Batch['rows'] {
  const batch = model.tokens(input)
  checkBatch(batch, model.spec.vocab, model.contextLength)
  if (batch.positions) throw new UsageError(`${what} has position_ids of its own, which cannot be stacked; leave them out.`)
  return batch.rows
}

/** Whether a site lies behind the blocks: in the final norm or the unembedding. */
export function inHead(site: SiteInfo): boolean {
  return site.layer === undefined && /^(final_norm|logits)/.test(site.row.name)
}

/** The logits that are read of each row: of all positions, or [batch, 1, d_vocab] where the graph computes only one or one is chosen here. */
export function readLogits(logits: Tensor, request: { readonly lastOnly: boolean; readonly everywhere: boolean }): Tensor {
  if (request.lastOnly || request.everywhere) return logits
  return unsqueeze(gatherRows(logits, input(inputNames.lastIndex, 'int64', ['batch'])), 1)
}

/** Zeros for the inputs of a program over one row that are not known: masks that hold nowhere, values that nobody reads. */
export function placeholders(program: Program, known: Readonly<Record<string, NDArray>>, length: number): Record<string, NDArray> {
  const sizes: Readonly<Record<string, number>> = { batch: 1 }
  const open = [...program.inputs].filter(([name]) => known[name] === undefined)
  return Object.fromEntries(
    open.map(([name, t]) => {
      const shape = t.shape.map((d) => (typeof d === 'number' ? d : (sizes[d] ?? length)))
      return [name, { dtype: t.dtype, shape, data: zeroData(t.dtype, sizeOf(shape)) }]
    }),
  )
}

const zeroData = (dtype: Tensor['dtype'], size: number) =>
  dtype === 'int64' ? new BigInt64Array(size) : dtype === 'bool' ? new Uint8Array(size) : new Float32Array(size)

/** Integers as an array, of one axis by default. */
export function int64(values: readonly number[], shape: readonly number[] = [values.length]): NDArray<BigInt64Array> {
  return { dtype: 'int64', shape, data: BigInt64Array.from(values, BigInt) }
}

/** Names of the parameters that a model reads and that a name or glob (`*` for any part) means; refuses what means none. */
export function matchParameters(model: Model, pattern: string): string[] {
  if (!pattern.includes('*')) return [pattern]
  const core = model.internals
  const expression = new RegExp(`^${pattern.split('*').map(escaped).join('.*')}$`)
  const names = [...model.weights.keys()].filter((n) => expression.test(n) && core.parameter(n) !== undefined)
  if (names.length === 0)
    throw new UsageError(`No parameter that the model reads matches '${pattern}'; names look like '${model.weights.keys().next().value}'.`)
  return names
}

const escaped = (text: string) => text.replace(/[.+?^${}()|[\]\\]/g, '\\$&')

/** Sites that a pattern means, all of one kind: they share their axes. */
export function sitesOf(model: Model, pattern: string): readonly [SiteInfo, ...SiteInfo[]] {
  const found = model.resolve(pattern) as [SiteInfo, ...SiteInfo[]]
  const other = found.find((i) => i.row.name !== found[0].row.name)
  if (other)
    throw new UsageError(
      `'${pattern}' means sites of several kinds (${found[0].row.name}, ${other.row.name}), which make no one table; name one kind at a time.`,
    )
  return found
}
