/** @file The room Probe in a real browser: labelled texts, accuracy by layer with controls, reading new text, and using the probe. */
import { join } from 'node:path'
import type { Page } from 'playwright-core'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { artifacts, browser, type OpenStudio, openStudio, skipped } from './tools/studio-browser.ts'

const data = `text,label\n${Array.from({ length: 24 }, (_, i) => `${'abcdefgh'[i % 8]}${'xyz'[i % 3]} ${i % 2 ? 'go' : 'no'},${i % 2 ? 'yes' : 'no'}`).join('\n')}`

describe.skipIf(!browser)(`the room Probe in a browser${skipped}`, () => {
  let studio: OpenStudio
  let page: Page
  beforeAll(async () => {
    studio = await openStudio()
    page = studio.page
  })
  afterAll(() => studio?.close())

  const open = async (state: Record<string, string> = {}) => {
    await page.goto('about:blank')
    await page.goto(`${studio.server.url}#${new URLSearchParams({ room: 'probe', 'probe.data': data, ...state })}`)
    await page.getByRole('heading', { name: 'What can be read off?' }).waitFor()
  }
  const judged = () => page.locator('.wide circle').nth(2).waitFor()

  it('judges every layer beside its controls, and reads the probe on new text', async () => {
    await open({ 'probe.text': 'we go or no' })
    await judged()
    expect(await page.locator('.wide circle').count()).toBe(3)
    await page.getByText('24 texts, labels no, yes; 5 folds').waitFor()
    for (const control of ['shuffled labels', 'random features', 'the tokens alone'])
      await page.locator('.key', { hasText: control }).waitFor()
    await expect.poll(() => page.locator('.strip [data-token]').count()).toBe('we go or no'.length + 1)
    await page.screenshot({ path: join(artifacts, 'test-probe.png'), fullPage: true })
  })

  it('another layer is chosen by keyboard, new text is read as it is typed, and the link shows the same again', async () => {
    await page.locator('.hit').first().focus()
    await page.keyboard.press('Enter')
    await expect.poll(() => page.url()).toContain('probe.layer=0')
    await page.getByLabel('Write anything').fill('oh no')
    await expect.poll(() => page.locator('.strip [data-token]').count()).toBe('oh no'.length + 1)
    await expect.poll(() => page.url()).toContain('probe.text=oh+no')
    const link = page.url()
    await page.goto('about:blank')
    await page.goto(link)
    await judged()
    await page.getByText('the probe of resid_post.0 is read').waitFor()
  })

  it('steers with the probe, and makes it the condition of the edits in force', async () => {
    await page.getByRole('button', { name: 'Edits in force only where it says' }).click()
    await page.locator('.stack li').first().waitFor()
    await expect.poll(() => page.locator('.stack li').first().textContent()).toContain('when')
    await page.getByRole('navigation').getByRole('link', { name: 'Probe' }).click()
    await page.getByRole('button', { name: 'Steer towards “yes” with it' }).click()
    await expect.poll(() => page.locator('.stack li').count()).toBe(2)
    expect(await page.locator('.stack li').last().textContent()).toContain('resid_post.0')
  })

  it('takes a file, and tells the library’s sentences for data that do not fit', async () => {
    await open()
    await page.locator('input[type=file]').setInputFiles({
      name: 'two.jsonl',
      mimeType: 'text/plain',
      buffer: Buffer.from(
        Array.from({ length: 20 }, (_, i) => JSON.stringify({ text: `${'abcde'[i % 5]} ${i % 2}go`, label: i % 2 })).join('\n'),
      ),
    })
    await page.getByText('20 texts, labels 0, 1').waitFor()
    await page.getByRole('textbox', { name: 'Labelled texts' }).fill('text,label\na,x\nb,x')
    await expect.poll(() => page.getByRole('alert').textContent()).toMatch(/class/)
    await page.screenshot({ path: join(artifacts, 'test-probe-error.png'), fullPage: true })
    await page.getByRole('textbox', { name: 'Labelled texts' }).fill('')
    await page.getByText('There are no texts yet').waitFor()
  })

  it('nothing sticks out on a narrow page, in light and dark; nothing left the machine', async () => {
    await page.setViewportSize({ width: 390, height: 900 })
    for (const colorScheme of ['light', 'dark'] as const) {
      await page.emulateMedia({ colorScheme, reducedMotion: 'reduce' })
      await open()
      await judged()
      expect(await page.evaluate(() => document.documentElement.scrollWidth - innerWidth)).toBeLessThanOrEqual(0)
      await page.screenshot({ path: join(artifacts, `test-probe-390-${colorScheme}.png`), fullPage: true })
    }
    expect(studio.foreign).toEqual([])
    expect(studio.complaints.filter((c) => !c.includes('status of 4'))).toEqual([])
  })
})
