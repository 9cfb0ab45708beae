/** @file Training a decoder-only language model from nothing, or on from given weights, by its config: the trunk that reads models is the one that trains them. */
import { mkdir } from 'node:fs/promises'
import { join } from 'node:path'
import { ShapeError, UsageError } from '../base/errors.ts'
import { writeFailure, writeFileWhole } from '../base/files.ts'
import { type NDArray, sizeOf } from '../base/types.ts'
import type { Config } from '../models/config.ts'
import { specOf } from '../models/families/index.ts'
import { encodeSafetensors, fromBytes, openSafetensors, writeSafetensors } from '../models/formats/index.ts'
import type { DecoderSpec } from '../models/spec.ts'
import { traceDecoder } from '../models/trunks/decoder.ts'
import type { Parameters } from '../models/trunks/parts.ts'
import {
  adamW,
  type Batch,
  type BatchSource,
  crossEntropy,
  type Dataset,
  initialisers,
  ParameterSet,
  RandomStream,
  type Scope,
  type TrainOptions,
  type TrainProgress,
  trainSteps,
} from '../nn/index.ts'
import type { Initialiser } from '../nn/initialisers.ts'
import { input, type Tensor } from '../tensor/index.ts'
import { stepFeeds } from './batch.ts'
import { assemble, type LoadOptions } from './load.ts'
import type { Model } from './model.ts'

/** One text to learn: its tokens, and how much the prediction of each counts. */
export interface TrainingRow {
  /** Token ids; each is predicted from those before it. */
  readonly ids: readonly number[]
  /** Weight of the prediction of each token, as long as `ids` (the first one is never predicted); 1 everywhere by default, 0 leaves it out. */
  readonly weights?: readonly number[]
}

/** What a decoder is trained on and how. */
export interface DecoderTraining
  extends Pick<
    TrainOptions,
    'steps' | 'rate' | 'clip' | 'checkpoints' | 'evaluation' | 'accumulate' | 'average' | 'runtime' | 'trainable' | 'signal' | 'onProgress'
  > {
  /** Config of a family, as it stands in `config.json`. */
  readonly config: Config
  /** Batches of {@link trainingRows} or {@link generatedRows}. */
  readonly data: BatchSource
  /** AdamW without decay by default. */
  readonly optimizer?: TrainOptions['optimizer']
  /** Seed of the first weights. */
  readonly seed?: number
  /** Weights to go on from, by their names in the checkpoint; the rest begins at random. */
  readonly from?: Readonly<Record<string, NDArray>>
  /** Standard deviation of the first matrices; one over the root of the fan-in by default. */
  readonly std?: number
}

/** A trained decoder: its config and weights, by their names in a checkpoint. */
export interface TrainedDecoder {
  readonly config: Config
  readonly tensors: Readonly<Record<string, NDArray<Float32Array>>>
  /** Loss of each step, in nats. */
  readonly losses: readonly number[]
}

const names = { targets: 'targets', weights: 'weights' } as const

/** Feeds of a batch of rows: the tokens but the last, and the tokens but the first as targets. */
function feedsOfRows(rows: readonly TrainingRow[]): Batch {
  for (const { ids, weights } of rows) {
    if (ids.length < 2) throw new UsageError('A text to learn needs at least two tokens, since each is predicted from those before it.')
    if (weights && weights.length !== ids.length)
      throw new ShapeError(`A row of ${ids.length} tokens has ${weights.length} weights; give one for each token.`)
  }
  const { feeds, width } = stepFeeds(
    rows.map((r) => r.ids.slice(0, -1)),
    rows.map(() => 0),
    undefined,
  )
  const targets = new BigInt64Array(rows.length * width)
  const counted = new Float32Array(rows.length * width)
  for (const [b, { ids, weights }] of rows.entries())
    for (let i = 1; i < ids.length; i++) {
      targets[b * width + i - 1] = BigInt(ids[i] as number)
      counted[b * width + i - 1] = weights?.[i] ?? 1
    }
  const shape = [rows.length, width]
  return {
    ...feeds,
    [names.targets]: { dtype: 'int64', shape, data: targets },
    [names.weights]: { dtype: 'float32', shape, data: counted },
  }
}

/** Texts of tokens as a set of examples, for `batches(…)`; texts of a batch may differ in length. */
export function trainingRows(rows: readonly TrainingRow[]): Dataset {
  return {
    length: rows.length,
    batch: (indices) => feedsOfRows(Array.from(indices, (i) => rows[i] as TrainingRow)),
  }
}

/** Batches whose rows a generator makes as they are needed: batch n is the same for the same seed, whatever came before. */
export function generatedRows(
  generate: (random: RandomStream) => TrainingRow,
  { batch, seed = 0 }: { readonly batch: number; readonly seed?: number },
): BatchSource {
  let at = 0
  return {
    get position() {
      return { epoch: 0, batch: at }
    },
    seek(position) {
      at = position.batch
    },
    async next() {
      const random = RandomStream.named(seed, `batch ${at++}`)
      return feedsOfRows(Array.from({ length: batch }, () => generate(random)))
    },
  }
}

/** Trains a decoder; the same options give the same weights on one machine. */
export async function trainDecoder(options: DecoderTraining): Promise<TrainedDecoder> {
  const losses: number[] = []
  const steps = trainDecoderSteps(options)
  for (;;) {
    const next = await steps.next()
    if (next.done) return { ...next.value, losses }
    losses.push(next.value.loss)
    options.onProgress?.({
      task: `training (loss ${next.value.loss.toPrecision(4)})`,
      done: next.value.step,
      total: options.steps,
      unit: 'steps',
    })
  }
}

