/** @file From pictures to the pixel values of a model, as its `preprocessor_config.json` says. */
import { FormatError, UsageError } from '../../base/errors.ts'
import type { NDArray } from '../../base/types.ts'
import { type Config, ConfigReader } from '../config.ts'
import type { Picture } from './decode.ts'
import { type Resampling, resize } from './resize.ts'

/** What is done to a picture, in this order. */
export interface ImageProcessor {
  readonly resize?: { readonly size: ImageSize; readonly how: Resampling }
  /** The middle of the picture; black around it where it is smaller. */
  readonly crop?: { readonly width: number; readonly height: number }
  /** Factor on the bytes. */
  readonly rescale?: number
  /** Subtracted from, and divided out of, each channel. */
  readonly normalise?: { readonly mean: readonly number[]; readonly std: readonly number[] }
}

/** A size that pictures are brought to: both sides given, or the shorter one, the other in proportion. */
export type ImageSize = { readonly width: number; readonly height: number } | { readonly shortest: number }

/** PIL's numbers of its filters. */
const resamplings: readonly Resampling[] = ['nearest', 'lanczos', 'bilinear', 'bicubic', 'box', 'hamming']

/** Processors whose size, where it is one number, is that of the shorter side. */
const proportional = /^(CLIP|Bit|ConvNext|Siglip2?Naflex)/

/** Steps of processors that are not known here, and would change the pixels. */
const unknownSteps = ['do_pad', 'do_image_splitting', 'do_reduce_labels', 'do_flip_channel_order', 'do_thumbnail', 'do_align_long_axis']

/**
 * Reads a processor file.
 * @throws FormatError for steps and sizes that are not understood.
 */
export function readProcessor(config: Config): ImageProcessor {
  const c = new ConfigReader(config)
  const strange = unknownSteps.find((s) => config[s] === true)
  if (strange) throw new FormatError(`The image processor asks for '${strange}', which is not known here; give pixel_values instead.`)
  const type = String(config.image_processor_type ?? config.feature_extractor_type ?? '')
  const square = !proportional.test(type)
  const size = sizeOf('size', config.size, square)
  const crop = sizeOf('crop_size', config.crop_size, true)
  const how = resamplings[c.optionalInteger('resample') ?? 2]
  if (!how) throw new FormatError(`The image processor asks for the filter ${config.resample}; known are 0 to 5 of PIL.`)
  if (crop && !('width' in crop)) throw new FormatError('The image processor crops to a size by one side only, which is not known here.')
  return {
    ...(c.flag('do_resize', size !== undefined) && size ? { resize: { size, how } } : {}),
    ...(c.flag('do_center_crop', false) && crop ? { crop } : {}),
    ...(c.flag('do_rescale', true) ? { rescale: c.number('rescale_factor', 1 / 255) } : {}),
    ...(c.flag('do_normalize', true)
      ? { normalise: { mean: channels('image_mean', config.image_mean), std: channels('image_std', config.image_std) } }
      : {}),
  }
}

function sizeOf(name: string, value: unknown, square: boolean): ImageSize | undefined {
  if (value === undefined || value === null) return undefined
  if (typeof value === 'number') return square ? { width: value, height: value } : { shortest: value }
  const { width, height, shortest_edge } = value as Record<string, unknown>
  if (typeof width === 'number' && typeof height === 'number') return { width, height }
  if (typeof shortest_edge === 'number' && Object.keys(value as object).length === 1) return { shortest: shortest_edge }
  throw new FormatError(
    `The image processor's '${name}' is ${JSON.stringify(value)}; known are a number, { height, width } and { shortest_edge }.`,
  )
}

function channels(name: string, value: unknown): readonly number[] {
  if (Array.isArray(value) && value.length === 3 && value.every((v) => Number.isFinite(v))) return value as number[]
  throw new FormatError(`The image processor's '${name}' must be three numbers, not ${JSON.stringify(value)}.`)
}

/** Pixel values of pictures, float32 [batch, channel, row, column]; refuses pictures that come out in several sizes. */
export function pixelValues(processor: ImageProcessor, pictures: readonly Picture[]): NDArray<Float32Array> {
  if (pictures.length === 0) throw new UsageError('There is no image; give at least one.')
  const ready = pictures.map((p) => cropped(resized(p, processor), processor))
  const { width, height } = ready[0] as Picture
  const odd = ready.findIndex((p) => p.width !== width || p.height !== height)
  if (odd > 0)
    throw new UsageError(
      `Image ${odd} comes out as ${(ready[odd] as Picture).width}×${(ready[odd] as Picture).height} and the first as ${width}×${height}; run them one by one.`,
    )
  const { rescale = 1, normalise } = processor
  const plane = width * height
  const data = new Float32Array(ready.length * 3 * plane)
  for (const [b, p] of ready.entries())
    for (let c = 0; c < 3; c++) {
      const [mean, std] = normalise ? [normalise.mean[c] as number, normalise.std[c] as number] : [0, 1]
      const at = (b * 3 + c) * plane
      for (let i = 0; i < plane; i++) data[at + i] = ((p.data[i * 3 + c] as number) * rescale - mean) / std
    }
  return { dtype: 'float32', shape: [ready.length, 3, height, width], data }
}

function resized(p: Picture, processor: ImageProcessor): Picture {
  if (!processor.resize) return p
  const { size, how } = processor.resize
  if ('width' in size) return resize(p, size.width, size.height, how)
  const other = (long: number, short: number) => Math.trunc((size.shortest * long) / short)
  return p.width <= p.height
    ? resize(p, size.shortest, other(p.height, p.width), how)
    : resize(p, other(p.width, p.height), size.shortest, how)
}

function cropped(p: Picture, { crop }: ImageProcessor): Picture {
  if (!crop || (crop.width === p.width && crop.height === p.height)) return p
  // Where the picture is smaller, what is missing is black on both sides.
  const from = (have: number, want: number) => (have >= want ? Math.floor((have - want) / 2) : -Math.ceil((want - have) / 2))
  const [left, top] = [from(p.width, crop.width), from(p.height, crop.height)]
  const data = new Uint8Array(crop.width * crop.height * 3)
  for (let row = 0; row < crop.height; row++) {
    const y = row + top
    if (y < 0 || y >= p.height) continue
    const [first, last] = [Math.max(0, -left), Math.min(crop.width, p.width - left)]
    data.set(p.data.subarray((y * p.width + first + left) * 3, (y * p.width + last + left) * 3), (row * crop.width + first) * 3)
  }
  return { width: crop.width, height: crop.height, data }
}
