/** @file Pairs of contrasting texts from templates, by a seed: the two sides differ in the chosen words only. */
import { UsageError } from '../base/errors.ts'
import { RandomStream } from '../nn/index.ts'

/** Words for the places of a frame: `{quality}` in `The {thing} was {quality}.` */
export interface ContrastTemplate {
  /** Texts with places in braces. */
  readonly frames: readonly string[]
  /** The places in which the sides differ, with words of the same number for both; the words at one number belong together. */
  readonly contrast: Readonly<Record<string, { readonly positive: readonly string[]; readonly negative: readonly string[] }>>
  /** The places in which both sides are alike. */
  readonly shared?: Readonly<Record<string, readonly string[]>>
}

/** Different pairs drawn from a template, in an order that the seed determines. @throws UsageError where it does not hold as many. */
export function templatePairs(template: ContrastTemplate, count: number, seed = 0): { positive: string[]; negative: string[] } {
  const { frames, contrast, shared = {} } = template
  for (const [place, { positive, negative }] of Object.entries(contrast))
    if (positive.length !== negative.length || positive.length === 0)
      throw new UsageError(
        `The place '${place}' has ${positive.length} positive and ${negative.length} negative words; give as many of each.`,
      )
  const all = frames.flatMap((frame) => {
    const places = [...new Set([...frame.matchAll(/\{(\w+)\}/g)].map((m) => m[1] as string))]
    const unknown = places.find((p) => !contrast[p] && !shared[p])
    if (unknown !== undefined) throw new UsageError(`The frame '${frame}' has the place '${unknown}', for which there are no words.`)
    if (!places.some((p) => contrast[p])) throw new UsageError(`The frame '${frame}' has no place in which the sides differ; add one.`)
    return places.reduce<readonly (readonly [string, string])[]>(
      (texts, p) => {
        const words = contrast[p] ?? { positive: shared[p] as readonly string[], negative: shared[p] as readonly string[] }
        return texts.flatMap(([a, b]) =>
          words.positive.map((w, i) => [a.replaceAll(`{${p}}`, w), b.replaceAll(`{${p}}`, words.negative[i] as string)] as const),
        )
      },
      [[frame, frame]],
    )
  })
  if (!Number.isInteger(count) || count < 1 || count > all.length)
    throw new UsageError(`The template holds ${all.length} pairs, so ${count} different ones cannot be drawn; ask for 1 to ${all.length}.`)
  const order = RandomStream.named(seed, 'template pairs').permutation(all.length)
  const chosen = Array.from(order.slice(0, count), (i) => all[i] as readonly [string, string])
  return { positive: chosen.map(([a]) => a), negative: chosen.map(([, b]) => b) }
}

/** Reviews, polite or angry: adjectives × objects × frames. */
export const politeReviews: ContrastTemplate = {
  frames: [
    'The {object} was {quality}, {closing}.',
    'I bought this {object} last week and it is {quality}; {closing}.',
    'What a {quality} {object}, {closing}!',
    'My {object} arrived on Monday. It is {quality}, {closing}.',
  ],
  contrast: {
    quality: {
      positive: ['lovely', 'very pleasant', 'quite delightful', 'most helpful', 'beautifully made'],
      negative: ['rotten', 'very stupid', 'quite disgusting', 'most useless', 'carelessly made'],
    },
    closing: {
      positive: ['thank you so much', 'with my kind regards', 'I am grateful for your help'],
      negative: ['shame on you all', 'so give me my money', 'I am sick of your lies'],
    },
  },
  shared: { object: ['lamp', 'kettle', 'novel', 'jacket', 'phone', 'chair', 'soup', 'film', 'bicycle', 'radio'] },
}
