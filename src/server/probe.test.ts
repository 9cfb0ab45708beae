import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { probe, tableOf } from '../probe/index.ts'
import type { Model } from '../run/index.ts'
import type { ErrorAnswer, ProbeDirectionAnswer, ProbeLine, ProbeReadAnswer } from './protocol.ts'
import { linesOf, tinyReader, tinyServer } from './testing.ts'

let server: Awaited<ReturnType<typeof tinyServer>>
let model: Model
beforeAll(async () => {
  server = await tinyServer()
  model = await tinyReader()
})
afterAll(async () => {
  await server.close()
  await model.dispose()
})

const texts = Array.from({ length: 24 }, (_, i) => `${'abcdefgh'[i % 8]}${'xyz'[i % 3]} ${i % 2 ? 'go' : 'no'}`)
const labels = texts.map((_, i) => (i % 2 ? 'yes' : 'no'))
const data = `text,label\n${texts.map((t, i) => `${t},${labels[i]}`).join('\n')}`
const study = { data, sites: ['resid_post.*'] }
const json = async <T>(response: Promise<Response>) => (await (await response).json()) as T

describe('a study', () => {
  it('comes site by site and is what the library finds; the second time it is known', async () => {
    const lines = await linesOf<ProbeLine>(await server.post('probe', study))
    const want = await probe(model, { texts, labels, site: 'resid_post.*' })
    expect(lines[0]).toMatchObject({ type: 'head', examples: 24, text: 'text', label: 'label', sites: want.sites.length })
    const sites = lines.filter((l) => l.type === 'site')
    expect(sites.map((s) => s.site)).toEqual(want.sites.map((s) => s.site))
    for (const [i, s] of sites.entries()) {
      expect(s.scores.accuracy?.value).toBeCloseTo(want.sites[i]!.scores.accuracy!.value, 4)
      expect(Object.keys(s.controls).sort()).toEqual(['randomFeatures', 'shuffledLabels', 'tokenIdentity'])
    }
    expect(lines.at(-1)).toMatchObject({ type: 'end', classes: ['no', 'yes'], majority: 0.5 })
    const again = await linesOf<ProbeLine>(await server.post('probe', study))
    expect(again.some((l) => l.type === 'progress')).toBe(false)
    expect(again.filter((l) => l.type === 'site')).toEqual(sites)
  })

  it('is read on new text, also where the server has forgotten it', async () => {
    const want = await probe(model, { texts, labels, site: 'resid_post.1', seed: 3 })
    const got = await json<ProbeReadAnswer>(
      server.post('probe-read', { study: { data, sites: ['resid_post.1'], seed: 3 }, site: 'resid_post.1', text: 'we go' }),
    )
    const { taps } = await model.run('we go', { taps: ['resid_post.1'] })
    const scores = await want.sites[0]!.probe.scores({ dtype: 'float32', shape: [6, 32], data: taps['resid_post.1'].row(0).data })
    expect(got.classes).toEqual(['no', 'yes'])
    for (const [n, [s]] of got.scores.entries()) expect(s).toBeCloseTo(scores[n] as number, 2)
    expect(got.p?.every((p) => p >= 0 && p <= 1)).toBe(true)
  })

  it('gives a direction to the second class and a condition, which edits take', async () => {
    const { vector, when } = await json<ProbeDirectionAnswer>(server.post('probe-direction', { study, site: 'resid_post.0' }))
    expect(vector.reduce((s, v, i) => s + v * (when.vector[i] as number), 0)).toBeGreaterThan(0)
    const edits = [{ op: 'add', site: 'resid_post.1', params: { vector, scale: 1 }, where: { when } }]
    expect((await server.post('edits', { edits })).status).toBe(200)
  })

  it('is refused in sentences: one class, no label column, broken rows', async () => {
    const message = async (given: string) => {
      const lines = await linesOf<ProbeLine>(await server.post('probe', { data: given, sites: ['resid_post.0'] }))
      return (lines.at(-1) as unknown as ErrorAnswer).error.message
    }
    expect(await message('text,label\na,x\nb,x')).toMatch(/class/)
    expect(await message('text,mood\na,x\nb,y')).toContain('no column for the label')
    expect(await message('text,label\na,b,x')).toContain('Row 1')
    expect(await message('{"text":"a","label":1}\n{"text":2')).toContain('line 2')
  })
})

it('tables are told apart by how they begin', () => {
  const want = { path: 't', columns: ['text', 'label'], rows: [['a, b', '1']] }
  expect(tableOf('text,label\n"a, b",1', 't')).toEqual(want)
  expect(tableOf('text\tlabel\na, b\t1', 't')).toEqual(want)
  expect(tableOf('{"text": "a, b", "label": 1}\n', 't')).toEqual(want)
})
