/** Caches of other programs: files that `datasets`, `safetensors` and numpy wrote in the layouts of SAELens and delphi. */
import { copyFile, mkdir, readdir, readFile, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { describe, expect, it } from 'vitest'
import { temporaryFolder } from '../models/formats/testing.ts'
import type { ActivationChunk } from './activation-store.ts'
import { openDelphiLatents } from './delphi-cache.ts'
import { featureFrequencies } from './feature-query.ts'
import { type FeatureRows, writeFeatures } from './features.ts'
import { openSaelensActivations } from './saelens-cache.ts'

const fixture = (name: string) => new URL(`fixtures/${name}`, import.meta.url).pathname
const hook = 'blocks.1.hook_resid_post'

async function all<T>(items: AsyncIterable<T>): Promise<T[]> {
  const out: T[] = []
  for await (const item of items) out.push(item)
  return out
}
const numbers = (chunks: readonly ActivationChunk[]) => chunks.flatMap((c) => Array.from(c.values.data))

describe('activations of SAELens', () => {
  /** What the script that wrote the files put in: sin(0.3 i + shard). */
  const wanted = (sizes: readonly number[]) =>
    sizes.flatMap((n, phase) => Array.from({ length: n * 30 }, (_, i) => Math.sin(i * 0.3 + phase)))

  it('are read as one data set with tokens', async () => {
    const cache = await openSaelensActivations(fixture('saelens'))
    expect(cache).toMatchObject({ hooks: [hook], shapes: { [hook]: [5, 6] }, hasTokens: true })
    const chunks = await all(cache.chunks(hook))
    for (const [i, v] of wanted([3, 2]).entries()) expect(numbers(chunks)[i]).toBeCloseTo(v, 6)
    expect(chunks.map((c) => [c.from, c.values.shape])).toEqual([
      [0, [15, 6]],
      [15, [10, 6]],
    ])
    expect(chunks.flatMap((c) => Array.from(c.tokens))).toEqual([
      ...Array.from({ length: 15 }, (_, i) => (i * 7) % 61),
      ...Array.from({ length: 10 }, (_, i) => (i * 7 + 1) % 61),
    ])
    expect(chunks.flatMap((c) => Array.from(c.document))).toEqual(Array.from({ length: 25 }, (_, i) => Math.floor(i / 5)))
    expect(chunks.flatMap((c) => Array.from(c.position))).toEqual(Array.from({ length: 25 }, (_, i) => i % 5))
  })

  it('are read as shards of float16 without tokens', async () => {
    const cache = await openSaelensActivations(fixture('saelens-shards'))
    const chunks = await all(cache.chunks(hook))
    const have = numbers(chunks)
    expect(have).toHaveLength(90)
    for (const [i, v] of wanted([2, 1]).entries()) expect(Math.abs((have[i] as number) - v)).toBeLessThan(6e-4)
    expect(cache.hasTokens).toBe(false)
    expect(chunks.flatMap((c) => Array.from(c.tokens)).every((t) => t === -1)).toBe(true)
  })

  it('are refused where something is amiss', async () => {
    const cache = await openSaelensActivations(fixture('saelens'))
    await expect(all(cache.chunks('blocks.1.hook_resid_pots'))).rejects.toThrow(/did you mean 'blocks\.1\.hook_resid_post'/)
    await expect(openSaelensActivations(temporaryFolder())).rejects.toThrow(/no cached activations of SAELens/)
    const folder = temporaryFolder()
    for (const name of await readdir(fixture('saelens'))) await copyFile(join(fixture('saelens'), name), join(folder, name))
    const file = join(folder, 'data-00001-of-00002.arrow')
    const bytes = await readFile(file)
    await writeFile(file, bytes.subarray(0, bytes.length - 700))
    await expect(all((await openSaelensActivations(folder)).chunks(hook))).rejects.toThrow(/00001-of-00002\.arrow/)
    await writeFile(join(folder, 'state.json'), '{"_data_files":[{"filename":"lost.arrow"}]}')
    await expect(openSaelensActivations(folder)).rejects.toThrow(/lost\.arrow is missing/)
    await writeFile(join(folder, 'state.json'), '{"_data_files":[{"filename":"../x.arrow"}]}')
    await expect(openSaelensActivations(folder)).rejects.toThrow(/no data files in its folder/)
  })
})

describe('latents of delphi', async () => {
  const reference = JSON.parse(await readFile(fixture('delphi/reference.json'), 'utf8')) as {
    locations: [number, number, number][]
    activations: number[]
    tokens: number[][]
  }
  const rowsOf = (parts: readonly FeatureRows[]) =>
    parts.flatMap((p) =>
      Array.from(p.feature, (f, i) => ({
        feature: f,
        document: p.document[i],
        position: p.position[i],
        token: p.token[i],
        value: p.value[i] as number,
      })),
    )
  const key = (r: { document?: number | undefined; position?: number | undefined; feature: number }) =>
    `${r.document}/${r.position}/${r.feature}`

  it('are read from splits and from one file, and become a table', async () => {
    const cache = await openDelphiLatents(fixture('delphi'))
    expect(cache.modules).toEqual(['layers.0', 'layers.1.mlp'])
    expect(await cache.config('layers.1.mlp')).toEqual({ model_name: 'tiny', ctx_len: 5 })
    expect(await cache.config('layers.0')).toBeUndefined()
    for (const [module, tolerance] of [
      ['layers.1.mlp', 5e-4],
      ['layers.0', 1e-6],
    ] as const) {
      const rows = rowsOf(await all(cache.features(module)))
      const byKey = new Map(rows.map((r) => [key(r), r]))
      expect([rows.length, byKey.size]).toEqual([reference.activations.length, reference.activations.length])
      for (const [i, [document, position, feature]] of reference.locations.entries()) {
        const row = byKey.get(key({ document, position, feature }))
        expect(Math.abs((row?.value ?? 9) - (reference.activations[i] as number))).toBeLessThan(tolerance)
        expect(row?.token).toBe(module === 'layers.0' ? -1 : reference.tokens[document]?.[position])
      }
    }
    const out = join(temporaryFolder(), 'f.parquet')
    expect(await writeFeatures(out, cache.features('layers.1.mlp'))).toBe(reference.activations.length)
    const most = (await featureFrequencies(out, { limit: 1 }))[0]
    const counts = Array.from({ length: 10 }, (_, f) => reference.locations.filter((l) => l[2] === f).length)
    expect(most?.places).toBe(Math.max(...counts))
  })

  it('are refused where something is amiss', async () => {
    const cache = await openDelphiLatents(fixture('delphi'))
    await expect(all(cache.features('layers.1.mpl'))).rejects.toThrow(/did you mean 'layers\.1\.mlp'/)
    const folder = temporaryFolder()
    await expect(openDelphiLatents(folder)).rejects.toThrow(/no cached latents of delphi/)
    await mkdir(join(folder, 'm'))
    await copyFile(fixture('delphi/layers.0.safetensors'), join(folder, 'm', '0_9.safetensors'))
    const bytes = await readFile(join(folder, 'm', '0_9.safetensors'))
    await writeFile(join(folder, 'm', '0_9.safetensors'), bytes.subarray(0, bytes.length - 8))
    await expect(all((await openDelphiLatents(folder)).features('m'))).rejects.toThrow(/0_9\.safetensors/)
  })
})
