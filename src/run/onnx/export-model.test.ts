/** @file Ordinary models written as ONNX files: the plain runtime gives what the model gives, padded, cached and edited; our importer finds the sites. */
import { readFileSync, rmSync } from 'node:fs'
import { dirname } from 'node:path'
import { afterAll, expect, test } from 'vitest'
import type { NDArray } from '../../base/types.ts'
import { add, scale, zero } from '../../sites/index.ts'
import { getRuntime } from '../../tensor/index.ts'
import type { Model } from '../model.ts'
import { tinyGpt2, tinyLlama, tinyModel } from '../testing.ts'
import type { ExportOptions } from './export-model.ts'
import { loadOnnx } from './load.ts'
import { fileOf, floats, longs } from './testing.ts'

const made: string[] = []
afterAll(() => {
  for (const path of made) rmSync(dirname(path), { recursive: true })
})

async function exported(model: Model, options: ExportOptions = {}) {
  const path = fileOf(new Uint8Array(0), 'model.onnx')
  made.push(path)
  return model.export(path, options)
}

/** The file in the runtime, without anything of ours. */
async function plainly(path: string) {
  const runtime = await getRuntime()
  const session = await runtime.compile(readFileSync(path), { device: 'cpu', threads: 1, memory: new Map() })
  return {
    async run(feeds: Readonly<Record<string, NDArray>>, outputs: readonly string[]): Promise<Record<string, NDArray>> {
      const given = Object.fromEntries(
        Object.entries(feeds).map(([n, v]) => [n, runtime.tensor(v.dtype as 'float32', v.shape, v.data as Float32Array)]),
      )
      const out = await session.run(given, Object.fromEntries(outputs.map((o) => [o, null])))
      return Object.fromEntries(
        Object.entries(out).map(([n, t]) => [n, { dtype: 'float32', shape: t.dims, data: t.data as Float32Array } as NDArray]),
      )
    },
    release: () => session.release(),
  }
}

/** Largest difference of values by the largest wanted one. */
function errorOf(ours: ArrayLike<number | bigint>, wanted: ArrayLike<number | bigint>): number {
  expect(ours.length).toBe(wanted.length)
  let [error, top] = [0, 0]
  for (let i = 0; i < wanted.length; i++) {
    top = Math.max(top, Math.abs(Number(wanted[i])))
    error = Math.max(error, Math.abs(Number(ours[i]) - Number(wanted[i])))
  }
  return error / top
}

const rows = [
  [5, 6, 7, 8, 9],
  [10, 11, 12],
]
const vocab = 61

/** Rows padded on one side. */
function padded(side: 'left' | 'right') {
  const width = 5
  const lay = (value: (row: readonly number[], i: number) => number) =>
    rows.flatMap((r) => Array.from({ length: width }, (_, c) => value(r, side === 'left' ? c - (width - r.length) : c)))
  return {
    input_ids: longs(
      [2, width],
      lay((r, i) => r[i] ?? 0),
    ),
    attention_mask: longs(
      [2, width],
      lay((r, i) => (r[i] === undefined ? 0 : 1)),
    ),
    at: (row: number, i: number) => row * width + i + (side === 'left' ? width - (rows[row] as number[]).length : 0),
  }
}

const wantedOf = async (model: Model, row: readonly number[]) => (await model.run({ ids: row })).logits.data

