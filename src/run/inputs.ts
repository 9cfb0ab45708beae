/** @file From what people give a model (texts, ids, tensors under their Hugging Face names) to a batch, for each kind of sequence. */
import { ModelError, ShapeError, UsageError } from '../base/errors.ts'
import { type NDArray, sizeOf } from '../base/types.ts'
import { type Architecture, type PixelSequence, type SequenceName, type TokenSequence, tensorNames } from '../models/architecture.ts'
import type { Picture } from '../models/image/index.ts'
import type { Tokenizer } from '../models/text/tokenizer.ts'
import { type Batch, batchOfRows, batchOfTensors, type Layout, type ModelInput, type ModelTensors } from './batch.ts'

/** The batch of an input; refuses what the model does not take. Texts get the model's special tokens. */
export function batchOf(
  a: Architecture,
  input: ModelInput,
  tokenizer: () => Tokenizer,
  pixelsOf: (images: readonly (Uint8Array | Picture)[]) => NDArray,
): Batch {
  if (typeof input === 'string') return ofRows(a, () => [tokenizer().encode(input)])
  if (Array.isArray(input)) return ofRows(a, () => (input as readonly string[]).map((t) => tokenizer().encode(t)))
  const other = input as Exclude<ModelInput, string | readonly string[]>
  if ('ids' in other) return ofRows(a, () => [other.ids])
  if ('rows' in other) return ofRows(a, () => other.rows)
  return 'images' in other ? ofImages(a, other.images, other.text, tokenizer, pixelsOf) : ofTensors(a, other)
}

/** A batch of texts: they are what an encoder reads where there is one, else the first sequence. */
function ofRows(a: Architecture, rows: () => readonly (readonly number[])[]): Batch {
  const read = a.sequences.find((s) => s.name === 'source') ?? a.sequences[0]
  if (read.kind !== 'tokens') throw new UsageError(`'${a.family}' reads images, not text: give { ${read.pixels} }.`)
  const given = batchOfRows(rows())
  return combined(a, (s) => (s === read ? given : s.kind === 'tokens' ? started(s, given.rows.length) : undefined))
}

function ofImages(
  a: Architecture,
  images: readonly (Uint8Array | Picture)[],
  text: string | readonly string[] | undefined,
  tokenizer: () => Tokenizer,
  pixelsOf: (images: readonly (Uint8Array | Picture)[]) => NDArray,
): Batch {
  const s = a.sequences.find((q) => q.kind === 'pixels')
  if (!s) throw new UsageError(`'${a.family}' reads no images.`)
  const texts = text === undefined ? undefined : typeof text === 'string' ? [text] : text
  const read = texts && batchOfRows(texts.map((t) => tokenizer().encode(t)))
  const rows = (q: TokenSequence) => {
    if (!read) throw new UsageError(`'${a.family}' reads texts and images: give { images, text }.`)
    return q.name === 'text' ? read : started(q, read.rows.length)
  }
  return combined(a, (q) => (q.kind === 'tokens' ? rows(q) : undefined), new Map([[s.pixels, pixelsOf(images)]]))
}

function ofTensors(a: Architecture, tensors: ModelTensors): Batch {
  const known = tensorNames(a)
  const given = Object.entries(tensors).filter(([, value]) => value !== undefined) as [string, NDArray][]
  const unknown = given.find(([name]) => !known.includes(name))
  if (unknown || given.length === 0)
    throw new UsageError(
      `${unknown ? `'${a.family}' takes no input '${unknown[0]}'.` : 'There is no input.'} Give a text, a list of texts, { ids }, { rows }, or tensors among ${known.join(', ')}.`,
    )
  const named = new Map(given)
  const rows = (named.values().next().value as NDArray).shape[0] as number
  return combined(a, (s) => (s.kind === 'tokens' ? tokensOf(s, named, rows) : undefined), named)
}

function tokensOf(s: TokenSequence, named: ReadonlyMap<string, NDArray>, rows: number): Layout {
  const { ids, mask, positions, types } = s.tensors
  const input_ids = named.get(ids)
  if (!input_ids) return started(s, rows)
  const optional = (name: string | undefined) => (name === undefined ? undefined : named.get(name))
  return batchOfTensors(
    { input_ids, attention_mask: optional(mask), position_ids: optional(positions), token_type_ids: optional(types) },
    s.tensors,
  )
}

