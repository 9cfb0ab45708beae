import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { fromBytes, openSafetensors } from '../models/formats/index.ts'
import type { Activation, Model } from '../run/index.ts'
import { add, replace } from '../sites/index.ts'
import type { EditsAnswer, ErrorAnswer, GenerateLine, GridLine, RouteName, SiteAnswer, TokensAnswer, VectorAnswer } from './protocol.ts'
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

const text = 'Once upon a time'
const json = async <T>(response: Promise<Response>) => (await (await response).json()) as T
const recipe = { difference: { positive: ['so happy', 'glad'], negative: ['so sad', 'bad'], site: 'resid_post.1' } }
const steer = (scale: number) => ({ op: 'add', site: 'resid_post.1', params: { vector: recipe, scale } })
const rowsOf = (lines: GridLine[]) => lines.filter((l) => l.type === 'row')
const near = (a: ArrayLike<number>, b: ArrayLike<number>, tolerance = 1e-3) => {
  expect(a.length).toBe(b.length)
  for (let i = 0; i < a.length; i++)
    expect(Math.abs((a[i] as number) - (b[i] as number))).toBeLessThan(tolerance * (1 + Math.abs(b[i] as number)))
}
const difference = async () => {
  const mean = async (texts: string[]) => {
    const { taps } = await model.run(texts, { taps: ['resid_post.1'], logits: false })
    const sum = new Float64Array(32)
    for (const [b, t] of texts.entries())
      for (let p = 1; p <= t.length; p++)
        for (const [i, v] of (taps['resid_post.1'] as Activation).at(b, p).entries()) sum[i]! += v / t.length / texts.length
    return sum
  }
  const [p, n] = [await mean(recipe.difference.positive), await mean(recipe.difference.negative)]
  return Float32Array.from(p, (v, i) => v - n[i]!)
}

describe('tokens', () => {
  it('gives ids, pieces, offsets, and the surprise of each token', async () => {
    const answer = await json<TokensAnswer>(server.post('tokens', { text, surprise: true }))
    expect(answer.ids).toEqual(charTokenizer.encode(text))
    expect(answer.pieces.slice(1).join('')).toBe(text)
    expect(answer.offsets?.[1]).toEqual([0, 1])
    const { logits } = await model.run(text)
    const row = Array.from(logits.at(0, 3))
    const bits = (Math.log(row.reduce((s, v) => s + Math.exp(v), 0)) - row[answer.ids[4]!]!) / Math.LN2
    near([answer.surprise?.[4] as number], [bits])
    expect(answer.surprise?.[0]).toBeNull()
  })

  it('takes ids as well', async () => {
    expect((await json<TokensAnswer>(server.post('tokens', { ids: [0, 1, 2] }))).pieces).toEqual(['<s>', 'a', 'b'])
  })
})

