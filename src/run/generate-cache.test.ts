/** Going on from keys and values: forks, files, prefixes under their edits, refusals; rows of a batch with edits of their own; rotations that follow the length. */
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { describe, expect, it } from 'vitest'
import { add, edit, noise, scale, set } from '../sites/edits.ts'
import { mul } from '../tensor/index.ts'
import { type GenerateOptions, load, type Model, PrefixCache } from './index.ts'
import { tinyGpt2, tinyLlama, tinyModel } from './testing.ts'

const ids = [3, 14, 15, 9, 2, 6]
const more = [...ids, 40, 41, 7]
const v = Float32Array.from({ length: 32 }, (_, i) => Math.sin(i))
const options: GenerateOptions = { maxNewTokens: 6, alternatives: 61 }

/** Logits, in effect: log-probabilities of all tokens at every step. */
async function scores(model: Model, rows: readonly number[][], own: GenerateOptions = {}): Promise<number[][]> {
  const results = await model.generate({ rows }, { ...options, ...own }).results()
  return results.flatMap((r) => (r.alternatives ?? []).map((a) => [...a].sort((x, y) => x.token - y.token).map((x) => x.logProbability)))
}

function close(a: readonly number[][], b: readonly number[][], tolerance = 1e-5): void {
  expect(a.length).toBe(b.length)
  for (const [i, x] of a.entries())
    for (const [j, y] of x.entries()) expect(Math.abs(y - (b[i]?.[j] as number))).toBeLessThan(tolerance * 10)
}

describe.each([tinyLlama, { ...tinyLlama, head_dim: 12 }, tinyGpt2])('$model_type, heads of $head_dim', (config) => {
  it('goes on from a prompt that was read once, any number of times, alone and in several rows', async () => {
    await using plain = await tinyModel(config)
    const model = plain.with(add('resid_post.0', v, { scale: 2 }), scale('attn_out.1', 0.5, { where: { tokens: [40, 9] } }))
    const cache = await model.prefill({ ids })
    expect(cache.tokens).toEqual([ids])
    const other = [...ids, 8, 22, 31, 5]
    for (const rows of [[more], [other], [more, other], [other, more, [...ids, 1]], [ids]])
      close(await scores(model, rows, { cache }), await scores(model, rows))
    const result = await model.generate({ ids: more }, { maxNewTokens: 4, cache }).result()
    expect(result.cachedTokens).toBe(ids.length)
    // What a generation has written can be gone on from as well.
    const generation = model.generate({ ids }, { maxNewTokens: 5 })
    const { tokens } = await generation.result()
    const longer = [...ids, ...tokens, 30, 31]
    close(await scores(model, [longer], { cache: await generation.cache() }), await scores(model, [longer]))
  })

  it('is saved and read with what it belongs to', async () => {
    const folder = await mkdtemp(join(tmpdir(), 'actlens-cache-'))
    try {
      await using plain = await tinyModel(config)
      const model = plain.with(add('resid_post.0', v, { scale: 2 }))
      const path = join(folder, 'prompt.safetensors')
      await (await model.prefill({ rows: [ids, ids.slice(0, 3)] })).save(path)
      const read = await model.readCache(path)
      const rows = [more, [...ids.slice(0, 3), 9]]
      close(await scores(model, rows, { cache: read }), await scores(model, rows))
      await expect(plain.readCache(path)).rejects.toThrow('other edits')
      await expect(plain.with(add('resid_post.0', v, { scale: 2.5 })).readCache(path)).rejects.toThrow('other edits')
      const functional = plain.with(edit('resid_post.0', (x) => mul(x, 2)))
      await expect((await functional.prefill({ ids })).save(path)).rejects.toThrow('function edits cannot be saved')
    } finally {
      await rm(folder, { recursive: true })
    }
  })
})

describe('a cache', () => {
  it('is refused where it is not that of the run', async () => {
    await using model = await tinyModel()
    await using twin = await tinyModel()
    const cache = await model.prefill({ ids })
    const refused = (m: Model, row: number[], words: string) => expect(m.generate({ ids: row }, { cache }).result()).rejects.toThrow(words)
    await refused(twin, more, 'another load')
    await refused(model.with(add('resid_post.0', v)), more, 'under other edits')
    await refused(model, [3, 14, 16], 'does not begin with the 6 tokens')
    // The last token of the shorter prompt is another position of the longer one.
    const last = model.with(add('resid_post.0', v, { where: { positions: -1 } }))
    const own = await last.prefill({ ids })
    await expect(last.generate({ ids: more }, { cache: own }).result()).rejects.toThrow("an edit's 'where'")
    const written = model.with(add('resid_post.0', v, { where: { phase: 'generated' } }))
    const generation = written.generate({ ids }, { maxNewTokens: 3 })
    const { tokens } = await generation.result()
    await expect(written.generate({ ids: [...ids, ...tokens, 5] }, { cache: await generation.cache() }).result()).rejects.toThrow(
      "an edit's 'where'",
    )
  })
})

