/** @file A predictor on frozen features of a vision tower: two linear layers from the mean over patches to a score from 0 to 1 (the predictor M of arXiv:2602.21877). */
import { ShapeError, throwIfCancelled, UsageError } from '../base/errors.ts'
import type { WorkOptions } from '../base/progress.ts'
import type { NDArray } from '../base/types.ts'
import { adamW, batches, linear, mse, ParameterSet, Scope, tensorDataset, train } from '../nn/index.ts'
import type { Model, ModelInput } from '../run/index.ts'
import { add, div, input, mul, Program, relu, SessionCache, sqrt, squeeze, sum, type Tensor } from '../tensor/index.ts'

/** Features of images, [image, width]. */
export type ImageFeatures = NDArray<Float32Array>

/**
 * Mean over the patches of each image at a site of a vision tower, [image, width].
 * @param batches inputs of the model, each of one or more images.
 * @param options.site the last states of the tower by default: `last_hidden_state`, or `vision.last_hidden_state` in a larger model.
 */
export async function imageFeatures(
  model: Model,
  batches: readonly ModelInput[],
  options: WorkOptions & { readonly site?: string } = {},
): Promise<ImageFeatures> {
  const stack = model.architecture.stacks.find((s) => s.sequence === 'image')
  if (!stack) throw new UsageError(`'${model.architecture.family}' reads no images, so it has no features of them.`)
  const site = options.site ?? `${stack.prefix ?? ''}last_hidden_state`
  const rows: Float32Array[] = []
  for (const [n, batch] of batches.entries()) {
    throwIfCancelled(options.signal)
    const { taps } = await model.run(batch, { taps: [site], logits: false })
    const { lengths } = taps[site] as { lengths: number[] }
    for (let b = 0; b < lengths.length; b++) rows.push(meanOverPatches(taps[site]?.row(b) as NDArray))
    options.onProgress?.({ task: 'reading images', done: n + 1, total: batches.length, unit: 'batches' })
  }
  const width = rows[0]?.length ?? 0
  const data = new Float32Array(rows.length * width)
  for (const [i, r] of rows.entries()) data.set(r, i * width)
  return { dtype: 'float32', shape: [rows.length, width], data }
}

function meanOverPatches({ shape, data }: NDArray): Float32Array {
  const [patches, width] = shape as [number, number]
  const out = new Float32Array(width)
  for (let p = 0; p < patches; p++) for (let i = 0; i < width; i++) out[i] = (out[i] as number) + Number(data[p * width + i]) / patches
  return out
}

/** How a head is trained; defaults are the paper's. */
export interface HeadOptions extends WorkOptions {
  readonly features: ImageFeatures
  /** One for each image, from 0 to 1. */
  readonly scores: readonly number[]
  /** Width of the layer between (256). */
  readonly hidden?: number
  /** Times that all images are seen (100). */
  readonly epochs?: number
  /** Learning rate of Adam (1e-4). */
  readonly rate?: number
  /** Images of one step (64). */
  readonly batch?: number
  /** Brings features to length one first; off, since lengths tell something (paper: Spearman 0.82 without, 0.76 with). */
  readonly normalise?: boolean
  readonly seed?: number
}

const names = { features: 'features', scores: 'scores' } as const
const sessions = new SessionCache(16e6)

/** A trained predictor of memorability; immutable. */
export class MemorabilityHead {
  readonly width: number
  readonly hidden: number
  readonly normalise: boolean
  /** Weights by name: `hidden.weight` [width, hidden], `hidden.bias`, `score.weight` [hidden, 1], `score.bias`. */
  readonly tensors: Readonly<Record<string, NDArray<Float32Array>>>

  private constructor(width: number, hidden: number, normalise: boolean, tensors: MemorabilityHead['tensors']) {
    this.width = width
    this.hidden = hidden
    this.normalise = normalise
    this.tensors = tensors
  }

  /** Trains a head by the mean squared error; the same options give the same weights on one machine. */
  static async train(options: HeadOptions): Promise<MemorabilityHead> {
    const { features, scores, hidden = 256, epochs = 100, rate = 1e-4, batch = 64, normalise = false, seed = 0, ...work } = options
    const [count, width] = features.shape as [number, number]
    if (scores.length !== count) throw new ShapeError(`There are ${count} images and ${scores.length} scores; give one for each.`)
    const outside = scores.findIndex((s) => !(s >= 0 && s <= 1))
    if (outside >= 0) throw new UsageError(`The score ${outside} is ${scores[outside]}; scores go from 0 to 1.`)
    const size = Math.min(batch, count)
    const { parameters } = await train({
      ...work,
      model: (inputs, scope) => mse(scored(scope, inputs[names.features] as Tensor, hidden, normalise), inputs[names.scores] as Tensor),
      data: batches(
        tensorDataset({
          [names.features]: features,
          [names.scores]: { dtype: 'float32', shape: [count], data: Float32Array.from(scores) },
        }),
        { batch: size, seed },
      ),
      steps: epochs * Math.max(1, Math.floor(count / size)),
      rate,
      optimizer: adamW({ weightDecay: 0 }),
      seed,
    })
    return new MemorabilityHead(width, hidden, normalise, parameters.copy())
  }

  /** Scores of images, each from 0 to 1. */
  async predict(features: ImageFeatures, { signal }: WorkOptions = {}): Promise<Float32Array> {
    const { width, hidden, normalise, tensors } = this
    if (features.shape.length !== 2 || features.shape[1] !== width)
      throw new ShapeError(`The head reads features of width ${width}, not [${features.shape.join(', ')}]; take those of the same tower.`)
    const x = input(names.features, 'float32', ['images', width])
    const scope = new Scope(ParameterSet.from({ ...tensors }), { view: (name, shape) => input(name, 'float32', shape) })
    const score = scored(scope, x, hidden, normalise)
    const program = await Program.of({ score }, { device: 'cpu', cache: sessions })
    const out = await program.run({ ...tensors, [names.features]: features }, { signal })
    return ((out.score as NDArray).data as Float32Array).map((v) => Math.min(1, Math.max(0, v)))
  }
}

/** Scores [image] of features [image, width], not limited, so that training sees every error. */
function scored(scope: Scope, features: Tensor, hidden: number, normalise: boolean): Tensor {
  const x = normalise ? div(features, sqrt(add(sum(mul(features, features), [-1], true), 1e-12))) : features
  return squeeze(linear(scope.in('score'), relu(linear(scope.in('hidden'), x, hidden)), 1), -1)
}
