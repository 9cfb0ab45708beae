import { createHash } from 'node:crypto'
import { mkdir, readdir, readFile, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { beforeAll, describe, expect, it, vi } from 'vitest'
import { CancelledError } from '../base/errors.ts'
import * as files from '../base/files.ts'
import type { NDArray } from '../base/types.ts'
import { bf16ToF32, decodeSafetensors, f16ToF32 } from '../models/formats/index.ts'
import { temporaryFolder } from '../models/formats/testing.ts'
import { randomStream } from '../models/sampling.ts'
import type { Model } from '../run/index.ts'
import { tinyModel } from '../run/testing.ts'
import { add, edit } from '../sites/index.ts'
import { type CaptureOptions, type CaptureProgress, capture } from './capture.ts'
import * as disk from './capture-disk.ts'

let model: Model
beforeAll(async () => {
  model = await tinyModel()
})

/** Documents of several lengths; the longest one needs three rows. */
function documents(count: number, seed = 3): number[][] {
  const random = randomStream(seed)
  const lengths = Array.from({ length: count }, (_, i) => (i === 2 ? 150 : 1 + Math.floor(random() * 40)))
  return lengths.map((n) => Array.from({ length: n }, () => Math.floor(random() * 61)))
}

const newFolder = () => join(temporaryFolder(), 'out')

async function contents(folder: string): Promise<Record<string, string>> {
  const names = (await readdir(folder)).sort()
  const hash = async (name: string) =>
    createHash('sha256')
      .update(await readFile(join(folder, name)))
      .digest('hex')
  return Object.fromEntries(await Promise.all(names.map(async (n) => [n, await hash(n)] as const)))
}

/** The numbers of an array that {@link joined} has made. */
const numbers = (array: NDArray | undefined) => array?.data as unknown as number[]

/** All shards of a folder, joined. */
async function joined(folder: string): Promise<Record<string, NDArray>> {
  const shards = (await readdir(folder)).filter((n) => n.endsWith('.safetensors')).sort()
  const all = await Promise.all(shards.map(async (n) => decodeSafetensors(await readFile(join(folder, n))).tensors))
  const out: Record<string, NDArray> = {}
  for (const name of Object.keys(all[0] ?? {})) {
    const parts = all.map((t) => t[name] as NDArray)
    const rows = parts.reduce((n, p) => n + (p.shape[0] as number), 0)
    const data = parts.flatMap((p) => Array.from(p.data as Float32Array))
    const first = parts[0] as NDArray
    out[name] = { dtype: first.dtype, shape: [rows, ...first.shape.slice(1)], data: data as unknown as Float32Array }
  }
  return out
}

describe('capture', () => {
  it('keeps what a run gives, in the order of the corpus, with tokens, documents and positions', async () => {
    const out = newFolder()
    const data = [[], ...documents(12)]
    const { manifest, captured } = await capture(model, {
      data,
      sites: ['resid_post.{0,2}', 'z.1'],
      out,
      batchTokens: 128,
      shardTokens: 200,
    })
    const total = data.flat().length
    expect(captured).toBe(total)
    expect(manifest).toMatchObject({ format: 'actlens-activations/1', complete: true, tokens: total, dtype: 'f32' })
    expect(manifest.data).toMatchObject({ documents: 12, skipped: 1 })
    expect(manifest.sites).toEqual([
      { site: 'resid_post.0', axes: ['tokens', 'd_model'], shape: [32], dtype: 'float32' },
      { site: 'resid_post.2', axes: ['tokens', 'd_model'], shape: [32], dtype: 'float32' },
      { site: 'z.1', axes: ['tokens', 'head', 'd_head'], shape: [4, 16], dtype: 'float32' },
    ])
    expect(manifest.shards.length).toBeGreaterThan(1)
    expect(manifest.shards.map((s) => s.from).slice(1)).toEqual(manifest.shards.map((s) => s.to).slice(0, -1))
    expect(JSON.parse(await readFile(join(out, 'manifest.json'), 'utf8'))).toEqual(JSON.parse(JSON.stringify(manifest)))
    const all = await joined(out)
    expect(all['z.1']?.shape).toEqual([total, 4, 16])
    expect(all.tokens).toMatchObject({ dtype: 'int32', data: data.flat() })
    expect(all.document?.data).toEqual(data.flatMap((d, i) => d.map(() => i)))
    expect(all.position?.data).toEqual(data.flatMap((d) => d.map((_, p) => p)))
    expect(all.column?.data).toEqual(data.flatMap((d) => d.map((_, p) => p % 64)))
    // The reference runs every row alone.
    let at = 0
    for (const row of data.flatMap((d) => [d.slice(0, 64), d.slice(64, 128), d.slice(128)]).filter((r) => r.length > 0)) {
      const { taps } = await model.run({ ids: row }, { taps: ['resid_post.2', 'z.1'], logits: false })
      for (const [site, width] of [
        ['resid_post.2', 32],
        ['z.1', 64],
      ] as const) {
        const want = taps[site]?.data as Float32Array
        const have = numbers(all[site]).slice(at * width, (at + row.length) * width)
        expect(Math.max(...have.map((v, i) => Math.abs(v - (want[i] as number))))).toBeLessThan(2e-5)
      }
      at += row.length
    }
  })

  it('packs documents into full rows when asked to', async () => {
    const out = newFolder()
    const data = documents(12)
    const { manifest } = await capture(model, { data, sites: 'resid_post.1', out, packing: 'pack', context: 48 })
    const all = await joined(out)
    expect(manifest).toMatchObject({ packing: 'pack', context: 48 })
    expect(all.column?.data).toEqual(data.flat().map((_, i) => i % 48))
    const second = data.flat().slice(48, 96)
    const { taps } = await model.run({ ids: second }, { taps: ['resid_post.1'], logits: false })
    const have = numbers(all['resid_post.1']).slice(48 * 32, 96 * 32)
    expect(Math.max(...have.map((v, i) => Math.abs(v - (taps['resid_post.1']?.data[i] as number))))).toBeLessThan(2e-5)
  })

  it('keeps the positions that where chooses, and no more than maxTokens', async () => {
    const data = documents(12)
    const whole = newFolder()
    await capture(model, { data, sites: 'resid_post.1', out: whole })
    const all = await joined(whole)
    const rowAt = (i: number) => numbers(all['resid_post.1']).slice(i * 32, (i + 1) * 32)
    const last = newFolder()
    await capture(model, { data, sites: 'resid_post.*', out: last, where: { positions: -1, layers: [1, 2] } })
    const ends = await joined(last)
    expect(Object.keys(ends)).toEqual(expect.arrayContaining(['resid_post.1', 'resid_post.2']))
    expect(ends['resid_post.0']).toBeUndefined()
    const rows = data.flatMap((d) => [d.slice(0, 64), d.slice(64, 128), d.slice(128)]).filter((r) => r.length > 0)
    expect(ends.tokens?.data).toEqual(rows.map((r) => r.at(-1)))
    let at = 0
    for (const [i, row] of rows.entries()) {
      at += row.length
      const have = numbers(ends['resid_post.1']).slice(i * 32, (i + 1) * 32)
      expect(Math.max(...have.map((v, j) => Math.abs(v - (rowAt(at - 1)[j] as number))))).toBeLessThan(2e-5)
    }
    const few = newFolder()
    const { manifest } = await capture(model, { data, sites: 'resid_post.1', out: few, maxTokens: 77, batchTokens: 32 })
    expect(manifest.tokens).toBe(77)
    expect((await joined(few)).tokens?.data).toEqual(data.flat().slice(0, 77))
    const when = newFolder()
    const vector = new Array(32).fill(0).map((_, i) => (i === 3 ? 1 : 0))
    await capture(model, {
      data,
      sites: 'resid_post.1',
      out: when,
      where: { when: { site: 'resid_post.1', vector, above: 0 } },
      maxTokens: 20,
      batchTokens: 16,
    })
    const chosen = data
      .flat()
      .filter((_, i) => (rowAt(i)[3] as number) > 0)
      .slice(0, 20)
    expect((await joined(when)).tokens?.data).toEqual(chosen)
  })

  it('writes f16, bf16 and int8 as close as these types allow', async () => {
    const data = documents(4)
    const full = newFolder()
    await capture(model, { data, sites: 'resid_post.1', out: full })
    const want = (await joined(full))['resid_post.1']?.data as unknown as number[]
    const worst = (have: ArrayLike<number>) =>
      Math.max(...want.map((v, i) => Math.abs(v - (have[i] as number)) / Math.max(0.1, Math.abs(v))))
    const codes = async (dtype: 'f16' | 'bf16' | 'int8') => {
      const out = newFolder()
      await capture(model, { data, sites: 'resid_post.1', out, dtype })
      return joined(out)
    }
    const f16 = await codes('f16')
    expect(f16['resid_post.1']?.dtype).toBe('float16')
    expect(worst(f16ToF32(Uint16Array.from(numbers(f16['resid_post.1']))))).toBeLessThan(6e-4)
    const bf16 = await codes('bf16')
    expect(worst(bf16ToF32(Uint16Array.from(numbers(bf16['resid_post.1']))))).toBeLessThan(5e-3)
    const int8 = await codes('int8')
    expect(int8['resid_post.1.scale']).toMatchObject({ dtype: 'float32', shape: [data.flat().length] })
    const values = numbers(int8['resid_post.1']).map((c, i) => c * (numbers(int8['resid_post.1.scale'])[Math.floor(i / 32)] as number))
    const largest = Math.max(...want.map(Math.abs))
    expect(Math.max(...want.map((v, i) => Math.abs(v - (values[i] as number))))).toBeLessThan(largest / 250)
  })

  it('reports rate, size and time left, and says which edits held nowhere', async () => {
    const reports: CaptureProgress[] = []
    const steered = model.with(add('resid_post.0', new Float32Array(32).fill(1), { where: { tokens: [60] } }))
    const data = documents(12).map((d) => d.filter((t) => t !== 60).concat(1))
    const { unfired, manifest } = await capture(steered, {
      data,
      sites: 'resid_post.1',
      out: newFolder(),
      onProgress: (p) => reports.push(p),
      batchTokens: 64,
      shardTokens: 64,
    })
    expect(unfired).toEqual([expect.stringMatching(/held nowhere/)])
    expect(manifest.edits).toMatchObject([{ op: 'add', site: 'resid_post.0' }])
    const last = reports.at(-1) as CaptureProgress
    expect(last).toMatchObject({ done: data.flat().length, total: data.flat().length, unit: 'tokens', secondsLeft: 0 })
    expect(last.bytes).toBe(data.flat().length * (32 * 4 + 16))
    expect(last.task).toMatch(/capturing resid_post\.1 \(0\.\d MB\)/)
    // A small corpus is tokenised whole, so the estimate is exact from the start.
    expect(reports[0]?.total).toBe(data.flat().length)
    expect(reports.some((r) => r.tokensPerSecond > 0 && Number.isFinite(r.secondsLeft))).toBe(true)
  })

  it('refuses what cannot be done with a sentence and leaves nothing behind', async () => {
    const data = documents(3)
    const out = newFolder()
    const cases: readonly (readonly [Partial<CaptureOptions>, RegExp])[] = [
      [{ sites: 'attn_probs.1' }, /'attn_probs\.1' cannot be captured: it has a key axis/],
      [{ sites: 'resid_pots.1' }, /did you mean/],
      [{ sites: [] }, /No site is named/],
      [{ where: { rows: [0] } }, /'where\.rows' of a capture means nothing/],
      [{ where: { phase: 'generated' } }, /can never hold/],
      [{ where: { layers: 0 } }, /leaves none of its sites/],
      [{ where: { tokens: [60], positions: 5000 } }, /Nothing was captured/],
      [{ context: 65 }, /loaded for 64 tokens/],
      [{ maxTokens: 0 }, /positive whole number/],
      [{ dtype: 'f64' as 'f32' }, /no element type 'f64'/],
      [{ data: [[61]] }, /Document 0 holds the token 61/],
      [{ data: ['text'] }, /no tokenizer/],
    ]
    for (const [options, message] of cases) {
      await expect(capture(model, { data, sites: 'resid_post.1', out, ...options }), String(message)).rejects.toThrow(message)
      await expect(readdir(out)).rejects.toThrow(/ENOENT/)
    }
    await expect(capture(model.with(edit('resid_post.0', (x) => x)), { data, sites: 'resid_post.1', out })).rejects.toThrow(
      /is a function, which cannot be saved/,
    )
    await mkdir(out)
    await writeFile(join(out, 'mine.txt'), 'x')
    await expect(capture(model, { data, sites: 'resid_post.1', out })).rejects.toThrow(/exists and is not empty/)
    await expect(capture(model, { data, sites: 'resid_post.1', out, resume: true })).rejects.toThrow(/holds other files and no capture/)
  })

  it('refuses a disk that is too small before it begins, and tells of one that fills up', async () => {
    const out = newFolder()
    const data = documents(12)
    const free = vi.spyOn(disk, 'freeBytes').mockResolvedValue(1000)
    await expect(capture(model, { data, sites: 'resid_post.*', out })).rejects.toThrow(
      /needs about \d\.\d MB.*0\.0 MB are free.*smaller element type/,
    )
    await expect(readdir(out)).rejects.toThrow(/ENOENT/)
    free.mockRestore()
    const { writeFileWhole } = files
    const write = vi.spyOn(files, 'writeFileWhole').mockImplementation(async (path, ...rest) => {
      if (path.endsWith('00002.safetensors')) throw files.writeFailure(Object.assign(new Error('full'), { code: 'ENOSPC' }), path)
      return writeFileWhole(path, ...rest)
    })
    const settings = { data, sites: 'resid_post.1', out, batchTokens: 32, shardTokens: 32 }
    await expect(capture(model, settings)).rejects.toThrow(/disk is full, so .*00002\.safetensors was not written.*free some space/)
    write.mockRestore()
    expect((await readdir(out)).sort()).toEqual(['activations-00000.safetensors', 'activations-00001.safetensors', 'manifest.json'])
    const { manifest } = await capture(model, { ...settings, resume: true })
    expect(manifest.tokens).toBe(data.flat().length)
  })
})

describe('resume', () => {
  const settings = (out: string): CaptureOptions => ({
    data: documents(30),
    sites: ['resid_post.1', 'z.0'],
    out,
    dtype: 'int8',
    batchTokens: 64,
    shardTokens: 90,
  })

  it('gives the same bytes wherever it was interrupted', async () => {
    const whole = newFolder()
    const steps: number[] = []
    await capture(model, { ...settings(whole), onProgress: (p) => steps.push(p.done) })
    const want = await contents(whole)
    expect(Object.keys(want).length).toBeGreaterThan(4)
    for (const stop of new Set(steps.filter((s) => s < (steps.at(-1) as number)))) {
      const out = newFolder()
      const controller = new AbortController()
      const stopped = capture(model, {
        ...settings(out),
        signal: controller.signal,
        onProgress: (p) => {
          if (p.done >= stop) controller.abort()
        },
      })
      await expect(stopped).rejects.toBeInstanceOf(CancelledError)
      const kept = (await readdir(out)).filter((n) => n.endsWith('.safetensors'))
      // What a killed process leaves: a part of a file, and a shard that the manifest does not name yet.
      await writeFile(join(out, '.activations-00001.safetensors.123.abcdef01.tmp'), 'half')
      await writeFile(join(out, `activations-0000${kept.length}.safetensors`), 'unnamed')
      const { captured, manifest } = await capture(model, { ...settings(out), resume: true })
      expect(await contents(out), `stopped at ${stop}`).toEqual(want)
      expect(captured).toBe(manifest.tokens - (manifest.shards[kept.length - 1]?.to ?? 0))
    }
  })

  it('makes shards that were lost or damaged again, and does nothing for a complete capture', async () => {
    const out = newFolder()
    await capture(model, settings(out))
    const want = await contents(out)
    expect((await capture(model, { ...settings(out), resume: true })).captured).toBe(0)
    await writeFile(join(out, 'activations-00001.safetensors'), 'short')
    await capture(model, { ...settings(out), resume: true })
    expect(await contents(out)).toEqual(want)
  })

  it('refuses to mix captures', async () => {
    const out = newFolder()
    await capture(model, settings(out))
    const other = { ...settings(out), resume: true }
    await expect(capture(model, { ...other, dtype: 'f32' })).rejects.toThrow(
      /other settings \(sites, dtype\).*same ones, or another folder/,
    )
    await expect(capture(model, { ...other, data: documents(31) })).rejects.toThrow(/other settings \(data\)/)
    await expect(capture(model.with(add('resid_post.0', new Float32Array(32).fill(1))), other)).rejects.toThrow(/other settings \(edits\)/)
    await expect(capture(model, settings(out))).rejects.toThrow(/exists and is not empty: resume it/)
    await writeFile(join(out, 'manifest.json'), '{"format":"x"}')
    await expect(capture(model, other)).rejects.toThrow(/no manifest of the format/)
  })
})
