/** @file The Jacobian lens: how, on average over a corpus, a change at a site moves the last residual stream. Computed exactly, row by row of the Jacobian. */
import { throwIfCancelled, UsageError } from '../base/errors.ts'
import type { WorkOptions } from '../base/progress.ts'
import type { NDArray } from '../base/types.ts'
import type { Model, ModelInput } from '../run/index.ts'
import { differentiate, input, sum, type Tensor } from '../tensor/index.ts'
import { endOf, type LensMaps, lensSites } from './lens.ts'
import { editedModel, rowFeeds, stackableRows } from './patch-graph.ts'

/** Options of {@link fitJacobianLens}. */
export interface JacobianLensOptions extends WorkOptions {
  /** Sites that are read, `resid_post.*` by default; the last residual stream itself needs no map. */
  readonly sites?: string | readonly string[]
  /** Tokens of one run, over all stacked rows, 4096 by default. */
  readonly tokensAtOnce?: number
}

/**
 * Fits a Jacobian lens: for each site the mean of ∂ resid_last[t'] / ∂ site[t] over all texts and all positions t' ≥ t, [d_model, d_model].
 * Every coordinate of the last stream is one vector-Jacobian product; they are stacked on the batch axis. Meant for small models:
 * d_model backward passes for each text.
 */
export async function fitJacobianLens(model: Model, texts: ModelInput, options: JacobianLensOptions = {}): Promise<LensMaps> {
  const rows = stackableRows(model, texts, 'The corpus')
  const edited = editedModel(model)
  const { dModel } = model.spec
  const end = endOf(model)
  const sites = lensSites(model, options.sites ?? 'resid_post.*').filter((s) => s.site !== end)
  if (sites.length === 0) throw new UsageError(`A Jacobian lens needs a site before '${end}'.`)
  const program = await edited.core.compiled(JSON.stringify(['jacobian', edited.structure, sites.map((s) => s.site)]), () => {
    const graph = edited.graph({ taps: [end, ...sites.map((s) => s.site)], lastOnly: false })
    const of = graph.taps.get(end) as Tensor
    const d = differentiate({
      of,
      at: sites.map((s) => graph.taps.get(s.site) as Tensor),
      seed: input('seed', 'float32', of.shape),
      cut: true,
    })
    return Object.fromEntries(sites.map((s, i) => [s.site, sum(d.grads[i] as Tensor, [1])]))
  })
  const sums = new Map(sites.map((s) => [s.site, new Float32Array(dModel * dModel)]))
  let pairs = 0
  for (const [done, row] of rows.entries()) {
    const length = row.length
    pairs += (length * (length + 1)) / 2
    const atOnce = Math.max(1, Math.floor((options.tokensAtOnce ?? 4096) / length))
    for (let from = 0; from < dModel; from += atOnce) {
      throwIfCancelled(options.signal)
      const count = Math.min(atOnce, dModel - from)
      const seed = new Float32Array(count * length * dModel)
      for (let r = 0; r < count; r++) for (let p = 0; p < length; p++) seed[(r * length + p) * dModel + from + r] = 1
      const feeds = rowFeeds(edited, new Array<readonly number[]>(count).fill(row))
      const out = await program.run({ ...feeds, seed: { dtype: 'float32', shape: [count, length, dModel], data: seed } })
      for (const [site, total] of sums) {
        const part = (out[site] as NDArray<Float32Array>).data
        for (let i = 0; i < part.length; i++) total[from * dModel + i] = (total[from * dModel + i] as number) + (part[i] as number)
      }
      options.onProgress?.({
        task: 'fitting the lens',
        done: done * dModel + from + count,
        total: rows.length * dModel,
        unit: 'rows of Jacobians',
      })
    }
  }
  const maps = [...sums].map(
    ([site, total]) => [site, { dtype: 'float32', shape: [dModel, dModel], data: total.map((v) => v / pairs) }] as const,
  )
  return { kind: 'jacobian', maps: Object.fromEntries(maps) }
}
