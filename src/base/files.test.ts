import { createHash } from 'node:crypto'
import * as fs from 'node:fs/promises'
import { mkdtemp, readdir, readFile, readlink, rm, symlink, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, describe, expect, test, vi } from 'vitest'
import { CancelledError, FormatError, UsageError } from './errors.ts'
import { homeFolders, readJson, sha256OfFile, sizeOrKind, writeFileWhole } from './files.ts'
import type { Progress } from './progress.ts'

vi.mock('node:fs/promises', async (original) => {
  const actual = await original<typeof fs>()
  return { ...actual, open: vi.fn(actual.open), rename: vi.fn(actual.rename) }
})

let folder: string
beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), 'actlens-files-'))
})
afterEach(async () => {
  vi.mocked(fs.open).mockClear()
  await rm(folder, { recursive: true, force: true })
})

describe('writeFileWhole', () => {
  test('writes text, bytes and pieces, replaces what was there, and leaves no temporary file', async () => {
    const path = join(folder, 'a.txt')
    await writeFileWhole(path, 'one')
    await writeFileWhole(path, 'zwei, größer')
    expect(await readFile(path, 'utf8')).toBe('zwei, größer')
    await writeFileWhole(path, new Uint8Array([1, 2, 3]))
    expect([...(await readFile(path))]).toEqual([1, 2, 3])
    await writeFileWhole(
      path,
      (async function* () {
        yield new Uint8Array([4])
        yield new Uint8Array(0)
        yield new Uint8Array([5, 6])
      })(),
    )
    expect([...(await readFile(path))]).toEqual([4, 5, 6])
    expect(await readdir(folder)).toEqual(['a.txt'])
  })

  test('a missing folder, a folder as target and a file as folder are usage errors that say what to do', async () => {
    await expect(writeFileWhole(join(folder, 'no', 'a'), 'x')).rejects.toThrow(/The folder .*no does not exist: create it first/)
    await expect(writeFileWhole(join(folder, 'no', 'a'), 'x')).rejects.toBeInstanceOf(UsageError)
    await expect(writeFileWhole(folder, 'x')).rejects.toThrow(/is a folder: give the name of a file/)
    await writeFile(join(folder, 'file'), '')
    await expect(writeFileWhole(join(folder, 'file', 'a'), 'x')).rejects.toThrow(/is not a folder/)
  })

  test('a full disk keeps the old content, removes the temporary file and says so', async () => {
    const path = join(folder, 'a.txt')
    await writeFileWhole(path, 'old')
    vi.mocked(fs.open).mockImplementationOnce(async (...args) => {
      const handle = await (await vi.importActual<typeof fs>('node:fs/promises')).open(...args)
      handle.write = () => Promise.reject(Object.assign(new Error('no space left on device'), { code: 'ENOSPC' }))
      return handle
    })
    const failure = writeFileWhole(path, 'new')
    await expect(failure).rejects.toThrow(/The disk is full, so .*a\.txt was not written/)
    await expect(failure).rejects.toBeInstanceOf(FormatError)
    expect(await readFile(path, 'utf8')).toBe('old')
    expect(await readdir(folder)).toEqual(['a.txt'])
  })

  test('a source that throws, and a cancelled signal, leave the old content', async () => {
    const path = join(folder, 'a.txt')
    await writeFileWhole(path, 'old')
    const broken = (async function* () {
      yield new Uint8Array([1])
      throw new Error('the source broke')
    })()
    await expect(writeFileWhole(path, broken)).rejects.toThrow('the source broke')
    await expect(writeFileWhole(path, 'new', { signal: AbortSignal.abort() })).rejects.toBeInstanceOf(CancelledError)
    expect(await readFile(path, 'utf8')).toBe('old')
    expect(await readdir(folder)).toEqual(['a.txt'])
  })

  test.skipIf(process.platform === 'win32')('a link is written through', async () => {
    await writeFile(join(folder, 'real'), 'old')
    await symlink(join(folder, 'real'), join(folder, 'link'))
    await writeFileWhole(join(folder, 'link'), 'new')
    expect(await readFile(join(folder, 'real'), 'utf8')).toBe('new')
    expect(await readlink(join(folder, 'link'))).toBe(join(folder, 'real'))
  })

  test('readers see whole files only while writers race', async () => {
    const path = join(folder, 'raced.json')
    await writeFileWhole(path, JSON.stringify({ n: 0 }))
    const writers = Array.from({ length: 20 }, (_, n) => writeFileWhole(path, JSON.stringify({ n, padding: 'x'.repeat(n * 5000) })))
    for (let i = 0; i < 50; i++) expect(await readJson(path)).toHaveProperty('n')
    await Promise.all(writers)
    expect(await readdir(folder)).toEqual(['raced.json'])
  })
})

