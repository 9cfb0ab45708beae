import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import { request as rawRequest } from 'node:http'
import { createServer } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { CancelledError, ModelError, UsageError } from '../base/errors.ts'
import type { OnProgress } from '../base/progress.ts'
import { startServer } from './index.ts'
import type { ErrorAnswer, ModelLine } from './protocol.ts'
import { Registry } from './registry.ts'
import { linesOf, tinyReader, tinyServer } from './testing.ts'

const errorOf = async (response: Response) => ((await response.json()) as ErrorAnswer).error

describe('who may speak to the server', () => {
  let server: Awaited<ReturnType<typeof tinyServer>>
  beforeAll(async () => {
    server = await tinyServer()
  })
  afterAll(() => server.close())

  /** `fetch` sets Host and Origin itself; a plain request sends what it is told. */
  const raw = (headers: Record<string, string>, path = '/api/health', method = 'GET') =>
    new Promise<{ status: number; body: string }>((resolve, reject) => {
      const request = rawRequest({ host: '127.0.0.1', port: server.port, path, method, headers }, (response) => {
        let body = ''
        response.on('data', (d) => {
          body += d
        })
        response.on('end', () => resolve({ status: response.statusCode ?? 0, body }))
      })
      request.on('error', reject)
      request.end()
    })

  it('sends a policy that loads nothing from elsewhere, with every answer, failures too', async () => {
    for (const path of ['/api/health', '/api/nothing', '/nothing.js', '/']) {
      const { headers } = await server.get(path)
      expect(headers.get('content-security-policy')).toContain("default-src 'none'")
      expect(headers.get('content-security-policy')).not.toMatch(/'unsafe|https?:/)
      expect(headers.get('x-content-type-options')).toBe('nosniff')
      expect(headers.get('referrer-policy')).toBe('no-referrer')
      expect(headers.get('access-control-allow-origin')).toBeNull()
    }
  })

  it('isolates its pages, so that a program in a tab may use threads, and has the files of the runtime for them', async () => {
    const { headers } = await server.get('/')
    expect(headers.get('cross-origin-opener-policy')).toBe('same-origin')
    expect(headers.get('cross-origin-embedder-policy')).toBe('require-corp')
    expect(headers.get('content-security-policy')).toContain("script-src 'self' 'wasm-unsafe-eval'")
    const file = await server.get('/ort/ort-wasm-simd-threaded.wasm')
    expect(file.headers.get('content-type')).toBe('application/wasm')
    const bytes = new Uint8Array(await file.arrayBuffer())
    expect([...bytes.subarray(0, 4)]).toEqual([0, 0x61, 0x73, 0x6d])
    expect(await errorOf(await server.get('/ort/package.json'))).toMatchObject({
      message: expect.stringContaining('has no file package.json'),
    })
  })

  it('answers to the names of this machine only', async () => {
    for (const host of [`127.0.0.1:${server.port}`, `localhost:${server.port}`, `localhost:1234`, `[::1]:${server.port}`])
      expect((await raw({ host })).status).toBe(200)
    for (const host of ['evil.example', `evil.example:${server.port}`, '127.0.0.1.evil.example', 'localhost.evil.example:80']) {
      const { status, body } = await raw({ host })
      expect(status).toBe(403)
      expect(body).toContain('This server answers to 127.0.0.1, localhost')
    }
  })

  it('refuses other pages', async () => {
    const host = `127.0.0.1:${server.port}`
    expect((await raw({ host, origin: `http://${host}` })).status).toBe(200)
    for (const origin of ['http://evil.example', 'null', `http://127.0.0.1:${server.port + 1}`, `http://${host}.evil.example`])
      expect((await raw({ host, origin })).status).toBe(403)
    expect((await raw({ host, 'sec-fetch-site': 'cross-site' })).status).toBe(403)
    expect((await raw({ host, 'sec-fetch-site': 'same-site' })).status).toBe(403)
    expect((await raw({ host, 'sec-fetch-site': 'same-origin' })).status).toBe(200)
    // A link elsewhere may open the page, but not the API.
    expect((await raw({ host, 'sec-fetch-site': 'cross-site', 'sec-fetch-mode': 'navigate' })).status).toBe(403)
    expect((await raw({ host, 'sec-fetch-site': 'cross-site', 'sec-fetch-mode': 'navigate' }, '/')).status).not.toBe(403)
    // A form of another page can send text/plain without being asked first.
    const plain = await server.post('tokens', { text: 'a' }, { headers: { 'content-type': 'text/plain' } })
    expect(plain.status).toBe(400)
    expect((await errorOf(plain)).message).toMatch(/Send the body as JSON/)
  })
})

describe('an address open to other machines', () => {
  it('needs the token, which moves from the address into a cookie', async () => {
    const server = await tinyServer({ host: '0.0.0.0' })
    try {
      const token = new URL(server.url).searchParams.get('token') ?? ''
      expect(token.length).toBeGreaterThan(20)
      const without = await server.get('/api/health')
      expect(without.status).toBe(401)
      expect((await errorOf(without)).message).toMatch(/its address carries a token/)
      expect((await server.get('/?token=wrong')).status).toBe(401)
      expect((await server.get('/api/health', { headers: { authorization: `Bearer ${token}` } })).status).toBe(200)
      expect((await server.get('/api/health', { headers: { authorization: `Bearer ${token}x` } })).status).toBe(401)
      const opened = await server.get(`/?token=${token}`, { redirect: 'manual' })
      expect(opened.status).toBe(302)
      expect(opened.headers.get('location')).toBe('/')
      const cookie = opened.headers.get('set-cookie') ?? ''
      expect(cookie).toMatch(/HttpOnly/)
      expect(cookie).toMatch(/SameSite=Strict/)
      expect((await server.get('/api/health', { headers: { cookie: cookie.split(';')[0] as string } })).status).toBe(200)
    } finally {
      await server.close()
    }
  })
})

describe('starting and stopping', () => {
  const occupied = async () => {
    const other = createServer()
    await new Promise<void>((resolve) => other.listen(0, '127.0.0.1', resolve))
    return { port: (other.address() as { port: number }).port, free: () => new Promise((resolve) => other.close(resolve)) }
  }

  it('a port that was asked for and is taken is refused with a sentence', async () => {
    const { port, free } = await occupied()
    const start = startServer({ port, model: 'tiny', load: () => tinyReader() })
    await expect(start).rejects.toThrow(`Port ${port} of 127.0.0.1 is in use by another program`)
    await expect(start).rejects.toBeInstanceOf(UsageError)
    await free()
  })

  it('without a wish two servers find two ports', async () => {
    const options = { model: 'tiny', load: () => tinyReader() }
    const [a, b] = [await startServer(options), await startServer(options)]
    expect(a.port).toBeGreaterThanOrEqual(4600)
    expect(b.port).toBeGreaterThan(a.port)
    expect(a.url).toBe(`http://127.0.0.1:${a.port}/`)
    await Promise.all([a.close(), b.close()])
  })

  it('refuses ports and hosts that are none', async () => {
    await expect(startServer({ port: 70_000 })).rejects.toThrow(/whole number from 0 to 65535/)
    await expect(startServer({ port: 0, host: '192.0.2.1', load: () => tinyReader() })).rejects.toThrow(/is not an address of this machine/)
  })

  it('closes on a signal, also while an answer is being written', async () => {
    const abort = new AbortController()
    const server = await tinyServer({ signal: abort.signal })
    const answer = await server.post('generate', { text: 'abc', maxNewTokens: 50 })
    const reading = answer.text()
    abort.abort()
    await expect(reading.catch((e) => String(e))).resolves.toBeDefined()
    await expect
      .poll(() =>
        server.get('/api/health').then(
          () => 'open',
          () => 'closed',
        ),
      )
      .toBe('closed')
    await expect(startServer({ signal: abort.signal })).rejects.toBeInstanceOf(CancelledError)
  })
})

describe('the page', () => {
  let folder: string
  beforeAll(async () => {
    folder = await mkdtemp(join(tmpdir(), 'actlens-studio-'))
    await writeFile(join(folder, 'index.html'), '<!doctype html><title>page</title>')
    await writeFile(join(folder, 'x.js'), 'export {}')
    await writeFile(join(folder, '..', 'outside.txt'), 'secret')
  })
  afterAll(async () => {
    await rm(folder, { recursive: true })
    await rm(join(folder, '..', 'outside.txt'))
  })

  it('is served from its folder, and nothing else', async () => {
    const server = await tinyServer({ studio: folder })
    expect(await (await server.get('/')).text()).toContain('<title>page</title>')
    expect((await server.get('/x.js')).headers.get('content-type')).toContain('text/javascript')
    for (const path of ['/../outside.txt', '/%2e%2e/outside.txt', '/..%2foutside.txt', '/x.js/../../outside.txt', '/nothing'])
      expect((await server.get(path)).status).toBe(404)
    await server.close()
  })

  it('says how to build it where it is not', async () => {
    const server = await tinyServer({ studio: join(folder, 'none') })
    const answer = await server.get('/')
    expect(answer.status).toBe(503)
    expect(await answer.text()).toContain('npm run build')
    await server.close()
  })
})

describe('loading models', () => {
  it('reports progress, loads once for all who wait, and tells a failure to all', async () => {
    let loads = 0
    let finish = () => {}
    const server = await tinyServer({
      load: async (id, { onProgress }) => {
        loads++
        if (id === 'broken') throw new ModelError('The model is broken; take another one.')
        onProgress?.({ task: 'fetching', done: 1, total: 2, unit: 'bytes' })
        await new Promise<void>((resolve) => {
          finish = resolve
        })
        return tinyReader()
      },
    })
    const [a, b] = [server.get('/api/model'), server.get('/api/model')]
    await expect.poll(() => loads).toBe(1)
    await Promise.all([a, b])
    finish()
    for (const lines of [await linesOf<ModelLine>(await a), await linesOf<ModelLine>(await b)]) {
      expect(lines[0]).toEqual({ type: 'progress', task: 'fetching', done: 1, total: 2, unit: 'bytes' })
      expect(lines.at(-1)).toMatchObject({ type: 'model', model: { id: 'tiny', layers: 3, dModel: 32, hasTokenizer: true } })
    }
    expect(loads).toBe(1)
    expect(await linesOf<ModelLine>(await server.post('model', { model: 'broken' }))).toEqual([
      { type: 'error', error: { name: 'ModelError', message: 'The model is broken; take another one.' } },
    ])
    await server.close()
  })

  it('a load for which nobody waits any more is cancelled', async () => {
    let cancelled = false
    const server = await tinyServer({
      load: async (id, { signal, onProgress }) => {
        if (id === 'tiny') return tinyReader()
        const progress: OnProgress = onProgress ?? (() => {})
        return new Promise((_, reject) => {
          progress({ task: 'fetching', done: 0, unit: 'bytes' })
          signal?.addEventListener('abort', () => {
            cancelled = true
            reject(new CancelledError())
          })
        })
      },
    })
    const client = new AbortController()
    const answer = await server.post('model', { model: 'large' }, { signal: client.signal })
    expect(answer.status).toBe(200)
    client.abort()
    await expect.poll(() => cancelled).toBe(true)
    await server.close()
  })

  it('keeps two models, lets go of the one that was not used for longest, but of none that is in use', async () => {
    const registry = new Registry(() => tinyReader(), 2)
    const touch = (id: string) => registry.use(id, {}, async () => undefined)
    for (const id of ['first', 'second']) await touch(id)
    await touch('first')
    await touch('third')
    expect(registry.loaded).toEqual(['first', 'third'])
    await registry.use('first', {}, async () => {
      await touch('fourth')
      await touch('fifth')
      expect(registry.loaded).toContain('first')
    })
    expect(registry.loaded.length).toBe(2)
    await registry.close()
    expect(registry.loaded).toEqual([])
  })
})
