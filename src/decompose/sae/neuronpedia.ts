/** @file Latents as Neuronpedia's feature JSON, to be uploaded or looked at with its tools. */
import { UsageError } from '../../base/errors.ts'
import { writeFileWhole } from '../../base/files.ts'
import type { Model } from '../../run/index.ts'
import type { LatentLogits, LatentSummary } from './latents.ts'
import type { Sae } from './sae.ts'

/** Options of {@link encodeNeuronpediaFeatures}. */
export interface NeuronpediaFeatureOptions {
  /** The model as Neuronpedia calls it (default: the model's id). */
  readonly modelId?: string
  /** The source there, `LAYER-NAME`, such as `3-res-mine` (default: the layer and `sae`). */
  readonly sourceId?: string
  /** Labels by latent; they are data that a person or a program made elsewhere. */
  readonly labels?: Readonly<Record<number, string>>
}

/** One feature as Neuronpedia stores it. */
export interface NeuronpediaFeature {
  readonly modelId: string
  readonly layer: string
  readonly index: number
  readonly hookName: string
  readonly neg_str: readonly string[]
  readonly neg_values: readonly number[]
  readonly pos_str: readonly string[]
  readonly pos_values: readonly number[]
  readonly frac_nonzero: number
  readonly maxActApprox: number
  readonly freq_hist_data_bar_heights: readonly number[]
  readonly freq_hist_data_bar_values: readonly number[]
  readonly logits_hist_data_bar_heights: readonly number[]
  readonly logits_hist_data_bar_values: readonly number[]
  readonly activations: readonly {
    readonly bin_min: number
    readonly bin_max: number
    readonly bin_contains: number
    readonly qualifying_token_index: number
    readonly tokens: readonly string[]
    readonly values: readonly number[]
  }[]
  readonly vector: readonly number[]
  readonly explanations?: readonly { readonly description: string }[]
}

/** Bars are told by the middles of their bins, as many as there are heights. */
const middles = (edges: readonly number[]) => edges.slice(1).map((e, i) => (e + (edges[i] as number)) / 2)

function histogram(values: Float32Array, count: number): { heights: number[]; values: number[] } {
  let [low, high] = [Number.POSITIVE_INFINITY, Number.NEGATIVE_INFINITY]
  for (const v of values) {
    low = Math.min(low, v)
    high = Math.max(high, v)
  }
  const width = (high - low) / count || 1
  const heights = new Array<number>(count).fill(0)
  for (const v of values) {
    const at = Math.min(count - 1, Math.floor((v - low) / width))
    heights[at] = (heights[at] as number) + 1
  }
  return { heights, values: heights.map((_, i) => low + (i + 0.5) * width) }
}

/** Features as Neuronpedia stores them: one for each latent that was summarised. */
export function encodeNeuronpediaFeatures(
  model: Model,
  sae: Sae,
  summaries: readonly LatentSummary[],
  logits: readonly LatentLogits[],
  options: NeuronpediaFeatureOptions & { readonly site?: string } = {},
): NeuronpediaFeature[] {
  const info = sae.site(model, options.site)
  const piece = (id: number) => (model.hasTokenizer ? model.tokenizer.piece(id) : String(id))
  const unknown = Object.keys(options.labels ?? {}).find((l) => !summaries.some((s) => s.latent === Number(l)))
  if (unknown !== undefined) throw new UsageError(`There is a label for latent ${unknown}, which is not among those that are written.`)
  return summaries.map((s) => {
    const own = logits.find((l) => l.latent === s.latent)
    if (!own) throw new UsageError(`There are no logit weights of latent ${s.latent}; compute them for the same latents.`)
    const bars = histogram(own.weights, 40)
    const label = options.labels?.[s.latent]
    return {
      modelId: options.modelId ?? model.origin.id,
      layer: options.sourceId ?? `${info.layer ?? 0}-sae`,
      index: s.latent,
      hookName: info.row.transformerLens[0]?.replace('{L}', String(info.layer)) ?? info.site,
      neg_str: own.suppressed.map((t) => piece(t.token)),
      neg_values: own.suppressed.map((t) => t.weight),
      pos_str: own.promoted.map((t) => piece(t.token)),
      pos_values: own.promoted.map((t) => t.weight),
      frac_nonzero: s.positions === 0 ? 0 : s.active / s.positions,
      maxActApprox: s.max,
      freq_hist_data_bar_heights: s.histogram.counts,
      freq_hist_data_bar_values: middles(s.histogram.edges),
      logits_hist_data_bar_heights: bars.heights,
      logits_hist_data_bar_values: bars.values,
      activations: s.contexts.map((c) => ({
        bin_min: 0,
        bin_max: s.max,
        bin_contains: s.active === 0 ? 0 : s.contexts.length / s.active,
        qualifying_token_index: c.at,
        tokens: c.tokens.map(piece),
        values: c.activations,
      })),
      vector: Array.from(sae.direction(s.latent)),
      ...(label === undefined ? {} : { explanations: [{ description: label }] }),
    }
  })
}

/** Writes features as one JSON array. */
export async function saveNeuronpediaFeatures(path: string, features: readonly NeuronpediaFeature[]): Promise<void> {
  await writeFileWhole(path, `${JSON.stringify(features, undefined, 1)}\n`)
}
