/** @file Training a language model (one that reads images before its text, too) from nothing, or on from given weights, by its config: the trunk that reads models is the one that trains them. */

import { join } from 'node:path'
import { ModelError, ShapeError, UsageError } from '../base/errors.ts'
import { makeFolder, writeFileWhole } from '../base/files.ts'
import { sha256 } from '../base/hash.ts'
import { type NDArray, sizeOf } from '../base/types.ts'
import { type Architecture, architectureOf, type ModelRecord } from '../models/architecture.ts'
import type { Config } from '../models/config.ts'
import { recordOf } from '../models/families/index.ts'
import { encodeSafetensors, fromBytes, openSafetensors, writeSafetensors } from '../models/formats/index.ts'
import { inputNames } from '../models/traced.ts'
import { pixelsName } from '../models/trunks/encoder.ts'
import type { Parameters } from '../models/trunks/parts.ts'
import {
  adamW,
  type Batch,
  type BatchSource,
  crossEntropy,
  type Dataset,
  ParameterSet,
  RandomStream,
  type Scope,
  type TrainOptions,
  type TrainProgress,
  trainSteps,
} from '../nn/index.ts'
import { input, type Tensor, topological } from '../tensor/index.ts'
import { stepFeeds } from './batch.ts'
import { firstValues } from './first-values.ts'
import { checkImageTokens, checkPixels, stackedImages } from './inputs.ts'
import { assemble, type LoadOptions } from './load.ts'
import type { Model } from './model.ts'

