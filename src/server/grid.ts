/** @file The layer × token grid: a value for each layer and position, sent row by row. */
import { UsageError } from '../base/errors.ts'
import type { Activation } from '../run/index.ts'
import { pieceOf } from './lens.ts'
import { cosine, editedModel, idsOf, promptOption, rounded, vectorOfWidth } from './look.ts'
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
  const edited = await editedModel(held, body.edits)
  send({ type: 'head', sites: infos.map((i) => i.site), ids, pieces: ids.map((id) => pieceOf(model, id)) })
  const taps = infos.map((i) => i.site)
  const run = await held.queue.run(() => edited.run({ ids }, { taps, logits: false, ...promptOption(body.promptLength) }), signal)
  for (const [i, { site, layer }] of infos.entries()) {
    const { data } = (run.taps[site] as Activation).row(0)
    const row = { type: 'row', layer: layer ?? i, site } as const
    const at = (n: number) => data.subarray(n * dModel, (n + 1) * dModel)
    if (body.what === 'lens') {
      const top = await held.lens.read(data, body.top, held.queue, signal)
      for (const tokens of top) for (const [n, t] of tokens.entries()) tokens[n] = { ...t, p: rounded(t.p) }
      send({ ...row, values: top.map((t) => t[0]?.p ?? 0), top })
    } else if (vector) send({ ...row, values: ids.map((_, n) => rounded(cosine(at(n), vector))) })
    else send({ ...row, values: ids.map((_, n) => rounded(norm(at(n)))) })
  }
  send({ type: 'end', ms: Math.round(performance.now() - begun), unfired: run.unfired })
}

function norm(vector: Float32Array): number {
  let squares = 0
  for (const v of vector) squares += v * v
  return Math.sqrt(squares)
}
