/** @file Edits that are trained on a model whose weights stay as they are: low-rank adapters, bottleneck adapters, vectors, and any function with parameters. */
import { EditError, UsageError } from '../base/errors.ts'
import { type NDArray, sizeOf } from '../base/types.ts'
import {
  adamW,
  type BatchSource,
  type Dataset,
  initialisers,
  ParameterSet,
  type Scope,
  type TrainOptions,
  type TrainProgress,
  trainSteps,
} from '../nn/index.ts'
import type { SiteInfo } from '../sites/address.ts'
import { type Edit, edit } from '../sites/edits.ts'
import { prepareEdits } from '../sites/prepare.ts'
import { add, constant, gelu, matmul, mul, reshape, type SavedPolicy, type Tensor } from '../tensor/index.ts'
import { type Batch, checkInput, type ModelInput } from './batch.ts'
import { gradientFeeds } from './gradient.ts'
import { traceScalar } from './gradient-graph.ts'
import type { Loss, LossFunction } from './losses.ts'
import type { Model } from './model.ts'

/** An edit whose parameters are learnt. */
export interface TrainableEdit {
  /** Site, alias or pattern; each site has parameters of its own, named `SITE.NAME`. */
  readonly site: string
  /** Names of sites, without their layer, that it reads at the same layer. */
  readonly reads?: (site: SiteInfo) => readonly string[]
  /** The new value; parameters are asked for in the scope. It should leave the value as it is at first. */
  readonly apply: (value: Tensor, scope: Scope, read: (site: string) => Tensor) => Tensor
}

/** What enters the linear layer whose output a site is. */
const inputOf: Readonly<Record<string, string>> = {
  q: 'attn_in',
  k: 'attn_in',
  v: 'attn_in',
  attn_out: 'z',
  mlp_pre: 'mlp_in',
  mlp_pre_linear: 'mlp_in',
  mlp_out: 'mlp_act',
}

function layerInput({ row, layer, site }: SiteInfo): string {
  const source = inputOf[row.name]
  if (source === undefined || layer === undefined)
    throw new EditError(
      `'${site}' is not the output of one linear layer, so it has no low-rank adapter; those are ${Object.keys(inputOf).join(', ')}.`,
    )
  return `${source}.${layer}`
}

/** [batch, pos, …] with all axes from the third on as one. */
function flat(x: Tensor): Tensor {
  const width = sizeOf(x.shape.slice(2) as number[])
  return x.rank === 3 ? x : reshape(x, [...x.shape.slice(0, 2), width])
}

/**
 * A low-rank adapter of the linear layer whose output a site is (`q`, `k`, `v`, `attn_out`, `mlp_pre`, `mlp_pre_linear`, `mlp_out`): alpha/rank ·
 * x·`lora_a`·`lora_b` is added, which is a change of the weight by their product (Hu et al. 2021). Starts at zero.
 */
export function lora(site: string, { rank, alpha = rank }: { readonly rank: number; readonly alpha?: number }): TrainableEdit {
  if (!Number.isInteger(rank) || rank < 1) throw new UsageError(`The rank of an adapter must be a positive whole number, not ${rank}.`)
  return {
    site,
    reads: (info) => [layerInput(info)],
    apply: (value, scope, read) => {
      const x = flat(read(''))
      const [inside, outside] = [x.shape[2] as number, sizeOf(value.shape.slice(2) as number[])]
      const a = scope.parameter('lora_a', [inside, rank], initialisers.kaiming('uniform', 1 / Math.sqrt(3)))
      const b = scope.parameter('lora_b', [rank, outside], initialisers.zeros)
      const change = mul(matmul(matmul(x, a), b), alpha / rank)
      return add(value, value.rank === 3 ? change : reshape(change, value.shape))
    },
  }
}

/** A bottleneck adapter: GELU(x·`down`)·`up` is added to the site's own value (Houlsby et al. 2019). Starts at zero. */
export function adapter(site: string, { width }: { readonly width: number }): TrainableEdit {
  return {
    site,
    apply: (value, scope) => {
      const size = value.shape.at(-1) as number
      const down = scope.parameter('down', [size, width], initialisers.kaiming('uniform', 1 / Math.sqrt(3)))
      const up = scope.parameter('up', [width, size], initialisers.zeros)
      return add(value, matmul(gelu(matmul(value, down)), up))
    },
  }
}

/** A vector that is added at every position. Starts at zero. */
export function learntVector(site: string): TrainableEdit {
  return {
    site,
    apply: (value, scope) => add(value, scope.parameter('vector', [value.shape.at(-1) as number], initialisers.zeros)),
  }
}

