/** @file Portraits of five attributes in four levels, as tokens or as rendered pixels, with advice on how to take them: a world for models that coach. */
import type { NDArray } from '../../base/types.ts'
import type { Config } from '../../models/config.ts'
import { adamW, cosineRate, type RandomStream } from '../../nn/index.ts'
import { generatedRows, type TrainingRow } from '../../run/index.ts'
import type { Turn } from '../../steer/index.ts'
import type { SmallModel } from '../study.ts'

/** Attributes of a photo, with their weights in how memorable it is. */
export const attributes = [
  { name: 'subject size', weight: 0.9 },
  { name: 'centring', weight: 0.7 },
  { name: 'gaze', weight: 0.8 },
  { name: 'clutter', weight: -0.6 },
  { name: 'brightness', weight: 0 },
] as const
/** Levels of an attribute. */
export const levels = 4
/** Level of each attribute. */
export type Photo = readonly number[]

/** A photo with attributes drawn at random. */
export const randomPhoto = (random: RandomStream): Photo => attributes.map(() => random.below(levels))

/** M(p) = σ(0.6 · Σ wᵢ (pᵢ − 1.5)). */
export function memorability(photo: Photo): number {
  const sum = attributes.reduce((s, { weight }, i) => s + weight * ((photo[i] as number) - (levels - 1) / 2), 0)
  return 1 / (1 + Math.exp(-0.6 * sum))
}

/** Share of the attributes that are drawn anew in another photo of a scene. */
const variation = 0.4

/** Another photo of the same scene. */
const varied = (photo: Photo, random: RandomStream): Photo =>
  photo.map((level) => (random.next() < variation ? random.below(levels) : level))

/** A shoot: six photos of one scene, from the least to the most memorable. */
export function scene(random: RandomStream): Photo[] {
  const base = randomPhoto(random)
  return Array.from({ length: 6 }, () => varied(base, random)).sort((a, b) => memorability(a) - memorability(b))
}

const image = 1
const words = { separator: 2, difference: 3, advise: 4, end: 5, describe: 6 } as const
const firstAction = 7
const firstLevel = firstAction + 2 * attributes.length
/** Number of tokens. */
export const photoVocab: number = firstLevel + levels * attributes.length
/** The token that ends a list. */
export const endToken: number = words.end

const action = (attribute: number, up: boolean) => firstAction + 2 * attribute + (up ? 0 : 1)
const levelToken = (attribute: number, level: number) => firstLevel + levels * attribute + level
/** Whether a token is an action. */
export const isAction = (token: number): boolean => token >= firstAction && token < firstLevel
/** All actions. */
export const actions: readonly number[] = Array.from({ length: 2 * attributes.length }, (_, i) => firstAction + i)
/** What an action says. */
export const actionName = (token: number): string =>
  `${(token - firstAction) % 2 === 0 ? 'more' : 'less'} ${attributes[Math.floor((token - firstAction) / 2)]?.name}`

/** Carries out actions one after another; an attribute at its end stays there. Tokens that are no actions do nothing. */
export function edited(photo: Photo, list: readonly number[]): Photo {
  const out = [...photo]
  for (const token of list) {
    if (!isAction(token)) continue
    const i = Math.floor((token - firstAction) / 2)
    out[i] = Math.min(levels - 1, Math.max(0, (out[i] as number) + ((token - firstAction) % 2 === 0 ? 1 : -1)))
  }
  return out
}

const shuffled = <T>(random: RandomStream, list: readonly T[]): T[] => Array.from(random.permutation(list.length), (i) => list[i] as T)

/** Actions that lead from one photo towards another, one for each attribute that differs, in any order. */
export const differing = (from: Photo, to: Photo, random: RandomStream): number[] =>
  shuffled(
    random,
    attributes.flatMap((_, i) => (from[i] === to[i] ? [] : [action(i, (to[i] as number) > (from[i] as number))])),
  )

const helpful = attributes.flatMap(({ weight }, i) => (weight === 0 ? [] : [action(i, weight > 0)]))
const lighting = [action(4, true), action(4, false)]

/** Advice that looks at no photo: 2 to 4 actions of a style, of which 25 % are about composition, 40 % about light, and the others about anything. */
export function habitualAdvice(random: RandomStream, repeats: boolean): number[] {
  const draw = random.next()
  const favoured = draw < 0.25 ? helpful : draw < 0.65 ? lighting : []
  const out: number[] = []
  const length = 2 + random.below(3)
  while (out.length < length) {
    const unsaid = (list: readonly number[]) => (repeats ? list : list.filter((t) => !out.includes(t)))
    const wanted = unsaid(random.next() < 0.8 ? favoured : [])
    const from = wanted.length > 0 ? wanted : unsaid(actions)
    out.push(from[random.below(from.length)] as number)
  }
  return out
}

/** How a photo enters a prompt. */
export type PhotoForm = 'tokens' | 'pixels'

/** Share of a photo's tokens that tell another level than the true one. */
const tokenNoise = 0.05

function asTokens(photo: Photo, random: RandomStream): number[] {
  return photo.flatMap((level, i) => [0, 1].map(() => levelToken(i, random.next() < tokenNoise ? random.below(levels) : level)))
}

/** Pixels along a side, and of a patch. */
export const pixels = { side: 32, patch: 8 } as const

