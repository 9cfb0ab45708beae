/** @file The room Steer in a real browser: directions by other methods and from files, several at once, samples coloured, files and links. */
import { readFile, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import type { Page } from 'playwright-core'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { loadVector } from '../src/steer/index.ts'
import { readValues } from '../studio/src/lib/safetensors.ts'
import { artifacts, browser, type OpenStudio, openStudio, skipped } from './tools/studio-browser.ts'

describe.skipIf(!browser)(`the room Steer in a browser${skipped}`, () => {
  let studio: OpenStudio
  let page: Page
  beforeAll(async () => {
    studio = await openStudio()
    page = studio.page
  })
  afterAll(() => studio?.close())

  const open = async (state: Record<string, string> = {}) => {
    await page.goto('about:blank')
    await page.goto(`${studio.server.url}#${new URLSearchParams({ room: 'steer', new: '12', 'steer.samples': '2', ...state })}`)
    await page.getByRole('heading', { name: 'Make directions, and mix them' }).waitFor()
  }
  const directions = () => page.getByRole('region', { name: 'Directions' }).locator('li')
  const made = () => page.getByRole('region', { name: 'What it is made from' })
  const strips = () => page.getByRole('region', { name: 'Samples' }).getByRole('listbox')

  it('writes samples of both models and colours each steered token by its divergence', async () => {
    await open()
    await expect.poll(() => strips().count(), { timeout: 20_000 }).toBe(4)
    const steered = page.getByRole('listbox', { name: 'Steered sample 1' })
    await expect
      .poll(() =>
        steered
          .locator('[data-token]')
          .first()
          .evaluate((e) => e.style.background),
      )
      .toMatch(/rgb/)
    expect(
      await page
        .getByRole('listbox', { name: 'Plain sample 1' })
        .locator('[data-token]')
        .first()
        .evaluate((e) => e.style.background),
    ).toBe('')
    await page.getByText('nats a token').waitFor()
    await page.screenshot({ path: join(artifacts, 'test-steer.png'), fullPage: true })
  })

  it('makes a direction by each method with its options, as long as the difference of means', async () => {
    await open()
    const length = () =>
      made()
        .getByText(/numbers, length/)
        .textContent()
    await expect.poll(length).toMatch(/32 numbers/)
    const before = await length()
    const method = made().getByLabel('method')
    const names = await method.locator('option').allTextContents()
    expect(names).toEqual(['mean-difference', 'reading', 'pca-diff', 'pca-center', 'logistic', 'lda', 'lat'])
    for (const name of names.slice(2)) {
      await method.selectOption(name)
      await expect.poll(() => page.url()).toContain(name)
      await expect.poll(length).toBe(before)
    }
    await method.selectOption('logistic')
    await made().getByLabel('C', { exact: true }).fill('0.5')
    await made().getByLabel('C', { exact: true }).blur()
    await expect.poll(() => decodeURIComponent(page.url())).toContain('"C":0.5')
    await expect.poll(() => made().getByRole('alert').count()).toBe(0)
    await page.getByRole('region', { name: 'Samples' }).getByRole('button', { name: 'code' }).click()
    await expect
      .poll(() => page.getByRole('dialog').locator('pre').first().textContent())
      .toMatch(/extractVector\(model, \{ \.\.\.examples, method: 'logistic', C: 0\.5 \}\)/)
  }, 60_000)

  it('takes examples from a file; a label of three values is refused', async () => {
    await open()
    const file = (text: string) => ({ name: 'examples.csv', mimeType: 'text/csv', buffer: Buffer.from(text) })
    const input = made().locator('input[type=file]')
    await input.setInputFiles(file('text,label\nthe red dog,bad\nthe blue sky,good\na blue sea,good\n'))
    await made().getByText('2 of “good” against 1 of “bad”').waitFor()
    await expect.poll(() => made().getByLabel('More like').inputValue()).toBe('the blue sky\na blue sea')
    await input.setInputFiles(file('text,label\na,1\nb,2\nc,3\n'))
    await expect.poll(() => made().getByRole('alert').textContent()).toContain('the label has 3 values')
  })

  it('mixes several, and keeps the mixture as a file that can be taken back', async () => {
    await open()
    await page.getByRole('button', { name: 'Add a direction' }).click()
    await expect.poll(() => directions().count()).toBe(2)
    await directions().nth(1).getByRole('slider').fill('-2')
    await expect.poll(() => directions().nth(1).locator('output').textContent()).toBe('−2.0')
    const [download] = await Promise.all([page.waitForEvent('download'), page.getByRole('button', { name: 'gguf' }).click()])
    const path = join(tmpdir(), `studio-steer-${process.pid}.gguf`)
    await writeFile(path, await readFile(await download.path()))
    const both = await loadVector(path)
    expect(both.sites).toEqual(['resid_post.2'])
    await directions().nth(1).getByRole('checkbox').uncheck()
    const [second] = await Promise.all([page.waitForEvent('download'), page.getByRole('button', { name: 'safetensors' }).click()])
    await writeFile(path.replace('gguf', 'safetensors'), await readFile(await second.path()))
    const one = await loadVector(path.replace('gguf', 'safetensors'))
    expect(one.at('resid_post.2')).not.toEqual(both.at('resid_post.2'))
    await page.getByRole('region', { name: 'Directions' }).locator('input[type=file]').setInputFiles(path)
    await expect.poll(() => directions().count()).toBe(3)
    await expect
      .poll(() =>
        made()
          .getByText(/numbers, length/)
          .textContent(),
      )
      .toMatch(/32 numbers/)
    await expect.poll(() => strips().count(), { timeout: 20_000 }).toBe(4)
    const link = page.url()
    await page.goto('about:blank')
    await page.goto(link)
    await expect.poll(() => directions().count()).toBe(3)
  }, 60_000)

  it('colours by the probe; is empty with a word on what to do; tells the library’s sentence; fits a phone in the dark', async () => {
    await open({ 'steer.colour': 'probe', 'probe.layer': '1' })
    const plain = page.getByRole('listbox', { name: 'Plain sample 1' })
    await expect
      .poll(
        () =>
          plain
            .locator('[data-token]')
            .first()
            .evaluate((e) => e.style.background),
        { timeout: 20_000 },
      )
      .toMatch(/rgb/)
    await page.getByRole('button', { name: 'Remove' }).first().click()
    await page.getByText('None yet, so the model writes').waitFor()
    await page.screenshot({ path: join(artifacts, 'test-steer-empty.png'), fullPage: true })
    await page.getByRole('button', { name: 'Add a direction' }).click()
    await made()
      .getByLabel('Less like')
      .fill(await made().getByLabel('More like').inputValue())
    await expect.poll(() => made().getByRole('alert').textContent()).toContain('an example belongs to one side only')
    await page.setViewportSize({ width: 390, height: 844 })
    await page.emulateMedia({ colorScheme: 'dark' })
    expect(await page.evaluate(() => document.documentElement.scrollWidth)).toBeLessThanOrEqual(390)
    await page.screenshot({ path: join(artifacts, 'test-steer-narrow.png'), fullPage: true })
    expect(studio.foreign).toEqual([])
    expect(studio.complaints.filter((c) => !/\b40\d\b|422/.test(c))).toEqual([])
  }, 60_000)

  it('shows all numbers of any site as a heat-map with its axes named; the link opens it again', async () => {
    await page.setViewportSize({ width: 1440, height: 900 })
    await page.goto('about:blank')
    await page.goto(`${studio.server.url}#${new URLSearchParams({ new: '8', at: 'mlp_act.1@3', 'look.heat': 'true' })}`)
    const map = page.getByRole('img', { name: /Heat-map of mlp_act\.1: \d+ tokens across, d_mlp down/ })
    await map.waitFor()
    await expect.poll(() => map.evaluate((c: HTMLCanvasElement) => c.width)).toBeGreaterThan(20)
    // The read-out of a cell is the number that the server has for it.
    const { width, height } = await map.evaluate((c: HTMLCanvasElement) => ({ width: c.width, height: c.height }))
    const box = (await map.boundingBox()) as { width: number; height: number }
    await map.hover({ position: { x: (box.width * 3.5) / width, y: (box.height * 5.5) / height } })
    const answer = await page.request.post(`${studio.server.url}api/values`, {
      data: { text: 'Once upon a time, there was a little girl named Lily.', site: 'mlp_act.1' },
    })
    const { data, shape } = readValues(new Uint8Array(await answer.body()).buffer)
    expect([width, height]).toEqual(shape)
    const told = await page.getByText(/token 3, d_mlp 5: /).textContent()
    expect(Number(told?.split('d_mlp 5: ')[1]?.replace('−', '-'))).toBeCloseTo(data[3 * (shape[1] as number) + 5] as number, 3)
    await page.screenshot({ path: join(artifacts, 'test-heat.png'), fullPage: true })
  })
})
