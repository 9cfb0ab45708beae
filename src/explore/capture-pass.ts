/** @file One pass of a model over a corpus: rows of tokens, run in batches of like length, given back in the order of the corpus. */
import { readFile } from 'node:fs/promises'
import { EditError, throwIfCancelled, UsageError } from '../base/errors.ts'
import { readFailure } from '../base/files.ts'
import { sizeOf } from '../base/types.ts'
import type { Activation, Model, ModelInput, Selection, TapSpec } from '../run/index.ts'
import type { AxisName, SiteInfo, Where } from '../sites/index.ts'
import { checkWhere, layerAllowed, maskOf, needsMask } from '../sites/where.ts'
import type { Corpus, CorpusPart } from './corpus.ts'

/** How documents become rows: each begins a row of its own, or all follow one another and rows are full (later documents then see earlier ones). */
export type Packing = 'pad' | 'pack'

/** Settings of a pass. */
export interface PassSettings {
  /** Sites, aliases or patterns. */
  readonly sites: string | readonly string[]
  /** Positions that are kept (default all); `rows` means nothing here. */
  readonly where?: Where
  /** Default `pad`. */
  readonly packing?: Packing
  /** Longest row in tokens; longer documents are cut into several (default: the context of the model). */
  readonly context?: number
  /** Tokens, padding included, in one forward pass (default 1024). */
  readonly batchTokens?: number
  /** Positions that are kept in all. */
  readonly maxTokens?: number
}

/** Where a row begins: a document, and a token of it. */
export interface Cursor {
  readonly document: number
  readonly token: number
}

/** A site of a pass, and the axes of one position of it. */
export interface PassSite {
  readonly site: string
  /** Axes without batch and pos. */
  readonly axes: readonly AxisName[]
  readonly shape: readonly number[]
  /** Numbers for one position. */
  readonly width: number
}

/** Settings of a pass with nothing left open, so that equal settings give equal numbers. */
export interface PassPlan {
  readonly sites: readonly PassSite[]
  readonly where: Where
  readonly packing: Packing
  readonly context: number
  readonly batchTokens: number
  /** Tokens that are sorted by length together. */
  readonly windowTokens: number
  readonly maxTokens?: number
}

/** Activations of some neighbouring rows, in the order of the corpus. */
export interface PassWindow {
  readonly count: number
  /** Token ids, [count]. */
  readonly tokens: Int32Array
  /** Documents, [count]. */
  readonly document: Int32Array
  /** Positions in the documents, [count]. */
  readonly position: Int32Array
  /** Positions in the rows as the model saw them, [count]. */
  readonly column: Int32Array
  /** Index into `rows`, [count]. */
  readonly row: Int32Array
  /** By canonical site, [count, width]. */
  readonly values: ReadonlyMap<string, Float32Array>
  /** Whole rows that were run. */
  readonly rows: readonly PassRow[]
  /** Where the next window begins; absent after the last one. */
  readonly next?: Cursor
  /** Edits that fired in none of these batches, as sentences. */
  readonly unfired: readonly string[]
}

/** A row of tokens, or of the positions of an image, and where each came from. */
export interface PassRow {
  /** Token ids; −1 for the positions of an image. */
  readonly ids: readonly number[]
  readonly document: readonly number[]
  readonly position: readonly number[]
  /** Path of the image. */
  readonly image?: string
}

/** Bytes of activations that a window may take. */
const windowBytes = 2 ** 26

/** Resolves and checks the settings of a pass. */
export function planPass(model: Model, options: PassSettings): PassPlan {
  const patterns = typeof options.sites === 'string' ? [options.sites] : options.sites
  const where = checkWhere(options.where, 'the capture')
  if (where.rows !== undefined)
    throw new EditError(
      "The 'where.rows' of a capture means nothing, since rows of a corpus have no fixed batch; choose documents instead.",
    )
  if (where.phase === 'generated')
    throw new EditError(
      "The 'where.phase' of a capture is 'generated', but a capture generates nothing, so it can never hold; leave it out.",
    )
  const found = [...new Map(patterns.flatMap((p) => model.resolve(p)).map((i) => [i.site, i])).values()]
  const infos = found.filter((i) => layerAllowed(where, i.layer, i.stack.layers))
  if (infos.length === 0)
    throw new UsageError(
      found.length === 0
        ? 'No site is named; say what to capture, for example resid_post.3 or resid_post.*.'
        : "The 'where.layers' of the capture leaves none of its sites; name other layers.",
    )
  const sites = infos.map((info) => passSite(model, info))
  const context = positive('context', options.context) ?? model.contextLength
  if (context > model.contextLength)
    throw new UsageError(`The context is ${context}, but this model was loaded for ${model.contextLength} tokens; give at most that.`)
  const batchTokens = positive('batchTokens', options.batchTokens) ?? 1024
  const bytes = 4 * sites.reduce((sum, s) => sum + s.width, 0)
  const maxTokens = positive('maxTokens', options.maxTokens)
  return {
    sites,
    where,
    packing: options.packing ?? 'pad',
    context,
    batchTokens,
    windowTokens: Math.max(batchTokens, Math.min(8 * batchTokens, Math.floor(windowBytes / bytes))),
    ...(maxTokens === undefined ? {} : { maxTokens }),
  }
}

