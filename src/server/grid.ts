/** @file The layer × token grid: a value for each layer and position, sent row by row. */

import { UsageError } from '../base/errors.ts'
import { cosineOf } from '../base/numbers.ts'
import { pieceOf } from './lens.ts'
import { idsOf, readSites, rounded, vectorOfWidth } from './look.ts'
import type { BodyOf, GridLine } from './protocol.ts'
import type { Held } from './registry.ts'

/** Writes the lines of a grid: one forward pass, then the read-out of each layer. */
export async function writeGrid(held: Held, body: BodyOf<'grid'>, send: (line: GridLine) => void, signal: AbortSignal): Promise<void> {
  const begun = performance.now()
  const { model } = held
  const { dModel } = model.spec
  const ids = idsOf(model, body)
  const infos = model.resolve(body.site.includes('.') ? body.site : `${body.site}.*`)
  const { axes } = infos[0]!.row
  if (axes.length !== 3 || axes[2] !== 'd_model')
    throw new UsageError(
      `The grid shows sites as wide as the residual stream; '${body.site}' has axes [${axes.join(', ')}]. Choose resid_post, attn_out or mlp_out.`,
    )
  if (body.what === 'cosine' && !body.vector) throw new UsageError("The cosine grid needs a 'vector' to compare with.")
  const vector = body.what === 'cosine' && body.vector ? await vectorOfWidth(held, body.vector, dModel) : undefined
  const sites = infos.map((i) => i.site)
  send({ type: 'head', sites, ids, pieces: ids.map((id) => pieceOf(model, id)) })
  const run = await readSites(held, { ...body, ids }, infos, signal)
  const rowOf = (i: number) => ({ type: 'row', layer: infos[i]?.layer ?? i, site: sites[i] as string }) as const
  if (body.what === 'lens') {
    // As many layers go through the lens together as one of its passes holds.
    const atOnce = Math.max(1, Math.floor(held.lens.atOnce / ids.length))
    for (let from = 0; from < sites.length; from += atOnce) {
      const group = sites.slice(from, from + atOnce)
      const vectors = new Float32Array(group.length * ids.length * dModel)
      for (const [n, site] of group.entries()) vectors.set(run.at(site).row(0).data, n * ids.length * dModel)
      const all = (await held.lens.read(vectors, body.top, held.queue, signal)).map((tokens) =>
        tokens.map((t) => ({ ...t, p: rounded(t.p) })),
      )
      for (const n of group.keys()) {
        const top = all.slice(n * ids.length, (n + 1) * ids.length)
        send({ ...rowOf(from + n), values: top.map((t) => t[0]?.p ?? 0), top })
      }
    }
  } else
    for (const [i, site] of sites.entries()) {
      const { data } = run.at(site).row(0)
      const at = (n: number) => data.subarray(n * dModel, (n + 1) * dModel)
      send({ ...rowOf(i), values: ids.map((_, n) => rounded(vector ? cosineOf(at(n), vector) : norm(at(n)))) })
    }
  send({ type: 'end', ms: Math.round(performance.now() - begun), unfired: run.unfired })
}

function norm(vector: Float32Array): number {
  let squares = 0
  for (const v of vector) squares += v * v
  return Math.sqrt(squares)
}
