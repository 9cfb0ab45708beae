/** @file WebGPU, in Node and in a browser tab, on whatever adapter there is: SwiftShader of Chromium makes one on any machine. */
import { execFile } from 'node:child_process'
import { existsSync } from 'node:fs'
import { rm } from 'node:fs/promises'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'
import { build } from 'vite'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { load } from '../src/run/open.ts'
import { artifacts, browser, skipped } from './tools/studio-browser.ts'
import { differing, errorOf } from './tools/tab/compare.ts'
import { type Figures, modelFigures, transformerLosses } from './tools/tab/figures.ts'
import { goldens, type OpenTab, openTab } from './tools/tab.ts'

type Api = typeof import('../src/web/index.ts')
type Work = typeof import('./tools/tab/figures.ts')
declare const actlens: Api
declare const figures: Work

const root = fileURLToPath(new URL('..', import.meta.url))
/** Sums are added in another order there, with other exponentials. */
const tolerance = 1e-3
/** SwiftShader compiles a shader for every node of every shape. */
const timeout = 400_000
const models = ['llama-linear', 'gpt2']

async function onCpu(name: string): Promise<Figures> {
  return modelFigures(await load(join(goldens, name), { threads: 1, selfCheck: false }))
}

describe.skipIf(!browser)(`WebGPU in a tab${skipped}`, () => {
  let tab: OpenTab
  beforeAll(async () => {
    tab = await openTab({ timeout, flags: ['--enable-unsafe-webgpu', '--use-webgpu-adapter=swiftshader'] })
  })
  afterAll(() => tab?.close())

  it.each(models)('finds the figures of the CPU with %s', { timeout }, async (name) => {
    const ours = await tab.page.evaluate(
      async (path) => figures.modelFigures(await actlens.load(path, { device: 'webgpu' })),
      `/models/${name}/`,
    )
    expect(differing(ours, await onCpu(name), tolerance)).toEqual([])
  })

  it('trains a transformer', { timeout }, async () => {
    const ours = await tab.page.evaluate(() => figures.transformerLosses({ device: 'webgpu' }))
    expect(errorOf(ours, await transformerLosses({ threads: 1 }))).toBeLessThan(tolerance)
  })
})

/** Folder of the Vulkan loader and driver that come with Chromium. */
const driver = ['/usr/lib/chromium', ...(browser ? [dirname(browser)] : [])].find(
  (f) => existsSync(join(f, 'vk_swiftshader_icd.json')) && existsSync(join(f, 'libvulkan.so.1')),
)

describe.skipIf(!driver)(`WebGPU in Node${driver ? '' : ' (skipped: no Chromium with SwiftShader found)'}`, () => {
  it('finds the figures of the CPU, and trains', { timeout }, async () => {
    // A process of its own, since libraries are looked for where its environment said at its start; beside node_modules, for its packages.
    const outDir = join(artifacts, `webgpu-${process.pid}`)
    try {
      await build({
        root,
        configFile: false,
        logLevel: 'error',
        build: { ssr: join(root, 'test/tools/tab/node-page.ts'), outDir, target: 'node20' },
      })
      const folders = models.map((name) => join(goldens, name))
      const env = { ...process.env, LD_LIBRARY_PATH: driver, VK_ICD_FILENAMES: join(driver as string, 'vk_swiftshader_icd.json') }
      const { stdout } = await promisify(execFile)(process.execPath, [join(outDir, 'node-page.js'), 'webgpu', ...folders], {
        env,
        maxBuffer: 1e8,
      })
      const found = JSON.parse(stdout) as { models: Record<string, Figures>; losses: number[] }
      for (const name of models) expect(differing(found.models[join(goldens, name)]!, await onCpu(name), tolerance)).toEqual([])
      expect(errorOf(found.losses, await transformerLosses({ threads: 1 }))).toBeLessThan(tolerance)
    } finally {
      await rm(outDir, { recursive: true, force: true })
    }
  })
})
