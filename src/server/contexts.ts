/** @file The contexts of a corpus in which a neuron or a direction is most active. */
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { UsageError } from '../base/errors.ts'
import { writeFileWhole } from '../base/files.ts'
import { activationStatistics, type Probing } from '../explore/index.ts'
import { corpusName } from './captures.ts'
import { pieceOf } from './lens.ts'
import { editedModel, rounded } from './look.ts'
import type { BodyOf, ContextsLine } from './protocol.ts'
import type { Held } from './registry.ts'

/** Writes the lines of a search for contexts; others have their turn between its windows. */
export async function writeContexts(
  held: Held,
  body: BodyOf<'contexts'>,
  send: (line: ContextsLine) => void,
  signal: AbortSignal,
): Promise<void> {
  const begun = performance.now()
  const { neuron, vector, data, path, keep, maxTokens } = body
  if ((neuron === undefined) === (vector === undefined)) throw new UsageError('Give either a neuron or a direction.')
  if ((data === undefined) === (path === undefined)) throw new UsageError("Give either texts ('data') or a file of texts ('path').")
  const { site } = held.model.site(body.site)
  const probing: Probing =
    neuron === undefined
      ? { name: 'asked', vector: (await held.vectors.make(vector as NonNullable<typeof vector>, held.queue)).vector }
      : { name: 'asked', neuron }
  const model = await editedModel(held, body.edits)
  const folder = data === undefined ? undefined : await mkdtemp(join(tmpdir(), 'actlens-contexts-'))
  try {
    const file = path ?? join(folder as string, corpusName(data as string))
    if (data !== undefined) await writeFileWhole(file, data)
    const found = await held.queue.inTurns(
      (pause) =>
        activationStatistics(model, {
          data: { path: file },
          sites: site,
          contexts: { [site]: [probing] },
          keep,
          maxTokens,
          signal,
          onWindow: pause,
          onProgress: ({ done, total }) => send({ type: 'progress', done, ...(total === undefined ? {} : { total }) }),
        }),
      signal,
    )
    const result = found.get(site)
    send({
      type: 'end',
      site,
      width: result?.moments.width ?? 0,
      tokens: result?.count ?? 0,
      contexts: (result?.contexts.get('asked') ?? []).map((c) => ({
        value: rounded(c.value),
        document: c.document,
        position: c.position,
        pieces: c.tokens.map((id) => pieceOf(held.model, id)),
        at: c.at,
      })),
      ms: Math.round(performance.now() - begun),
    })
  } finally {
    if (folder) await rm(folder, { recursive: true, force: true })
  }
}
