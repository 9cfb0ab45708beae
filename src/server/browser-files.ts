/** @file What a page that runs the library in its own tab asks of this server: the embedded model and the runtime's files. */
import { createReadStream, statSync } from 'node:fs'
import { extname } from 'node:path'
import { Readable } from 'node:stream'
import type { Context, Hono } from 'hono'
import { UsageError } from '../base/errors.ts'
import { embedded, resolveSource } from '../models/hub/index.ts'
import { webRuntimeFiles } from '../tensor/runtime/web-assets.ts'

const types: Readonly<Record<string, string>> = { '.wasm': 'application/wasm', '.mjs': 'text/javascript; charset=utf-8' }

/** Adds `/models/embedded` and `/ort/FILE`; both answer to ranges, and never change under their names. */
export function browserFiles(app: Hono): void {
  app.get('/models/embedded', async (c) => {
    const { file } = await resolveSource('embedded', { signal: c.req.raw.signal })
    return sendFile(c, file as string, 'application/octet-stream', embedded.sha256)
  })
  app.get('/ort/:file', (c) => {
    const name = c.req.param('file')
    const path = webRuntimeFiles().get(name)
    if (!path) throw new UsageError(`The runtime has no file ${name}; it has ${[...webRuntimeFiles().keys()].join(', ')}.`)
    return sendFile(c, path, types[extname(name)] as string, undefined)
  })
}

/** Sends a file, or its bytes from where the request's range begins. */
function sendFile(c: Context, path: string, type: string, hash: string | undefined): Response {
  const { size, mtimeMs } = statSync(path)
  const etag = `"${hash ?? `${size}-${mtimeMs}`}"`
  const from = c.req.header('if-range') === undefined || c.req.header('if-range') === etag ? startOf(c.req.header('range')) : 0
  c.header('etag', etag)
  c.header('accept-ranges', 'bytes')
  c.header('content-type', type)
  c.header('cache-control', 'no-cache')
  if (c.req.header('if-none-match') === etag) return c.body(null, 304)
  if (from >= size) {
    c.header('content-range', `bytes */${size}`)
    return c.body(null, 416)
  }
  if (from > 0) c.header('content-range', `bytes ${from}-${size - 1}/${size}`)
  c.header('content-length', String(size - from))
  if (c.req.method === 'HEAD') return c.body(null, from > 0 ? 206 : 200)
  return c.body(Readable.toWeb(createReadStream(path, { start: from })) as ReadableStream, from > 0 ? 206 : 200)
}

/** The first byte that is wanted; ranges of other kinds are answered with the whole file, as the standard allows. */
const startOf = (range: string | undefined): number => Number(/^bytes=(\d+)-$/.exec(range ?? '')?.[1] ?? 0)
