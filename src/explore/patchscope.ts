/** @file Patchscopes: a state of one prompt put into another prompt, which is made to say what it holds. */
import { throwIfCancelled, UsageError } from '../base/errors.ts'
import type { WorkOptions } from '../base/progress.ts'
import type { NDArray } from '../base/types.ts'
import type { Model, ModelInput } from '../run/index.ts'
import type { SiteInfo } from '../sites/address.ts'
import { replace } from '../sites/edits.ts'
import { exp, input, logSoftmax, topK } from '../tensor/index.ts'
import { lensSites } from './lens.ts'
import { stackableRows } from './patch-graph.ts'

/** Options of {@link patchscope}. */
export interface PatchscopeOptions extends WorkOptions {
  /** The text whose states are looked into, and where: sites (`resid_post.*`) and positions (the last one). */
  readonly source: ModelInput
  readonly sites?: string | readonly string[]
  readonly positions?: readonly number[]
  /** The text that says what it is given: at its placeholder, a position (the last one by default) or several. */
  readonly target: ModelInput
  readonly placeholder?: number | readonly number[]
  /** Site of the target into which states go; the one that they come from by default. */
  readonly into?: string
  /** The model that makes the states, where it is not the one that reads them; as wide. */
  readonly from?: Model
  /** Most likely next tokens that are kept, 10 by default. */
  readonly top?: number
  /** Also writes so many tokens on, greedily. */
  readonly maxNewTokens?: number
  /** Places that are read in one batch, 64 by default. */
  readonly batch?: number
}

/** What the target said of each state. */
export interface PatchscopeResult {
  readonly sites: readonly string[]
  /** Positions in the source, from 0. */
  readonly positions: readonly number[]
  readonly tokens: { readonly source: readonly number[]; readonly target: readonly number[] }
  /** Next tokens after the target, int64 [layer, pos, top], with their probabilities. */
  readonly topIds: NDArray<BigInt64Array>
  readonly topProbs: NDArray<Float32Array>
  /** What was written on, [layer][pos]; token ids where the model has no tokenizer. */
  readonly written?: readonly (readonly { readonly text: string; readonly tokens: readonly number[] }[])[]
}

/** A state on its way: where it goes, and its numbers. */
interface Carried {
  readonly site: string
  readonly value: Float32Array
}

/**
 * Patchscopes (Ghandeharioun et al. 2024, arXiv 2401.06102): for every site and position of the source, the target is run with its
 * placeholder's state replaced, and read by its next token and by what it writes. Places are the rows of a batch.
 */
