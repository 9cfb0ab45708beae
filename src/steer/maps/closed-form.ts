/** @file Affine maps in closed form, site by site: mean shift, least squares of sorted values, activation damping. */

import { throwIfCancelled, UsageError } from '../../base/errors.ts'
import { meanOf } from '../../base/numbers.ts'
import { ascending, auroc } from '../../probe/metrics.ts'
import type { Model } from '../../run/model.ts'
import { type AffineMap, AffineMaps } from './affine-maps.ts'
import { type LineasOptions, mapTask } from './lineas.ts'
import { type MappedNetwork, type PooledRows, pooledRows } from './pooled.ts'

/** Options of the closed forms. */
export interface MapFitOptions extends Pick<LineasOptions, 'source' | 'target' | 'sites' | 'pool' | 'signal' | 'onProgress'> {
  /**
   * `independent`: every site is fitted on the untouched model. `incremental` (default): each with the maps of the sites before it in
   * force, so that it is fitted on what it will see (Lin-AcT, Rodríguez et al. 2025, arXiv:2410.23054).
   */
  readonly mode?: 'independent' | 'incremental'
}

/** From source and target rows of one site to its map. */
export type SiteFit = (source: PooledRows, target: PooledRows) => AffineMap

function columns({ count, width, data }: PooledRows, j: number): Float64Array {
  return Float64Array.from({ length: count }, (_, i) => data[i * width + j] as number)
}

/** Sorted values at `count` evenly spaced ranks: the values themselves where there are as many, else quantiles between them. */
function quantiles(v: Float64Array, count: number): Float64Array {
  const sorted = v.slice().sort()
  if (sorted.length === count) return sorted
  return Float64Array.from({ length: count }, (_, i) => {
    const at = count === 1 ? (sorted.length - 1) / 2 : (i * (sorted.length - 1)) / (count - 1)
    const low = Math.floor(at)
    const high = Math.min(low + 1, sorted.length - 1)
    return (sorted[low] as number) + (at - low) * ((sorted[high] as number) - (sorted[low] as number))
  })
}

const eachColumn = (width: number, of: (j: number) => readonly [scale: number, shift: number]): AffineMap => {
  const [scale, shift] = [new Float64Array(width), new Float64Array(width)]
  for (let j = 0; j < width; j++) [scale[j], shift[j]] = of(j) as [number, number]
  return { scale, shift }
}

/** Shifts each coordinate by the difference of the means; the scale stays one (Mean-AcT). */
export const meanShift: SiteFit = (source, target) =>
  eachColumn(source.width, (j) => [1, meanOf(columns(target, j)) - meanOf(columns(source, j))])

/** Least squares of sorted target values on sorted source values, coordinate by coordinate: the optimal transport between Gaussians (Lin-AcT). */
export const sortedLeastSquares: SiteFit = (source, target) =>
  eachColumn(source.width, (j) => {
    const count = Math.max(source.count, target.count)
    const [x, y] = [quantiles(columns(source, j), count), quantiles(columns(target, j), count)]
    const [mx, my] = [meanOf(x), meanOf(y)]
    let [covariance, variance] = [0, 0]
    for (let i = 0; i < count; i++) {
      covariance += ((x[i] as number) - mx) * ((y[i] as number) - my)
      variance += ((x[i] as number) - mx) ** 2
    }
    // A coordinate that never moves can only be shifted.
    const scale = variance > 1e-12 * Math.max(1, mx * mx) * count ? covariance / variance : 1
    return [scale, my - scale * mx]
  })

/** Multiplies coordinates that tell the sides apart by 1 − 2 (AUROC − ½), where AUROC > ½ (AurA, Suau et al. 2024, arXiv:2407.12824). */
export const damping: SiteFit = (source, target) =>
  eachColumn(source.width, (j) => {
    const area = areaUnderRoc(columns(source, j), columns(target, j))
    return [area > 0.5 ? 1 - 2 * (area - 0.5) : 1, 0]
  })

/** The probability that a value of the first list is larger than one of the second; ties count half. */
export function areaUnderRoc(high: Float64Array, low: Float64Array): number {
  const scores = Float64Array.of(...high, ...low)
  return auroc(
    ascending(scores),
    scores,
    Uint8Array.from(scores, (_, i) => (i < high.length ? 1 : 0)),
  )
}

/** The closed forms by the name in a record. */
export const siteFits: Readonly<Record<'mean-act' | 'lin-act' | 'aura', SiteFit>> = {
  'mean-act': meanShift,
  'lin-act': sortedLeastSquares,
  aura: damping,
}

/** Fits maps by a closed form at every site. */
export async function closedFormMaps(model: Model, method: keyof typeof siteFits, options: MapFitOptions): Promise<AffineMaps> {
  if (!Object.hasOwn(siteFits, method))
    throw new UsageError(`There is no closed form '${method}'; there are ${Object.keys(siteFits).join(', ')}.`)
  const { mode = method === 'aura' ? 'independent' : 'incremental' } = options
  const { network, target, record } = await mapTask(model, options, method)
  const maps = await fitSiteBySite(network, target, siteFits[method], { ...options, mode })
  return new AffineMaps(maps, { ...record, options: { ...record.options, mode } })
}

/** Fits a network site by site. */
export async function fitSiteBySite(
  network: MappedNetwork,
  target: ReadonlyMap<string, PooledRows>,
  fitOne: SiteFit,
  options: Pick<MapFitOptions, 'mode' | 'signal' | 'onProgress'>,
): Promise<Map<string, AffineMap>> {
  const maps = new Map<string, AffineMap>()
  const untouched = await pooledRows(network, maps, options)
  for (const [i, site] of network.sites.entries()) {
    throwIfCancelled(options.signal)
    const seen = options.mode === 'incremental' && i > 0 ? await pooledRows(network, maps, options) : untouched
    maps.set(site, fitOne(seen.get(site) as PooledRows, target.get(site) as PooledRows))
    options.onProgress?.({ task: 'fitting maps', done: i + 1, total: network.sites.length, unit: 'sites' })
  }
  return maps
}
