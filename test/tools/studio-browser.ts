/** @file The built studio in a real Chromium, with a server of a tiny model; for tests. */
import { mkdirSync } from 'node:fs'
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import type { BrowserContext, Page } from 'playwright-core'
import { chromiumFlags, chromiumPath } from '../../scripts/tools/chromium.mjs'
import { load } from '../../src/run/index.ts'
import { type RunningServer, type ServerOptions, startServer } from '../../src/server/index.ts'
import type { LoadModel } from '../../src/server/registry.ts'
import { tinyReader } from '../../src/server/testing.ts'

const root = fileURLToPath(new URL('../..', import.meta.url))
/** Where screenshots go; ignored by git. */
export const artifacts = join(root, 'artifacts')
/** The browser of this machine, if there is one. */
export const browser = chromiumPath
/** What a suite says where there is none. */
export const skipped = browser ? '' : ' (skipped: no Chromium found; install it, or name it in CHROMIUM)'
/** How it is started. */
export const flags = chromiumFlags

/** A page that is open on a server. */
export interface OpenStudio {
  readonly page: Page
  readonly context: BrowserContext
  /** The server now; tests may end it and start another. */
  server: RunningServer
  /** Starts a server for the built page. */
  start(port: number): Promise<RunningServer>
  /** Requests that left the machine, and what the console complained about. */
  readonly foreign: string[]
  readonly complaints: string[]
  close(): Promise<void>
}

/** The tiny model, under its name; a file that was dropped into the page goes to the usual readers. */
const loadTiny: LoadModel = (id, work) => (id === 'tiny' ? tinyReader() : load(id, { ...work, threads: 1 }))

/** Builds the page, starts a server with a tiny model, and opens a browser. */
export async function openStudio(options: ServerOptions = {}): Promise<OpenStudio> {
  const folder = await mkdtemp(join(tmpdir(), 'actlens-studio-test-'))
  const studio = join(folder, 'studio')
  const { build } = await import('vite')
  await build({ configFile: join(root, 'studio', 'vite.config.ts'), logLevel: 'error', build: { outDir: studio } })
  const places = { studio, captures: join(folder, 'captures'), uploads: join(folder, 'uploads'), papers: join(folder, 'papers') }
  const start = (port: number) => startServer({ model: 'tiny', port, ...places, load: loadTiny, ...options })
  const server = await start(0)
  const { chromium } = await import('playwright-core')
  const context = await chromium.launchPersistentContext(join(folder, 'profile'), {
    executablePath: browser as string,
    args: flags,
    viewport: { width: 1440, height: 900 },
    reducedMotion: 'reduce',
  })
  const page = context.pages()[0] as Page
  page.setDefaultTimeout(15_000)
  const open: OpenStudio = {
    page,
    context,
    server,
    start,
    foreign: [],
    complaints: [],
    async close() {
      await context.close()
      await open.server.close()
      await rm(folder, { recursive: true, force: true })
    },
  }
  page.on('request', (r) => {
    if (!r.url().startsWith(open.server.url) && !/^(data|blob|about):/.test(r.url())) open.foreign.push(r.url())
  })
  page.on('console', (m) => {
    if (m.type() === 'error') open.complaints.push(m.text())
  })
  page.on('pageerror', (e) => open.complaints.push(e.message))
  mkdirSync(artifacts, { recursive: true })
  return open
}