describe('grid', () => {
  it('norms are those of the run, under the edits', async () => {
    const vector = await difference()
    for (const edits of [[], [steer(3)]]) {
      const lines = await linesOf<GridLine>(await server.post('grid', { text, what: 'norm', edits }))
      expect(lines[0]).toMatchObject({ type: 'head', sites: ['resid_post.0', 'resid_post.1', 'resid_post.2'] })
      expect(lines.at(-1)).toMatchObject({ type: 'end', unfired: [] })
      const edited = edits.length ? model.with(add('resid_post.1', vector, { scale: 3 })) : model
      const { taps } = await edited.run(text, { taps: ['resid_post.*'] })
      for (const row of rowsOf(lines))
        near(
          row.values,
          charTokenizer.encode(text).map((_, n) => Math.hypot(...(taps[row.site] as Activation).at(0, n))),
        )
    }
  })

  it('the lens at the last layer is what the model says, and at others what it would say of that vector', async () => {
    const rows = rowsOf(await linesOf<GridLine>(await server.post('grid', { text, what: 'lens', top: 3 })))
    const softmax = (v: Float32Array) => {
      const sum = v.reduce((s, x) => s + Math.exp(x), 0)
      return Array.from(v, (x) => Math.exp(x) / sum)
    }
    const { logits, taps } = await model.run(text, { taps: ['resid_post.0'] })
    const replaced = await model.with(replace('resid_post.2', (taps['resid_post.0'] as Activation).row(0))).run(text)
    for (const [row, want] of [
      [rows[2]!, logits],
      [rows[0]!, replaced.logits],
    ] as const)
      for (let n = 0; n <= text.length; n++) {
        const p = softmax(want.at(0, n))
        const best = p.indexOf(Math.max(...p))
        expect(row.top?.[n]?.[0]?.id).toBe(best)
        near([row.values[n]!], [p[best]!])
        near(
          row.top![n]!.map((t) => t.p),
          row.top![n]!.map((t) => p[t.id]!),
        )
        expect(row.top?.[n]?.map((t) => t.p)).toEqual(row.top?.[n]?.map((t) => t.p).toSorted((a, b) => b - a))
      }
  })

  it('cosines are to the recipe’s vector; other sites have grids, too', async () => {
    const vector = { activation: { text, site: 'resid_post.1', position: 2 } }
    const rows = rowsOf(await linesOf<GridLine>(await server.post('grid', { text, what: 'cosine', vector })))
    near([rows[1]!.values[2]!], [1])
    expect(rows.every((r) => r.values.every((v) => v >= -1 && v <= 1.00001))).toBe(true)
    expect(rowsOf(await linesOf<GridLine>(await server.post('grid', { text, what: 'norm', site: 'mlp_out' }))).map((r) => r.site)).toEqual([
      'mlp_out.0',
      'mlp_out.1',
      'mlp_out.2',
    ])
  })

  it('what has no grid is refused in the last line', async () => {
    const lines = await linesOf<GridLine>(await server.post('grid', { text, what: 'norm', site: 'q' }))
    expect(lines).toEqual([
      { type: 'error', error: { name: 'UsageError', message: expect.stringContaining('as wide as the residual stream') } },
    ])
    const none = await linesOf<GridLine>(await server.post('grid', { text, what: 'cosine' }))
    expect(none[0]).toMatchObject({ type: 'error', error: { message: expect.stringContaining("needs a 'vector'") } })
  })
})

describe('site', () => {
  it('one position: numbers, largest coordinates, lens', async () => {
    const answer = await json<SiteAnswer>(server.post('site', { text, site: 'resid_post.1', position: -1, vector: recipe }))
    const { taps } = await model.run(text, { taps: ['resid_post.1'] })
    const vector = (taps['resid_post.1'] as Activation).at(0, -1)
    expect(answer).toMatchObject({ site: 'resid_post.1', layer: 1, position: text.length, piece: 'e', shape: [1, text.length + 1, 32] })
    near([answer.stats.norm, answer.stats.max], [Math.hypot(...vector), Math.max(...vector)])
    expect(answer.histogram.reduce((s, b) => s + b.count, 0)).toBe(32)
    const top = answer.top[0]!
    near([top.value], [vector[top.index[0]!]!])
    expect(Math.abs(top.value)).toBeCloseTo(Math.max(...vector.map(Math.abs)), 3)
    expect(answer.lens?.length).toBe(12)
    expect(answer.cosine).toBeDefined()
    expect(answer.aliases).toContain('blocks.1.hook_resid_post')
  })

  it('sites with heads and attention patterns, whose masked scores are no data', async () => {
    const q = await json<SiteAnswer>(server.post('site', { text, site: 'q.0', position: 2 }))
    expect(q.top[0]?.index.length).toBe(2)
    expect(q.lens).toBeUndefined()
    const scores = await json<SiteAnswer>(server.post('site', { text, site: 'attn_scores.0', position: 2 }))
    expect(scores.stats.count).toBe(4 * 3)
    expect(Number.isFinite(scores.stats.min)).toBe(true)
  })

  it('values come as safetensors, whole or sliced', async () => {
    const { taps } = await model.run(text, { taps: ['attn_probs.1', 'resid_post.0'] })
    const fetchStore = async (body: Parameters<typeof server.post<'values'>>[1]) =>
      openSafetensors(fromBytes(new Uint8Array(await (await server.post('values', body)).arrayBuffer())))
    const whole = await (await fetchStore({ text, site: 'attn_probs.1' })).readRaw('attn_probs.1')
    expect(whole.shape).toEqual([4, 17, 17])
    near(whole.data as Float32Array, (taps['attn_probs.1'] as Activation).row(0).data)
    const part = await (await fetchStore({ text, site: 'resid_post.0', positions: { from: 2, to: 4 } })).readRaw('resid_post.0')
    expect(part.shape).toEqual([2, 32])
    near(part.data as Float32Array, [...(taps['resid_post.0'] as Activation).at(0, 2), ...(taps['resid_post.0'] as Activation).at(0, 3)])
  })
})

