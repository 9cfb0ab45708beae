/** @file Two stories in lock-step: one batch of two rows, plain and edited, written by one program token by token. */
import { EditError } from '../base/errors.ts'
import { pieceOf } from './lens.ts'
import { editedModel, idsOf, rounded } from './look.ts'
import type { BodyOf, EditData, GenerateLine } from './protocol.ts'
import type { Held } from './registry.ts'

/** Writes the lines of a generation; without edits there is one row, with edits the second row is under them. */
export async function writeStories(
  held: Held,
  body: BodyOf<'generate'>,
  send: (line: GenerateLine) => void,
  signal: AbortSignal,
): Promise<void> {
  const begun = performance.now()
  const { model, queue } = held
  const ids = idsOf(model, body)
  const rows = body.edits.length > 0 ? [ids, ids] : [ids]
  const edited = await editedModel(held, body.edits.map(inSecondRow))
  const { topP, topK, temperature, seed, maxNewTokens } = body
  const generation = edited.generate(
    { rows },
    {
      maxNewTokens,
      temperature,
      seed,
      signal,
      logProbabilities: true,
      ...(topP === undefined ? {} : { topP }),
      ...(topK === undefined ? {} : { topK }),
    },
  )
  send({ type: 'start', ids, pieces: ids.map((id) => pieceOf(model, id)), rows: rows.length })
  const steps = generation.steps()
  try {
    for (;;) {
      // One turn for each token: other tabs' work goes between them.
      const next = await queue.run(() => steps.next(), signal)
      if (next.done) break
      const { row, token, text, logProbability } = next.value
      send({ type: 'token', row, id: token, text, p: rounded(Math.exp(logProbability as number)) })
    }
  } finally {
    await steps.return()
  }
  const results = await generation.results()
  send({
    type: 'end',
    rows: results.map(({ finishReason, tokensPerSecond, unfired }) => ({
      finishReason,
      tokensPerSecond: rounded(tokensPerSecond),
      unfired,
    })),
    ms: Math.round(performance.now() - begun),
  })
}

/** Restricts an edit to the second row; in the page there is one text, which is row 0. */
function inSecondRow(edit: EditData): EditData {
  const where = edit.where
  if (where === undefined) return { ...edit, where: { rows: [1] } }
  // What is malformed is left for the library to refuse.
  if (typeof where !== 'object' || where === null || Array.isArray(where)) return edit
  const { rows } = where as { rows?: unknown }
  if (Array.isArray(rows) && !rows.includes(0))
    throw new EditError(
      `The edit ${edit.op} at ${edit.site} is for rows ${rows.join(', ')}, but one text is written here, which is row 0; leave 'rows' out.`,
    )
  return { ...edit, where: { ...where, rows: [1] } }
}
