/** @file A browser tab with the library in it: the bundle that a page gets, a server of models, and Chromium; for tests. */
import { createReadStream, existsSync, readFileSync, statSync } from 'node:fs'
import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import { createServer } from 'node:http'
import type { AddressInfo } from 'node:net'
import { tmpdir } from 'node:os'
import { extname, join, normalize } from 'node:path'
import { fileURLToPath } from 'node:url'
import type { BrowserContext, Page } from 'playwright-core'
import { browserSources } from '../../scripts/tools/browser-table.mjs'
import { browser, flags } from './studio-browser.ts'

const root = fileURLToPath(new URL('../..', import.meta.url))
/** The small models of the tests. */
export const goldens = join(root, 'test', 'goldens')

const types: Readonly<Record<string, string>> = {
  '.html': 'text/html',
  '.js': 'text/javascript',
  '.mjs': 'text/javascript',
  '.wasm': 'application/wasm',
  '.json': 'application/json',
}

/** Bundles a page of the tests into a folder; gives the names of modules of Node that it would import. */
export async function bundlePage(folder: string, entry = join(root, 'test/tools/tab/page.ts'), name = 'page'): Promise<string[]> {
  const { build } = await import('vite')
  const ofNode: string[] = []
  await build({
    root,
    configFile: false,
    logLevel: 'error',
    plugins: [browserSources()],
    resolve: { alias: [{ find: /^actlens\/(\w+)$/, replacement: join(root, 'src', '$1', 'index.ts') }] },
    build: {
      outDir: folder,
      emptyOutDir: false,
      assetsInlineLimit: 0,
      modulePreload: false,
      target: 'es2023',
      rolldownOptions: {
        input: { [name]: entry },
        output: { entryFileNames: '[name].js' },

        // Left as they are, so that a module of Node that slips in is seen and not replaced by an empty one.
        external: (id, importer) => {
          if (!id.startsWith('node:') || importer?.includes('onnxruntime-web')) return false
          ofNode.push(`${id} in ${importer}`)
          return true
        },
      },
    },
  })
  return ofNode
}

/** An open tab. */
export interface OpenTab {
  readonly page: Page
  readonly context: BrowserContext
  readonly url: string
  /** Method, path and range of what was asked for, in order. */
  readonly requests: string[]
  /** What the console complained about. */
  readonly complaints: string[]
  /** Files at further paths. */
  readonly files: Map<string, string | Uint8Array>
  /** Bundles a module that imports the package by its name; gives its address. */
  script(code: string): Promise<string>
  close(): Promise<void>
}

/** Options of {@link openTab}. */
export interface TabOptions {
  /** Whether the server isolates the page, so that it may use threads (default true). */
  readonly isolated?: boolean
  /** Further flags of Chromium. */
  readonly flags?: readonly string[]
  /** Milliseconds that a call of the page may take (default 60,000). */
  readonly timeout?: number
}

/** Bundles the page, serves it with the small models, and opens it. */
export async function openTab({ isolated = true, flags: more = [], timeout = 60_000 }: TabOptions = {}): Promise<OpenTab> {
  const folder = await mkdtemp(join(tmpdir(), 'actlens-tab-'))
  await bundlePage(join(folder, 'site'))
  await writeFile(join(folder, 'site', 'index.html'), '<!doctype html><title>tab</title><script type="module" src="/page.js"></script>')
  let scripts = 0
  const requests: string[] = []
  const files = new Map<string, string | Uint8Array>()
  const isolation: Record<string, string> = isolated
    ? { 'cross-origin-opener-policy': 'same-origin', 'cross-origin-embedder-policy': 'require-corp' }
    : {}
  const server = createServer((request, response) => {
    const path = normalize(new URL(request.url ?? '/', 'http://x').pathname)
    const { range } = request.headers
    requests.push([request.method, path, range].filter((part) => part !== undefined).join(' '))
    const given = files.get(path)
    const place = path.startsWith('/models/') ? join(goldens, path.slice(8)) : join(folder, 'site', path === '/' ? 'index.html' : path)
    const file = typeof given === 'string' ? given : place
    const there = given !== undefined || (existsSync(file) && statSync(file).isFile())
    const headers = { ...isolation, 'content-type': types[extname(path)] ?? (path === '/' ? 'text/html' : 'application/octet-stream') }
    if (!there) response.writeHead(404, headers).end()
    else if (given instanceof Uint8Array) sendBytes(given, range, { ...headers, etag: `"${path}"` }, response)
    else {
      response.writeHead(200, { ...headers, etag: `"${path}"`, 'content-length': statSync(file).size })
      if (request.method === 'HEAD') response.end()
      else createReadStream(file).pipe(response)
    }
  })
  await new Promise<void>((done) => server.listen(0, '127.0.0.1', done))
  const url = `http://127.0.0.1:${(server.address() as AddressInfo).port}/`
  const { chromium } = await import('playwright-core')
  const context = await chromium.launchPersistentContext(join(folder, 'profile'), {
    executablePath: browser as string,
    args: [...flags, ...more],
  })
  const page = context.pages()[0] as Page
  page.setDefaultTimeout(timeout)
  const complaints: string[] = []
  page.on('console', (m) => {
    if (m.type() === 'error' || m.type() === 'warning') complaints.push(m.text())
  })
  page.on('pageerror', (e) => complaints.push(e.message))
  await page.goto(url)
  await page.waitForFunction(() => 'actlens' in globalThis)
  return {
    page,
    context,
    url,
    requests,
    complaints,
    files,
    async script(code) {
      const name = `script-${scripts++}`
      const entry = join(folder, `${name}.js`)
      await writeFile(entry, code)
      await bundlePage(join(folder, 'site'), entry, name)
      return `/${name}.js`
    },
    async close() {
      await context.close()
      server.closeAllConnections()
      await new Promise((done) => server.close(done))
      await rm(folder, { recursive: true, force: true })
    },
  }
}

function sendBytes(
  bytes: Uint8Array,
  range: string | undefined,
  headers: Record<string, string>,
  response: { writeHead(status: number, headers: Record<string, string | number>): { end(body?: Uint8Array): unknown } },
): void {
  const from = Number(/^bytes=(\d+)-$/.exec(range ?? '')?.[1] ?? 0)
  const body = bytes.subarray(from)
  const status = from > 0 ? 206 : 200
  response.writeHead(status, { ...headers, 'content-length': body.length }).end(body)
}

/** The text of every script of a bundle. */
export const scriptsOf = (folder: string, names: readonly string[]) =>
  names.map((name) => readFileSync(join(folder, name), 'utf8')).join('\n')
