/** @file What a request looks at: a text or ids on a model under edits, and the answers that read its sites. */

import { UsageError } from '../base/errors.ts'
import { cosineOf } from '../base/numbers.ts'
import type { NDArray } from '../base/types.ts'
import { encodeSafetensors } from '../models/formats/index.ts'
import type { Activation, Model } from '../run/index.ts'
import type { Edit, SiteInfo } from '../sites/index.ts'
import { edit } from '../sites/index.ts'
import { softmax } from '../tensor/index.ts'
import { largest, pieceOf } from './lens.ts'
import type { BodyOf, SiteAnswer, TokensAnswer, VectorRecipe } from './protocol.ts'
import type { Held } from './registry.ts'

/** Bars of a histogram. */
const bars = 40

interface Looked {
  readonly text?: string | undefined
  readonly ids?: readonly number[] | undefined
}

/** Token ids of what is looked at; refuses both and neither. */
export function idsOf(model: Model, { text, ids }: Looked): readonly number[] {
  if ((text === undefined) === (ids === undefined)) throw new UsageError("Give either 'text' or 'ids'.")
  if (ids) return ids
  if (text === '') throw new UsageError('The text is empty; write something, or choose an example.')
  return model.tokens(text as string).rows[0] as readonly number[]
}

/** The model with the edits of a request. */
export async function editedModel(held: Held, edits: BodyOf<'edits'>['edits']): Promise<Model> {
  return held.model.plain.with((await held.vectors.resolve(edits, held.queue)) as unknown as Edit[])
}

/** Most values that a run returns beyond what was asked for. */
const spareValues = 8_388_608

/**
 * Reads a site, or a kind of site at every layer, of what a request looks at. All layers are read where they are small, so
 * that going from layer to layer compiles nothing. Whoever looks at an early layer has edits at later ones in force all the
 * same, so the run goes to its end when there are edits; else the library would say that they can never fire.
 */
export async function readSites(
  held: Held,
  body: { readonly ids: readonly number[] } & Pick<BodyOf<'site'>, 'edits' | 'promptLength'>,
  wanted: readonly SiteInfo[],
  signal: AbortSignal,
) {
  const { model } = held
  const { ids } = body
  const edited = await editedModel(held, body.edits)
  const sites = family(model, wanted, ids.length).map((i) => i.site)
  const taps = edited.edits.length > 0 ? [...sites, 'final_norm'] : sites
  const options = { taps, logits: edits(edited).has('logits'), ...promptOption(body.promptLength) }
  const { taps: read, unfired } = await held.queue.run(() => edited.run({ ids }, options), signal)
  return { unfired, at: (site: string) => read[site] as Activation }
}

/** The same kind of site at every layer, if that is not too much. */
function family(model: Model, wanted: readonly SiteInfo[], positions: number): readonly SiteInfo[] {
  const [{ row } = { row: undefined }] = wanted
  if (row?.per !== 'layer') return wanted
  const all = model.resolve(`${row.name}.*`)
  const size =
    all.length *
    model.shapeOf(all[0] as SiteInfo).reduce<number>((p, n) => p * (n === 'batch' ? 1 : typeof n === 'number' ? n : positions), 1)
  return size <= spareValues ? all : wanted
}

/** Names of the sites at which a model is edited. */
const edits = (model: Model) => new Set(model.edits.flatMap((e) => model.resolve(e.site).map((i) => i.row.name)))

const promptOption = (promptLength: number | undefined) => (promptLength === undefined ? {} : { promptLength })

const probabilities = edit('logits', (logits) => softmax(logits))

/** Tokens of a text, and how surprising the model finds each. */
export async function tokensAnswer(held: Held, body: BodyOf<'tokens'>, signal: AbortSignal): Promise<TokensAnswer> {
  const { model } = held
  const ids = idsOf(model, body)
  const pieces = ids.map((id) => pieceOf(model, id))
  const offsets = body.text !== undefined && model.hasTokenizer ? model.tokenizer.offsets(body.text).offsets : undefined
  const answer = { ids, pieces, ...(offsets ? { offsets } : {}) }
  if (!body.surprise) return answer
  const p = await nextProbabilities(held, { ...body, ids }, signal)
  return { ...answer, surprise: [null, ...p.map((v) => rounded(-Math.log2(Math.max(v, 1e-30))))] }
}