for (const [name, config, edits] of [
  [
    'llama',
    tinyLlama,
    [
      add(
        'resid_post.1',
        Array.from({ length: 32 }, (_, i) => Math.sin(i)),
      ),
      scale('attn_probs.0', 0.5),
    ],
  ],
  ['gpt2', tinyGpt2, [zero('mlp_out.0', { where: { tokens: [7, 11] } })]],
] as const)
  for (const edited of [false, true])
    test(`${name}${edited ? ', edited,' : ''} gives the same logits in the plain runtime, padded on either side`, async () => {
      const base = await tinyModel(config)
      const model = edited ? base.with(...edits) : base
      const written = await exported(model)
      expect(written.inputs).toEqual(['input_ids', 'attention_mask'])
      expect(written.outputs).toEqual(['logits'])
      expect(written.opset).toBe(21)
      const file = await plainly(written.path)
      for (const side of ['left', 'right'] as const) {
        const { at, ...feeds } = padded(side)
        const { logits } = (await file.run(feeds, ['logits'])) as { logits: NDArray<Float32Array> }
        for (const [b, row] of rows.entries()) {
          const wanted = await wantedOf(model, row)
          const ours = row.flatMap((_, i) => Array.from(logits.data.slice(at(b, i) * vocab, (at(b, i) + 1) * vocab)))
          expect(errorOf(ours, wanted)).toBeLessThan(1e-5)
        }
      }
      await file.release()
      await base.dispose()
    })

for (const [name, config] of [
  ['llama', tinyLlama],
  ['gpt2', tinyGpt2],
] as const)
  test(`${name} goes on with its cache for three steps, from a batch padded on the left, with edits of a phase`, async () => {
    const base = await tinyModel(config)
    const model = base.with(
      add(
        'resid_post.0',
        Array.from({ length: 32 }, (_, i) => Math.cos(i)),
        { where: { phase: 'generated' } },
      ),
      scale('attn_probs.1', 0.8),
    )
    const written = await exported(model, { cache: true, lastOnly: true, external: true })
    expect(written.weights).toBe(`${written.path}.data`)
    const layers = config.model_type === 'llama' ? 3 : 2
    const [kv, d] = config.model_type === 'llama' ? [2, 16] : [4, 8]
    const parts = Array.from({ length: layers }, (_, l) => ['key', 'value'].map((p) => `${l}.${p}`)).flat()
    const imported = await loadOnnx(written.path, { id: 'exported', hash: async () => '' }, { threads: 1 })
    const { at: _, ...first } = padded('left')
    let feeds: Record<string, NDArray> = {
      ...first,
      ...Object.fromEntries(parts.map((p) => [`past_key_values.${p}`, floats([2, kv as number, 0, d as number], [])])),
    }
    const steps = model.generate({ rows }, { temperature: 0, maxNewTokens: 4, ignoreEos: true })
    const tokens = (await steps.results()).map((r) => r.tokens)
    for (let n = 0; n < 4; n++) {
      const { outputs } = await imported.run(feeds)
      const logits = outputs.logits as NDArray
      expect(logits.shape).toEqual([2, 1, vocab])
      const chosen = [0, 1].map((b) => {
        const row = Array.from(logits.data as Float32Array).slice(b * vocab, (b + 1) * vocab)
        return row.indexOf(Math.max(...row))
      })
      expect(chosen).toEqual(tokens.map((t) => t[n]))
      const mask = feeds.attention_mask as NDArray
      const width = mask.shape[1] as number
      feeds = {
        input_ids: longs([2, 1], chosen),
        attention_mask: longs(
          [2, width + 1],
          [0, 1].flatMap((b) => [...Array.from(mask.data as BigInt64Array, Number).slice(b * width, (b + 1) * width), 1]),
        ),
        ...Object.fromEntries(parts.map((p) => [`past_key_values.${p}`, outputs[`present.${p}`] as NDArray])),
      }
    }
    await imported.dispose()
    await base.dispose()
  })

test('our importer finds the sites of an exported file, and reads and edits what the model has there', async () => {
  const model = await tinyModel()
  const { path, contrib } = await exported(model)
  expect(contrib).toContain('GroupQueryAttention')
  const imported = await loadOnnx(path, { id: 'exported', hash: async () => '' }, { threads: 1 })
  expect(imported.family).toBe('llama')
  const input = imported.tokenInputs([rows[0] as number[]])
  const taps = ['embeddings', 'resid_pre.0', 'q.1', 'z.2', 'mlp_act.1', 'mlp_out.2', 'resid_post.*', 'final_norm']
  const theirs = await imported.run(input, { taps })
  const ours = await model.run({ ids: rows[0] as number[] }, { taps })
  for (const site of Object.keys(theirs.taps))
    expect(errorOf(theirs.taps[site]?.data as Float32Array, ours.taps[site]?.data as Float32Array)).toBeLessThan(1e-5)
  const edit = scale('q.1', 0.3)
  const edited = await imported.with(edit).run(input)
  const wanted = await model.with(edit).run({ ids: rows[0] as number[] })
  expect(errorOf((edited.outputs.logits as NDArray).data, wanted.logits.data)).toBeLessThan(1e-5)
  expect(errorOf((edited.outputs.logits as NDArray).data, ours.logits.data)).toBeGreaterThan(1e-3)
  await imported.dispose()
  await model.dispose()
})

