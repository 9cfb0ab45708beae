/** @file The room Papers in a real browser: the list, one paper, its quick run with progress, stop, reload and restart, and the report. */

import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as wait } from 'node:timers/promises'
import type { Page } from 'playwright-core'
import { afterAll, beforeAll, describe, expect, it, vi } from 'vitest'
import { throwIfCancelled } from '../src/base/errors.ts'
import { definePaper, type Paper, runPaper } from '../src/papers/index.ts'
import { artifacts, browser, type OpenStudio, openStudio, skipped } from './tools/studio-browser.ts'

let steps = 0
const sample = (slug: string, change: Partial<Paper> = {}): Paper =>
  definePaper({
    slug,
    title: 'On the growth of squares',
    authors: 'A. Nobody (2026)',
    source: '2503.10679',
    family: 'steer',
    question: 'Do squares grow faster than their numbers?',
    claim: { text: 'The square of ten is at least fifty.', metric: 'square of the number', threshold: 50 },
    ours: (m) => m.square as number,
    baselines: { 'the number itself': (m) => m.number as number },
    controls: { 'square of nothing': () => 0 },
    gates: [
      { name: 'grows', role: 'claim', text: 'The square is at least fifty.', of: (m) => m.square as number, atLeast: 50 },
      { name: 'nothing', role: 'control', text: 'Nothing stays nothing.', of: () => 0, atMost: 0 },
    ],
    data: 'Whole numbers.',
    scale: 'The same as in the paper.',
    notReproduced: ['Cubes.'],
    model: 'none',
    seeds: [0, 1],
    revision: 1,
    repeat: async (study) => {
      for (let i = 0; i < 12; i++) {
        throwIfCancelled(study.signal)
        await study.step(`square ${i}`, { i }, async () => {
          steps++
          study.onProgress?.({ task: 'squaring', done: i + 1, total: 12, unit: 'numbers' })
          await wait(500, undefined, study.signal ? { signal: study.signal } : {}).catch(() => throwIfCancelled(study.signal))
          return i * i
        })
      }
      return {
        metrics: { square: 100, number: 10 },
        figures: [
          {
            name: 'squares',
            title: 'Numbers and squares',
            caption: 'Squares leave their numbers behind.',
            kind: 'line',
            x: { key: 'x', label: 'number' },
            y: { key: 'y', label: 'value' },
            series: { key: 's', label: 'what' },
            data: [1, 2, 3, 4].flatMap((x) => [
              { x, y: x, s: 'number' },
              { x, y: x * x, s: 'square' },
            ]),
          },
          {
            name: 'products',
            title: 'Products',
            caption: 'Signs follow the rule.',
            kind: 'heat',
            x: { key: 'x', label: 'first' },
            y: { key: 'y', label: 'second' },
            series: { key: 'v', label: 'product' },
            data: [-1, 0, 1].flatMap((x) => [-1, 0, 1].map((y) => ({ x, y, v: x * y }))),
          },
        ],
      }
    },
    ...change,
  })

