import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { attribute, attributeEdges, attributeLogits, patch } from '../explore/index.ts'
import type { Model } from '../run/index.ts'
import type { AttributeAnswer, ComponentsAnswer, EdgesAnswer, ErrorAnswer, PairAnswer, PatchedAnswer, PatchLine } from './protocol.ts'
import { Queue } from './queue.ts'
import { charTokenizer, linesOf, tinyReader, tinyServer } from './testing.ts'

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

const json = async <T>(response: Promise<Response>) => (await (await response).json()) as T
const texts = { clean: { text: 'the big dog' }, corrupt: { text: 'the bad dog' } }
const asked = { ...texts, answer: 'a', wrong: 'b' }
const metric = { kind: 'logit-difference', answer: charTokenizer.idOf('a') as number, wrong: charTokenizer.idOf('b') as number } as const
const plain = { clean: 'the big dog', corrupt: 'the bad dog', metric }
const near = (a: ArrayLike<number>, b: ArrayLike<number>) => {
  expect(a.length).toBe(b.length)
  for (let i = 0; i < a.length; i++) expect(a[i]).toBeCloseTo(b[i] as number, 3)
}

describe('a pair', () => {
  it('is told as tokens, with what comes next, also where the lengths differ', async () => {
    const answer = await json<PairAnswer>(server.post('pair', { clean: { text: 'a cat' }, corrupt: { text: 'a mouse' } }))
    expect(answer.clean.pieces.slice(1).join('')).toBe('a cat')
    expect([answer.clean.ids.length, answer.corrupt.ids.length]).toEqual([6, 8])
    expect(answer.clean.next).toHaveLength(8)
  })
})

describe('a sweep', () => {
  it('comes cell by cell and is what the library gives', async () => {
    const lines = await linesOf<PatchLine>(await server.post('patch', { ...asked, sites: ['resid_pre.*', 'z.*'] }))
    const want = await patch(model, { ...plain, sites: ['resid_pre.*', 'z.*'] })
    const [head] = lines
    if (head?.type !== 'head') throw new Error(JSON.stringify(head))
    near([head.metric.clean, head.metric.corrupt], [want.metric.clean, want.metric.corrupt])
    expect(head.pieces.slice(1).join('')).toBe('the bad dog')
    const cells = lines.filter((l) => l.type === 'cells')
    expect(cells.length).toBeGreaterThan(2)
    for (const table of head.tables) {
      const got = new Float32Array(want.tables[table.name]!.data.length).fill(Number.NaN)
      for (const c of cells) if (c.table === table.name) for (const [i, at] of c.places.entries()) got[at] = c.values[i] as number
      near(got, want.tables[table.name]!.data)
    }
    expect(lines.at(-1)?.type).toBe('end')
  })

  it('gives the runs behind a cell', async () => {
    const table = (await patch(model, { ...plain, sites: 'z.*' })).tables['z.*']!
    const answer = await json<PatchedAnswer>(server.post('patched', { ...asked, site: 'z.1', position: 5, head: 1 }))
    const [right, wrong] = answer.named
    expect((right?.patched.logit as number) - (wrong?.patched.logit as number)).toBeCloseTo(
      table.data[(12 + 5) * model.spec.heads + 1] as number,
      3,
    )
    expect(answer.patched[0]!.p).toBeGreaterThanOrEqual(answer.patched[1]!.p)
  })

  it('refuses lengths that differ, tokens that are several, and metrics without their tokens, in sentences', async () => {
    const message = async (body: object) =>
      (await linesOf<PatchLine>(await server.post('patch', { ...asked, sites: ['resid_pre.*'], ...body }))).at(-1) as unknown as ErrorAnswer
    expect((await message({ corrupt: { text: 'the fat mouse' } })).error.message).toContain('word them to the same number of tokens')
    expect((await message({ answer: 'ab' })).error.message).toContain('must be exactly one token')
    expect((await message({ wrong: undefined })).error.message).toContain('needs the wrong answer')
  })

  it('is cancelled when the page goes away, and the next one is served', async () => {
    const gone = new AbortController()
    const response = await server.post(
      'patch',
      { ...asked, sites: ['resid_pre.*', 'z.*', 'attn_probs.*', 'mlp_out.*'] },
      { signal: gone.signal },
    )
    await response.body?.getReader().read()
    gone.abort()
    expect((await server.post('pair', texts)).status).toBe(200)
  })
})

describe('attribution', () => {
  it('of cells, with what it should add up to', async () => {
    const want = await attribute(model, { ...plain, sites: ['embeddings', 'resid_pre.*'], method: 'integrated', steps: 4 })
    const got = await json<AttributeAnswer>(
      server.post('attribute', { ...asked, sites: ['embeddings', 'resid_pre.*'], method: 'integrated', steps: 4 }),
    )
    for (const t of got.tables) near(t.values, want.tables[t.name]!.data)
    expect(got.completeness?.embeddings?.change).toBeCloseTo(want.completeness?.embeddings?.change as number, 3)
  })

  it('of edges, the strongest first', async () => {
    const want = await attributeEdges(model, plain)
    const got = await json<EdgesAnswer>(server.post('edges', { ...asked, count: 12 }))
    const strongest = Array.from(want.scores.data, Math.abs).sort((a, b) => b - a)
    near(
      got.edges.map((e) => Math.abs(e.score)),
      strongest.slice(0, got.edges.length),
    )
    expect(got.size).toBeCloseTo(
      strongest.reduce((a, v) => a + v, 0),
      3,
    )
    for (const e of got.edges) expect(e.score).toBeCloseTo(want.scores.data[e.from * want.receivers.length + e.to] as number, 3)
  })

  it('of components and heads adds up to the logit difference', async () => {
    const got = await json<ComponentsAnswer>(server.post('components', { text: 'the big dog', answer: 'a', wrong: 'b' }))
    expect(got.components.reduce((s, c) => s + c.value, got.bias)).toBeCloseTo(got.metric, 3)
    const want = await attributeLogits(model, 'the big dog', { answer: metric.answer, wrong: metric.wrong, by: 'heads' })
    near(
      got.heads.flat(),
      want.labels.map((_, i) => want.values.data[i * 12 + 11] as number),
    )
  })
})

describe('the queue', () => {
  it('lets others have their turn while long work pauses, and nobody between its pauses', async () => {
    const queue = new Queue()
    const order: string[] = []
    const long = queue.inTurns(async (pause) => {
      order.push('long 1')
      await new Promise((resolve) => setTimeout(resolve, 5))
      order.push('long 2')
      await pause()
      order.push('long 3')
    })
    const short = queue.run(async () => {
      order.push('short')
    })
    await Promise.all([long, short])
    expect(order).toEqual(['long 1', 'long 2', 'short', 'long 3'])
    const gone = new AbortController()
    gone.abort()
    await expect(queue.inTurns(async () => undefined, gone.signal)).rejects.toThrow()
    await expect(queue.inTurns(async () => Promise.reject(new Error('no')))).rejects.toThrow('no')
    expect(await queue.run(async () => 1)).toBe(1)
  })
})
