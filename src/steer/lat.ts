/** @file Linear artificial tomography: the direction along which randomly paired activations differ most. */
import { UsageError } from '../base/errors.ts'
import { randomStream } from '../models/sampling.ts'
import type { Model } from '../run/model.ts'
import { type ExtractOptions, fitSites } from './extract.ts'
import { dot, less, meanRow, type Rows, rowAt, stacked, topComponent } from './rows.ts'
import type { SteeringVector } from './vector.ts'

/** Options of {@link lat}. */
export interface LatOptions extends ExtractOptions {
  /** Chooses the pairs (default 0). */
  readonly seed?: number
}

/**
 * First principal component of the differences of randomly paired activations, both sides in one pool, centred, unit length; the
 * sides only give it its sign: the positive mean projects larger (Zou et al. 2023, arXiv:2310.01405, §3.1). At least 4 examples.
 */
export function lat(model: Model, options: LatOptions): Promise<SteeringVector> {
  const { seed = 0 } = options
  if (!Number.isInteger(seed)) throw new UsageError(`seed must be an integer, not ${seed}.`)
  const total = (options.positive?.length ?? 0) + (options.negative?.length ?? 0)
  if (total > 1 && total < 4) throw new UsageError(`LAT compares random pairs, of which ${total} examples give too few; give at least 4.`)
  return fitSites(model, options, { name: 'lat', paired: false, options: { seed } }, async ({ positive, negative }) => {
    const d = randomDifferences(stacked(positive, negative), seed)
    const { direction, explained } = await topComponent(less(d, meanRow(d)))
    const towards = dot(meanRow(positive), direction) - dot(meanRow(negative), direction)
    return { direction: towards < 0 ? direction.map((x) => -x) : direction, facts: { explained } }
  })
}

/** Differences of the two halves of the rows in random order; one row is left over where their number is odd. */
function randomDifferences(rows: Rows, seed: number): Rows {
  const random = randomStream(seed)
  const order = Array.from({ length: rows.count }, (_, i) => i)
  for (let i = order.length - 1; i > 0; i--) {
    const j = Math.floor(random() * (i + 1))
    const swapped = order[i] as number
    order[i] = order[j] as number
    order[j] = swapped
  }
  const half = Math.floor(rows.count / 2)
  const data = new Float64Array(half * rows.width)
  for (let i = 0; i < half; i++) {
    const [a, b] = [rowAt(rows, order[i] as number), rowAt(rows, order[half + i] as number)]
    for (let j = 0; j < rows.width; j++) data[i * rows.width + j] = (a[j] as number) - (b[j] as number)
  }
  return { count: half, width: rows.width, data }
}