describe('prefixes', () => {
  it('are found again by tokens and edits, and only under the same ones', async () => {
    await using model = await tinyModel()
    const prefixes = new PrefixCache({ bytes: 1e6 })
    const cached = async (m: Model, row: number[]) => {
      const own = await scores(m, [row], { prefixes })
      close(own, await scores(m, [row]))
      return (await m.generate({ ids: row }, { maxNewTokens: 1, prefixes }).result()).cachedTokens
    }
    const first = await model.generate({ ids }, { ...options, prefixes }).result()
    expect(first.cachedTokens).toBe(0)
    expect((await model.generate({ ids: more }, { maxNewTokens: 1, prefixes }).result()).cachedTokens).toBe(ids.length)
    expect(await cached(model, more)).toBe(more.length - 1)
    const steered = model.with(add('resid_post.0', v, { scale: 3 }))
    expect((await steered.generate({ ids: more }, { maxNewTokens: 1, prefixes }).result()).cachedTokens).toBe(0)
    expect(await cached(steered, more)).toBe(more.length - 1)
    const other = model.with(add('resid_post.0', v, { scale: 3.5 }))
    expect((await other.generate({ ids: more }, { maxNewTokens: 1, prefixes }).result()).cachedTokens).toBe(0)
    // An edit of the third position is another one only from there on.
    const third = model.with(add('resid_post.0', v, { where: { positions: [2, -1] } }))
    await third.generate({ ids }, { maxNewTokens: 1, prefixes }).result()
    expect((await third.generate({ ids: more }, { maxNewTokens: 1, prefixes }).result()).cachedTokens).toBe(ids.length - 1)
    close(await scores(third, [more], { prefixes }), await scores(third, [more]))
  })

  it('stay within their bytes', async () => {
    await using model = await tinyModel()
    const one = (await model.prefill({ ids })).bytes
    const prefixes = new PrefixCache({ bytes: 2.5 * one })
    for (const first of [1, 2, 3, 4]) await model.prefill({ ids: [first, ...ids.slice(1)] }, { prefixes })
    expect(prefixes.bytes).toBe(2 * one)
    expect(() => new PrefixCache({ bytes: 0 })).toThrow('positive number of bytes')
  })
})

describe('rows of different lengths, each with its own edits', () => {
  it.each([tinyLlama, { ...tinyLlama, head_dim: 12 }, tinyGpt2])('are what each is alone ($model_type)', async (config) => {
    await using model = await tinyModel(config)
    const rows = [ids, ids.slice(0, 2), more, [7]]
    const where = (row: number) => ({ where: { rows: [row] } })
    const edits = (row: (n: number) => object) => [
      add('resid_post.0', v, { scale: 2, ...row(0) }),
      noise('resid_mid.1', 0.5, { seed: 4, ...row(1) }),
      set('attn_out.0', 0.1, row(2)),
      scale('mlp_out.1', 3, { ...row(3) }),
    ]
    const together = await scores(model.with(...edits(where)), rows)
    for (const [b, row] of rows.entries()) {
      const own = edits(() => ({}))[b] as ReturnType<typeof add>
      // Noise is drawn by the row's number, so its row keeps it.
      const alone =
        b === 1 ? await scores(model.with(edits(where)[1] as ReturnType<typeof add>), [[9], row]) : await scores(model.with(own), [row])
      close(together.slice(b * 6, (b + 1) * 6), b === 1 ? alone.slice(6) : alone)
    }
  })
})

describe('rotations that follow the length', () => {
  const rotating = (rope: object) => ({ ...tinyLlama, max_position_embeddings: 16, rope_scaling: rope })
  const longrope = {
    rope_type: 'longrope',
    factor: 4,
    original_max_position_embeddings: 10,
    short_factor: Array.from({ length: 8 }, (_, i) => 1 + i / 20),
    long_factor: Array.from({ length: 8 }, (_, i) => 2 + i),
  }
  it.each([
    ['dynamic', rotating({ rope_type: 'dynamic', factor: 3 })],
    ['longrope', { ...rotating(longrope), max_position_embeddings: 40 }],
  ])('read the row again where cached keys no longer hold: %s', async (_, config) => {
    await using model = await tinyModel(config)
    const result = await model.generate({ ids }, { maxNewTokens: 14, alternatives: 61 }).result()
    // Each token is that of a run of everything before it.
    for (const n of [0, 3, 4, 5, 9, 10, 11, 13]) {
      const { logits } = await model.run({ ids: [...ids, ...result.tokens.slice(0, n)] })
      const last = logits.at(0, -1)
      expect(result.tokens[n]).toBe(last.indexOf(Math.max(...last)))
      const [first, second] = result.alternatives?.[n] ?? []
      expect((first?.logProbability as number) - (second?.logProbability as number)).toBeCloseTo(
        (last[first?.token as number] as number) - (last[second?.token as number] as number),
        4,
      )
    }
    // A cache of another length turns its keys otherwise.
    const cache = await model.prefill({ ids })
    const long = [...ids, ...result.tokens.slice(0, 12)]
    await expect(model.generate({ ids: long }, { cache }).result()).rejects.toThrow('rotation for this length')
    const prefixes = new PrefixCache({ bytes: 1e6 })
    await model.prefill({ ids }, { prefixes })
    expect((await model.generate({ ids: long }, { maxNewTokens: 1, prefixes }).result()).cachedTokens).toBe(0)
  })
})

describe('on a real checkpoint of test/goldens', () => {
  it('goes on from a cache in a model with a sliding window', async () => {
    await using model = await load(join(fileURLToPath(new URL('../../test/goldens/', import.meta.url)), 'mistral'), { threads: 1 })
    const cache = await model.prefill({ ids })
    const [a] = await model.generate({ ids: [...more, 1, 2, 3, 4] }, { maxNewTokens: 8, cache }).results()
    const [b] = await model.generate({ ids: [...more, 1, 2, 3, 4] }, { maxNewTokens: 8 }).results()
    expect(a?.tokens).toEqual(b?.tokens)
  })
})
