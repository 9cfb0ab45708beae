/** @file Patching and attribution: requests in the library's terms, its results as the page wants them. */
import { UsageError } from '../base/errors.ts'
import {
  type AttributionResult,
  attribute,
  attributeEdges,
  attributeLogits,
  type LogitAttribution,
  type Metric,
  metricKinds,
  patch,
  patchedRun,
  type SweepTable,
} from '../explore/index.ts'
import { type Model, oneToken } from '../run/index.ts'
import { largest, pieceOf } from './lens.ts'
import { editedModel, idsOf, rounded } from './look.ts'
import type {
  AttributeAnswer,
  BodyOf,
  ComponentsAnswer,
  EdgesAnswer,
  PairAnswer,
  PatchedAnswer,
  PatchLine,
  TableHead,
  TokenScore,
  TopToken,
} from './protocol.ts'
import type { Held } from './registry.ts'

/** Rows of one run of a sweep, so that a grid fills in while somebody looks. */
const rowsOfPart = 64

/** Two texts as tokens, and what the model would say after each; texts of different lengths are shown, too. */
export async function pairAnswer(held: Held, body: BodyOf<'pair'>, signal: AbortSignal): Promise<PairAnswer> {
  const edited = await editedModel(held, body.edits)
  const side = async (text: BodyOf<'pair'>['clean']) => {
    const ids = idsOf(held.model, text)
    const { logits } = await held.queue.run(() => edited.run({ ids }, { signal }), signal)
    return { ids, pieces: ids.map((id) => pieceOf(held.model, id)), next: topOf(held.model, logits.at(0, -1), body.top) }
  }
  return { clean: await side(body.clean), corrupt: await side(body.corrupt) }
}

/** Writes the lines of a sweep; others have their turn between its parts. */
export function writePatch(held: Held, body: BodyOf<'patch'>, send: (line: PatchLine) => void, signal: AbortSignal): Promise<void> {
  return held.queue.inTurns(async (pause) => {
    const begun = performance.now()
    const { model, request } = await requestOf(held, body)
    let told = false
    await patch(model, {
      ...request,
      rows: rowsOfPart,
      signal,
      onPart: async ({ tables, metric, cells }) => {
        if (!told) send({ type: 'head', tables: Object.values(tables).map(headOf), metric, pieces: piecesOf(held.model, request) })
        told = true
        for (const name of new Set(cells.map((c) => c.table))) {
          const places = cells.filter((c) => c.table === name).map((c) => c.index)
          const { data } = tables[name] as SweepTable
          send({ type: 'cells', table: name, places, values: places.map((i) => rounded(data[i] as number)) })
        }
        await pause()
      },
    })
    send({ type: 'end', ms: Math.round(performance.now() - begun) })
  }, signal)
}

/** The runs behind one cell. */
export async function patchedAnswer(held: Held, body: BodyOf<'patched'>, signal: AbortSignal): Promise<PatchedAnswer> {
  const { site, position, head, top } = body
  const { model, request } = await requestOf(held, body)
  const place = { ...(position === undefined ? {} : { position }), ...(head === undefined ? {} : { head }) }
  const runs = await held.queue.run(() => patchedRun(model, { ...request, site, ...place, signal }), signal)
  const scores = (id: number) => {
    const of = (row: Float32Array): TokenScore => ({ logit: rounded(row[id] as number), p: rounded(probabilities(row)[id] as number) })
    return { clean: of(runs.clean), corrupt: of(runs.corrupt), patched: of(runs.patched) }
  }
  const named = (['answer', 'wrong'] as const).flatMap((role) => {
    if (body[role] === undefined) return []
    const id = oneToken(held.model, body[role], roleNames[role])
    return [{ role, id, piece: pieceOf(held.model, id), ...scores(id) }]
  })
  return {
    clean: topOf(held.model, runs.clean, top),
    corrupt: topOf(held.model, runs.corrupt, top),
    patched: topOf(held.model, runs.patched, top),
    named,
  }
}

/** Attributions of a pair. */
export function attributeAnswer(held: Held, body: BodyOf<'attribute'>, signal: AbortSignal): Promise<AttributeAnswer> {
  return held.queue.run(async () => {
    const begun = performance.now()
    const { model, request } = await requestOf(held, body)
    const { tables, metric, completeness }: AttributionResult = await attribute(model, {
      ...request,
      method: body.method,
      steps: body.steps,
      signal,
    })
    return {
      tables: Object.values(tables).map((t) => ({ ...headOf(t), values: Array.from(t.data, rounded) })),
      metric,
      pieces: piecesOf(held.model, request),
      ...(completeness ? { completeness } : {}),
      ms: Math.round(performance.now() - begun),
    }
  }, signal)
}