it('edits at later layers, at the final norm and at the logits may be in force while an early site is looked at', async () => {
  for (const edit of [steer(2), { op: 'zero', site: 'final_norm' }, { op: 'scale', site: 'logits', params: { factor: 2 } }]) {
    expect((await server.post('site', { text, site: 'attn_probs.0', position: 3, edits: [edit] })).status).toBe(200)
    expect((await server.post('values', { text, site: 'attn_probs.0', edits: [edit] })).status).toBe(200)
  }
})

describe('vectors and edits', () => {
  it('a difference is the mean difference, at every layer from one pass', async () => {
    const answer = await json<VectorAnswer>(server.post('vector', { vector: recipe }))
    near([answer.norm], [Math.hypot(...(await difference()))])
    expect(Object.keys(answer.norms)).toEqual(['resid_post.0', 'resid_post.1', 'resid_post.2'])
  })

  it('recipes are written out as an edits file', async () => {
    const { edits } = await json<EditsAnswer>(server.post('edits', { edits: [steer(2), { op: 'zero', site: 'mlp_out.0' }] }))
    near(edits[0]?.params?.vector as number[], await difference())
    expect(edits[0]?.params?.scale).toBe(2)
    expect(edits[1]).toEqual({ op: 'zero', site: 'mlp_out.0' })
  })
})

describe('generate', () => {
  const written = (lines: GenerateLine[], row: number) => lines.flatMap((l) => (l.type === 'token' && l.row === row ? [l.id] : []))

  it('writes both rows as they would be written alone', async () => {
    const lines = await linesOf<GenerateLine>(await server.post('generate', { text, edits: [steer(4)], maxNewTokens: 12 }))
    expect(lines[0]).toMatchObject({ type: 'start', rows: 2 })
    expect(written(lines, 0)).toEqual([...(await model.generate(text, { maxNewTokens: 12 }).result()).tokens])
    const steered = model.with(add('resid_post.1', await difference(), { scale: 4 }))
    expect(written(lines, 1)).toEqual([...(await steered.generate(text, { maxNewTokens: 12 }).result()).tokens])
    expect(written(lines, 0)).not.toEqual(written(lines, 1))
    expect(lines.at(-1)).toMatchObject({ type: 'end', rows: [{ finishReason: 'length' }, { finishReason: 'length' }] })
  })

  it('strength 0 writes the same twice; without edits there is one row', async () => {
    const same = await linesOf<GenerateLine>(await server.post('generate', { text, edits: [steer(0)], maxNewTokens: 8 }))
    expect(written(same, 0)).toEqual(written(same, 1))
    const alone = await linesOf<GenerateLine>(await server.post('generate', { text, maxNewTokens: 8 }))
    expect(alone[0]).toMatchObject({ rows: 1 })
  })

  it('a turned strength compiles nothing', async () => {
    // The model behind the server is not reachable from here, so the same requests go to the parts directly.
    const { Registry } = await import('./registry.ts')
    const { writeStories } = await import('./generate.ts')
    const { bodies } = await import('./protocol.ts')
    const registry = new Registry(() => tinyReader())
    await registry.use('tiny', {}, async (held) => {
      const write = (scale: number) =>
        writeStories(held, bodies.generate.parse({ text, edits: [steer(scale)], maxNewTokens: 3 }), () => {}, new AbortController().signal)
      await write(1)
      const before = held.model.statistics.compiled
      await write(2)
      await write(-2.5)
      expect(held.model.statistics.compiled).toBe(before)
    })
    await registry.close()
  })

  it('edits for other rows and function edits are refused', async () => {
    const rows = await linesOf<GenerateLine>(
      await server.post('generate', { text, edits: [{ op: 'zero', site: 'mlp_out.0', where: { rows: [3] } }] }),
    )
    expect(rows.at(-1)).toMatchObject({ type: 'error', error: { name: 'EditError', message: expect.stringContaining("leave 'rows' out") } })
  })

  it('is cancelled when the client goes away, and others go on', async () => {
    const client = new AbortController()
    const long = await server.post('generate', { ids: [1, 2, 3], maxNewTokens: 60 }, { signal: client.signal })
    const reader = long.body!.getReader()
    await reader.read()
    client.abort()
    await expect(reader.read().then((r) => r.done)).rejects.toThrow()
    const begun = performance.now()
    const next = await linesOf<GenerateLine>(await server.post('generate', { text, maxNewTokens: 2 }))
    expect(next.at(-1)?.type).toBe('end')
    expect(performance.now() - begun).toBeLessThan(5_000)
  })

  it('two tabs write at the same time', async () => {
    const texts = ['Tom', 'Lily'] as const
    const answers = await Promise.all(
      texts.map(async (t) => linesOf<GenerateLine>(await server.post('generate', { text: t, maxNewTokens: 10 }))),
    )
    for (const [i, t] of texts.entries())
      expect(written(answers[i]!, 0)).toEqual([...(await model.generate(t, { maxNewTokens: 10 }).result()).tokens])
  })
})

