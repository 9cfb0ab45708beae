/** @file The routes that take a body: what answers each, at once or line by line. */
import type { Model } from '../run/model.ts'
import { writeContexts } from './contexts.ts'
import { attributeAnswer, componentsAnswer, edgesAnswer, pairAnswer, patchedAnswer, writePatch } from './explore.ts'
import { writeStories } from './generate.ts'
import { writeGrid } from './grid.ts'
import { siteAnswer, tokensAnswer } from './look.ts'
import { probeDirectionAnswer, probeReadAnswer, writeProbe } from './probe.ts'
import type {
  BodyOf,
  ContextsLine,
  EditsAnswer,
  GenerateLine,
  GridLine,
  PatchLine,
  ProbeLine,
  RouteName,
  VectorAnswer,
} from './protocol.ts'
import type { Held } from './registry.ts'
import { divergenceAnswer } from './steer.ts'

/** Answers a request on a model with one JSON value. */
export type AnswerRoute<R extends RouteName> = (held: Held, body: BodyOf<R>, signal: AbortSignal) => Promise<unknown>
/** Answers a request on a model with lines of JSON. */
export type LinesRoute<R extends RouteName> = (
  held: Held,
  body: BodyOf<R>,
  send: (line: { readonly type: string }) => void,
  signal: AbortSignal,
) => Promise<void>

const answering = <R extends RouteName>(route: R, work: AnswerRoute<R>) => ({ route, work: work as unknown as AnswerRoute<RouteName> })
const writing = <R extends RouteName, Line extends { readonly type: string }>(
  route: R,
  work: (held: Held, body: BodyOf<R>, send: (line: Line) => void, signal: AbortSignal) => Promise<void>,
) => ({ route, work: work as unknown as LinesRoute<RouteName> })

/** Routes with one answer. */
export const answerRoutes = [
  answering('tokens', tokensAnswer),
  answering('site', siteAnswer),
  answering('vector', vectorAnswer),
  answering('edits', editsAnswer),
  answering('pair', pairAnswer),
  answering('patched', patchedAnswer),
  answering('attribute', attributeAnswer),
  answering('edges', edgesAnswer),
  answering('components', componentsAnswer),
  answering('probe-read', probeReadAnswer),
  answering('probe-direction', probeDirectionAnswer),
  answering('divergence', divergenceAnswer),
]

/** Routes with lines that come as the work goes on. */
export const linesRoutes = [
  writing<'grid', GridLine>('grid', writeGrid),
  writing<'generate', GenerateLine>('generate', writeStories),
  writing<'patch', PatchLine>('patch', writePatch),
  writing<'probe', ProbeLine>('probe', writeProbe),
  writing<'contexts', ContextsLine>('contexts', writeContexts),
]

async function vectorAnswer(held: Held, body: BodyOf<'vector'>): Promise<VectorAnswer> {
  const { site, vector, all } = await held.vectors.make(body.vector, held.queue)
  const length = (v: Float32Array) => Math.sqrt(v.reduce((sum, x) => sum + x * x, 0))
  return { site, width: vector.length, norm: length(vector), norms: Object.fromEntries([...all].map(([s, v]) => [s, length(v)])) }
}

async function editsAnswer(held: Held, body: BodyOf<'edits'>): Promise<EditsAnswer> {
  const edits = await held.vectors.resolve(body.edits, held.queue)
  // The model refuses what does not fit, before anything is written into a file.
  held.model.plain.with(edits as unknown as Parameters<Model['with']>[0])
  return { edits: edits.map((e) => ({ ...e, ...(e.params ? { params: plainNumbers(e.params) } : {}) })) }
}

/** Typed arrays as the nested lists that an edits file holds. */
function plainNumbers(params: Readonly<Record<string, unknown>>): Record<string, unknown> {
  return Object.fromEntries(Object.entries(params).map(([k, v]) => [k, v instanceof Float32Array ? Array.from(v) : v]))
}
