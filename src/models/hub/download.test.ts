import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, describe, expect, test } from 'vitest'
import { CancelledError, FormatError } from '../../base/errors.ts'
import type { Progress } from '../../base/progress.ts'
import { type DownloadOptions, download, downloadVerified, Unreachable, type Verifier, WrongContent } from './download.ts'
import { rateMeter, throttled } from './progress.ts'
import { type Mischief, StandIn, someBytes } from './stand-in.ts'

const content = someBytes(300_000)
let server: StandIn
let folder: string
let part: string
beforeEach(async () => {
  server = await new StandIn().start()
  server.files.set('/file', content)
  folder = await mkdtemp(join(tmpdir(), 'actlens-download-'))
  part = join(folder, 'file.part')
})
afterEach(async () => {
  await server.stop()
  await rm(folder, { recursive: true, force: true })
})

const plan = (...acts: Mischief[]) => server.mischief.set('/file', acts)
const get = (more: Partial<DownloadOptions> = {}) =>
  download({ url: `${server.url}/file`, part, what: 'the file', patience: { attempts: 3, backoffMs: 1, stallMs: 400 }, ...more })
const ranges = () => server.seen.map((request) => request.range)
const expectWhole = async () => expect(Buffer.compare(await readFile(part), content)).toBe(0)

describe('a download', () => {
  test('gets the bytes and reports progress up to the total', async () => {
    const seen: Progress[] = []
    expect(await get({ onProgress: (p) => seen.push(p) })).toBe(300_000)
    await expectWhole()
    expect(seen.at(-1)).toEqual({ task: 'fetching the file', done: 300_000, total: 300_000, unit: 'bytes' })
  })

  test('continues where connections broke, as often as it makes progress', async () => {
    plan(...Array.from({ length: 8 }, () => ({ kind: 'drop', after: 30_000 }) as const))
    await get({ size: 300_000 })
    await expectWhole()
    expect(ranges()[0]).toBeUndefined()
    expect(
      ranges()
        .slice(1)
        .every((range) => /^bytes=[1-9]\d*-$/.test(range ?? '')),
    ).toBe(true)
    expect(ranges().length).toBe(9)
  })

  test('continues what an earlier call left', async () => {
    await writeFile(part, content.subarray(0, 123_456))
    await get()
    await expectWhole()
    expect(ranges()).toEqual(['bytes=123456-'])
  })

  test('is done when everything is there already', async () => {
    await writeFile(part, content)
    await get({ size: 300_000 })
    expect(ranges()).toEqual([])
    // Without a size only the server can say so.
    await get()
    expect(ranges()).toEqual(['bytes=300000-'])
    await expectWhole()
  })

  test('starts again where the server does no ranges, or the part is longer than the file', async () => {
    await writeFile(part, someBytes(100_000, 9))
    plan({ kind: 'no-range' })
    await get()
    await expectWhole()
    await writeFile(part, someBytes(400_000, 9))
    await get()
    await expectWhole()
    await writeFile(part, someBytes(400_000, 9))
    await get({ size: 300_000 })
    await expectWhole()
  })

  test('waits as told by a server that is overloaded', async () => {
    plan({ kind: 'status', status: 429, headers: { 'retry-after': '0.2' } }, { kind: 'status', status: 503 })
    const start = performance.now()
    await get()
    await expectWhole()
    expect(performance.now() - start).toBeGreaterThan(190)
  })

  test('gives up after attempts without progress, keeps what came, and says so', async () => {
    plan({ kind: 'drop', after: 1000 }, ...Array.from({ length: 9 }, () => ({ kind: 'status', status: 500 }) as const))
    const failure = get({ size: 300_000 })
    await expect(failure).rejects.toThrow(/Could not fetch the file: the server 127.* answered 500\. The 1000 bytes that arrived are kept/)
    await expect(failure).rejects.toBeInstanceOf(Unreachable)
    plan()
    await get({ size: 300_000 })
    await expectWhole()
    expect(ranges().at(-1)).toBe('bytes=1000-')
  })

  test('notices a connection on which nothing arrives', async () => {
    plan({ kind: 'stall', after: 5000 })
    await get({ size: 300_000 })
    await expectWhole()
    expect(ranges()).toEqual([undefined, 'bytes=5000-'])
  })

  test('a length that is claimed too short is seen through', async () => {
    plan({ kind: 'length', claimed: 70_000 })
    await get({ size: 300_000 })
    await expectWhole()
  })

  test('a length that is claimed too long is refused where the size is known', async () => {
    plan({ kind: 'length', claimed: 999_999 })
    await expect(get({ size: 300_000 })).rejects.toThrow(/holds 999999 bytes where 300000 were promised/)
  })

  test('a file that is longer or shorter than promised is refused, and nothing is kept', async () => {
    await expect(get({ size: 200_000 })).rejects.toThrow(/holds 300000 bytes where 200000 were promised/)
    expect((await readFile(part)).length).toBe(0)
    await expect(get({ size: 400_000 })).rejects.toThrow(/holds 300000 bytes where 400000 were promised/)
    expect((await readFile(part)).length).toBe(0)
  })

  test('a server that cannot agree with itself on ranges ends in an error', async () => {
    plan(
      ...Array.from({ length: 20 }, (_, i) =>
        i % 2 === 0
          ? ({ kind: 'drop', after: 1000 } as const)
          : ({ kind: 'status', status: 416, headers: { 'content-range': 'bytes */5' } } as const),
      ),
    )
    await expect(get()).rejects.toThrow(/Could not fetch the file: the server said that the file has 300000 bytes and now says 5/)
  })

  test.each([401, 403, 404, 410])('a refusal (%i) is told at once', async (status) => {
    plan({ kind: 'status', status })
    await expect(get()).rejects.toThrow(new RegExp(`Could not fetch the file: the server .* answered ${status}\\. Check the name`))
    expect(ranges().length).toBe(1)
    plan({ kind: 'status', status })
    await expect(get({ refusal: () => 'Ask the owner.' })).rejects.toThrow(/Ask the owner\.$/)
  })

  test('a server that is not there is told with its reason', async () => {
    const gone = await new StandIn().start()
    await gone.stop()
    const failure = download({ url: `${gone.url}/x`, part, what: 'x', patience: { attempts: 2, backoffMs: 1 } })
    await expect(failure).rejects.toThrow(/Could not fetch x: the server refused the connection\. Check the network/)
  })

  test('is cancelled in the middle and can be continued', async () => {
    plan({ kind: 'stall', after: 40_000 })
    const abort = new AbortController()
    const running = get({ signal: abort.signal, onProgress: () => setTimeout(() => abort.abort(), 10), patience: { stallMs: 10_000 } })
    await expect(running).rejects.toBeInstanceOf(CancelledError)
    expect((await readFile(part)).length).toBe(40_000)
    await get()
    await expectWhole()
  })

  test('a folder that does not exist is told', async () => {
    await expect(get({ part: join(folder, 'no', 'x') })).rejects.toThrow(/The folder .*no does not exist/)
  })
})