/** The strongest edges of a pair. */
export function edgesAnswer(held: Held, body: BodyOf<'edges'>, signal: AbortSignal): Promise<EdgesAnswer> {
  return held.queue.run(async () => {
    const { model, request } = await requestOf(held, { ...body, sites: [], positions: 'each' })
    const { senders, receivers, scores, metric } = await attributeEdges(model, { ...request, signal })
    const { data } = scores
    const edges = largest(data.map(Math.abs), body.count).flatMap((at) =>
      data[at] === 0 ? [] : [{ from: Math.floor(at / receivers.length), to: at % receivers.length, score: rounded(data[at] as number) }],
    )
    const size = data.reduce((a, v) => a + Math.abs(v), 0)
    return { senders, receivers, edges, count: data.filter((v) => v !== 0).length, size: rounded(size), metric }
  }, signal)
}

/** Direct logit attribution at the last position of a text. */
export async function componentsAnswer(held: Held, body: BodyOf<'components'>, signal: AbortSignal): Promise<ComponentsAnswer> {
  const ids = idsOf(held.model, body)
  const answer = oneToken(held.model, body.answer, roleNames.answer)
  const wrong = body.wrong === undefined ? undefined : oneToken(held.model, body.wrong, roleNames.wrong)
  const model = await editedModel(held, body.edits)
  const by = (kind: 'components' | 'heads') =>
    held.queue.run(() => attributeLogits(model, { ids }, { by: kind, answer, ...(wrong === undefined ? {} : { wrong }) }), signal)
  const [parts, heads] = [await by('components'), await by('heads')]
  const perLayer = held.model.spec.heads
  const ofHeads = lastOf(heads)
  const token = (id: number) => ({ id, piece: pieceOf(held.model, id) })
  return {
    pieces: ids.map((id) => pieceOf(held.model, id)),
    components: lastOf(parts).map((value, i) => ({ label: parts.labels[i] as string, value })),
    heads: Array.from({ length: ofHeads.length / perLayer }, (_, l) => ofHeads.slice(l * perLayer, (l + 1) * perLayer)),
    bias: rounded(parts.bias),
    metric: rounded(parts.metric.data.at(-1) as number),
    answer: token(answer),
    ...(wrong === undefined ? {} : { wrong: token(wrong) }),
  }
}

/** Contributions at the last position. */
function lastOf({ labels, values }: LogitAttribution): number[] {
  const length = values.shape.at(-1) as number
  return labels.map((_, i) => rounded(values.data[(i + 1) * length - 1] as number))
}

/** How the page calls these tokens. */
const roleNames = { answer: 'the answer', wrong: 'the wrong answer' } as const

type Sweep = Pick<BodyOf<'patch'>, 'clean' | 'corrupt' | 'edits' | 'metric' | 'answer' | 'wrong' | 'direction'> &
  Partial<Pick<BodyOf<'patch'>, 'sites' | 'positions'>>

/** The model under the edits, and a request in the library's terms. */
async function requestOf(held: Held, body: Sweep) {
  const { tokens } = metricKinds[body.metric]
  const named = Object.fromEntries(
    tokens.map((role) => {
      const text = body[role]
      if (text === undefined)
        throw new UsageError(
          `The metric ${body.metric} needs ${roleNames[role]}: one token that may come next. Write it, or choose a suggestion.`,
        )
      return [role, oneToken(held.model, text, roleNames[role])]
    }),
  )
  const request = {
    clean: { ids: idsOf(held.model, body.clean) },
    corrupt: { ids: idsOf(held.model, body.corrupt) },
    metric: { kind: body.metric, ...named } as Metric,
    sites: body.sites ?? [],
    direction: body.direction,
    positions: body.positions ?? ('each' as const),
  }
  return { model: await editedModel(held, body.edits), request }
}

const headOf = ({ name, sites, axes }: SweepTable): TableHead => ({ name, sites, axes })

/** The tokens of the run that is changed. */
const piecesOf = (model: Model, { direction, clean, corrupt }: Awaited<ReturnType<typeof requestOf>>['request']) =>
  (direction === 'noise' ? clean : corrupt).ids.map((id) => pieceOf(model, id))

function probabilities(logits: Float32Array): Float64Array {
  const most = logits.reduce((m, v) => Math.max(m, v), Number.NEGATIVE_INFINITY)
  const out = Float64Array.from(logits, (v) => Math.exp(v - most))
  const sum = out.reduce((a, v) => a + v, 0)
  return out.map((v) => v / sum)
}

function topOf(model: Model, logits: Float32Array, count: number): TopToken[] {
  const p = probabilities(logits)
  return largest(logits, count).map((id) => ({ id, piece: pieceOf(model, id), p: rounded(p[id] as number) }))
}
