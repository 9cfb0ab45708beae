import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { openActivations } from '../explore/index.ts'
import { corpusName } from './captures.ts'
import type { CaptureJob, CapturesAnswer, ContextsLine, ErrorAnswer } from './protocol.ts'
import { linesOf, tinyReader, tinyServer } from './testing.ts'

let folder: string
let server: Awaited<ReturnType<typeof tinyServer>>
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'actlens-captures-test-'))
  server = await tinyServer({ captures: folder })
})
afterAll(async () => {
  await server.close()
  await rm(folder, { recursive: true, force: true })
})

const json = async <T>(response: Promise<Response> | Response) => (await (await response).json()) as T
const jobs = async () => (await json<CapturesAnswer>(server.get('/api/captures'))).jobs
const settled = async (id: string) => {
  await expect.poll(async () => (await jobs()).find((j) => j.id === id)?.state, { timeout: 20_000 }).not.toBe('running')
  return (await jobs()).find((j) => j.id === id) as CaptureJob
}
const corpus = Array.from({ length: 3000 }, (_, i) => `the ${'abcdefg'[i % 7]} dog went to the ${'xyz'[i % 3]} park`).join('\n')

describe('a capture', () => {
  it('runs, is listed, and leaves shards that are read back', async () => {
    const { id } = await json<CaptureJob>(server.post('capture', { data: 'the dog\na cat', sites: ['resid_post.0'], dtype: 'f32' }))
    const job = await settled(id)
    expect(job).toMatchObject({ state: 'done', model: 'tiny', tokens: 'the dog'.length + 1 + 'a cat'.length + 1 })
    const store = await openActivations(job.folder)
    expect(store.manifest.sites.map((s) => s.site)).toEqual(['resid_post.0'])
  })

  it('is stopped, survives the server, goes on behind its last shard, and is removed', async () => {
    const { id } = await json<CaptureJob>(server.post('capture', { data: corpus, sites: ['resid_post.*', 'mlp_act.*'] }))
    await expect
      .poll(async () => (await jobs()).find((j) => j.id === id)?.tokens ?? 0, { timeout: 20_000, interval: 10 })
      .toBeGreaterThan(0)
    await server.post('capture-job', { id, action: 'cancel' })
    const stopped = await settled(id)
    expect(stopped.state).toBe('stopped')
    await server.close()
    server = await tinyServer({ captures: folder })
    expect((await jobs()).find((j) => j.id === id)).toMatchObject({ state: 'stopped', tokens: stopped.tokens })
    await server.post('capture-job', { id, action: 'resume' })
    const done = await settled(id)
    expect(done.state).toBe('done')
    const model = await tinyReader()
    expect(done.tokens).toBe(corpus.split('\n').reduce((n, t) => n + model.tokens(t).rows[0]!.length, 0))
    await model.dispose()
    await server.post('capture-job', { id, action: 'remove' })
    expect((await jobs()).some((j) => j.id === id)).toBe(false)
  }, 60_000)

  it('that cannot be done says so in the job; what is wrong is refused', async () => {
    const { id } = await json<CaptureJob>(server.post('capture', { path: '/no/such/file.txt', sites: ['resid_post.0'] }))
    const job = await settled(id)
    expect(job.state).toBe('failed')
    expect(job.error?.message).toContain('/no/such/file.txt')
    expect((await json<ErrorAnswer>(server.post('capture', { sites: ['resid_post.0'] }))).error.message).toContain('Give either texts')
    expect((await json<ErrorAnswer>(server.post('capture-job', { id: '00000000', action: 'resume' }))).error.message).toContain(
      'There is no capture',
    )
  })

  it('names texts by what they are', () => {
    expect(['a\nb', '{"text":"a"}', 'text,label\na,b', 'text\tlabel', 'a, text of words'].map(corpusName)).toEqual([
      'texts.txt',
      'texts.jsonl',
      'texts.csv',
      'texts.tsv',
      'texts.txt',
    ])
  })
})

describe('contexts', () => {
  it('are where a neuron is most active', async () => {
    const data = 'the dog\na cat\nso glad'
    const lines = await linesOf<ContextsLine>(await server.post('contexts', { data, site: 'mlp_act.1', neuron: 3, keep: 2 }))
    const end = lines.at(-1)
    if (end?.type !== 'end') throw new Error(JSON.stringify(end))
    const model = await tinyReader()
    const best: number[] = []
    for (const text of data.split('\n')) {
      const { taps } = await model.run(text, { taps: ['mlp_act.1'] })
      const { data: all, shape } = taps['mlp_act.1'].row(0)
      best.push(Math.max(...Array.from({ length: shape[0] as number }, (_, p) => all[p * (shape[1] as number) + 3] as number)))
    }
    await model.dispose()
    const want = best.toSorted((a, b) => b - a).slice(0, 2)
    for (const [i, c] of end.contexts.entries()) expect(c.value).toBeCloseTo(want[i] as number, 3)
    expect(end.tokens).toBe(data.replaceAll('\n', '').length + 3)
    expect((await linesOf<ContextsLine>(await server.post('contexts', { data, site: 'mlp_act.1', neuron: 9999 }))).at(-1)?.type).toBe(
      'error',
    )
  })
})
