/** @file The runs behind one cell of a patching sweep: the logits of both texts, and of the run that was patched. */
import { UsageError } from '../base/errors.ts'
import type { WorkOptions } from '../base/progress.ts'
import { type NDArray, sizeOf } from '../base/types.ts'
import type { Model } from '../run/index.ts'
import type { SiteInfo } from '../sites/address.ts'
import { replace } from '../sites/edits.ts'
import { directionOf, type PairOptions, pairsOf } from './patch.ts'
import { headAxis } from './patch-cells.ts'

/** Options of {@link patchedRun}. */
export interface PatchedRunOptions extends PairOptions, WorkOptions {
  readonly site: string
  /** Position that is changed; all of them where absent. */
  readonly position?: number
  /** Head that is changed; all of them where absent. */
  readonly head?: number
  /** Position whose logits are returned, the last by default. */
  readonly read?: number
}

/** Logits of one position, [d_vocab]. */
export interface PatchedRun {
  readonly clean: Float32Array
  readonly corrupt: Float32Array
  readonly patched: Float32Array
}

/** One pair of texts, and the run in which one cell of the corrupted run has its clean value (`noise`: the reverse). */
export async function patchedRun(model: Model, options: PatchedRunOptions): Promise<PatchedRun> {
  const { position, head, read = -1, signal } = options
  const [pair, ...more] = pairsOf(model, options)
  if (!pair || more.length > 0) throw new UsageError('One cell is shown for one pair of texts at a time; give one.')
  const noise = directionOf(options.direction) === 'noise'
  const info = model.site(options.site)
  const run = (ids: readonly number[], on = model) => on.run({ ids }, { taps: [info.site], ...(signal ? { signal } : {}) })
  const [clean, corrupt] = [await run(pair.clean), await run(pair.corrupt)]
  const [own, source] = noise ? [clean, corrupt] : [corrupt, clean]
  const value = mixed(info, own.taps[info.site] as Value, source.taps[info.site] as Value, { position, head })
  const patched = await run(noise ? pair.clean : pair.corrupt, model.with(replace(info.site, value)))
  return { clean: clean.logits.at(0, read), corrupt: corrupt.logits.at(0, read), patched: patched.logits.at(0, read) }
}

type Value = NDArray<Float32Array>

/** `own` with the values of `source` at one position and head. */
function mixed(info: SiteInfo, own: Value, source: Value, cell: { position: number | undefined; head: number | undefined }): Value {
  const heads = headAxis(info.row.axes)
  const fixed: Readonly<Record<string, number | undefined>> = { pos: cell.position, ...(heads ? { [heads]: cell.head } : {}) }
  if (cell.head !== undefined && !heads)
    throw new UsageError(`'${info.site}' has no heads, so no single one can be changed; leave the head out.`)
  for (const [axis, index] of Object.entries(fixed)) {
    const size = own.shape[info.row.axes.indexOf(axis as (typeof info.row.axes)[number])]
    if (index !== undefined && !(size !== undefined && Number.isInteger(index) && index >= 0 && index < size))
      throw new UsageError(`'${info.site}' has no ${axis} ${index} on these texts${size === undefined ? '' : `; there are ${size}`}.`)
  }
  const data = own.data.slice()
  const strides = own.shape.map((_, i) => sizeOf(own.shape.slice(i + 1)))
  for (let at = 0; at < data.length; at++) {
    const inside = info.row.axes.every((axis, i) => {
      const wanted = fixed[axis]
      return wanted === undefined || Math.floor(at / (strides[i] as number)) % (own.shape[i] as number) === wanted
    })
    if (inside) data[at] = source.data[at] as number
  }
  return { dtype: 'float32', shape: own.shape, data }
}