describe('bad input gets a sentence', () => {
  const cases: [RouteName, unknown, number, RegExp][] = [
    ['tokens', {}, 400, /Give either 'text' or 'ids'/],
    ['tokens', { text: 'a', ids: [1] }, 400, /Give either 'text' or 'ids'/],
    ['tokens', { text: '' }, 400, /The text is empty/],
    ['tokens', { text: 5 }, 400, /In 'text' of the request/],
    ['tokens', { text: 'a', more: 1 }, 400, /more/],
    ['tokens', { ids: [99], surprise: true }, 400, /vocabulary has ids 0 to 60/],
    ['tokens', { text: 'x'.repeat(80), surprise: true }, 400, /the context holds 64/],
    ['site', { text, site: 'resid_pots.1', position: 0 }, 422, /did you mean 'resid_post.1'/],
    ['site', { text, site: 'pos_embeddings', position: 0 }, 422, /does not exist in this model/],
    ['site', { text, site: 'resid_post.1', position: 99 }, 400, /There is no position 99/],
    ['site', { text, site: 'resid_post.1', position: 0, edits: [{ op: 'ad', site: 'resid_post.0' }] }, 422, /did you mean 'add'/],
    ['values', { text, site: 'q.0', positions: { from: 20, to: 30 } }, 400, /hold nothing/],
    ['vector', { vector: { difference: { positive: [], negative: ['a'], site: 'resid_post.1' } } }, 400, /In 'vector/],
    [
      'vector',
      { vector: { difference: { positive: ['a'], negative: ['b'], site: 'attn_probs.1' } } },
      400,
      /No steering vector can be read/,
    ],
    ['vector', { vector: { activation: { site: 'resid_post.1', position: 0 } } }, 400, /needs either 'text' or 'ids'/],
    ['edits', { edits: [{ op: 'add', site: 'resid_post.1', params: { vector: [1, 2] } }] }, 422, /must be 32 wide/],
    [
      'edits',
      { edits: [{ op: 'add', site: 'resid_post.1', params: { vector: { file: '/etc/passwd', tensor: 'x' } } }] },
      400,
      /must be numbers, or a recipe/,
    ],
    ['edits', { edits: [{ op: 'add', site: 'resid_post.1', params: { vector: [Number.NaN] } }] }, 422, /./],
    ['edits', { edits: [{ op: 'function', site: 'resid_post.1' }] }, 422, /has no function/],
  ]
  it.each(cases)('%s %j', async (route, body, status, message) => {
    const response = await server.post(route, body as never)
    expect((await response.json()) as ErrorAnswer).toEqual({ error: { name: expect.any(String), message: expect.stringMatching(message) } })
    expect(response.status).toBe(status)
  })

  it('bodies that are no JSON, too large, and routes that are none', async () => {
    const at = (body: string) => server.post('tokens', {}, { body })
    expect((await json<ErrorAnswer>(at('{"text":'))).error.message).toMatch(/not valid JSON/)
    expect((await at(JSON.stringify({ text: 'x'.repeat(17 * 2 ** 20) }))).status).toBe(413)
    expect((await server.get('/api/nothing')).status).toBe(404)
  })
})
