/** @file The embedded model, whole, in a browser tab without threads. */
import { readFileSync } from 'node:fs'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { resolveSource } from '../src/models/hub/index.ts'
import { load } from '../src/run/open.ts'
import { skipped } from './tools/studio-browser.ts'
import { differing } from './tools/tab/compare.ts'
import { modelFigures } from './tools/tab/figures.ts'
import { type OpenTab, openTab } from './tools/tab.ts'

/** Blocks of a page of the docs that are for a browser. */
const blocksOf = (page: string) =>
  [...readFileSync(new URL(`../docs/${page}`, import.meta.url), 'utf8').matchAll(/^```javascript\n([\s\S]*?)^```$/gm)].map(
    (m) => m[1] as string,
  )

type Api = typeof import('../src/web/index.ts')
type Work = typeof import('./tools/tab/figures.ts')
declare const actlens: Api
declare const figures: Work

const cached = await resolveSource('embedded', { offline: true }).catch(() => undefined)
const reason = skipped || (cached ? '' : ' (skipped: the embedded model is not in the model cache)')

describe.skipIf(reason !== '')(`the embedded model in a tab${reason}`, () => {
  let tab: OpenTab
  beforeAll(async () => {
    tab = await openTab({ isolated: false, timeout: 300_000 })
    tab.files.set('/models/embedded', cached?.file as string)
  })
  afterAll(() => tab?.close())

  it('runs, is steered, differentiated and writes as in Node; the next load asks the server for nothing', {
    timeout: 300_000,
  }, async () => {
    const model = await load('embedded', { threads: 1, selfCheck: false })
    const want = await modelFigures(model)
    const text = (await model.generate('Once upon a time', { maxNewTokens: 16, temperature: 0 }).result()).text
    const first = await tab.page.evaluate(async () => {
      const model = await actlens.load('embedded')
      const text = (await model.generate('Once upon a time', { maxNewTokens: 16, temperature: 0 }).result()).text
      return { ours: await figures.modelFigures(model), text, hash: await model.origin.hash() }
    })
    expect(differing(first.ours, want)).toEqual([])
    expect(first.text).toBe(text)
    expect(first.hash).toBe(await model.origin.hash())
    await tab.page.reload()
    await tab.page.waitForFunction(() => 'actlens' in globalThis)
    tab.requests.length = 0
    const id = await tab.page.evaluate(async () => (await actlens.load('embedded')).origin.id)
    expect(id).toBe('embedded')
    expect(tab.requests.filter((r) => r.includes('models'))).toEqual([])
  })

  it.each(blocksOf('browser.md').map((code, i) => [i + 1, code] as const))('runs block %i of docs/browser.md', async (_, code) => {
    await tab.page.goto(tab.url)
    // As text, since the import is the page's and not the test's.
    const said = (await tab.page.evaluate(`(async () => {
      const lines = []
      console.log = (...parts) => void lines.push(parts.map(String).join(' '))
      await import('${await tab.script(code)}')
      return lines
    })()`)) as string[]
    expect(said.length).toBeGreaterThan(0)
    expect(said.join('\n')).not.toMatch(/undefined|NaN/)
  })

  it('says that the page is not isolated, and refuses more threads than there are', async () => {
    const [place, refusal] = await tab.page.evaluate(async () => [
      await actlens.place(),
      await actlens.load('/models/gpt2/', { threads: 2 }).catch((e: Error) => e.message),
    ])
    expect((place as Awaited<ReturnType<Api['place']>>).notes.join(' ')).toContain('Cross-Origin-Opener-Policy: same-origin')
    expect(refusal).toContain('2 threads were asked for')
  })
})