function started(s: TokenSequence, rows: number): Layout {
  if (!s.start) throw new UsageError(`There is no '${s.tensors.ids}', which this model needs.`)
  return batchOfRows(Array.from({ length: rows }, () => s.start as readonly number[]))
}

function combined(
  a: Architecture,
  tokens: (s: Architecture['sequences'][number]) => Layout | undefined,
  named: ReadonlyMap<string, NDArray> = new Map(),
): Batch {
  const tensors: Record<string, NDArray> = {}
  const layouts = a.sequences.map((s): [SequenceName, Layout] => {
    if (s.kind === 'tokens') return [s.name, tokens(s) as Layout]
    const pixels = named.get(s.pixels)
    if (!pixels) throw new UsageError(`There is no '${s.pixels}', which this model needs.`)
    tensors[s.pixels] = checkPixels(s, pixels)
    return [s.name, patches(s, pixels.shape[0] as number)]
  })
  const [[, first], ...rest] = layouts as [[SequenceName, Layout], ...[SequenceName, Layout][]]
  const apart = a.sequences.filter((s) => s.kind === 'pixels' && s.apart).map((s) => s.name)
  const unequal = rest.find(([name, l]) => !apart.includes(name) && l.rows.length !== first.rows.length)
  if (unequal)
    throw new UsageError(
      `The batch has ${first.rows.length} rows of one input and ${unequal[1].rows.length} of another; give as many of each.`,
    )
  const images = Object.fromEntries(rest).image
  if (images) checkImageTokens(a.sequences[0], first.rows, images.rows.length)
  return {
    ...first,
    ...(rest.length > 0 ? { others: Object.fromEntries(rest) } : {}),
    ...(Object.keys(tensors).length > 0 ? { tensors } : {}),
  }
}

/** Refuses texts with more or fewer tokens of images than the images take. */
export function checkImageTokens(s: Architecture['sequences'][number], rows: Layout['rows'], images: number): void {
  if (s.kind !== 'tokens' || !s.image) return
  const { token, positions } = s.image
  const given = rows.reduce((n, r) => n + r.filter((id) => id === token).length, 0)
  const wanted = images * positions
  if (given !== wanted)
    throw new UsageError(
      `The text has ${given} image tokens (id ${token}), but ${images} images take ${wanted}; write ${positions} for each image.`,
    )
}

/** Images [channel, row, column] of one size as one array [image, channel, row, column]. */
export function stackedImages(images: readonly NDArray<Float32Array>[]): NDArray<Float32Array> {
  const shape = images[0]?.shape ?? []
  const odd = images.find((i) => i.shape.join() !== shape.join())
  if (odd) throw new ShapeError(`Images of one run must have one size, not [${shape.join(', ')}] and [${odd.shape.join(', ')}].`)
  const size = sizeOf(shape)
  const data = new Float32Array(images.length * size)
  for (const [i, image] of images.entries()) data.set(image.data, i * size)
  return { dtype: 'float32', shape: [images.length, ...shape], data }
}

/** Pixel values that a model can read. */
export function checkPixels(s: PixelSequence, { dtype, shape, data }: NDArray): NDArray {
  if (dtype !== 'float32' || shape.length !== 4 || s.shape.some((n, i) => n !== shape[i + 1]))
    throw new UsageError(`'${s.pixels}' must be float32 of shape [batch, ${s.shape.join(', ')}], not ${dtype} [${shape.join(', ')}].`)
  const bad = (data as Float32Array).findIndex((v) => !Number.isFinite(v))
  if (bad >= 0) throw new UsageError(`'${s.pixels}' holds ${data[bad]} at index ${bad}; pixels must be finite.`)
  return { dtype, shape, data }
}

/** The patches of images as rows of positions. */
function patches(s: PixelSequence, images: number): Layout {
  if (images === 0) throw new UsageError('The batch is empty; give at least one image.')
  return { ...batchOfRows(Array.from({ length: images }, () => new Array<number>(s.positions).fill(0))), anonymous: true }
}

/** Refuses with a sentence what needs logits, in a model that gives out none. */
export function needLogits(a: Architecture, what: string): void {
  if (!a.outputs.includes('logits'))
    throw new ModelError(`'${a.family}' gives out no logits, which ${what} needs; its output is ${a.outputs.join(', ')}.`)
}
