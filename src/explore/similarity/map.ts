/** @file Maps of activations in the plane: principal components, and UMAP (McInnes, Healy & Melville 2018) by a library. */
import { throwIfCancelled, UsageError } from '../../base/errors.ts'
import type { WorkOptions } from '../../base/progress.ts'
import { randomStream } from '../../models/sampling.ts'
import { type DoubleMatrix, doubleMatrix } from '../../tensor/index.ts'
import { firstColumns, type Points, principalComponentsOf, scaledColumns } from './features.ts'

/** A map of points. */
export interface PointMap {
  /** [points, dimensions] */
  readonly coordinates: DoubleMatrix
  /** Share of the variance along each axis; principal components only. */
  readonly explained?: Float64Array
}

/** Coordinates along the leading principal components; the largest coordinate of each is positive. */
export async function pcaMap(x: Points, dimensions = 2): Promise<PointMap> {
  const { u, s, total } = await principalComponentsOf(x)
  if (!(Number.isInteger(dimensions) && dimensions > 0 && dimensions <= s.length))
    throw new UsageError(`These points have ${s.length} principal components, so there are no ${dimensions}; ask for fewer.`)
  const signs = Float64Array.from({ length: s.length }, (_, c) => {
    let largest = 0
    for (let at = c; at < u.data.length; at += s.length)
      if (Math.abs(u.data[at] as number) > Math.abs(largest)) largest = u.data[at] as number
    return largest < 0 ? -(s[c] as number) : (s[c] as number)
  })
  return {
    coordinates: firstColumns(scaledColumns(u, signs), dimensions),
    explained: s.slice(0, dimensions).map((v) => (v * v) / total),
  }
}

/** Options of {@link umapMap}. */
export interface UmapOptions extends WorkOptions {
  /** Default 2. */
  readonly dimensions?: number
  /** Neighbours of each point that should stay near (default 15). */
  readonly neighbours?: number
  /** Least distance of points on the map (default 0.1). */
  readonly minDistance?: number
  /** Default: chosen by the number of points. */
  readonly epochs?: number
  readonly seed: number
}

/** Principal components that the map starts from: distances in more dimensions cost more and say little else. */
const reduced = 50

/** A UMAP of at least a few times `neighbours` points, reduced to 50 principal components before; equal seeds give equal maps. */
export async function umapMap(x: Points, options: UmapOptions): Promise<PointMap> {
  const { dimensions = 2, neighbours = 15, minDistance = 0.1, epochs, seed, signal, onProgress } = options
  const rows = x.shape[0] ?? 0
  if (rows <= neighbours) throw new UsageError(`${rows} points are too few for ${neighbours} neighbours each; ask for fewer neighbours.`)
  const { u, s } = await principalComponentsOf(x, reduced)
  const scores = scaledColumns(u, s)
  const width = s.length
  const data = Array.from({ length: rows }, (_, i) => Array.from(scores.data.subarray(i * width, (i + 1) * width)))
  const { UMAP } = await import('umap-js')
  const random = randomStream(seed)
  const umap = new UMAP({
    nComponents: dimensions,
    nNeighbors: neighbours,
    minDist: minDistance,
    ...(epochs === undefined ? {} : { nEpochs: epochs }),
    random,
  })
  const total = umap.initializeFit(data)
  for (let done = 0; done < total; done++) {
    if (done % 20 === 0) {
      throwIfCancelled(signal)
      onProgress?.({ task: 'mapping', done, total, unit: 'epochs' })
      await new Promise((next) => setImmediate(next))
    }
    umap.step()
  }
  return { coordinates: doubleMatrix(Float64Array.from(umap.getEmbedding().flat()), rows, dimensions) }
}
