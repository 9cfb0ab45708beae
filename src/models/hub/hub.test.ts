import { mkdtemp, readdir, readFile, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, describe, expect, test, vi } from 'vitest'
import { CancelledError, UsageError } from '../../base/errors.ts'
import type { Progress } from '../../base/progress.ts'
import { listModels } from './cache.ts'
import { fetchHubModel, type HubModel, type HubOptions, listHubFiles } from './hub.ts'
import { type Mischief, StandIn, someBytes } from './stand-in.ts'

const commit = 'a'.repeat(40)
const later = 'b'.repeat(40)
const weights = someBytes(150_000)
const files = {
  'config.json': '{"model_type":"llama"}',
  'tokenizer.json': '{"model":{}}',
  'README.md': '# read me',
  'model.safetensors': weights,
  'onnx/model.onnx': someBytes(9000, 4),
  'pytorch_model.bin': someBytes(9000, 5),
}

let server: StandIn
let cache: string
beforeEach(async () => {
  vi.stubEnv('HF_TOKEN', undefined)
  vi.stubEnv('HF_ENDPOINT', undefined)
  vi.stubEnv('HF_HUB_OFFLINE', undefined)
  server = await new StandIn().start()
  server.publish('org/name', commit, files)
  cache = await mkdtemp(join(tmpdir(), 'actlens-hub-'))
})
afterEach(async () => {
  vi.unstubAllEnvs()
  await server.stop()
  await rm(cache, { recursive: true, force: true })
})

const patience = { attempts: 3, backoffMs: 1, stallMs: 1000 }
const get = (model: Partial<HubModel> = {}, more: HubOptions = {}) =>
  fetchHubModel({ repo: 'org/name', ...model }, { endpoint: server.url, cache, patience, ...more })
const weightsPath = `/org/name/resolve/${commit}/model.safetensors`
const plan = (path: string, ...acts: Mischief[]) => server.mischief.set(path, acts)
const parts = async () => (await readdir(join(cache, 'parts'), { recursive: true })).sort()

describe('a hub model', () => {
  test('is fetched: the small files and one form of the weights', async () => {
    const seen: Progress[] = []
    const found = await get({}, { onProgress: (p) => seen.push(p) })
    expect((await readdir(found.folder)).sort()).toEqual(['config.json', 'model.safetensors', 'tokenizer.json'])
    expect(Buffer.compare(await readFile(join(found.folder, 'model.safetensors')), weights)).toBe(0)
    expect(found).toMatchObject({ id: 'org/name', kind: 'hub', commit })
    expect(found.hash).toMatch(/^[0-9a-f]{64}$/)
    const total = weights.length + files['config.json'].length + files['tokenizer.json'].length
    expect(seen.at(-1)).toEqual({ task: 'fetching model.safetensors', done: total, total, unit: 'bytes' })
    expect(await parts()).toEqual([])
  })

  test('is not asked for again unless told to, and then only what the commit is', async () => {
    const found = await get()
    const before = server.seen.length
    expect(await get()).toEqual(found)
    expect(server.seen.length).toBe(before)
    expect(await get({}, { refresh: true })).toEqual(found)
    expect(server.seen.slice(before).map((request) => request.path)).toEqual(['/api/models/org/name/revision/main'])
  })

  test('follows a branch that moved when told to', async () => {
    const found = await get()
    server.publish('org/name', later, { ...files, 'config.json': '{"model_type":"gpt2"}' })
    expect((await get()).commit).toBe(commit)
    const moved = await get({}, { refresh: true })
    expect(moved.commit).toBe(later)
    expect(moved.hash).not.toBe(found.hash)
    expect((await listModels(cache)).length).toBe(1)
  })

  test('of a revision, and one file of several forms', async () => {
    server.publish('org/name', later, files, 'v2')
    expect((await get({ revision: 'v2' })).commit).toBe(later)
    const onnx = await get({ file: 'onnx/model.onnx' })
    expect(onnx.id).toBe('org/name#onnx/model.onnx')
    expect((await readdir(onnx.folder, { recursive: true })).sort()).toEqual(['config.json', 'onnx', 'onnx/model.onnx', 'tokenizer.json'])
  })

  test('in shards is fetched by its index', async () => {
    const map = {
      weight_map: { a: 'model-00001-of-00002.safetensors', b: 'model-00002-of-00002.safetensors', c: 'model-00001-of-00002.safetensors' },
    }
    const shards = { 'model-00001-of-00002.safetensors': someBytes(3000, 1), 'model-00002-of-00002.safetensors': someBytes(4000, 2) }
    const rest = { 'config.json': '{}', 'model.safetensors.index.json': JSON.stringify(map), 'stray.safetensors': someBytes(2000, 3) }
    server.publish('org/shards', commit, { ...rest, ...shards })
    const found = await get({ repo: 'org/shards' })
    expect((await readdir(found.folder)).sort()).toEqual(['config.json', ...Object.keys(shards), 'model.safetensors.index.json'].sort())
    server.publish('org/gap', commit, { ...rest, 'model-00001-of-00002.safetensors': someBytes(3000, 1) })
    await expect(get({ repo: 'org/gap' })).rejects.toThrow(/names files that are not there: model-00002-of-00002\.safetensors/)
  })

  test('lists its files with their hashes', async () => {
    const listed = await listHubFiles({ repo: 'org/name', revision: commit }, { endpoint: server.url, patience })
    expect(listed.map((file) => file.path).sort()).toEqual(Object.keys(files).sort())
    expect(listed.find((file) => file.path === 'model.safetensors')).toMatchObject({
      size: 150_000,
      sha256: expect.stringMatching(/^[0-9a-f]{64}$/),
    })
    expect(listed.find((file) => file.path === 'config.json')?.gitHash).toMatch(/^[0-9a-f]{40}$/)
  })
})

