import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, describe, expect, it } from 'vitest'
import { encodeSafetensors, openSafetensors } from '../models/formats/index.ts'
import { add, scale } from '../sites/edits.ts'
import { assemble } from './load.ts'
import { tinyGpt2, tinyLlama, tinyTensors } from './testing.ts'

const folder = await mkdtemp(join(tmpdir(), 'actlens-stream-'))
afterAll(() => rm(folder, { recursive: true }))

const rows = [
  [5, 17, 3, 44, 29, 8, 60],
  [9, 2, 33, 1],
]
const close = (a: ArrayLike<number>, b: ArrayLike<number>, tolerance = 2e-5) => {
  expect(a.length).toBe(b.length)
  expect(Array.from(a).reduce((w, v, i) => (v === b[i] ? w : Math.max(w, Math.abs(v - (b[i] as number)))), 0)).toBeLessThan(tolerance)
}

describe.each([
  // Unembeddings of several blocks' size, tied and not.
  ['llama', { ...tinyLlama, vocab_size: 2000 }],
  ['gpt2', { ...tinyGpt2, vocab_size: 4001 }],
] as const)('a streamed %s', (name, config) => {
  const open = async (options: object) => {
    const path = join(folder, `${name}.safetensors`)
    await writeFile(path, encodeSafetensors(tinyTensors(config)))
    return assemble({ id: name, hash: async () => name, store: await openSafetensors(path), config }, { threads: 1, ...options })
  }

  it('gives the numbers of a resident one: logits, taps, edits, text', async () => {
    await using resident = await open({})
    await using streamed = await open({ stream: true })
    const taps = ['resid_post.*', 'attn_probs.1', 'logits'] as const
    const edits = [add('resid_post.0', new Float32Array(32).fill(0.3)), scale('logits', 0.5)]
    for (const edited of [[], edits]) {
      const want = await resident.with(edited).run({ rows }, { taps })
      const got = await streamed.with(edited).run({ rows }, { taps })
      close(got.logits.data, want.logits.data, 1e-4)
      for (const site of Object.keys(want.taps)) close(got.taps[site]!.data, want.taps[site]!.data, 1e-4)
    }
    const ids = { ids: rows[0] as number[] }
    const text = { maxNewTokens: 5, temperature: 0 }
    const tokens = async (m: typeof resident) => (await m.generate(ids, text).result()).tokens
    expect(await tokens(streamed)).toEqual(await tokens(resident))
  })

  it('has the gradients of a resident one, at sites and parameters', async () => {
    await using resident = await open({})
    await using streamed = await open({ stream: true })
    const parameter = name === 'gpt2' ? 'transformer.h.1.mlp.c_fc.weight' : 'model.layers.1.mlp.up_proj.weight'
    const request = { of: { kind: 'next-token' as const }, at: ['resid_post.*', 'embeddings'], parameters: [parameter] }
    const [want, got] = [await resident.gradient(request, { rows }), await streamed.gradient(request, { rows })]
    expect(got.value).toBeCloseTo(want.value, 5)
    for (const site of Object.keys(want.sites)) close(got.sites[site]!.data, want.sites[site]!.data)
    close(got.parameters[parameter]!.data, want.parameters[parameter]!.data)
  })

  it('never holds more than three blocks of weights', async () => {
    await using streamed = await open({ stream: true })
    const { memory } = streamed
    let most = 0
    const watched = streamed.with({ op: 'function', site: 'resid_post.*', reads: [], apply: (x) => x })
    const timer = setInterval(() => {
      most = Math.max(most, watched.statistics.bytes)
    }, 0)
    await watched.run({ rows })
    await watched.gradient({ of: { kind: 'next-token' }, at: 'resid_pre.0' }, { rows })
    clearInterval(timer)
    expect(memory.streamed).toBe(true)
    expect(memory.bytes).toBeLessThan(0.5 * memory.weights)
    expect(Math.max(most, watched.statistics.bytes)).toBeLessThanOrEqual(memory.bytes)
    expect(most).toBeGreaterThan(0)
  })

  it('is chosen where the weights do not fit, and refused where not even three blocks do', async () => {
    await using probe = await open({ stream: true })
    const { memory } = probe
    await using chosen = await open({ memory: Math.ceil(memory.bytes * 1.2) })
    expect(chosen.memory.streamed).toBe(true)
    await using roomy = await open({ memory: memory.weights * 3 })
    expect(roomy.memory.streamed).toBe(false)
    await expect(open({ memory: memory.bytes / 2 })).rejects.toThrow('needs memory for 3 blocks')
  })
})
