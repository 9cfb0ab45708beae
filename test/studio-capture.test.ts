/** @file The room Capture in a real browser: jobs that survive a reload and a restart, contexts of a neuron; and models dropped into the page. */
import { join } from 'node:path'
import type { Page } from 'playwright-core'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { encodeSafetensors } from '../src/models/formats/index.ts'
import { tinyLlama, tinyTensors } from '../src/run/testing.ts'
import { artifacts, browser, type OpenStudio, openStudio, skipped } from './tools/studio-browser.ts'

const corpus = Array.from({ length: 6000 }, (_, i) => `the ${'abcdefg'[i % 7]} dog went to the ${'xyz'[i % 3]} park`).join('\n')

describe.skipIf(!browser)(`the room Capture in a browser${skipped}`, () => {
  let studio: OpenStudio
  let page: Page
  beforeAll(async () => {
    studio = await openStudio()
    page = studio.page
  })
  afterAll(() => studio?.close())

  const open = async (state: Record<string, string> = {}) => {
    await page.goto('about:blank')
    await page.goto(`${studio.server.url}#${new URLSearchParams({ room: 'capture', ...state })}`)
    await page.getByRole('heading', { name: 'Keep what the model computes' }).waitFor()
  }
  const jobs = () => page.getByRole('region', { name: 'Captures' }).locator('li')

  it('captures the example where no texts are given', async () => {
    await open()
    await page.getByText('None yet').waitFor()
    await page.getByRole('button', { name: 'Capture resid_post.*' }).click()
    await jobs().filter({ hasText: 'done' }).waitFor()
    await page.screenshot({ path: join(artifacts, 'test-capture.png'), fullPage: true })
  })

  it('a capture is watched, stopped, found again after a reload and a restart, and goes on', async () => {
    const file = { name: 'corpus.txt', mimeType: 'text/plain', buffer: Buffer.from(corpus) }
    await page.getByRole('group', { name: 'Texts' }).locator('input[type=file]').setInputFiles(file)
    await page.getByText('too long for a link').waitFor()
    await page.getByLabel('Site that is captured').selectOption('mlp_act')
    await page.getByRole('button', { name: 'Capture mlp_act.*' }).click()
    const job = jobs().filter({ hasText: 'mlp_act.*' })
    await job.getByText('tokens/s').waitFor()
    await job.getByRole('button', { name: 'stop' }).click()
    await job.filter({ hasText: 'stopped' }).waitFor()
    await open()
    await job.filter({ hasText: 'stopped' }).waitFor()
    const { port } = studio.server
    await studio.server.close()
    studio.server = await studio.start(port)
    await job.getByRole('button', { name: 'go on' }).click()
    await job.filter({ hasText: 'done' }).waitFor({ timeout: 30_000 })
    await job.getByRole('button', { name: 'remove' }).click()
    await job.getByRole('button', { name: 'remove' }).click()
    await expect.poll(() => jobs().count()).toBe(1)
  }, 90_000)

  it('shows what a neuron fires on, another by a click; the link shows the same again', async () => {
    await open({ 'capture.at': 'mlp_act.1', 'capture.neuron': '3' })
    const contexts = page.getByRole('region', { name: 'Contexts' })
    await contexts.locator('li').first().waitFor()
    const first = await contexts.locator('ol').textContent()
    await contexts.getByRole('button', { name: 'next' }).click()
    await expect.poll(() => page.url()).toContain('capture.neuron=4')
    await expect.poll(() => contexts.locator('ol').textContent()).not.toBe(first)
    const [link, shown] = [page.url(), await contexts.locator('ol').textContent()]
    await page.goto('about:blank')
    await page.goto(link)
    await expect.poll(() => contexts.locator('ol').textContent(), { timeout: 15_000 }).toBe(shown)
  })

  it('a job that cannot be done tells the library’s sentence', async () => {
    await open({ 'capture.path': '/no/such/file.txt' })
    await page.getByRole('button', { name: 'Capture resid_post.*' }).click()
    await jobs().getByText('/no/such/file.txt', { exact: false }).first().waitFor()
    await expect.poll(() => jobs().getByRole('alert').textContent()).toContain('does not exist')
  })

  it('a model that is dropped into the page is loaded; one that is none is told by the reader', async () => {
    await open()
    await page.getByRole('button', { name: /layers/ }).click()
    const files = page.getByRole('dialog', { name: 'Choose a model' }).locator('input[type=file]')
    await files.setInputFiles([
      { name: 'config.json', mimeType: 'application/json', buffer: Buffer.from(JSON.stringify({ ...tinyLlama, num_hidden_layers: 2 })) },
      { name: 'model.safetensors', mimeType: 'application/octet-stream', buffer: Buffer.from(encodeSafetensors(tinyTensors(tinyLlama))) },
    ])
    // The weights have three layers, the config says two: the loader counts.
    await expect.poll(() => page.getByRole('alert').first().textContent(), { timeout: 20_000 }).toMatch(/layers|tensor/)
    await page.screenshot({ path: join(artifacts, 'test-upload.png'), fullPage: true })
    expect(studio.foreign).toEqual([])
  })
})