describe('a hub that misbehaves', () => {
  test('drops connections: the rest is fetched by range', async () => {
    plan(weightsPath, { kind: 'drop', after: 30_000 }, { kind: 'drop', after: 30_000 })
    await get()
    expect(server.requests('model.safetensors').map((request) => request.range)).toEqual([undefined, 'bytes=30000-', 'bytes=60000-'])
  })

  test('fails in the middle: the next call continues there and fetches nothing twice', async () => {
    plan(weightsPath, { kind: 'drop', after: 40_000 }, ...Array.from({ length: 3 }, () => ({ kind: 'status', status: 502 }) as const))
    await expect(get()).rejects.toThrow(
      /Could not fetch model\.safetensors of org\/name: .* answered 502\. The 40000 bytes that arrived are kept/,
    )
    expect((await parts()).some((path) => path.endsWith('model.safetensors.part'))).toBe(true)
    await get()
    expect(server.requests('model.safetensors').at(-1)?.range).toBe('bytes=40000-')
    expect(server.requests('resolve').filter((request) => request.path.endsWith('config.json')).length).toBe(1)
    expect(await parts()).toEqual([])
  })

  test('moves its branch during an interruption: nothing is mixed', async () => {
    plan(weightsPath, { kind: 'drop', after: 40_000 }, ...Array.from({ length: 3 }, () => ({ kind: 'status', status: 502 }) as const))
    await expect(get()).rejects.toThrow()
    const other = someBytes(150_000, 77)
    server.publish('org/name', later, { ...files, 'model.safetensors': other })
    const found = await get()
    expect(Buffer.compare(await readFile(join(found.folder, 'model.safetensors')), other)).toBe(0)
    expect(server.requests('model.safetensors').at(-1)?.range).toBeUndefined()
  })

  test('sends wrong bytes: they are deleted, and both hashes told', async () => {
    plan(weightsPath, { kind: 'bytes', bytes: someBytes(150_000, 8) })
    await expect(get()).rejects.toThrow(
      /model\.safetensors of org\/name has SHA-256 [0-9a-f]{64} where the hub lists [0-9a-f]{64}: it was deleted/,
    )
    expect((await parts()).some((path) => path.includes('safetensors'))).toBe(false)
    await get()
    plan(`/org/name/resolve/${commit}/config.json`, { kind: 'bytes', bytes: new TextEncoder().encode('{"model_type":"other"}') })
    await expect(get({}, { cache: join(cache, 'second') })).rejects.toThrow(/config\.json of org\/name has git hash/)
  })

  test('lies about lengths', async () => {
    plan(weightsPath, { kind: 'length', claimed: 10_000 })
    await get()
    plan(weightsPath, { kind: 'length', claimed: 500_000 })
    await expect(get({}, { cache: join(cache, 'second') })).rejects.toThrow(/holds 500000 bytes where 150000 were promised/)
    plan(weightsPath, { kind: 'drop', after: 10 }, { kind: 'range-total', total: 12 })
    await expect(get({}, { cache: join(cache, 'third') })).rejects.toThrow(/holds 12 bytes where 150000 were promised/)
  })

  test('is overloaded for a moment', async () => {
    plan(
      '/api/models/org/name/revision/main',
      { kind: 'status', status: 429, headers: { 'retry-after': '0' } },
      { kind: 'status', status: 500 },
    )
    plan(`/api/models/org/name/tree/${commit}`, { kind: 'status', status: 503 })
    await get()
  })

  test('stays overloaded', async () => {
    plan('/api/models/org/name/revision/main', ...Array.from({ length: 3 }, () => ({ kind: 'status', status: 429 }) as const))
    await expect(get()).rejects.toThrow(/Could not fetch org\/name: the server .* answered 429 \(too many requests\)/)
  })

  test('lists paths that would leave the folder', async () => {
    for (const path of ['../evil.json', 'a/../../config.json', '/etc/config.json', 'C:\\config.json', 'a//b']) {
      server.publish('org/evil', commit, { [path]: 'x', 'config.json': '{}' })
      await expect(get({ repo: 'org/evil' })).rejects.toThrow(/unsafe path/)
    }
  })

  test('lists no hash', async () => {
    const tree = server.json.get(`/api/models/org/name/tree/${commit}`) as Record<string, unknown>[]
    server.json.set(
      `/api/models/org/name/tree/${commit}`,
      tree.map(({ oid, lfs, ...rest }) => rest),
    )
    await expect(get()).rejects.toThrow(/The hub lists no hash for config\.json of org\/name/)
  })

  test('does not say which commit', async () => {
    server.json.set('/api/models/org/name/revision/main', { id: 'org/name', lastModified: '2026-01-01' })
    await expect(get()).rejects.toThrow(/did not say which commit org\/name is at/)
  })
})

