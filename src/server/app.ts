/** @file The routes. */
import { Hono } from 'hono'
import { bodyLimit } from 'hono/body-limit'
import { bytesOfModel, displayName, listModels, parseModelSource } from '../models/hub/index.ts'
import type { Model } from '../run/model.ts'
import { bodyOf, errorAnswer, lines, statusOf } from './answers.ts'
import { asset } from './assets.ts'
import { browserFiles } from './browser-files.ts'
import type { Captures } from './captures.ts'
import { valuesAnswer } from './look.ts'
import type { Papers } from './papers.ts'
import type {
  BodyOf,
  CapturesAnswer,
  HealthAnswer,
  ModelAnswer,
  ModelLine,
  ModelsAnswer,
  PaperJobsAnswer,
  PapersAnswer,
  RouteName,
  SiteKind,
} from './protocol.ts'
import type { Registry } from './registry.ts'
import { answerRoutes, linesRoutes } from './routes.ts'
import { type Guard, guarded, reportPolicy } from './security.ts'
import { examplesAnswer, methodsAnswer, vectorFile } from './steer.ts'
import { takeUpload } from './uploads.ts'

/** What the routes work with. */
export interface AppParts {
  readonly registry: Registry
  readonly captures: Captures
  readonly papers: Papers
  /** Folder of uploads. */
  readonly uploads?: string | undefined
  /** The model that requests mean which name none. */
  readonly model: string
  readonly guard: Guard
  readonly studio: string
  readonly instance: string
}

/** Bytes that a request may send. */
const largestBody = 16 * 1024 * 1024

