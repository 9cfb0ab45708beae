/** @file The library in a real browser tab: the same figures as in Node, models kept for the next visit, training. */
import { mkdtemp, readdir, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { load } from '../src/run/open.ts'
import { browser, skipped } from './tools/studio-browser.ts'
import { differing, errorOf } from './tools/tab/compare.ts'
import { modelFigures, saeLosses, transformerLosses } from './tools/tab/figures.ts'
import { bundlePage, goldens, type OpenTab, openTab, scriptsOf } from './tools/tab.ts'

type Api = typeof import('../src/web/index.ts')
type Work = typeof import('./tools/tab/figures.ts')
declare const actlens: Api
declare const figures: Work

describe('the bundle for a browser', () => {
  it('imports nothing of Node', async () => {
    const folder = await mkdtemp(join(tmpdir(), 'actlens-bundle-'))
    try {
      expect(await bundlePage(folder)).toEqual([])
      const scripts = (await readdir(folder, { recursive: true })).filter((f) => /\.m?js$/.test(f) && !/ort/.test(f))
      expect(scriptsOf(folder, scripts)).not.toMatch(/["'`]node:/)
    } finally {
      await rm(folder, { recursive: true, force: true })
    }
  })
})

describe.skipIf(!browser)(`a tab${skipped}`, () => {
  let tab: OpenTab
  beforeAll(async () => {
    tab = await openTab()
  })
  afterAll(() => tab?.close())

  it.each(['llama-linear', 'gpt2'])('finds the figures of Node with %s', async (name) => {
    const model = await load(join(goldens, name), { threads: 1, selfCheck: false })
    const want = await modelFigures(model)
    const ours = await tab.page.evaluate(async (path) => {
      const model = await actlens.load(path)
      return figures.modelFigures(model)
    }, `/models/${name}/`)
    expect(differing(ours, want)).toEqual([])
  })

  it('has threads, and says what the place gives', async () => {
    const place = await tab.page.evaluate(() => actlens.place())
    expect(place).toMatchObject({ isolated: true, keepsFiles: true })
    expect(place.runtime).toMatch(/^onnxruntime-web \d/)
    expect(place.notes.join(' ')).not.toContain('Cross-Origin')
  })

  it('trains a transformer as Node does', async () => {
    const ours = await tab.page.evaluate(() => figures.transformerLosses({}))
    expect(ours.length).toBe(6)
    expect(errorOf(ours, await transformerLosses({ threads: 1 }))).toBeLessThan(1e-4)
    expect(ours.at(-1)).toBeLessThan(ours[0]!)
  })

  it('trains an autoencoder as Node does', async () => {
    const ours = await tab.page.evaluate(() => figures.saeLosses())
    expect(ours.length).toBe(8)
    expect(errorOf(ours, await saeLosses(1))).toBeLessThan(1e-4)
  })

  it('keeps what it fetched: the next load asks for no file, and says nothing of the network', async () => {
    const loaded = () =>
      tab.page.evaluate(async () => {
        const model = await actlens.load('/models/mistral/')
        return { hash: await model.origin.hash(), checks: model.origin.checks }
      })
    const first = await loaded()
    tab.requests.length = 0
    const again = await loaded()
    expect(again.hash).toBe(first.hash)
    // Only whether the files have changed is asked, and for the ones that are not there.
    expect(tab.requests.filter((r) => r.startsWith('GET') && !/(tokenizer|preprocessor|index|special|generation|chat)/.test(r))).toEqual([])
    expect(tab.requests).toContain('HEAD /models/mistral/model.safetensors')
    tab.requests.length = 0
    const offline = await tab.page.evaluate(async () => {
      const text = await actlens.load('/models/mistral/model.safetensors', { offline: true }).catch((e: Error) => `${e.message}`)
      return typeof text === 'string' ? text : text.origin.id
    })
    expect(tab.requests).toEqual([])
    expect(offline).toContain('/models/mistral/model.safetensors')
  })

  it('stops when it is told to, and goes on where it stopped', async () => {
    const bytes = new Uint8Array(12_000_000).map((_, i) => (i * 2654435761) >>> 13)
    tab.files.set('/models/noise.bin', bytes)
    const outcome = await tab.page.evaluate(async () => {
      const stop = new AbortController()
      const onProgress = ({ done, task }: { done: number; task: string }) => {
        if (task === 'fetching noise.bin' && done > 1_000_000) stop.abort()
      }
      const first = await actlens.load('/models/noise.bin', { signal: stop.signal, onProgress }).catch((e: Error) => e)
      const second = await actlens.load('/models/noise.bin').catch((e: Error) => e)
      return [first instanceof actlens.CancelledError, (second as Error).message]
    })
    expect(outcome[0]).toBe(true)
    expect(outcome[1]).toContain('noise.bin is not a llama2.c model')
    const ranges = tab.requests.filter((r) => r.includes('noise.bin'))
    expect(ranges).toEqual(['GET /models/noise.bin', expect.stringMatching(/^GET \/models\/noise\.bin bytes=[1-9]\d{5,}-$/)])
  })

  it('refuses a file that is not the one it should be, and what a browser cannot do', async () => {
    tab.files.set('/models/embedded', new Uint8Array(1000))
    const said = await tab.page.evaluate(async () => {
      const refusal = (work: Promise<unknown>) =>
        work.then(
          () => 'nothing',
          (e: Error) => `${e.name}: ${e.message}`,
        )
      return [
        await refusal(actlens.load('embedded', { embedded: '/models/embedded' })),
        await refusal(actlens.load('/models/nowhere/')),
        await refusal(actlens.load('/models/x.onnx')),
        await refusal(actlens.load('/models/mistral/', { threads: 64 })),
        await refusal(actlens.load('/models/gpt2/', { device: 'cuda' })),
      ]
    })
    expect(said[0]).toMatch(/is another file: its SHA-256 is [0-9a-f]{64}, not 597a6652/)
    expect(said[1]).toContain('There is no config.json')
    expect(said[2]).toContain('only Node opens')
    expect(said[3]).toContain('at most, not 64')
    expect(said[4]).toContain("no device 'cuda'")
  })

  it('loads files that were chosen', async () => {
    const name = await tab.page.evaluate(async () => {
      const files = await Promise.all(
        ['config.json', 'model.safetensors'].map(async (n) => new File([await (await fetch(`/models/gpt2/${n}`)).blob()], n)),
      )
      const model = await actlens.load(files)
      const { logits } = await model.run({ ids: [1, 2] })
      return [model.spec.family, logits.shape[1], (await model.origin.hash()).length]
    })
    expect(name).toEqual(['gpt2', 2, 64])
  })

  it('raised no complaint in the console', () => expect(tab.complaints.filter((c) => !/404|No available adapters/.test(c))).toEqual([]))
})