describe('readJson', () => {
  test('reads, also behind a byte-order mark', async () => {
    await writeFile(join(folder, 'a.json'), '\uFEFF{"a":[1,2]}')
    expect(await readJson(join(folder, 'a.json'))).toEqual({ a: [1, 2] })
  })

  test('missing, empty, malformed and folder are format errors that name the file', async () => {
    await expect(readJson(join(folder, 'no.json'))).rejects.toThrow(/no\.json does not exist\./)
    await expect(readJson(join(folder, 'no.json'))).rejects.toBeInstanceOf(FormatError)
    await expect(readJson(folder)).rejects.toThrow(/is a folder, not a file/)
    await writeFile(join(folder, 'empty.json'), ' \n')
    await expect(readJson(join(folder, 'empty.json'))).rejects.toThrow(/empty\.json is empty/)
    await writeFile(join(folder, 'cut.json'), '{"a":')
    await expect(readJson(join(folder, 'cut.json'))).rejects.toThrow(/cut\.json is not valid JSON .* fetch or write it again/)
  })
})

describe('sha256OfFile', () => {
  test('agrees with hashing at once and reports progress to the end', async () => {
    const bytes = Buffer.alloc(3_000_000, 'activation')
    await writeFile(join(folder, 'big'), bytes)
    const seen: Progress[] = []
    const hash = await sha256OfFile(join(folder, 'big'), { onProgress: (p) => seen.push(p) })
    expect(hash).toBe(createHash('sha256').update(bytes).digest('hex'))
    expect(seen.at(-1)).toEqual({ task: 'hashing big', done: 3_000_000, total: 3_000_000, unit: 'bytes' })
    expect(seen.length).toBeGreaterThan(1)
  })

  test('is cancelled and refuses what is missing', async () => {
    await writeFile(join(folder, 'a'), 'abc')
    await expect(sha256OfFile(join(folder, 'a'), { signal: AbortSignal.abort() })).rejects.toBeInstanceOf(CancelledError)
    await expect(sha256OfFile(join(folder, 'b'))).rejects.toThrow(/b does not exist/)
  })
})

test('sizeOrKind tells files, folders and nothing apart', async () => {
  await writeFile(join(folder, 'a'), 'abc')
  expect([await sizeOrKind(join(folder, 'a')), await sizeOrKind(folder), await sizeOrKind(join(folder, 'b'))]).toEqual([
    3,
    'folder',
    undefined,
  ])
})

describe('homeFolders', () => {
  test('ACTLENS_HOME wins everywhere', () => {
    for (const platform of ['linux', 'darwin', 'win32']) {
      const found = homeFolders({ env: { ACTLENS_HOME: '/somewhere', XDG_CACHE_HOME: '/xdg' }, platform, home: '/home/a' })
      expect(found).toEqual({ cache: join('/somewhere', 'cache'), data: join('/somewhere', 'data') })
    }
  })

  test('the platform says where otherwise', () => {
    const at = (platform: string, env: Record<string, string> = {}) => homeFolders({ env, platform, home: '/home/a' })
    expect(at('linux')).toEqual({ cache: '/home/a/.cache/actlens', data: '/home/a/.local/share/actlens' })
    expect(at('linux', { XDG_CACHE_HOME: '/c', XDG_DATA_HOME: 'relative' })).toEqual({
      cache: '/c/actlens',
      data: '/home/a/.local/share/actlens',
    })
    expect(at('darwin')).toEqual({
      cache: '/home/a/Library/Caches/actlens',
      data: '/home/a/Library/Application Support/actlens',
    })
    expect(at('win32', { LOCALAPPDATA: '/local' })).toEqual({ cache: '/local/actlens/Cache', data: '/local/actlens/Data' })
  })
})
