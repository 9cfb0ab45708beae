/** @file A vector by optimisation: trained to make target continuations likely, under a limit on its length. */

import { throwIfCancelled, UsageError } from '../base/errors.ts'
import { sha256 } from '../base/hash.ts'
import { meanOf } from '../base/numbers.ts'
import type { WorkOptions } from '../base/progress.ts'
import { adamW, batches, initialisers } from '../nn/index.ts'
import type { Model } from '../run/model.ts'
import { modelRows, type TrainableEdit, trainEdits } from '../run/train-edits.ts'
import { versions } from '../run/versions.ts'
import { add, constant, div, maximum, mul, sqrt, sum, type Tensor } from '../tensor/index.ts'
import { canonicalJson, recordEdits } from './record.ts'
import { noDirection, SteeringVector, widthOf } from './vector.ts'

/** Options of {@link optimisedVector}. */
export interface OptimisedOptions extends WorkOptions {
  /** One site; the vector is added there at every position. */
  readonly site: string
  /** Texts (or token ids) that are to become likely, whole. */
  readonly targets: readonly (string | readonly number[])[]
  /** Largest Euclidean length of the vector, in units of the activations. */
  readonly norm: number
  /** Default 100. */
  readonly steps?: number
  /** Learning rate of Adam (default 0.02 · norm / √width, so that a coordinate can cross its range in some fifty steps). */
  readonly rate?: number
  /** Texts in a step (default 8). */
  readonly batch?: number
  readonly seed?: number
}

/** v, or v shortened to the limit. */
function limited(v: Tensor, limit: number): Tensor {
  const length = sqrt(add(sum(mul(v, v)), constant('float32', [], Float32Array.of(1e-12))))
  return div(v, maximum(div(length, limit), constant('float32', [], Float32Array.of(1))))
}

/**
 * Trains a vector [width] to lower the mean next-token loss of the targets on the model as it is (steering vectors by gradient:
 * Subramani et al. 2022, arXiv:2205.05124), its length held at most `norm` inside the loss. The record's fit holds the mean loss of the
 * first and the last tenth of the steps, nats.
 */
export async function optimisedVector(model: Model, options: OptimisedOptions): Promise<SteeringVector> {
  const { site, targets, norm, steps = 100, batch = 8, seed = 0, signal, onProgress } = options
  throwIfCancelled(signal)
  const info = model.site(site)
  const reason = noDirection(info.row.axes)
  if (reason || info.row.axes.length !== 3)
    throw new UsageError(`No vector can be trained at '${info.site}': ${reason ?? `its axes are [${info.row.axes.join(', ')}]`}.`)
  if (targets.length === 0) throw new UsageError('There is no target; give at least one text that is to become likely.')
  if (!(norm > 0 && Number.isFinite(norm))) throw new UsageError(`The limit of the vector's length must be a positive number, not ${norm}.`)
  const width = widthOf(model, info)
  const { rate = (0.02 * norm) / Math.sqrt(width) } = options
  const trainable: TrainableEdit = {
    site: info.site,
    apply: (value, scope) => add(value, limited(scope.parameter('vector', [width], initialisers.zeros), norm)),
  }
  const rows = targets.map((t) => (typeof t === 'string' ? (model.tokens(t).rows[0] as readonly number[]) : t))
  const short = rows.findIndex((r) => r.length < 2)
  if (short >= 0) throw new UsageError(`The target ${short} has one token, so nothing in it can be predicted; give a longer one.`)
  const { parameters, losses } = await trainEdits(model, {
    edits: [trainable],
    data: batches(modelRows(model, [{ rows }]), { batch: Math.min(batch, rows.length), seed }),
    steps,
    rate,
    seed,
    optimizer: adamW({ weightDecay: 0 }),
    ...(signal ? { signal } : {}),
    ...(onProgress ? { onProgress } : {}),
  })
  const raw = parameters[`${info.site}.vector`]?.data as Float32Array
  const length = Math.hypot(...raw)
  const tenth = Math.max(1, Math.ceil(losses.length / 10))
  const edits = await recordEdits(model.edits)
  return new SteeringVector([[info.site, raw.map((x) => x * Math.min(1, norm / length))]], {
    method: 'optimised',
    options: { norm, steps, rate, batch, seed },
    model: {
      id: model.origin.id,
      hash: await model.origin.hash(),
      family: model.architecture.family,
      layers: model.architecture.stacks[0].layers,
    },
    sites: [info.site],
    prompts: { hash: await sha256(canonicalJson({ positive: targets, negative: [] })), positive: targets.length, negative: 0 },
    ...(edits ? { edits } : {}),
    precision: model.precision,
    versions: await versions(),
    fit: { [info.site]: { firstLoss: meanOf(losses.slice(0, tenth)), lastLoss: meanOf(losses.slice(-tenth)) } },
  })
}