/** What to train, on what, and how. */
export interface EditTraining
  extends Pick<
    TrainOptions,
    'steps' | 'rate' | 'seed' | 'clip' | 'checkpoints' | 'evaluation' | 'accumulate' | 'average' | 'runtime' | 'signal' | 'onProgress'
  > {
  readonly edits: readonly TrainableEdit[]
  /** AdamW without decay by default. */
  readonly optimizer?: TrainOptions['optimizer']
  /** Batches of {@link modelRows}. */
  readonly data: BatchSource
  /** What is made small: a loss as data, or a function of a traced run (default next-token). */
  readonly loss?: Loss | LossFunction
  /** Parameters to go on from. */
  readonly from?: Readonly<Record<string, NDArray>>
  /** What becomes of forward values that the backward pass needs. */
  readonly saved?: SavedPolicy
}

/** Trained edits. */
export interface TrainedEdits {
  /** Ready for `model.with(…)`; functions, so they cannot be written to an edits file: keep `parameters`, and make them again by {@link fixedEdits}. */
  readonly edits: readonly Edit[]
  /** By site and name: `q.1.lora_a`. */
  readonly parameters: Readonly<Record<string, NDArray<Float32Array>>>
  /** Loss of each step of this call. */
  readonly losses: readonly number[]
}

/** Inputs of a model as examples for `batches(…)`; the model's own edits are in force. */
export function modelRows(model: Model, inputs: readonly ModelInput[], loss: Loss | LossFunction = { kind: 'next-token' }): Dataset {
  const own = prepareEdits(model.edits, model.internals.resolver)
  const rows = inputs.flatMap((i) => {
    const batch = model.tokens(i)
    if (batch.others || batch.tensors || batch.positions)
      throw new UsageError('Edits are trained on rows of tokens; give texts, { ids } or { rows }.')
    return batch.rows
  })
  return {
    length: rows.length,
    batch: (indices) => {
      const chosen = Array.from(indices, (i) => rows[i] as readonly number[])
      const batch: Batch = model.tokens({ rows: chosen })
      checkInput(batch, model.architecture, model.contextLength)
      return gradientFeeds(model.internals, own, batch, loss, undefined).feeds
    },
  }
}

/** The edits of a model with some functions more, each at the sites of its pattern. */
function functionEdits(model: Model, trainable: readonly TrainableEdit[], scopeOf: (site: string) => Scope): Edit[] {
  return trainable.flatMap((t) =>
    model.resolve(t.site).map((info) => {
      const reads = t.reads?.(info) ?? []
      return edit(info.site, (x, c) => t.apply(x, scopeOf(info.site), (name) => c.read(name === '' ? (reads[0] as string) : name)), {
        reads,
      })
    }),
  )
}

/** Trained edits as edits whose numbers are fixed. */
export function fixedEdits(model: Model, trainable: readonly TrainableEdit[], parameters: Readonly<Record<string, NDArray>>): Edit[] {
  const fixed = (site: string): Scope => {
    const parameter = (name: string, shape: readonly number[]) => {
      const found = parameters[`${site}.${name}`]
      if (!found || found.shape.join() !== shape.join())
        throw new UsageError(
          `There is no parameter '${site}.${name}' of shape [${shape.join(', ')}] among those given; they belong to other edits.`,
        )
      return constant('float32', shape, found.data)
    }
    return { parameter } as unknown as Scope
  }
  return functionEdits(model, trainable, fixed)
}

/** Trains edits step by step on a model whose weights stay as they are; leaving the loop ends the training. */
export async function* trainEditsSteps(model: Model, options: EditTraining): AsyncGenerator<TrainProgress, Omit<TrainedEdits, 'losses'>> {
  const { edits, data, loss = { kind: 'next-token' }, from, optimizer, onProgress: _, ...rest } = options
  if (edits.length === 0) throw new UsageError('There is no edit to train.')
  const core = model.internals
  const parameters = from
    ? ParameterSet.from(Object.fromEntries(Object.entries(from).map(([n, t]) => [n, { ...t, data: t.data.slice() }])))
    : new ParameterSet()
  const result = yield* trainSteps({
    ...rest,
    model: (_inputs, scope) => {
      const all = prepareEdits([...model.edits, ...functionEdits(model, edits, (site) => scope.in(site))], core.resolver)
      return traceScalar(core, { edits: all, of: loss, taps: [], explicitPositions: false }).value
    },
    // The traced run declares its own.
    inputs: {},
    data,
    parameters,
    optimizer: optimizer ?? adamW({ weightDecay: 0 }),
  })
  const trained = result.parameters.copy()
  return { parameters: trained, edits: fixedEdits(model, edits, trained) }
}

/** Trains edits to the end. */
export async function trainEdits(model: Model, options: EditTraining): Promise<TrainedEdits> {
  const losses: number[] = []
  const steps = trainEditsSteps(model, options)
  for (;;) {
    const next = await steps.next()
    if (next.done) return { ...next.value, losses }
    losses.push(next.value.loss)
    options.onProgress?.({
      task: `training edits (loss ${next.value.loss.toPrecision(4)})`,
      done: next.value.step,
      total: options.steps,
      unit: 'steps',
    })
  }
}