/** The probability that the model gives to each token but the first. */
async function nextProbabilities(held: Held, body: Parameters<typeof readSites>[1], signal: AbortSignal): Promise<number[]> {
  const { model } = held
  const { dModel, layers, vocab } = model.spec
  const next = body.ids.slice(1)
  const edited = await editedModel(held, body.edits)
  if (![...edits(edited)].some((name) => name === 'logits' || name.startsWith('final_norm'))) {
    // The programs of the grid and of the lens serve here, too, so that there is no other one to compile.
    const last = model.site(`resid_post.${layers - 1}`)
    const { data } = (await readSites(held, body, [last], signal)).at(last.site).row(0)
    return held.lens.probabilitiesOf(next, data.subarray(0, next.length * dModel), held.queue, signal)
  }
  const options = promptOption(body.promptLength)
  const { logits } = await held.queue.run(() => edited.with(probabilities).run({ ids: body.ids }, options), signal)
  return next.map((id, n) => logits.data[n * vocab + id] as number)
}

/** One position of one site: what it is, its numbers, what the lens reads in it. */
export async function siteAnswer(held: Held, body: BodyOf<'site'>, signal: AbortSignal): Promise<SiteAnswer> {
  const { model } = held
  const info = model.site(body.site)
  const { row } = info
  const ids = idsOf(model, body)
  const position = body.position < 0 ? body.position + ids.length : body.position
  if (position < 0 || position >= ids.length)
    throw new UsageError(`There is no position ${body.position}: the text has ${ids.length} tokens, 0 to ${ids.length - 1}.`)
  const run = await readSites(held, { ...body, ids }, [info], signal)
  const activation = run.at(info.site)
  const { values, shape } = atPosition(activation, position)
  const lens =
    values.length === model.spec.dModel && row.axes.at(-1) === 'd_model' && !info.site.startsWith('final_norm')
      ? (await held.lens.read(values, body.top, held.queue, signal))[0]
      : undefined
  const vector = body.vector && (await vectorOfWidth(held, body.vector, values.length))
  return {
    site: info.site,
    ...(info.layer === undefined ? {} : { layer: info.layer }),
    meaning: row.meaning,
    axes: row.axes,
    shape: activation.shape,
    aliases: info.aliases,
    position,
    piece: pieceOf(model, ids[position] as number),
    stats: statistics(values),
    histogram: histogram(values),
    top: largest(values.map(finiteMagnitude), body.top).map((flat) => ({
      index: unravel(flat, shape),
      value: rounded(values[flat] as number),
    })),
    ...(lens ? { lens } : {}),
    ...(vector ? { cosine: rounded(cosineOf(values, vector)) } : {}),
    unfired: run.unfired,
  }
}

/** Values of a site as a safetensors file with one tensor, named by the site, without the batch axis; its axes are in the metadata. */
export async function valuesAnswer(held: Held, body: BodyOf<'values'>, signal: AbortSignal): Promise<Uint8Array<ArrayBuffer>> {
  const { model } = held
  const info = model.site(body.site)
  const whole = (await readSites(held, { ...body, ids: idsOf(model, body) }, [info], signal)).at(info.site).row(0)
  const value = body.positions ? sliced(whole, info, body.positions) : whole
  return encodeSafetensors({ [info.site]: value }, { axes: info.row.axes.slice(1).join(',') })
}