describe.skipIf(!browser)(`the room Papers in a browser${skipped}`, () => {
  let studio: OpenStudio
  let page: Page
  let home: string
  const [squares, broken] = [
    sample('squares'),
    sample('broken', {
      title: 'On what cannot be done',
      question: 'Can a step fail in a way that the reader understands?',
      repeat: async () => {
        throw new Error('the numbers ran out')
      },
    }),
  ]
  beforeAll(async () => {
    home = await mkdtemp(join(tmpdir(), 'actlens-papers-test-'))
    vi.stubEnv('ACTLENS_HOME', home)
    const committed = await runPaper({ ...squares, repeat: async () => ({ metrics: { square: 100, number: 10 } }), slug: 'committed' })
    studio = await openStudio({
      shelf: {
        loaders: { squares: async () => squares, broken: async () => broken },
        committed: async (slug) => (slug === 'squares' ? { ...committed, slug } : undefined),
      },
    })
    page = studio.page
  })
  afterAll(async () => {
    await studio?.close()
    vi.unstubAllEnvs()
    await rm(home, { recursive: true, force: true })
  })

  const open = async (state: Record<string, string> = {}) => {
    await page.goto('about:blank')
    await page.goto(`${studio.server.url}#${new URLSearchParams({ room: 'papers', ...state })}`)
  }

  it('lists questions with their last verdicts, and opens one', async () => {
    await open()
    await page.getByRole('heading', { name: 'Claims, held against numbers' }).waitFor()
    const row = page.locator('li').filter({ hasText: squares.question })
    await expect.poll(() => row.textContent()).toContain('reproduced')
    await expect.poll(() => page.locator('li').filter({ hasText: broken.question }).textContent()).toContain('no full run yet')
    await page.screenshot({ path: join(artifacts, 'test-papers.png'), fullPage: true })
    await row.getByRole('link').click()
    await page.getByRole('heading', { name: squares.title }).waitFor()
    await expect.poll(() => page.getByRole('region', { name: 'Gates' }).textContent()).toContain('✓ holds')
    await expect.poll(() => page.url()).toContain('papers.paper=squares')
  })

  it('runs the quick form with progress; it is stopped, survives reload and restart, and goes on from its finished steps', async () => {
    await open({ 'papers.paper': 'squares' })
    await page.getByRole('button', { name: 'Run the quick form' }).click()
    await page.getByText(/squaring: \d+ of 12 numbers/).waitFor()
    await page.reload()
    await page.getByText(/squaring: \d+ of 12 numbers/).waitFor()
    await page.getByRole('button', { name: 'stop' }).click()
    await page.getByRole('button', { name: 'Go on with the quick run' }).waitFor()
    const before = steps
    expect(before).toBeLessThan(12)
    const { port } = studio.server
    await studio.server.close()
    studio.server = await studio.start(port)
    await open({ 'papers.paper': 'squares' })
    await page.getByRole('button', { name: 'Go on with the quick run' }).click()
    await page.getByRole('img', { name: /Numbers and squares/ }).waitFor({ timeout: 20_000 })
    // The step that was cut off is done twice, all others once.
    expect(steps).toBeLessThanOrEqual(13)
    await expect.poll(() => page.getByRole('region', { name: 'Verdict' }).textContent()).toContain('inconclusive')
    await page.screenshot({ path: join(artifacts, 'test-paper.png'), fullPage: true })
    await page.getByText('the full run that ships').click()
    await expect.poll(() => page.getByRole('region', { name: 'Verdict' }).textContent()).toContain('reproduced')
  }, 60_000)

  it('opens the report, on which no script can run', async () => {
    await open({ 'papers.paper': 'squares', 'papers.result': 'quick' })
    const [report] = await Promise.all([studio.context.waitForEvent('page'), page.getByRole('link', { name: 'Open the report' }).click()])
    await report.getByRole('heading', { name: squares.title }).waitFor()
    await expect.poll(() => report.locator('figure[id]').count()).toBe(2)
    await report.close()
    const { headers } = await page.request
      .get(`${studio.server.url}api/papers/squares/quick/report.html`)
      .then((r) => ({ headers: r.headers() }))
    expect(headers['content-security-policy']).toMatch(/default-src 'none'; style-src 'unsafe-inline';.*sandbox/)
  })

  it('tells why a run failed, and refuses papers and results that are not there', async () => {
    await open({ 'papers.paper': 'broken' })
    await page.getByText('No result of this paper is here yet').waitFor()
    await page.getByRole('button', { name: 'Run the quick form' }).click()
    await expect.poll(() => page.getByRole('alert').textContent()).toContain('the numbers ran out')
    await page.screenshot({ path: join(artifacts, 'test-paper-error.png'), fullPage: true })
    const missing = await page.request.get(`${studio.server.url}api/papers/broken/quick/report.html`)
    expect([missing.status(), await missing.json()]).toMatchObject([
      400,
      { error: { message: expect.stringContaining('not run on this machine') } },
    ])
    await open({ 'papers.paper': 'squares-of-squares' })
    await expect.poll(() => page.getByRole('alert').textContent()).toContain("There is no paper 'squares-of-squares'")
    expect(studio.foreign).toEqual([])
    expect(studio.complaints.filter((c) => !/\b40\d\b|422/.test(c))).toEqual([])
  })
})