/** A positive whole number, or undefined where none was given. */
export function positive(name: string, value: number | undefined): number | undefined {
  if (value !== undefined && !(Number.isSafeInteger(value) && value > 0))
    throw new UsageError(`${name} must be a positive whole number, not ${value}.`)
  return value
}

function passSite(model: Model, info: SiteInfo): PassSite {
  const { axes } = info.row
  const sizes = model.shapeOf(info)
  const shape = sizes.slice(2)
  const reason = axes.includes('key')
    ? 'it has a key axis, whose length changes with every row; look at it with run --taps'
    : axes[0] !== 'batch' || axes[1] !== 'pos' || shape.some((s) => typeof s !== 'number')
      ? `its axes are [${axes.join(', ')}], not one value for each position`
      : undefined
  if (reason !== undefined) throw new UsageError(`The site '${info.site}' cannot be captured: ${reason}.`)
  return { site: info.site, axes: axes.slice(2), shape: shape as number[], width: sizeOf(shape as number[]) }
}

/** Token ids of one part of a document. */
function encode(model: Model, { content, first, document }: CorpusPart): readonly number[] {
  if (typeof content === 'string') return model.tokenizer.encode(content, { addSpecial: first })
  const bad = content.find((id) => id >= model.vocab || id < 0 || !Number.isInteger(id))
  if (bad !== undefined)
    throw new UsageError(`Document ${document} holds the token ${bad}, but the vocabulary has ids 0 to ${model.vocab - 1}.`)
  return content
}

/** The positions of an image. */
function imageRow(model: Model, document: number, image: string): PassRow {
  const sequence = model.architecture.sequences.find((s) => s.kind === 'pixels')
  if (!sequence)
    throw new UsageError(`${model.origin.id} reads no images, but the corpus is a folder of them; give texts, or a model of images.`)
  const n = sequence.positions
  return {
    ids: new Array<number>(n).fill(-1),
    document: new Array<number>(n).fill(document),
    position: Array.from({ length: n }, (_, i) => i),
    image,
  }
}

/** What the model runs on for some rows; a batch is of one kind, since a corpus is. */
async function inputOf(rows: readonly PassRow[]): Promise<ModelInput> {
  const images = rows.flatMap((r) => (r.image === undefined ? [] : [r.image]))
  if (images.length === 0) return { rows: rows.map((r) => r.ids) }
  return {
    images: await Promise.all(
      images.map((path) =>
        readFile(path).catch((error: unknown) => {
          throw readFailure(error, path)
        }),
      ),
    ),
  }
}

/** The rows of a corpus from a place on, which must be one where a row begins. */
export async function* rowsOf(
  model: Model,
  corpus: Corpus,
  plan: Pick<PassPlan, 'context' | 'packing'>,
  from: Cursor,
): AsyncGenerator<PassRow> {
  let row = { ids: [] as number[], document: [] as number[], position: [] as number[] }
  const take = () => {
    const whole = row
    row = { ids: [], document: [], position: [] }
    return whole
  }
  let position = 0
  for await (const part of corpus.parts(from.document)) {
    const { document } = part
    if (part.image !== undefined) {
      yield imageRow(model, document, part.image)
      continue
    }
    if (part.first) {
      if (plan.packing === 'pad' && row.ids.length > 0) yield take()
      position = 0
    }
    for (const id of encode(model, part)) {
      const at = position++
      if (document === from.document && at < from.token) continue
      row.ids.push(id)
      row.document.push(document)
      row.position.push(at)
      if (row.ids.length === plan.context) yield take()
    }
  }
  if (row.ids.length > 0) yield take()
}

/** Positions of a row that the clause lets through, as far as the tokens alone tell. */
export function keptOf(where: Where, row: PassRow): number {
  const n = row.ids.length
  return needsMask(where) ? maskOf(where, { rows: [row.ids], start: [0], width: n, prompt: [n] }).fired : n
}

/** Runs the model over a corpus from a place on, window by window. */
export async function* passOver(
  model: Model,
  corpus: Corpus,
  plan: PassPlan,
  { from = { document: 0, token: 0 }, kept = 0, signal }: { from?: Cursor; kept?: number; signal?: AbortSignal } = {},
): AsyncGenerator<PassWindow> {
  const source = rowsOf(model, corpus, plan, from)
  let next = await source.next()
  let left = (plan.maxTokens ?? Number.POSITIVE_INFINITY) - kept
  const gather = async () => {
    const rows: PassRow[] = []
    let [tokens, expected] = [0, 0]
    while (!next.done && tokens < plan.windowTokens && expected < left) {
      rows.push(next.value)
      tokens += next.value.ids.length
      if (plan.maxTokens !== undefined && plan.where.when === undefined) expected += keptOf(plan.where, next.value)
      next = await source.next()
    }
    const begin = next.done ? undefined : { document: next.value.document[0] as number, token: next.value.position[0] as number }
    return { rows, begin, expected }
  }
  let gathered = await gather()
  while (gathered.rows.length > 0) {
    throwIfCancelled(signal)
    const { rows, begin, expected } = gathered
    // The next window is tokenised while this one runs; how much it may hold is known then, except with a condition on values.
    const eager = plan.where.when === undefined
    if (eager) left -= expected
    const [window, following] = await Promise.all([runWindow(model, plan, rows, begin, signal), eager ? gather() : undefined])
    const room = eager ? left + expected : left
    const cut = window.count > room ? truncated(window, plan, room) : window
    if (!eager) left -= cut.count
    yield cut
    if (left <= 0) return
    gathered = following ?? (await gather())
  }
}