for (const cache of [false, true])
  test(`fused attention of an exported file${cache ? ' with a cache' : ''} shows its pattern, takes edits there, and has gradients`, async () => {
    const model = await tinyModel()
    const { path } = await exported(model, { cache })
    const imported = await loadOnnx(path, { id: 'exported', hash: async () => '' }, { threads: 1 })
    const ids = rows[0] as number[]
    const input = imported.tokenInputs([ids])
    const taps = ['attn_probs.*', 'z.1']
    const theirs = await imported.run(input, { taps })
    const ours = await model.run({ ids }, { taps })
    for (const site of ['attn_probs.0', 'attn_probs.1', 'attn_probs.2', 'z.1'])
      expect(errorOf(theirs.taps[site]?.data as Float32Array, ours.taps[site]?.data as Float32Array)).toBeLessThan(1e-5)
    const edits = [scale('attn_scores.1', 0.2), zero('attn_probs.2', { where: { positions: 3 } })]
    const edited = await imported.with(...edits).run(input)
    const wanted = (await model.with(...edits).run({ ids })).logits.data
    expect(errorOf((edited.outputs.logits as NDArray).data, wanted)).toBeLessThan(1e-5)
    expect(errorOf(ours.logits.data, wanted)).toBeGreaterThan(1e-3)
    const at = ['resid_pre.0', 'attn_probs.1', 'resid_mid.2']
    const of = { kind: 'next-token' } as const
    const g = await imported.with(scale('mlp_out.1', 0.5)).gradient({ of, at }, input)
    const w = await model.with(scale('mlp_out.1', 0.5)).gradient({ of, at }, { ids })
    for (const site of at) expect(errorOf(g.sites[site]?.data as Float32Array, w.sites[site]?.data as Float32Array)).toBeLessThan(1e-4)
    await imported.dispose()
    await model.dispose()
  })

test('a file of a model packed to 4 bits keeps them packed, and has gradients to its activations', async () => {
  const model = await tinyModel(tinyLlama, { precision: 'q4' })
  const { path, contrib } = await exported(model)
  expect(contrib).toContain('MatMulNBits')
  const imported = await loadOnnx(path, { id: 'exported', hash: async () => '' }, { threads: 1 })
  const ids = rows[0] as number[]
  const [of, at] = [{ kind: 'next-token' } as const, ['resid_post.0', 'mlp_act.1']]
  const g = await imported.gradient({ of, at }, imported.tokenInputs([ids]))
  const w = await model.gradient({ of, at }, { ids })
  for (const site of at) expect(errorOf(g.sites[site]?.data as Float32Array, w.sites[site]?.data as Float32Array)).toBeLessThan(1e-4)
  await imported.dispose()
  await model.dispose()
})

test('what the inputs of a file do not tell is refused in a sentence', async () => {
  const model = await tinyModel()
  const path = '/nowhere/model.onnx'
  const noise = { op: 'noise', site: 'resid_post.0', params: { std: 1, seed: 1 } } as const
  await expect(model.with(noise).export(path)).rejects.toThrow('its noise is drawn for each run')
  await expect(model.with(zero('resid_post.0', { where: { phase: 'generated' } })).export(path)).rejects.toThrow("its 'where.phase'")
  await expect(model.with(zero('resid_post.0', { where: { positions: -1 } })).export(path, { cache: true })).rejects.toThrow(
    'end of the prompt',
  )
  await model.dispose()
})
