/** @file Maxima and means over the tokens of texts, of a site's coordinates or of an autoencoder's latents. */
import { throwIfCancelled } from '../../base/errors.ts'
import type { WorkOptions } from '../../base/progress.ts'
import type { NDArray } from '../../base/types.ts'
import type { Sae } from '../../decompose/sae/sae.ts'
import type { Model } from '../../run/index.ts'
import { input, max, mean, Program, SessionCache } from '../../tensor/index.ts'
import { widthOf } from '../vector.ts'

/** What is read: the coordinates of a site (of `mlp_act.3`: neurons), or the latents of an autoencoder at a site. */
export interface FeatureSource {
  readonly site: string
  /** An autoencoder that reads the site. */
  readonly sae?: Sae
}

/** Of each text, [features] each: the maximum and the mean over its tokens. */
export interface Pooled {
  readonly max: Float32Array[]
  readonly mean: Float32Array[]
}

/** What is pooled, and how many texts at a time. */
export interface PoolingOptions extends WorkOptions {
  readonly sources: readonly FeatureSource[]
  /** Most texts in one pass (default 32). */
  readonly batch?: number
  /** Tokens at the start of each text that are left out (default 0). */
  readonly skip?: number
}

const sessions = new SessionCache(1 << 26)

function pooling(width: number): Promise<Program> {
  const x = input('x', 'float32', ['pos', width])
  return Program.of({ max: max(x, [0]), mean: mean(x, [0]) }, { device: 'cpu', cache: sessions, threads: 1 })
}

/** Reads the sources over rows of token ids and pools them, source by source. */
export async function pooledFeatures(model: Model, rows: readonly (readonly number[])[], o: PoolingOptions): Promise<Pooled[]> {
  const { batch = 32, skip = 0, signal, onProgress } = o
  const sites = o.sources.map(({ site, sae }) => (sae ? sae.site(model, site) : model.site(site)))
  const programs = new Map<number, Promise<Program>>()
  const programOf = (width: number): Promise<Program> => {
    const program = programs.get(width) ?? pooling(width)
    programs.set(width, program)
    return program
  }
  const out: Pooled[] = o.sources.map(() => ({ max: [], mean: [] }))
  for (let from = 0; from < rows.length; from += batch) {
    throwIfCancelled(signal)
    const part = rows.slice(from, from + batch)
    const { taps } = await model.run({ rows: part }, { taps: sites.map((s) => s.site), logits: false, signal })
    for (const [k, info] of sites.entries()) {
      const width = widthOf(model, info)
      const { shape, data } = taps[info.site] as unknown as NDArray<Float32Array>
      const columns = shape[1] as number
      for (const [b, row] of part.entries()) {
        const [begin, end] = [b * columns + Math.min(skip, row.length - 1), b * columns + row.length]
        const values = { dtype: 'float32' as const, shape: [end - begin, width], data: data.subarray(begin * width, end * width) }
        const x = await (o.sources[k]?.sae?.encode(values, { signal }) ?? values)
        const found = await (await programOf(x.shape[1] as number)).run({ x })
        out[k]?.max.push(found.max?.data as Float32Array)
        out[k]?.mean.push(found.mean?.data as Float32Array)
      }
    }
    onProgress?.({ task: 'reading texts', done: Math.min(rows.length, from + batch), total: rows.length, unit: 'texts' })
  }
  return out
}
