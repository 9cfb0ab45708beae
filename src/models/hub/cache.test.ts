import { fork } from 'node:child_process'
import { createHash } from 'node:crypto'
import { mkdir, mkdtemp, readdir, readFile, rm, truncate, utimes, writeFile } from 'node:fs/promises'
import { hostname, tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, describe, expect, test } from 'vitest'
import { CancelledError, FormatError, UsageError } from '../../base/errors.ts'
import { bytesOfModel, hashOfFiles, listModels, locate, removeModel, withStaging } from './cache.ts'
import { withLock } from './lock.ts'
import { pause } from './pause.ts'

let root: string
beforeEach(async () => {
  root = join(await mkdtemp(join(tmpdir(), 'actlens-cache-')), 'models')
})
afterEach(() => rm(join(root, '..'), { recursive: true, force: true }))

const sha256 = (text: string) => createHash('sha256').update(text).digest('hex')

async function put(id: string, files: Record<string, string>) {
  return withStaging(id, root, {}, async (staging) => {
    await mkdir(staging.folder, { recursive: true })
    const listed = Object.entries(files).map(([path, text]) => ({ path, size: text.length, sha256: sha256(text) }))
    for (const [path, text] of Object.entries(files)) await writeFile(join(staging.folder, path), text)
    return staging.publish({ kind: 'hub', commit: 'c0ffee', files: listed })
  })
}

describe('the model cache', () => {
  test('is empty before the first model, and reading it makes no folder', async () => {
    expect(await listModels(root)).toEqual([])
    expect(await locate('a/b', root)).toBeUndefined()
    await expect(readdir(root)).rejects.toThrow(/ENOENT/)
  })

  test('keeps models by content and finds them by id', async () => {
    const put1 = await put('a/b', { 'weights.bin': 'weights', 'config.json': '{}' })
    expect(put1.hash).toBe(sha256(`${sha256('{}')}  config.json\n${sha256('weights')}  weights.bin\n`))
    expect(put1.files.map((file) => file.path)).toEqual(['config.json', 'weights.bin'])
    expect(await locate('a/b', root)).toEqual(put1)
    expect(await readFile(join(put1.folder, 'weights.bin'), 'utf8')).toBe('weights')
    expect(bytesOfModel(put1)).toBe(9)
    const single = await put('c/d', { 'model.gguf': 'gguf' })
    expect(single.hash).toBe(sha256('gguf'))
    expect((await listModels(root)).map((model) => model.id)).toEqual(['a/b', 'c/d'])
    expect(await readdir(join(root, 'parts'))).toEqual([])
  })

  test('the hash does not depend on the order of files, but on their names', () => {
    const a = { path: 'a', sha256: sha256('1') }
    const b = { path: 'b', sha256: sha256('2') }
    expect(hashOfFiles([a, b])).toBe(hashOfFiles([b, a]))
    expect(hashOfFiles([a, b])).not.toBe(hashOfFiles([{ ...a, path: 'c' }, b]))
  })

  test('a model whose file is missing or has another size is not found', async () => {
    const model = await put('a/b', { 'w.bin': 'weights' })
    await truncate(join(model.folder, 'w.bin'), 3)
    expect(await locate('a/b', root)).toBeUndefined()
    await put('a/b', { 'w.bin': 'weights' })
    expect((await locate('a/b', root))?.hash).toBe(model.hash)
    expect(await readFile(join(model.folder, 'w.bin'), 'utf8')).toBe('weights')
  })

  test('content is shared between ids and goes with the last one', async () => {
    const one = await put('a/b', { 'w.bin': 'weights' })
    const two = await put('a/b@main', { 'w.bin': 'weights' })
    expect(two.folder).toBe(one.folder)
    expect(await removeModel('a/b', root)).toBe(true)
    expect(await locate('a/b@main', root)).toBeDefined()
    expect(await removeModel('a/b@main', root)).toBe(true)
    expect(await removeModel('a/b@main', root)).toBe(false)
    expect((await readdir(root)).sort()).toEqual(['index.json', 'parts'])
    expect(await readdir(join(root, 'parts'))).toEqual([])
  })

  test('removing also throws away what an interrupted fetch left', async () => {
    await expect(
      withStaging('a/b', root, {}, async (staging) => {
        await mkdir(staging.folder, { recursive: true })
        await writeFile(join(staging.folder, 'w.part'), 'half')
        throw new CancelledError()
      }),
    ).rejects.toBeInstanceOf(CancelledError)
    expect((await readdir(join(root, 'parts'))).length).toBe(1)
    expect(await removeModel('a/b', root)).toBe(false)
    expect(await readdir(join(root, 'parts'))).toEqual([])
  })

  test('a model that is being fetched cannot be removed', async () => {
    await withStaging('a/b', root, {}, async () => {
      await expect(removeModel('a/b', root)).rejects.toThrow(/a\/b is being fetched by another process/)
      await expect(removeModel('a/b', root)).rejects.toBeInstanceOf(UsageError)
    })
  })

  test.each(['{"version":2,"models":[]}', '[]', 'null', '{"version":1,"models":[{"id":"a"}]}'])(
    'an index that is not one (%s) is refused',
    async (text) => {
      await mkdir(root, { recursive: true })
      await writeFile(join(root, 'index.json'), text)
      await expect(listModels(root)).rejects.toThrow(/index\.json is not a model index that this version understands: delete it/)
      await writeFile(join(root, 'index.json'), '{"vers')
      await expect(locate('a', root)).rejects.toBeInstanceOf(FormatError)
    },
  )

  test('many at once lose nothing', async () => {
    await Promise.all(Array.from({ length: 12 }, (_, i) => put(`org/m${i}`, { 'w.bin': `weights ${i % 5}` })))
    expect((await listModels(root)).map((model) => model.id).sort()).toEqual(Array.from({ length: 12 }, (_, i) => `org/m${i}`).sort())
    await Promise.all(Array.from({ length: 10 }, (_, i) => removeModel(`org/m${i}`, root)))
    expect((await listModels(root)).length).toBe(2)
    expect(await locate('org/m10', root)).toBeDefined()
    expect(await locate('org/m11', root)).toBeDefined()
  })
})