function sliced(value: NDArray<Float32Array>, info: SiteInfo, { from, to }: { from: number; to: number }): NDArray<Float32Array> {
  const axis = info.row.axes.indexOf('pos') - 1
  const length = value.shape[axis] as number
  const [a, b] = [Math.max(0, from < 0 ? from + length : from), Math.min(length, to < 0 ? to + length : to)]
  if (a >= b) throw new UsageError(`The positions ${from} to ${to} hold nothing: the text has ${length} tokens.`)
  const before = value.shape.slice(0, axis).reduce((p, n) => p * n, 1)
  const after = value.shape.slice(axis + 1).reduce((p, n) => p * n, 1)
  const data = new Float32Array(before * (b - a) * after)
  for (let i = 0; i < before; i++) data.set(value.data.subarray((i * length + a) * after, (i * length + b) * after), i * (b - a) * after)
  return { dtype: 'float32', shape: value.shape.map((n, i) => (i === axis ? b - a : n)), data }
}

/** A vector for comparison with values of a width. */
export async function vectorOfWidth(held: Held, recipe: VectorRecipe, width: number): Promise<Float32Array> {
  const { vector, site } = await held.vectors.make(recipe, held.queue)
  if (vector.length !== width)
    throw new UsageError(
      `The vector comes from ${site} and is ${vector.length} wide, but ${width} are needed; choose one from a site of that width.`,
    )
  return vector
}

/** Five significant digits: what a picture needs. */
export function rounded(value: number): number {
  return Number.isFinite(value) ? Number(value.toPrecision(5)) : value
}

/** All coordinates at one position, and the axes that they lie on. */
function atPosition(activation: Activation, position: number): { values: Float32Array; shape: number[] } {
  const { data, shape } = activation.row(0)
  const axis = activation.axes.indexOf('pos') - 1
  const before = shape.slice(0, axis)
  const after = shape.slice(axis + 1)
  const inner = after.reduce((p, n) => p * n, 1)
  const outer = before.reduce((p, n) => p * n, 1)
  const values = new Float32Array(outer * inner)
  for (let i = 0; i < outer; i++) {
    const start = (i * (shape[axis] as number) + position) * inner
    values.set(data.subarray(start, start + inner), i * inner)
  }
  return { values, shape: [...before, ...after] }
}

const finiteMagnitude = (v: number) => (Number.isFinite(v) ? Math.abs(v) : 0)

function unravel(flat: number, shape: readonly number[]): number[] {
  const out: number[] = []
  let rest = flat
  for (let i = shape.length - 1; i >= 0; i--) {
    const n = shape[i] as number
    out.unshift(rest % n)
    rest = Math.floor(rest / n)
  }
  return out
}

function statistics(values: Float32Array): SiteAnswer['stats'] {
  // Masked attention scores are -inf; they are no data.
  const finite = values.filter((v) => Number.isFinite(v))
  let [sum, squares, min, max] = [0, 0, Number.POSITIVE_INFINITY, Number.NEGATIVE_INFINITY]
  for (const v of finite) {
    sum += v
    squares += v * v
    min = Math.min(min, v)
    max = Math.max(max, v)
  }
  const mean = sum / finite.length
  return {
    count: finite.length,
    norm: rounded(Math.sqrt(squares)),
    mean: rounded(mean),
    std: rounded(Math.sqrt(Math.max(0, squares / finite.length - mean * mean))),
    min: rounded(min),
    max: rounded(max),
  }
}

function histogram(values: Float32Array): SiteAnswer['histogram'] {
  const finite = values.filter((v) => Number.isFinite(v))
  let [min, max] = [Number.POSITIVE_INFINITY, Number.NEGATIVE_INFINITY]
  for (const v of finite) {
    min = Math.min(min, v)
    max = Math.max(max, v)
  }
  if (!(max > min)) return [{ from: min, to: max, count: finite.length }]
  const counts = new Array<number>(bars).fill(0)
  const width = (max - min) / bars
  for (const v of finite) {
    const bar = Math.min(bars - 1, Math.floor((v - min) / width))
    counts[bar] = (counts[bar] as number) + 1
  }
  return counts.map((count, i) => ({ from: rounded(min + i * width), to: rounded(min + (i + 1) * width), count }))
}