/** One text to learn: its tokens, and how much the prediction of each counts. */
export interface TrainingRow {
  /** Token ids; each is predicted from those before it. */
  readonly ids: readonly number[]
  /** Weight of the prediction of each token, as long as `ids` (the first one is never predicted); 1 everywhere by default, 0 leaves it out. */
  readonly weights?: readonly number[]
  /** Images [channel, row, column] whose features take the places of the row's image tokens, in order; for models that read them. */
  readonly images?: readonly NDArray<Float32Array>[]
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
  const images = rows.flatMap((r) => r.images ?? [])
  return {
    ...feeds,
    ...(images.length > 0 ? { [pixelsName]: stackedImages(images) } : {}),
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
  const { config, data, seed, from, std, optimizer, trainable = () => true, onProgress: _, ...rest } = options
  const record = recordOf(config)
  const architecture = architectureOf(record)
  checkTrainable(architecture)
  const parameters = from
    ? ParameterSet.from(Object.fromEntries(Object.entries(from).map(([n, t]) => [n, { ...t, data: t.data.slice() }])))
    : new ParameterSet()
  const tables: Record<string, NDArray> = {}
  const used = usedParameters(architecture)
  const result = yield* trainSteps({
    ...rest,
    model: (inputs, scope) => decoderLoss(record, inputs, scope, tables, std),
    inputs: {
      [names.targets]: { dtype: 'int64', shape: ['batch', 'pos'] },
      [names.weights]: { dtype: 'float32', shape: ['batch', 'pos'] },
    },
    data: prepared(data, architecture, tables),
    parameters,
    trainable: (name) => used.has(name) && trainable(name),
    optimizer: optimizer ?? adamW({ weightDecay: 0 }),
    ...(seed === undefined ? {} : { seed }),
  })
  return { config, tensors: result.parameters.copy() }
}

/** Kinds of models whose blocks are all made of what {@link firstValues} knows, and that predict the next token of one text. */
const trainableKinds: readonly Architecture['kind'][] = ['decoder', 'image-prefix']

function checkTrainable({ family, kind }: Architecture): void {
  if (!trainableKinds.includes(kind))
    throw new ModelError(
      `The family '${family}' is of another kind (${kind}); what is trained here is of the kinds ${trainableKinds.join(' and ')}.`,
    )
}

const trainingTrace = { cache: false, explicitPositions: false, slots: false, lastOnly: false } as const

/** Names of the parameters that the logits depend on: a vision tower may go on behind the block whose output is read. */
function usedParameters({ trace, maxPositions }: Architecture): ReadonlySet<string> {
  const named = new Map<Tensor['node'], string>()
  const leaf = (name: string, shape: readonly number[]) => {
    const t = input(name, 'float32', shape)
    named.set(t.node, name)
    return t
  }
  const { logits } = trace({ get: leaf, table: (name, shape) => input(name, 'float32', shape), contextLength: maxPositions }, trainingTrace)
  return new Set(topological([logits]).flatMap((node) => named.get(node) ?? []))
}

function decoderLoss(
  record: ModelRecord,
  inputs: Readonly<Record<string, Tensor>>,
  scope: Scope,
  tables: Record<string, NDArray>,
  std: number | undefined,
): Tensor {
  const made = new Map<string, Tensor>()
  const first = firstValues(record, std)
  const { trace, maxPositions } = architectureOf(record)
  const parameters: Parameters = {
    get: (name, shape) => scope.parameter(name, shape, first(name, shape)),
    table: (name, shape, values) => {
      let t = made.get(name)
      if (!t) {
        t = input(name, 'float32', shape)
        made.set(name, t)
        tables[name] = { dtype: 'float32', shape, data: values }
      }
      return t
    },
    contextLength: maxPositions,
  }
  const { logits } = trace(parameters, trainingTrace)
  return crossEntropy(logits, inputs[names.targets] as Tensor, { mask: inputs[names.weights] as Tensor })
}

/** Checks the images of every batch, and adds the computed tables of the trunk. */
function prepared(data: BatchSource, architecture: Architecture, tables: Readonly<Record<string, NDArray>>): BatchSource {
  return {
    get position() {
      return data.position
    },
    seek: (position) => data.seek(position),
    next: async () => {
      const batch = await data.next()
      checkImages(architecture, batch)
      return { ...batch, ...tables }
    },
  }
}

/** Refuses images where the model reads none, and texts whose image tokens are not as many as the images take. */
function checkImages({ family, sequences: [text, image] }: Architecture, batch: Batch): void {
  const images = batch[pixelsName]
  if (image?.kind !== 'pixels' || text.kind !== 'tokens') {
    if (images) throw new UsageError(`'${family}' reads no images, but a text to learn brings some; leave them out.`)
    return
  }
  if (!images) throw new UsageError(`'${family}' reads images, but no text to learn brings one.`)
  const [ids, last] = [batch[inputNames.ids], batch[inputNames.lastSlot]] as [NDArray, NDArray]
  const width = ids.shape[1] as number
  const rows = Array.from({ length: last.data.length }, (_, b) =>
    Array.from({ length: Number(last.data[b]) + 1 }, (_, c) => Number(ids.data[b * width + c])),
  )
  checkImageTokens(text, rows, checkPixels(image, images).shape[0] as number)
}

/** A trained decoder as a model value, in memory. */
export async function modelOf(trained: Pick<TrainedDecoder, 'config' | 'tensors'>, options: LoadOptions = {}): Promise<Model> {
  const bytes = encodeSafetensors(trained.tensors)
  const hash = await sha256(bytes as Uint8Array<ArrayBuffer>)
  const store = await openSafetensors(fromBytes(bytes))
  return assemble({ id: `trained:${hash.slice(0, 12)}`, hash: async () => hash, store, config: trained.config }, options)
}

/** Writes a trained decoder as a Hugging Face folder: `config.json` and `model.safetensors`. */
export async function saveDecoder(folder: string, trained: Pick<TrainedDecoder, 'config' | 'tensors'>): Promise<void> {
  await makeFolder(folder)
  for (const [name, t] of Object.entries(trained.tensors))
    if (t.data.length !== sizeOf(t.shape))
      throw new ShapeError(`The tensor '${name}' has ${t.data.length} values for [${t.shape.join(', ')}].`)
  await writeSafetensors(join(folder, 'model.safetensors'), trained.tensors)
  // Last, since a folder with a config is taken for a whole model.
  await writeFileWhole(join(folder, 'config.json'), `${JSON.stringify(trained.config, null, 2)}\n`)
}