describe('the lock', () => {
  let path: string
  beforeEach(() => {
    path = join(root, 'some.lock')
  })

  test('lets one at a time in, and is gone afterwards', async () => {
    let inside = 0
    let most = 0
    const enter = () =>
      withLock(path, async () => {
        most = Math.max(most, ++inside)
        await pause(5)
        inside--
      })
    await Promise.all(Array.from({ length: 8 }, enter))
    expect(most).toBe(1)
    await expect(readFile(path)).rejects.toThrow(/ENOENT/)
  })

  test('is released when the work fails, and tells that it waits', async () => {
    await expect(withLock(path, () => Promise.reject(new Error('work')))).rejects.toThrow('work')
    let waits = 0
    let second: Promise<string> | undefined
    await withLock(path, async () => {
      second = withLock(path, async () => 'second', { onWait: () => waits++ })
      await pause(300)
      expect(waits).toBe(1)
    })
    expect(await second).toBe('second')
  })

  test('waiting is cancelled', async () => {
    await withLock(path, async () => {
      const abort = new AbortController()
      const waiting = withLock(path, async () => 1, { signal: abort.signal, onWait: () => abort.abort() })
      await expect(waiting).rejects.toBeInstanceOf(CancelledError)
    })
  })

  test('of a process that is gone is taken over at once', async () => {
    const gone = await exitedPid()
    await mkdir(root, { recursive: true })
    await writeFile(path, JSON.stringify({ pid: gone, host: hostname(), token: 'x' }))
    expect(await withLock(path, async () => 'mine')).toBe('mine')
  })

  test('without a sign of life is taken over, a fresh one is not', async () => {
    await mkdir(root, { recursive: true })
    await writeFile(path, JSON.stringify({ pid: process.pid, host: 'elsewhere', token: 'x' }))
    const abort = new AbortController()
    const waiting = withLock(path, async () => 1, { signal: abort.signal, staleMs: 60_000 })
    setTimeout(() => abort.abort(), 300)
    await expect(waiting).rejects.toBeInstanceOf(CancelledError)
    const old = new Date(Date.now() - 120_000)
    await utimes(path, old, old)
    expect(await withLock(path, async () => 'mine', { staleMs: 60_000 })).toBe('mine')
  })

  test('is kept fresh while the work lasts', async () => {
    const order: string[] = []
    const first = withLock(path, () => pause(700).then(() => order.push('first')), { staleMs: 250 })
    await pause(50)
    await withLock(path, async () => order.push('second'), { staleMs: 250 })
    await first
    expect(order).toEqual(['first', 'second'])
  })
})

async function exitedPid(): Promise<number> {
  const child = fork('-e', [], { execArgv: ['-e', ''], stdio: 'ignore' })
  await new Promise((done) => child.on('exit', done))
  return child.pid as number
}
