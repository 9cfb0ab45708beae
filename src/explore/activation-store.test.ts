import { readFile, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { expect, it } from 'vitest'
import { temporaryFolder } from '../models/formats/testing.ts'
import { tinyModel } from '../run/testing.ts'
import { type ActivationStore, openActivations } from './activation-store.ts'
import { type CaptureOptions, capture } from './capture.ts'

const data = Array.from({ length: 40 }, (_, i) => Array.from({ length: 1 + ((i * 7) % 30) }, (_, j) => (i * 31 + j * 17) % 61))
const total = data.flat().length

async function captured(options: Partial<CaptureOptions> = {}): Promise<ActivationStore> {
  const model = await tinyModel()
  const out = join(temporaryFolder(), 'out')
  await capture(model, { data, sites: ['resid_post.1', 'z.0'], out, batchTokens: 64, shardTokens: 100, ...options })
  return openActivations(out)
}

async function all(store: ActivationStore, site: string): Promise<Float32Array> {
  return (await store.rows(site, 0, store.tokens)).values.data
}

it('reads rows, documents and pieces across shards', async () => {
  const store = await captured()
  expect(store.manifest.shards.length).toBeGreaterThan(3)
  expect(store.tokens).toBe(total)
  const whole = await store.rows('z.0', 0, total)
  expect(whole.values.shape).toEqual([total, 4, 16])
  expect([...whole.tokens]).toEqual(data.flat())
  const model = await tinyModel()
  const seventh = await store.document('z.0', 7)
  const { taps } = await model.run({ ids: data[7] as number[] }, { taps: ['z.0'], logits: false })
  expect([...seventh.tokens]).toEqual(data[7])
  expect([...seventh.document]).toEqual((data[7] as number[]).map(() => 7))
  expect(Math.max(...seventh.values.data.map((v, i) => Math.abs(v - (taps['z.0']?.data[i] as number))))).toBeLessThan(2e-5)
  expect((await store.document('z.0', 4000)).values.shape).toEqual([0, 4, 16])
  const row = await store.row('z.0', seventh.from)
  expect(row.shape).toEqual([4, 16])
  expect(row.data).toEqual(seventh.values.data.slice(0, 64))
  const pieces: number[] = []
  for await (const piece of store.chunks('z.0', { rows: 37 })) {
    expect(piece.from).toBe(pieces.length / 64)
    for (const v of piece.values.data) pieces.push(v)
  }
  expect(Float32Array.from(pieces)).toEqual(whole.values.data)
  await store.close()
})

it('gives every row once in a mixed order that the seed decides', async () => {
  const store = await captured()
  const order = async (seed: number, bufferTokens: number, batch = 32) => {
    const rows: number[] = []
    const whole = await all(store, 'resid_post.1')
    for await (const b of store.shuffled({ site: 'resid_post.1', batch, seed, bufferTokens })) {
      expect(b.values.shape).toEqual([b.rows.length, 32])
      for (const [i, r] of b.rows.entries()) expect(b.values.data[i * 32 + 5]).toBe(whole[r * 32 + 5])
      rows.push(...b.rows)
    }
    return rows
  }
  const sorted = (rows: readonly number[]) => [...rows].sort((a, b) => a - b)
  const everything = Array.from({ length: total }, (_, i) => i)
  for (const [buffer, batch] of [
    [1, 32],
    [50, 7],
    [100_000, 32],
    [64, total + 10],
  ] as const)
    expect(sorted(await order(1, buffer, batch))).toEqual(everything)
  const first = await order(1, 200)
  expect(await order(1, 200)).toEqual(first)
  expect(await order(2, 200)).not.toEqual(first)
  // Far from sorted: the mean distance of neighbours is a good part of the buffer.
  const jumps = first.slice(1).map((r, i) => Math.abs(r - (first[i] as number)))
  expect(jumps.reduce((a, b) => a + b, 0) / jumps.length).toBeGreaterThan(50)
})

it('decodes every element type', async () => {
  const reference = await all(await captured(), 'resid_post.1')
  for (const [dtype, within] of [
    ['f16', 1e-3],
    ['bf16', 1e-2],
    ['int8', 3e-2],
  ] as const) {
    const have = await all(await captured({ dtype }), 'resid_post.1')
    expect(Math.max(...have.map((v, i) => Math.abs(v - (reference[i] as number))))).toBeLessThan(within * 3)
  }
})

it('notices damage and wrong questions', async () => {
  const store = await captured()
  await store.verify()
  await expect(store.rows('resid_post.2', 0, 1)).rejects.toThrow(/no activations of 'resid_post\.2'; did you mean 'resid_post\.1'/)
  await expect(store.rows('z.0', 5, total + 1)).rejects.toThrow(new RegExp(`rows 0 to ${total - 1}`))
  const path = join(store.folder, 'activations-00001.safetensors')
  const bytes = await readFile(path)
  bytes[bytes.length - 5] = (bytes[bytes.length - 5] as number) ^ 1
  await writeFile(path, bytes)
  await expect(store.verify()).rejects.toThrow(/00001\.safetensors is not what the manifest promises/)
  await writeFile(path, bytes.subarray(1))
  await expect(openActivations(store.folder)).rejects.toThrow(/instead of.*capture --resume/)
  await expect(openActivations(temporaryFolder())).rejects.toThrow(/holds no manifest\.json/)
  await expect(openActivations('/nowhere')).rejects.toThrow(/There is no folder/)
})
