/** @file Starting anywhere: a run from a given activation at a site instead of from the tokens. */
import { UsageError } from '../base/errors.ts'
import { type NDArray, sizeOf } from '../base/types.ts'
import type { Architecture } from '../models/architecture.ts'
import { inputNames } from '../models/traced.ts'
import type { SiteInfo, SiteResolver } from '../sites/address.ts'
import { axisSize, type PreparedEdit } from '../sites/prepare.ts'
import { startName } from '../sites/rewrite.ts'
import type { Tensor } from '../tensor/index.ts'
import { type Activation, type Batch, batchOfTensors, fromCaller, type ModelInput } from './batch.ts'

/** Where a run begins, and with what. */
export interface Start {
  /** A site or an alias. */
  readonly site: string
  /** The activation there, of the site's axes, in the layout of the input: [batch, pos, d_model] for a residual site. Edits at the site act on it. */
  readonly value: Activation | NDArray
}

/**
 * What a run from a start is run on: anything that can be run, or only the layout of the value where the tokens are not known. Tokens are then refused
 * wherever they are needed.
 */
export type StartInput = ModelInput | { readonly attention_mask?: NDArray; readonly position_ids?: NDArray }

/** A start, checked against its model. */
export interface PreparedStart {
  readonly info: SiteInfo
  readonly value: NDArray
}

/** Resolves a start; refuses a site that the model lacks and values that do not fit it. */
export function resolveStart(start: Start, resolver: SiteResolver): PreparedStart {
  for (const key of Object.keys(start))
    if (key !== 'site' && key !== 'value') throw new UsageError(`A start has a site and a value, but no '${key}'.`)
  const info = resolver.one(start.site)
  const { dtype, shape, data } = start.value
  const wanted = info.row.axes.map((a) => axisSize(a, info.stack) ?? a)
  if (dtype !== 'float32') throw new UsageError(`The value to start from at ${info.site} must be float32, not ${dtype}.`)
  if (shape.length !== wanted.length || wanted.some((n, i) => typeof n === 'number' && n !== shape[i]) || data.length !== sizeOf(shape))
    throw new UsageError(`The value to start from at ${info.site} must have shape [${wanted.join(', ')}], not [${shape.join(', ')}].`)
  if ((data as Float32Array).some(Number.isNaN) && (info.row.fill ?? 0) === 0)
    throw new UsageError(`The value to start from at ${info.site} holds NaN; correct it.`)
  return { info, value: { dtype, shape, data } }
}

/** Whether an input says only how a value is laid out. */
export function isLayout(input: unknown): input is { readonly attention_mask?: NDArray; readonly position_ids?: NDArray } {
  return (
    typeof input === 'object' &&
    input !== null &&
    !Array.isArray(input) &&
    !['ids', 'rows', 'input_ids', 'pixel_values', 'decoder_input_ids'].some((k) => k in input)
  )
}

/** The batch that a value stands for where its tokens are not known. */
export function batchOfLayout(
  a: Architecture,
  layout: { readonly attention_mask?: NDArray; readonly position_ids?: NDArray },
  start: PreparedStart,
): Batch {
  if (a.sequences.length > 1)
    throw new UsageError(`'${a.family}' reads several inputs, whose layout one value does not tell; give the inputs, too.`)
  const unknown = Object.keys(layout).filter((k) => k !== 'attention_mask' && k !== 'position_ids')
  if (unknown.length > 0)
    throw new UsageError(`A run from a start knows no input '${unknown[0]}'; give tokens, attention_mask, position_ids.`)
  const { axes } = start.info.row
  const size = ['batch', 'pos'].map((a) => start.value.shape[axes.indexOf(a as 'batch')]) as [number, number]
  if (axes[0] !== 'batch' || !axes.includes('pos'))
    throw new UsageError(`The layout of a batch cannot be read from ${start.info.site} [${axes.join(', ')}]; give the tokens, too.`)
  const input_ids: NDArray = { dtype: 'int64', shape: size, data: new BigInt64Array(size[0] * size[1]) }
  return { ...batchOfTensors({ ...layout, input_ids }), anonymous: true }
}

/** The fed value of a start: rows from the left, without padding in front. */
export function startFeeds(start: PreparedStart | undefined, batch: Batch): Record<string, NDArray> {
  return start ? { [startName(start.info.site)]: fromCaller(start.info, start.value, batch) } : {}
}

/** Refuses a run without tokens that would read them. */
export function checkTokensKnown(
  batch: Batch,
  start: PreparedStart | undefined,
  inputs: ReadonlyMap<string, Tensor>,
  edits: readonly PreparedEdit[],
): void {
  if (!batch.anonymous || !start) return
  if (inputs.has(inputNames.ids))
    throw new UsageError(
      `The tokens are needed: what is asked for also depends on what comes before ${start.info.site}. Give the tokens, or start at a site through which everything runs, such as a residual one.`,
    )
  const choosy = edits.find((e) => e.edit.where?.tokens)
  if (choosy) throw new UsageError(`The tokens are needed: the edit ${choosy.label} acts where they match. Give the tokens, too.`)
}