describe('access', () => {
  test('refusals say what to do, depending on whether there is a token', async () => {
    const api = '/api/models/org/name/revision/main'
    plan(api, { kind: 'status', status: 401 })
    await expect(get()).rejects.toThrow(
      /There is no org\/name on http.*, or it may not be read\. Check the name\. If it is private or gated, set HF_TOKEN/,
    )
    plan(api, { kind: 'status', status: 403 })
    await expect(get({}, { token: 'secret' })).rejects.toThrow(/Access is refused\. Check that HF_TOKEN is valid/)
    await expect(get({ repo: 'org/none' })).rejects.toThrow(/There is no such repository, revision or file/)
    plan(weightsPath, { kind: 'status', status: 403 })
    await expect(get()).rejects.toThrow(/Could not fetch model\.safetensors of org\/name: .* answered 403\. Access is refused/)
  })

  test('the token comes from the environment and goes to the hub only', async () => {
    vi.stubEnv('HF_TOKEN', 'from-environment')
    vi.stubEnv('HF_ENDPOINT', `${server.url}/`)
    await fetchHubModel({ repo: 'org/name' }, { cache, patience })
    expect(server.seen.every((request) => request.authorization === 'Bearer from-environment')).toBe(true)
    const elsewhere = await new StandIn().start()
    try {
      elsewhere.files.set('/weights', weights)
      plan(weightsPath, { kind: 'status', status: 302, headers: { location: `${elsewhere.url}/weights` } })
      await get({}, { cache: join(cache, 'second') })
      expect(elsewhere.seen).toEqual([{ path: '/weights', range: undefined, authorization: undefined }])
    } finally {
      await elsewhere.stop()
    }
  })

  test('offline uses the cache, or says what is missing', async () => {
    vi.stubEnv('HF_HUB_OFFLINE', '1')
    await expect(get()).rejects.toThrow(/org\/name is not \(or not whole\) in the model cache .* offline mode is on/)
    await get({}, { offline: false })
    const before = server.seen.length
    expect((await get({}, { refresh: true })).commit).toBe(commit)
    expect(server.seen.length).toBe(before)
  })

  test('an address that is not one is refused', async () => {
    await expect(get({}, { endpoint: 'hub.example' })).rejects.toThrow(
      /must be a URL such as https:\/\/huggingface\.co, but .* 'hub\.example'/,
    )
    await expect(get({}, { endpoint: 'hub.example' })).rejects.toBeInstanceOf(UsageError)
  })

  test('is cancelled with its parts kept', async () => {
    plan(weightsPath, { kind: 'stall', after: 50_000 })
    const abort = new AbortController()
    const onProgress = (p: Progress) => p.done > 50_000 && setTimeout(() => abort.abort(), 10)
    await expect(get({}, { signal: abort.signal, onProgress, patience: { stallMs: 10_000 } })).rejects.toBeInstanceOf(CancelledError)
    await get()
    expect(server.requests('model.safetensors').at(-1)?.range).toBe('bytes=50000-')
  })
})
