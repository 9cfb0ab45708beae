/** @file For tests: a local server that stands in for the hub or an npm registry and misbehaves as it is told. */

import { createHash } from 'node:crypto'
import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http'
import type { AddressInfo } from 'node:net'

/** One way to answer one request wrongly; the request after it is answered properly again. */
export type Mischief =
  | { readonly kind: 'status'; readonly status: number; readonly headers?: Record<string, string> }
  | { readonly kind: 'drop'; readonly after: number }
  | { readonly kind: 'stall'; readonly after: number }
  | { readonly kind: 'length'; readonly claimed: number }
  | { readonly kind: 'bytes'; readonly bytes: Uint8Array }
  | { readonly kind: 'no-range' }
  | { readonly kind: 'range-total'; readonly total: number }

/** A request as the server saw it. */
export interface SeenRequest {
  readonly path: string
  readonly range: string | undefined
  readonly authorization: string | undefined
}

/** A server with files at paths. */
export class StandIn {
  readonly files = new Map<string, Uint8Array>()
  readonly json = new Map<string, unknown>()
  readonly mischief = new Map<string, Mischief[]>()
  readonly seen: SeenRequest[] = []
  readonly #server: Server
  #url = ''

  constructor() {
    this.#server = createServer((request, response) => this.#answer(request, response))
  }

  get url(): string {
    return this.#url
  }

  async start(): Promise<this> {
    await new Promise<void>((done) => this.#server.listen(0, '127.0.0.1', done))
    this.#url = `http://127.0.0.1:${(this.#server.address() as AddressInfo).port}`
    return this
  }

  async stop(): Promise<void> {
    this.#server.closeAllConnections()
    await new Promise((done) => this.#server.close(done))
  }

  /** Makes a repository of the hub out of these files; large ones (over 1 kB) are listed with SHA-256, as LFS does. */
  publish(repo: string, commit: string, files: Record<string, Uint8Array | string>, revision = 'main'): void {
    const entries = Object.entries(files).map(([path, content]) => {
      const bytes = typeof content === 'string' ? new TextEncoder().encode(content) : content
      this.files.set(`/${repo}/resolve/${commit}/${path}`, bytes)
      const git = createHash('sha1').update(`blob ${bytes.length}\0`).update(bytes).digest('hex')
      const sha256 = createHash('sha256').update(bytes).digest('hex')
      const lfs = bytes.length > 1000 ? { lfs: { oid: sha256, size: bytes.length, pointerSize: 130 } } : {}
      return { type: 'file', oid: git, size: bytes.length, path, ...lfs }
    })
    this.json.set(`/api/models/${repo}/revision/${revision}`, { _id: 'x', id: repo, sha: commit, lastModified: '2026-01-01T00:00:00Z' })
    this.json.set(`/api/models/${repo}/tree/${commit}`, [{ type: 'directory', oid: '0', size: 0, path: 'folder' }, ...entries])
  }

  /** Requests for paths that contain the text. */
  requests(text: string): SeenRequest[] {
    return this.seen.filter((request) => request.path.includes(text))
  }

  #answer(request: IncomingMessage, response: ServerResponse): void {
    const path = decodeURIComponent(new URL(request.url ?? '/', 'http://x').pathname)
    const { range, authorization } = request.headers
    this.seen.push({ path, range, authorization })
    const act = this.mischief.get(path)?.shift()
    if (act?.kind === 'status') {
      response.writeHead(act.status, act.headers).end('{"error":"as told"}')
      return
    }
    if (this.json.has(path)) {
      response.writeHead(200, { 'content-type': 'application/json' }).end(JSON.stringify(this.json.get(path)))
      return
    }
    const whole = act?.kind === 'bytes' ? act.bytes : this.files.get(path)
    if (whole === undefined) {
      response.writeHead(404).end('nothing here')
      return
    }
    this.#send(whole, act?.kind === 'no-range' ? undefined : range, response, act)
  }

  #send(whole: Uint8Array, range: string | undefined, response: ServerResponse, act: Mischief | undefined): void {
    const from = Number(/^bytes=(\d+)-$/.exec(range ?? '')?.[1] ?? 0)
    const total = act?.kind === 'range-total' ? act.total : whole.length
    if (range !== undefined && from >= whole.length) {
      response.writeHead(416, { 'content-range': `bytes */${total}` }).end()
      return
    }
    const body = whole.subarray(from)
    const headers = {
      'content-length': String(act?.kind === 'length' ? act.claimed : body.length),
      ...(range === undefined ? {} : { 'content-range': `bytes ${from}-${whole.length - 1}/${total}` }),
    }
    response.writeHead(range === undefined ? 200 : 206, headers)
    if (act?.kind === 'drop') response.write(body.subarray(0, act.after), () => setTimeout(() => response.destroy(), 20))
    else if (act?.kind === 'stall') response.write(body.subarray(0, act.after))
    else response.end(body)
  }
}

/** Bytes that look random, the same ones each time. */
export function someBytes(length: number, seed = 1): Uint8Array {
  const bytes = new Uint8Array(length)
  let state = seed
  for (let i = 0; i < length; i++) {
    state = (Math.imul(state, 1103515245) + 12345) >>> 0
    bytes[i] = state >>> 24
  }
  return bytes
}