export async function patchscope(model: Model, options: PatchscopeOptions): Promise<PatchscopeResult> {
  const { from = model, top = 10, maxNewTokens, batch = 64, signal, onProgress } = options
  const { vocab, dModel } = model.spec
  if (from.spec.dModel !== dModel)
    throw new UsageError(`The states are ${from.spec.dModel} wide, but the model that reads them is ${dModel} wide; they do not fit.`)
  if (!Number.isInteger(top) || top < 1 || top > vocab)
    throw new UsageError(`The number of top tokens must be between 1 and ${vocab}, not ${top}.`)
  if (!Number.isInteger(batch) || batch < 1) throw new UsageError(`The batch must be a whole number from 1, not ${batch}.`)
  const source = oneRow(from, options.source, 'The source')
  const target = oneRow(model, options.target, 'The target')
  const sites = lensSites(from, options.sites ?? 'resid_post.*')
  const positions = (options.positions ?? [-1]).map((p) => placeIn(source, p, 'source'))
  const places = [options.placeholder ?? -1].flat().map((p) => placeIn(target, p, 'target'))
  const into = options.into === undefined ? undefined : model.site(options.into).site
  if (into !== undefined) lensSites(model, into)
  const { taps } = await from.run({ ids: source }, { taps: sites.map((s) => s.site), logits: false, signal })
  const carried = sites.flatMap(({ site }: SiteInfo) =>
    positions.map((p): Carried => ({ site: into ?? model.site(site).site, value: taps[site]?.at(0, p) as Float32Array })),
  )
  const topIds = new BigInt64Array(carried.length * top)
  const topProbs = new Float32Array(carried.length * top)
  const written: { text: string; tokens: readonly number[] }[] = []
  for (let first = 0; first < carried.length; first += batch) {
    throwIfCancelled(signal)
    const part = carried.slice(first, first + batch)
    const rows = part.map(() => target)
    const patched = model.with(editsOf(part, target.length, places, dModel))
    const { logits } = await patched.run({ rows }, { signal })
    const best = await bestOf(model, logits, target.length - 1, top)
    topIds.set(best.ids, first * top)
    topProbs.set(best.probs, first * top)
    if (maxNewTokens !== undefined)
      written.push(...(await patched.generate({ rows }, { maxNewTokens, temperature: 0, ...(signal ? { signal } : {}) }).results()))
    // A cancelled generation gives what it has, which is not what was asked for.
    throwIfCancelled(signal)
    onProgress?.({ task: 'reading states', done: Math.min(first + batch, carried.length), total: carried.length, unit: 'states' })
  }
  const shape = [sites.length, positions.length, top]
  return {
    sites: sites.map((s) => s.site),
    positions,
    tokens: { source, target },
    topIds: { dtype: 'int64', shape, data: topIds },
    topProbs: { dtype: 'float32', shape, data: topProbs },
    ...(maxNewTokens === undefined
      ? {}
      : {
          written: sites.map((_, l) =>
            written.slice(l * positions.length, (l + 1) * positions.length).map(({ text, tokens }) => ({ text, tokens })),
          ),
        }),
  }
}

function oneRow(model: Model, text: ModelInput, what: string): readonly number[] {
  const rows = stackableRows(model, text, what)
  if (rows.length !== 1) throw new UsageError(`${what} must be one text, not ${rows.length}; call it for each.`)
  return rows[0] as readonly number[]
}

function placeIn(row: readonly number[], position: number, what: string): number {
  const place = position < 0 ? position + row.length : position
  if (!Number.isInteger(place) || place < 0 || place >= row.length)
    throw new UsageError(`The ${what} has ${row.length} tokens, so it has no position ${position}.`)
  return place
}

/** An edit for each site that states go into: its rows take their states at the placeholder. */
function editsOf(part: readonly Carried[], length: number, places: readonly number[], dModel: number) {
  return [...new Set(part.map((c) => c.site))].map((site) => {
    const data = new Float32Array(part.length * length * dModel)
    for (const [r, c] of part.entries()) if (c.site === site) for (const p of places) data.set(c.value, (r * length + p) * dModel)
    const rows = [...part.keys()].filter((r) => part[r]?.site === site)
    const value: NDArray = { dtype: 'float32', shape: [part.length, length, dModel], data }
    return replace(site, value, { where: { rows, positions: places, phase: 'prompt' } })
  })
}

/** Most likely tokens by the logits [batch, pos, d_vocab] at one position. */
async function bestOf(model: Model, { shape, data }: NDArray<Float32Array>, at: number, top: number) {
  const [rows, length, vocab] = shape as [number, number, number]
  const last = new Float32Array(rows * vocab)
  for (let r = 0; r < rows; r++) last.set(data.subarray((r * length + at) * vocab, (r * length + at + 1) * vocab), r * vocab)
  const program = await model.internals.compiled(JSON.stringify(['most likely', top]), () => {
    const best = topK(logSoftmax(input('logits', 'float32', ['batch', vocab])), top)
    return { ids: best.indices, probs: exp(best.values) }
  })
  const out = await program.run({ logits: { dtype: 'float32', shape: [rows, vocab], data: last } })
  return { ids: out.ids?.data as BigInt64Array, probs: out.probs?.data as Float32Array }
}
