/** @file The room Patch in a real browser: two texts, the sweep that fills in, the run behind a cell, its states. */
import { join } from 'node:path'
import type { Page } from 'playwright-core'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { artifacts, browser, type OpenStudio, openStudio, skipped } from './tools/studio-browser.ts'

const texts = 'room=patch&pair.clean=the+big+dog&pair.corrupt=the+bad+dog&pair.answer=a&pair.wrong=b'

describe.skipIf(!browser)(`the room Patch in a browser${skipped}`, () => {
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
    await page.getByRole('heading', { name: 'Where does the difference live?' }).waitFor()
  }
  const filled = () => page.locator('.grid canvas').waitFor()

  it('is reached from the navigation, and Back returns', async () => {
    await page.goto(studio.server.url)
    await page.locator('.grid canvas').waitFor()
    await page.getByRole('navigation').getByRole('link', { name: 'Patch' }).click()
    await page.getByRole('heading', { name: 'Where does the difference live?' }).waitFor()
    await expect.poll(() => page.url()).toContain('room=patch')
    await page.goBack()
    await page.locator('#strength').waitFor()
    await page.goForward()
    await page.getByRole('heading', { name: 'Where does the difference live?' }).waitFor()
  })

  it('marks the tokens that differ, fills the sweep in, and a click shows that run', async () => {
    await open(texts)
    await filled()
    expect(await page.locator('.column.differs').count()).toBe(2)
    await page.getByText('The logit difference is').waitFor()
    await page.locator('.grid').click({ position: { x: 200, y: 60 } })
    await page.getByRole('article').waitFor()
    expect(await page.getByRole('article').getByRole('heading').allTextContents()).toEqual(
      expect.arrayContaining(['corrupted run with this patch', 'clean run', 'corrupted run']),
    )
    await expect.poll(() => page.url()).toMatch(/patch\.at=resid_pre\.\d@\d/)
    await page.screenshot({ path: join(artifacts, 'test-patch.png'), fullPage: true })
    await page.keyboard.press('Escape')
    await expect.poll(() => page.getByRole('article').count()).toBe(0)
  })

  it('sweeps heads, with all tokens at once, by keyboard, and the link shows the same again', async () => {
    await page.getByLabel('What is patched').selectOption('z')
    await page.getByRole('radio', { name: 'all tokens at once' }).check({ force: true })
    await expect.poll(() => page.url()).toContain('patch.positions=all')
    await filled()
    await page.locator('.grid').focus()
    for (const key of ['ArrowRight', 'ArrowRight', 'ArrowDown', 'Enter']) await page.keyboard.press(key)
    await page.getByRole('article').waitFor()
    const name = await page.locator('article .name').textContent()
    expect(name).toBe('z.1 head 1')
    await expect.poll(() => page.url()).toContain('patch.at=z.1@.1')
    const link = page.url()
    await page.goto('about:blank')
    await page.goto(link)
    await page.getByRole('article').waitFor()
    expect(await page.locator('article .name').textContent()).toBe(name)
  })

  it('code, pictures and tables can be taken along', async () => {
    await page.locator('.left').getByRole('button', { name: 'code' }).click()
    const code = await page.getByRole('dialog').textContent()
    expect(code).toContain("import { load, oneToken, patch } from 'actlens'")
    expect(code).toContain(
      "actlens patch embedded --clean 'the big dog' --corrupt 'the bad dog' --answer a --wrong b --sites 'z.*' --positions all",
    )
    await page.keyboard.press('Escape')
    for (const kind of ['SVG', 'PNG', 'CSV']) {
      await page.locator('.left').getByRole('button', { name: 'picture' }).click()
      const [download] = await Promise.all([page.waitForEvent('download'), page.getByRole('button', { name: kind }).click()])
      expect(download.suggestedFilename()).toBe(`patch-z.${kind.toLowerCase()}`)
    }
  })

  it('explains lengths that differ, missing tokens, and tells the library’s sentence for a token that is none', async () => {
    await open(texts.replace('the+bad+dog', 'the+fat+mouse'))
    await page.getByText('word both texts to as many tokens').waitFor()
    await page.screenshot({ path: join(artifacts, 'test-patch-lengths.png'), fullPage: true })
    await open(texts.replace('pair.answer=a', 'pair.answer='))
    await page.getByText('Say which token is measured').waitFor()
    await open(texts.replace('pair.answer=a', 'pair.answer=abc'))
    await expect.poll(() => page.getByRole('alert').first().textContent()).toContain('must be exactly one token')
    await open(texts.replace('pair.clean=the+big+dog', 'pair.clean='))
    await page.getByText('Write both texts').waitFor()
  })

  it.each([1024, 390])('at %i pixels nothing sticks out, in light and dark', async (width) => {
    await page.setViewportSize({ width, height: 900 })
    for (const colorScheme of ['light', 'dark'] as const) {
      await page.emulateMedia({ colorScheme, reducedMotion: 'reduce' })
      await open(`${texts}&patch.at=resid_pre.1@5`)
      await page.getByRole('article').waitFor()
      expect(await page.evaluate(() => document.documentElement.scrollWidth - innerWidth)).toBeLessThanOrEqual(0)
      await page.screenshot({ path: join(artifacts, `test-patch-${width}-${colorScheme}.png`), fullPage: true })
    }
    await page.setViewportSize({ width: 1440, height: 900 })
    await page.emulateMedia({ colorScheme: 'light', reducedMotion: 'reduce' })
  })

  it('two tabs on one server have their sweeps side by side', async () => {
    const other = await studio.context.newPage()
    await Promise.all([
      open(`${texts}&patch.site=mlp_out`),
      other.goto(`${studio.server.url}#${texts}&patch.site=attn_out`).then(() => other.locator('.grid canvas').waitFor()),
    ])
    await filled()
    await other.close()
  })

  it('no request left the machine, and the console told only what the server refused', () => {
    expect(studio.foreign).toEqual([])
    expect(studio.complaints.filter((c) => !c.includes('status of 400'))).toEqual([])
  })

  it('keeps the sweep while the server is gone, and goes on when it is back', async () => {
    await open(texts)
    await filled()
    const { port } = studio.server
    await studio.server.close()
    await page.getByLabel('What is patched').selectOption('attn_out')
    await page.getByText('The server does not answer').waitFor()
    expect(await page.locator('.grid canvas').count()).toBe(1)
    studio.server = await studio.start(port)
    await expect.poll(() => page.getByText('The server does not answer').count(), { timeout: 20_000 }).toBe(0)
    await expect.poll(() => page.locator('.grid').getAttribute('class'), { timeout: 20_000 }).not.toContain('stale')
  })
})