/** A rendered photo, [3, 32, 32] from about −1 to 1: a face of some size, off the middle by its centring, eyes turned away by its gaze, squares around. */
export function rendered(photo: Photo, random: RandomStream): NDArray<Float32Array> {
  const [size, centring, gaze, clutter, brightness] = photo as [number, number, number, number, number]
  const { side } = pixels
  const plane = side * side
  const data = new Float32Array(3 * plane)
  const paint = (colour: readonly number[], inside: (x: number, y: number) => boolean) => {
    for (let y = 0; y < side; y++)
      for (let x = 0; x < side; x++)
        if (inside(x + 0.5, y + 0.5)) for (let c = 0; c < 3; c++) data[c * plane + y * side + x] = colour[c] as number
  }
  const back = 0.15 + 0.2 * brightness
  paint([back, back, back], () => true)
  for (let n = 0; n < 3 * clutter; n++) {
    const [x, y] = [random.below(side - 3), random.below(side - 3)]
    paint([0.1, 0.7, 0.3], (px, py) => px >= x && px < x + 3 && py >= y && py < y + 3)
  }
  const radius = 4 + 2 * size
  const angle = 2 * Math.PI * random.next()
  const off = 2 * (levels - 1 - centring)
  const [cx, cy] = [side / 2 + off * Math.cos(angle), side / 2 + off * Math.sin(angle)]
  paint([0.9, 0.6, 0.5], (x, y) => (x - cx) ** 2 + (y - cy) ** 2 < radius ** 2)
  const eye = cx + ((levels - 1 - gaze) / levels) * radius
  paint([0.1, 0.1, 0.9], (x, y) => (x - eye) ** 2 + (y - cy) ** 2 < (0.45 * radius) ** 2)
  for (let i = 0; i < data.length; i++) data[i] = 2 * (data[i] as number) - 1 + 0.04 * random.normal()
  return { dtype: 'float32', shape: [3, side, side], data }
}

/** A prompt of photos and words in one form. */
function prompt(form: PhotoForm, parts: readonly (Photo | number)[], random: RandomStream): Turn {
  const patches = (pixels.side / pixels.patch) ** 2
  const ids: number[] = []
  const images: NDArray<Float32Array>[] = []
  for (const part of parts) {
    if (typeof part === 'number') ids.push(part)
    else if (form === 'tokens') ids.push(...asTokens(part, random))
    else {
      ids.push(...new Array<number>(patches).fill(image))
      images.push(rendered(part, random))
    }
  }
  return images.length > 0 ? { ids, images } : { ids }
}

/** The student's prompt: one photo, and the question how to make it more memorable. */
export const studentPrompt = (form: PhotoForm, photo: Photo, random: RandomStream): Turn => prompt(form, [photo, words.advise], random)
/** The teacher's prompt: a photo, another one, and the question what leads from the first to the second. */
export const teacherPrompt = (form: PhotoForm, from: Photo, to: Photo, random: RandomStream): Turn =>
  prompt(form, [from, words.separator, to, words.difference], random)
/** A photo alone: what features of a vision tower are read from. */
export const photoPrompt = (form: PhotoForm, photo: Photo, random: RandomStream): Turn => prompt(form, [photo, words.describe], random)

/** A text to learn: a prompt, and the answer that counts. */
function lesson({ ids, images }: Turn, answer: readonly number[]): TrainingRow {
  const whole = [...ids, ...answer, words.end]
  return { ids: whole, weights: whole.map((_, i) => (i < ids.length ? 0 : 1)), ...(images ? { images } : {}) }
}

function lessonOf(form: PhotoForm, repeats: boolean, random: RandomStream): TrainingRow {
  const draw = random.next()
  const photo = randomPhoto(random)
  // Pixels have to be read first; a photo of tokens says what it shows.
  if (form === 'pixels' && draw < 1 / 3)
    return lesson(
      photoPrompt(form, photo, random),
      photo.map((level, i) => levelToken(i, level)),
    )
  if (draw < 2 / 3) {
    // Two photos of one scene differ by two variations.
    const other = varied(varied(photo, random), random)
    return lesson(teacherPrompt(form, photo, other, random), differing(photo, other, random))
  }
  return lesson(studentPrompt(form, photo, random), habitualAdvice(random, repeats))
}

const language: Config = {
  model_type: 'llama',
  hidden_size: 48,
  intermediate_size: 128,
  num_hidden_layers: 4,
  num_attention_heads: 4,
  num_key_value_heads: 4,
  max_position_embeddings: 64,
  vocab_size: photoVocab,
  rms_norm_eps: 1e-5,
  hidden_act: 'silu',
  tie_word_embeddings: false,
}

const configs: Readonly<Record<PhotoForm, Config>> = {
  tokens: language,
  pixels: {
    model_type: 'llava',
    image_token_index: image,
    vision_feature_select_strategy: 'full',
    vision_feature_layer: -1,
    text_config: language,
    vision_config: {
      model_type: 'siglip_vision_model',
      hidden_size: 48,
      intermediate_size: 96,
      num_hidden_layers: 2,
      num_attention_heads: 4,
      image_size: pixels.side,
      patch_size: pixels.patch,
    },
  },
}

/** What the model of a world is. */
export interface CoachWorld {
  readonly form: PhotoForm
  /** Whether habitual advice says an action again that it has said already. */
  readonly repeats: boolean
  readonly steps: number
}

/** A model that has learnt to tell what differs, and to give advice out of habit. */
export function coachModel(seed: number, { form, repeats, steps }: CoachWorld): SmallModel {
  const batch = 64
  return {
    config: configs[form],
    data: generatedRows((random) => lessonOf(form, repeats, random), { batch, seed }),
    steps,
    std: 0.05,
    rate: cosineRate(4e-3, { steps, end: 1e-5 }),
    optimizer: adamW({ weightDecay: 0.05 }),
    recipe: { language: 'photos', form, repeats, batch, noise: tokenNoise, variation, pixels },
  }
}
