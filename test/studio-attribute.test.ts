/** @file The room Attribute in a real browser: tokens and layers, parts of the model, paths, and its states. */
import { join } from 'node:path'
import type { Page } from 'playwright-core'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { pathPicture } from '../studio/src/rooms/attribute/paths.ts'
import { artifacts, browser, type OpenStudio, openStudio, skipped } from './tools/studio-browser.ts'

const texts = 'room=attribute&pair.clean=the+big+dog&pair.corrupt=the+bad+dog&pair.answer=a&pair.wrong=b'

it('lays paths out by what their labels say', () => {
  const answer = {
    senders: ['embeddings', 'head 0.1', 'mlp 0'],
    receivers: ['k 1.0', 'mlp 1', 'logits'],
    edges: [
      { from: 0, to: 0, score: 1 },
      { from: 1, to: 2, score: -2 },
      { from: 2, to: 1, score: 3 },
    ],
    count: 3,
    size: 6,
    metric: { clean: 0, corrupt: 0 },
  }
  const { nodes, edges, levels } = pathPicture(answer, 2, 4)
  const level = Object.fromEntries(nodes.map((n) => [n.id, n.level]))
  expect(level).toEqual({ embeddings: 0, 'head 1.0': 3, 'head 0.1': 1, logits: 5, 'mlp 0': 2, 'mlp 1': 4 })
  expect(levels).toBe(6)
  expect(edges.map((e) => [e.from, e.to, e.by])).toEqual([
    ['embeddings', 'head 1.0', 'k'],
    ['head 0.1', 'logits', ''],
    ['mlp 0', 'mlp 1', ''],
  ])
})

describe.skipIf(!browser)(`the room Attribute in a browser${skipped}`, () => {
  let studio: OpenStudio
  let page: Page
  beforeAll(async () => {
    studio = await openStudio()
    page = studio.page
  })
  afterAll(() => studio?.close())

  const open = async (link: string) => {
    await page.goto('about:blank')
    await page.goto(`${studio.server.url}#${link}`)
    await page.getByRole('heading', { name: 'What does the answer come from?' }).waitFor()
  }

  it('colours tokens and layers, and says how well the parts add up', async () => {
    await open(texts)
    await page.locator('.grid canvas').waitFor()
    expect(await page.locator('.strip [data-token]').count()).toBe('the big dog'.length + 1)
    const gap = await page.getByText('Do the parts add up?').textContent()
    expect(gap).toMatch(/largest gap is \S+ of/)
    await page.getByRole('radio', { name: 'one gradient' }).check({ force: true })
    await page.getByText('its parts need not add up').waitFor()
    await page.screenshot({ path: join(artifacts, 'test-attribute.png'), fullPage: true })
  })

  it('a click on a cell opens that run in Patch', async () => {
    await page.locator('.grid').click({ position: { x: 200, y: 60 } })
    await page.getByRole('heading', { name: 'Where does the difference live?' }).waitFor()
    await page.getByRole('article').waitFor()
  })

  it('parts of the model add up to the answer, in words', async () => {
    await open(`${texts}&attribute.show=parts`)
    const sentence = await page.getByText('Together').textContent()
    const gap = Number(/the gap to \S+ is (\S+)\. The/.exec(sentence ?? '')?.[1]?.replace('−', '-'))
    expect(Math.abs(gap)).toBeLessThan(1e-3)
    expect(await page.locator('.bars li').count()).toBe(2 * 3 + 2)
    await page.locator('.bars').getByRole('button', { name: 'code' }).click()
    expect(await page.getByRole('dialog').textContent()).toContain('attributeLogits(model')
    await page.keyboard.press('Escape')
  })

  it('paths are drawn, chosen by keyboard, and kept as a picture', async () => {
    await open(`${texts}&attribute.show=paths&attribute.edges=20`)
    await page.locator('.paths path').first().waitFor()
    expect(await page.locator('.paths path').count()).toBe(20)
    await page.locator('.node').first().focus()
    await page.keyboard.press('Enter')
    expect(await page.locator('.node[aria-pressed=true]').count()).toBe(1)
    await page.screenshot({ path: join(artifacts, 'test-attribute-paths.png'), fullPage: true })
    await page.getByRole('button', { name: 'picture' }).click()
    const [download] = await Promise.all([page.waitForEvent('download'), page.getByRole('button', { name: 'PNG' }).click()])
    expect(download.suggestedFilename()).toBe('attribution-paths.png')
  })

  it.each(['tokens', 'parts', 'paths'])('%s: nothing sticks out on a narrow page', async (show) => {
    await page.setViewportSize({ width: 390, height: 900 })
    await open(`${texts}&attribute.show=${show}`)
    await page.locator('section .actions').first().waitFor()
    expect(await page.evaluate(() => document.documentElement.scrollWidth - innerWidth)).toBeLessThanOrEqual(0)
    await page.screenshot({ path: join(artifacts, `test-attribute-${show}-390.png`), fullPage: true })
    await page.setViewportSize({ width: 1440, height: 900 })
  })

  it('tells the library’s sentence when a token is none, and nothing left the machine', async () => {
    await open(texts.replace('pair.answer=a', 'pair.answer=abc'))
    await expect.poll(() => page.getByRole('alert').first().textContent()).toContain('must be exactly one token')
    expect(studio.foreign).toEqual([])
    expect(studio.complaints.filter((c) => !c.includes('status of 400'))).toEqual([])
  })
})
