/** @file The built page, from disk: only files that are there when looked for, by their exact names. */
import { readdirSync, statSync } from 'node:fs'
import { readFile } from 'node:fs/promises'
import { extname, join, sep } from 'node:path'
import { fileURLToPath } from 'node:url'
import type { Context } from 'hono'

const types: Readonly<Record<string, string>> = {
  '.html': 'text/html; charset=utf-8',
  '.js': 'text/javascript; charset=utf-8',
  '.css': 'text/css; charset=utf-8',
  '.svg': 'image/svg+xml',
  '.png': 'image/png',
  '.ico': 'image/x-icon',
  '.json': 'application/json; charset=utf-8',
  '.woff2': 'font/woff2',
}

/** Where the page is: beside the built server, or in the clone's `dist` when the server runs from its sources. */
export function studioFolder(): string {
  const built = fileURLToPath(new URL('../studio', import.meta.url))
  return isFolder(built) ? built : fileURLToPath(new URL('../../dist/studio', import.meta.url))
}

/** Answers with a file of the page; other addresses that look like a page get the page itself. */
export async function asset(c: Context, folder: string): Promise<Response> {
  const wanted = c.req.path === '/' ? '/index.html' : c.req.path
  const files = filesUnder(folder)
  const path = files.get(wanted)
  if (path) {
    const bytes = new Uint8Array(await readFile(path))
    // Vite puts a hash of the content into the names of what lies in assets/.
    const cache = wanted.startsWith('/assets/') ? 'public, max-age=31536000, immutable' : 'no-cache'
    return c.body(bytes, 200, { 'content-type': types[extname(path)] ?? 'application/octet-stream', 'cache-control': cache })
  }
  if (wanted !== '/index.html')
    return c.json({ error: { name: 'UsageError', message: `There is nothing at ${c.req.path}; the page is at '/'.` } }, 404)
  return c.text('The page has not been built, so there is only the API under /api. Build it with: npm run build', 503)
}

function filesUnder(folder: string): Map<string, string> {
  if (!isFolder(folder)) return new Map()
  const names = readdirSync(folder, { recursive: true, encoding: 'utf8' })
  return new Map(names.filter((n) => statSync(join(folder, n)).isFile()).map((n) => [`/${n.split(sep).join('/')}`, join(folder, n)]))
}

function isFolder(path: string): boolean {
  return statSync(path, { throwIfNoEntry: false })?.isDirectory() === true
}