describe('the sink', () => {
  class Collecting implements Verifier {
    bytes: number[] = []
    resets = 0
    readonly expected: Uint8Array
    constructor(expected: Uint8Array) {
      this.expected = expected
    }
    reset() {
      this.resets++
      this.bytes = []
    }
    push(bytes: Uint8Array): undefined {
      for (const byte of bytes) this.bytes.push(byte)
    }
    verify() {
      if (Buffer.compare(Buffer.from(this.bytes), this.expected) !== 0) throw new WrongContent('wrong bytes')
    }
  }

  test('sees all bytes from the first on, also resumed ones and after a fresh start', async () => {
    await writeFile(part, content.subarray(0, 1000))
    plan({ kind: 'drop', after: 2000 }, { kind: 'no-range' })
    const sink = new Collecting(content)
    await get({ sink })
    sink.verify()
    expect(sink.resets).toBe(2)
  })

  test('ends the download early', async () => {
    let count = 0
    const bytes = await get({
      sink: {
        reset: () => undefined,
        push: (piece) => {
          count += piece.length
          return count > 50_000 ? 'enough' : undefined
        },
      },
    })
    expect(bytes).toBeGreaterThan(50_000)
    expect(bytes).toBeLessThan(300_000)
  })

  const verified = (verifier: Verifier) =>
    downloadVerified({ url: `${server.url}/file`, part, what: 'the file', patience: { attempts: 2, backoffMs: 1 } }, verifier)

  test('wrong bytes are deleted', async () => {
    plan({ kind: 'bytes', bytes: someBytes(300_000, 7) })
    await expect(verified(new Collecting(content))).rejects.toBeInstanceOf(FormatError)
    await expect(readFile(part)).rejects.toThrow(/ENOENT/)
    expect(server.seen.length).toBe(1)
  })

  test('wrong bytes of an earlier call are fetched again once', async () => {
    await writeFile(part, someBytes(1000, 7))
    await verified(new Collecting(content))
    await expectWhole()
    expect(ranges()).toEqual(['bytes=1000-', undefined])
    await writeFile(part, someBytes(1000, 7))
    plan({ kind: 'bytes', bytes: someBytes(300_000, 7) }, { kind: 'bytes', bytes: someBytes(300_000, 7) })
    await expect(verified(new Collecting(content))).rejects.toThrow('wrong bytes')
  })
})

describe('progress', () => {
  const at = (done: number, total = 100): Progress => ({ task: 't', done, total, unit: 'bytes' })

  test('is passed on at intervals, and always at the end', () => {
    const seen: number[] = []
    const report = throttled((p) => seen.push(p.done), 1e9)
    for (const done of [1, 2, 3, 100]) report(at(done))
    expect(seen).toEqual([1, 100])
    report(at(5))
    report.last()
    report.last()
    expect(seen).toEqual([1, 100, 5])
  })

  test('rate and time left come from the last seconds, and a resumed start does not count', () => {
    let now = 0
    const meter = rateMeter(5000, () => now)
    expect(meter(at(50))).toEqual({ perSecond: 0 })
    now = 1000
    expect(meter(at(60))).toEqual({ perSecond: 10, secondsLeft: 4 })
    now = 20_000
    meter(at(61))
    now = 21_000
    expect(meter(at(81)).perSecond).toBe(20)
    now = 22_000
    expect(meter({ ...at(1), task: 'other' })).toEqual({ perSecond: 0 })
  })
})