/** The application: the page, and the API under `/api`. */
export function createApp({ registry, captures, papers, uploads, model: first, guard, studio, instance }: AppParts): Hono {
  const app = new Hono()
  app.use(guarded(guard))
  // Before the limit for bodies, since model files are larger.
  app.post('/api/upload', async (c) => c.json(await takeUpload(c, uploads)))
  app.use(
    '/api/*',
    bodyLimit({
      maxSize: largestBody,
      onError: (c) =>
        c.json({ error: { name: 'UsageError', message: `A request may hold at most ${largestBody / 2 ** 20} MiB; send less.` } }, 413),
    }),
  )
  app.onError((error, c) => c.json(errorAnswer(error), statusOf(error) as 500))

  app.get('/api/health', (c) => c.json({ ok: true, instance, model: first, loaded: registry.loaded } satisfies HealthAnswer))

  app.get('/api/models', async (c) => {
    const models = (await listModels()).map((m) => ({ id: m.id, bytes: bytesOfModel(m), fetchedAt: m.fetchedAt }))
    return c.json({ models, loaded: registry.loaded } satisfies ModelsAnswer)
  })

  const loading = (c: Parameters<typeof lines>[0], id: string) =>
    lines<ModelLine>(c, async (send, signal) => {
      const onProgress = latest((p: Parameters<typeof send>[0]) => send(p))
      const held = await registry.get(id, { signal, onProgress: (p) => onProgress({ type: 'progress', ...p }) })
      send({ type: 'model', model: modelAnswer(id, held.model) })
    })
  app.get('/api/model', (c) => loading(c, first))
  app.post('/api/model', async (c) => loading(c, (await bodyOf(c, 'model')).model))

  app.get('/api/captures', async (c) => c.json({ jobs: await captures.list() } satisfies CapturesAnswer))
  app.post('/api/capture', async (c) => c.json(await captures.start(await bodyOf(c, 'capture'))))
  app.post('/api/capture-job', async (c) => {
    const { id, action } = await bodyOf(c, 'capture-job')
    return c.json({ job: (await captures.act(id, action)) ?? null })
  })

  app.get('/api/papers', async (c) => c.json({ papers: await papers.list() } satisfies PapersAnswer))
  app.get('/api/paper-jobs', async (c) => c.json({ jobs: await papers.jobs() } satisfies PaperJobsAnswer))
  app.post('/api/paper', async (c) => c.json(await papers.one((await bodyOf(c, 'paper')).slug)))
  app.post('/api/paper-run', async (c) => c.json({ job: (await papers.act(await bodyOf(c, 'paper-run'))) ?? null }))
  app.get('/api/papers/:slug/:kind/report.html', async (c) => {
    const { slug, kind } = c.req.param()
    c.header('content-security-policy', reportPolicy)
    return c.html(await papers.report(slug, kind))
  })

  for (const { route, work } of answerRoutes)
    app.post(`/api/${route}`, async (c) => {
      const body = (await bodyOf(c, route)) as BodyOf<RouteName> & { model?: string }
      const { signal } = c.req.raw
      return c.json((await registry.use(body.model ?? first, { signal }, (held) => work(held, body, signal))) as object)
    })

  for (const { route, work } of linesRoutes)
    app.post(`/api/${route}`, async (c) => {
      const body = (await bodyOf(c, route)) as BodyOf<RouteName> & { model?: string }
      return lines(c, (send, signal) => registry.use(body.model ?? first, { signal }, (held) => work(held, body, send as never, signal)))
    })

  app.post('/api/values', async (c) => {
    const body = await bodyOf(c, 'values')
    const { signal } = c.req.raw
    const bytes = await registry.use(body.model ?? first, { signal }, (held) => valuesAnswer(held, body, signal))
    return c.body(bytes, 200, { 'content-type': 'application/octet-stream', 'cache-control': 'no-store' })
  })

  app.get('/api/methods', (c) => c.json(methodsAnswer()))
  app.post('/api/examples', async (c) => c.json(examplesAnswer(await bodyOf(c, 'examples'))))
  app.post('/api/vector-file', async (c) => {
    const body = await bodyOf(c, 'vector-file')
    const bytes = await registry.use(body.model ?? first, { signal: c.req.raw.signal }, (held) => vectorFile(held, body))
    return c.body(bytes, 200, { 'content-type': 'application/octet-stream', 'cache-control': 'no-store' })
  })

  browserFiles(app)
  app.all('/api/*', (c) =>
    c.json({ error: { name: 'UsageError', message: `There is no ${c.req.method} ${c.req.path} in this API.` } }, 404),
  )
  app.get('*', (c) => asset(c, studio))
  return app
}

/** Passes on at most twenty values a second; a first one at once. */
function latest<T>(pass: (value: T) => void): (value: T) => void {
  let at = Number.NEGATIVE_INFINITY
  return (value) => {
    if (performance.now() - at < 50) return
    at = performance.now()
    pass(value)
  }
}

function modelAnswer(id: string, model: Model): ModelAnswer {
  const { spec } = model
  const kinds = new Map<string, SiteKind>()
  for (const info of model.sites()) {
    const { row } = info
    if (kinds.has(row.name)) continue
    const aliases = [...row.transformerLens, ...row.huggingFace(spec.modules)]
    const shape = model.shapeOf(info)
    kinds.set(row.name, {
      name: row.name,
      per: row.per,
      axes: row.axes,
      shape,
      meaning: row.meaning,
      aliases,
      ...(info.absent ? { absent: info.absent } : {}),
    })
  }
  return {
    id,
    name: nameOf(id),
    family: spec.family,
    layers: spec.layers,
    dModel: spec.dModel,
    heads: spec.heads,
    kvHeads: spec.kvHeads,
    headDim: spec.headDim,
    dMlp: spec.dMlp,
    vocab: spec.vocab,
    contextLength: model.contextLength,
    precision: model.precision,
    hasTokenizer: model.hasTokenizer,
    checks: model.origin.checks,
    sites: [...kinds.values()],
  }
}

function nameOf(id: string): string {
  try {
    return displayName(parseModelSource(id))
  } catch {
    // A name that is no source belongs to a loader of its own.
    return id
  }
}