interface Piece {
  readonly columns: readonly number[]
  /** Values of each site, [columns, width]. */
  readonly values: readonly Float32Array[]
}

async function runWindow(
  model: Model,
  plan: PassPlan,
  rows: readonly PassRow[],
  next: Cursor | undefined,
  signal: AbortSignal | undefined,
): Promise<PassWindow> {
  const { layers: _, ...where } = plan.where
  const restricted = Object.keys(where).length > 0
  const taps: TapSpec[] = plan.sites.map(({ site }) => (restricted ? { site, where } : site))
  const order = rows.map((_, i) => i).sort((a, b) => (rows[b] as PassRow).ids.length - (rows[a] as PassRow).ids.length || a - b)
  const pieces = new Array<Piece>(rows.length)
  let unfired: string[] | undefined
  for (let at = 0; at < order.length; ) {
    throwIfCancelled(signal)
    const longest = (rows[order[at] as number] as PassRow).ids.length
    const batch = order.slice(at, at + Math.max(1, Math.floor(plan.batchTokens / longest)))
    const result = await model.run(await inputOf(batch.map((i) => rows[i] as PassRow)), { taps, logits: false })
    const edits = result.unfired.filter((s) => !s.startsWith('The tap'))
    unfired = unfired ? unfired.filter((s) => edits.includes(s)) : edits
    const values = plan.sites.map(({ site }) => result.taps[site] as Activation)
    const selected = restricted ? result.selected[(plan.sites[0] as PassSite).site] : undefined
    for (const [b, i] of batch.entries())
      pieces[i] = selected ? chosen(selected, values, plan, b) : whole(values, plan, b, rows[i] as PassRow)
    at += batch.length
  }
  return assembled(plan, rows, pieces, next, unfired ?? [])
}

function whole(values: readonly Activation[], { sites }: PassPlan, b: number, row: PassRow): Piece {
  const n = row.ids.length
  return {
    columns: Array.from({ length: n }, (_, c) => c),
    values: values.map((v, s) => {
      const { width } = sites[s] as PassSite
      const start = b * (v.shape[1] as number) * width
      return v.data.subarray(start, start + n * width)
    }),
  }
}

function chosen({ places }: Selection, values: readonly Activation[], { sites }: PassPlan, b: number): Piece {
  const first = places.findIndex((p) => p.row === b)
  const columns = places.filter((p) => p.row === b).map((p) => p.position)
  return {
    columns,
    values: values.map((v, s) => {
      const { width } = sites[s] as PassSite
      return v.data.subarray(first * width, (first + columns.length) * width)
    }),
  }
}

function assembled(
  plan: PassPlan,
  rows: readonly PassRow[],
  pieces: readonly Piece[],
  next: Cursor | undefined,
  unfired: readonly string[],
): PassWindow {
  const count = pieces.reduce((n, p) => n + p.columns.length, 0)
  const columns = () => new Int32Array(count)
  const [tokens, document, position, column, rowOf] = [columns(), columns(), columns(), columns(), columns()]
  const values = new Map(plan.sites.map(({ site, width }) => [site, new Float32Array(count * width)]))
  let at = 0
  for (const [i, piece] of pieces.entries()) {
    const row = rows[i] as PassRow
    for (const [s, { site, width }] of plan.sites.entries()) values.get(site)?.set(piece.values[s] as Float32Array, at * width)
    for (const c of piece.columns) {
      tokens[at] = row.ids[c] as number
      document[at] = row.document[c] as number
      position[at] = row.position[c] as number
      rowOf[at] = i
      column[at++] = c
    }
  }
  return { count, tokens, document, position, column, row: rowOf, values, rows, ...(next ? { next } : {}), unfired }
}

function truncated(window: PassWindow, { sites }: PassPlan, count: number): PassWindow {
  return {
    ...window,
    count,
    tokens: window.tokens.subarray(0, count),
    document: window.document.subarray(0, count),
    position: window.position.subarray(0, count),
    column: window.column.subarray(0, count),
    row: window.row.subarray(0, count),
    values: new Map(sites.map(({ site, width }) => [site, (window.values.get(site) as Float32Array).subarray(0, count * width)])),
  }
}