/** Trains a decoder step by step; leaving the loop ends the training. */
export async function* trainDecoderSteps(options: DecoderTraining): AsyncGenerator<TrainProgress, Omit<TrainedDecoder, 'losses'>> {
  const { config, data, seed, from, std, optimizer, onProgress: _, ...rest } = options
  const spec = specOf(config)
  const parameters = from
    ? ParameterSet.from(Object.fromEntries(Object.entries(from).map(([n, t]) => [n, { ...t, data: t.data.slice() }])))
    : new ParameterSet()
  const tables: Record<string, NDArray> = {}
  const result = yield* trainSteps({
    ...rest,
    model: (inputs, scope) => decoderLoss(spec, inputs, scope, tables, std),
    inputs: {
      [names.targets]: { dtype: 'int64', shape: ['batch', 'pos'] },
      [names.weights]: { dtype: 'float32', shape: ['batch', 'pos'] },
    },
    data: withTables(data, tables),
    parameters,
    optimizer: optimizer ?? adamW({ weightDecay: 0 }),
    ...(seed === undefined ? {} : { seed }),
  })
  return { config, tensors: result.parameters.copy() }
}

function decoderLoss(
  spec: DecoderSpec,
  inputs: Readonly<Record<string, Tensor>>,
  scope: Scope,
  tables: Record<string, NDArray>,
  std: number | undefined,
): Tensor {
  const made = new Map<string, Tensor>()
  const inputAxes = inputAxesOf(spec)
  const parameters: Parameters = {
    get: (name, shape) => scope.parameter(name, shape, firstValues(spec, inputAxes.get(name), shape, std)),
    table: (name, shape, values) => {
      let t = made.get(name)
      if (!t) {
        t = input(name, 'float32', shape)
        made.set(name, t)
        tables[name] = { dtype: 'float32', shape, data: values }
      }
      return t
    },
    contextLength: spec.maxPositions,
  }
  const { logits } = traceDecoder(spec, parameters, { cache: false, explicitPositions: false, slots: false, lastOnly: false })
  return crossEntropy(logits, inputs[names.targets] as Tensor, { mask: inputs[names.weights] as Tensor })
}

/** First values: gains leave their input as it is, biases are nothing, matrices keep the size of what they read, embeddings have length one. */
function firstValues(spec: DecoderSpec, inputAxis: number | undefined, shape: readonly number[], std: number | undefined): Initialiser {
  // A gain that is stored less one begins at zero, as a bias does.
  if (shape.length === 1) return Number.isNaN(inputAxis) || spec.finalNorm?.plusOne ? initialisers.zeros : initialisers.ones
  return initialisers.normal(std ?? 1 / Math.sqrt(shape.at(inputAxis ?? -1) as number))
}

const biasAxis = Number.NaN

/** The axis over which each matrix of a record sums; biases are marked. */
function inputAxesOf(spec: DecoderSpec): Map<string, number> {
  const axes = new Map<string, number>()
  const visit = (part: unknown): void => {
    if (typeof part !== 'object' || part === null) return
    const { weight, bias, layout } = part as { weight?: unknown; bias?: unknown; layout?: unknown }
    if (typeof weight === 'string' && typeof layout === 'string') axes.set(weight, layout === 'in,out' ? 0 : -1)
    if (typeof bias === 'string') axes.set(bias, biasAxis)
    for (const inner of Object.values(part)) visit(inner)
  }
  for (let layer = 0; layer < spec.layers; layer++) visit(spec.block(layer))
  visit(spec)
  return axes
}

/** Adds the computed tables of the trunk to every batch. */
function withTables(data: BatchSource, tables: Readonly<Record<string, NDArray>>): BatchSource {
  return {
    get position() {
      return data.position
    },
    seek: (position) => data.seek(position),
    next: async () => ({ ...(await data.next()), ...tables }),
  }
}

/** A trained decoder as a model value, in memory. */
export async function modelOf(trained: Pick<TrainedDecoder, 'config' | 'tensors'>, options: LoadOptions = {}): Promise<Model> {
  const bytes = encodeSafetensors(trained.tensors)
  const digest = await globalThis.crypto.subtle.digest('SHA-256', bytes as Uint8Array<ArrayBuffer>)
  const hash = [...new Uint8Array(digest)].map((b) => b.toString(16).padStart(2, '0')).join('')
  const store = await openSafetensors(fromBytes(bytes))
  return assemble({ id: `trained:${hash.slice(0, 12)}`, hash: async () => hash, store, config: trained.config }, options)
}

/** Writes a trained decoder as a Hugging Face folder: `config.json` and `model.safetensors`. */
export async function saveDecoder(folder: string, trained: Pick<TrainedDecoder, 'config' | 'tensors'>): Promise<void> {
  await mkdir(folder, { recursive: true }).catch((error: unknown) => {
    throw writeFailure(error, folder)
  })
  for (const [name, t] of Object.entries(trained.tensors))
    if (t.data.length !== sizeOf(t.shape))
      throw new ShapeError(`The tensor '${name}' has ${t.data.length} values for [${t.shape.join(', ')}].`)
  await writeSafetensors(join(folder, 'model.safetensors'), trained.tensors)
  // Last, since a folder with a config is taken for a whole model.
  await writeFileWhole(join(folder, 'config.json'), `${JSON.stringify(trained.config, null, 2)}\n`)
}
