/** @file The local server: the page and its API. */
import { spawn } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import type { Server } from 'node:http'
import { hostname } from 'node:os'
import { createAdaptorServer } from '@hono/node-server'
import { CancelledError, messageOf, UsageError } from '../base/errors.ts'
import { systemCode } from '../base/files.ts'
import type { Precision } from '../models/quantised.ts'
import { load } from '../run/index.ts'
import type { Device } from '../tensor/index.ts'
import { createApp } from './app.ts'
import { studioFolder } from './assets.ts'
import { Captures } from './captures.ts'
import { type PaperShelf, Papers } from './papers.ts'
import { type LoadModel, Registry } from './registry.ts'
import { inUrl, isLoopback, loopback } from './security.ts'
import { warm } from './warm.ts'

export type * from './protocol.ts'

/** Options of {@link startServer}. */
export interface ServerOptions {
  /** What is shown first (default `embedded`): a folder, a file, a hub id, … */
  readonly model?: string
  /** Default: 4600, or the next one that is free. A port that was asked for and is taken is an error. */
  readonly port?: number
  /** Address to listen at (default 127.0.0.1: this machine only). On any other, the address carries a token. */
  readonly host?: string
  /** Opens the page in the browser. */
  readonly open?: boolean
  readonly threads?: number
  readonly device?: Device
  /** Number format of the matrices of models (default `f32`). */
  readonly precision?: Precision
  /** Aborting it closes the server. */
  readonly signal?: AbortSignal
  /** How models are loaded (default {@link load}). */
  readonly load?: LoadModel
  /** Folder of the built page (default: the one that ships). */
  readonly studio?: string
  /** Folder of the captures that the page makes (default: `captures` in the data folder). */
  readonly captures?: string
  /** Folder of the papers' quick runs (default: `papers` in the data folder). */
  readonly papers?: string
  /** Where papers come from (default: those of this version). */
  readonly shelf?: PaperShelf
  /** Folder of model files that were dropped into the page (default: `uploads` in the cache folder). */
  readonly uploads?: string
}

/** A running server. */
export interface RunningServer {
  /** The address to open, with the token where there is one. */
  readonly url: string
  readonly port: number
  /** Stops listening, ends what is running, frees the models. */
  close(): Promise<void>
}

const firstPort = 4600
const portsTried = 20

/**
 * Starts the server; the model is loaded meanwhile.
 * @throws UsageError when the port is taken or the address is not this machine's.
 */
export async function startServer(options: ServerOptions = {}): Promise<RunningServer> {
  const { model = 'embedded', host = '127.0.0.1', signal } = options
  if (signal?.aborted) throw new CancelledError()
  checkPort(options.port)
  const token = isLoopback(host) ? undefined : randomBytes(24).toString('base64url')
  const { threads, device, precision } = options
  const settings = { ...(threads ? { threads } : {}), ...(device ? { device } : {}), ...(precision ? { precision } : {}) }
  const registry = new Registry(options.load ?? ((id, work) => load(id, { ...settings, ...work })))
  const instance = randomBytes(8).toString('hex')
  const captures = new Captures(registry, model, options.captures)
  const papers = new Papers(options.papers, options.shelf)
  const app = createApp({
    registry,
    captures,
    papers,
    uploads: options.uploads,
    model,
    guard: { hosts: token === undefined ? [...loopback, inUrl(host)] : undefined, token, cookie: `actlens-${instance}` },
    studio: options.studio ?? studioFolder(),
    instance,
  })
  const server = createAdaptorServer({ fetch: app.fetch, overrideGlobalObjects: false }) as Server
  const port = await listen(server, host, options.port)
  const closed = new AbortController()
  // The page will ask for it in a moment; a failure is told to the page.
  registry.use(model, { signal: closed.signal }, (held) => warm(held, closed.signal)).catch(() => undefined)
  const url = `http://${inUrl(host === '0.0.0.0' || host === '::' ? hostname() : host)}:${port}/${token ? `?token=${token}` : ''}`
  let closing: Promise<void> | undefined
  const close = () => {
    closing ??= (async () => {
      closed.abort()
      await Promise.all([captures.close(), papers.close()])
      const stopped = new Promise<void>((resolve) => server.close(() => resolve()))
      server.closeAllConnections()
      await Promise.all([stopped, registry.close()])
    })()
    return closing
  }
  signal?.addEventListener('abort', () => void close(), { once: true })
  if (options.open) openInBrowser(url)
  return { url, port, close }
}

function checkPort(port: number | undefined): void {
  if (port !== undefined && !(Number.isInteger(port) && port >= 0 && port <= 65_535))
    throw new UsageError(`The port must be a whole number from 0 to 65535, not ${port}.`)
}

/** Listens at the port that was asked for, or at the first free one from {@link firstPort} on. */
async function listen(server: Server, host: string, asked: number | undefined): Promise<number> {
  const ports = asked === undefined ? Array.from({ length: portsTried }, (_, i) => firstPort + i) : [asked]
  for (const port of ports) {
    try {
      await new Promise<void>((resolve, reject) => {
        server.once('error', reject)
        server.listen(port, host, () => {
          server.off('error', reject)
          resolve()
        })
      })
    } catch (error) {
      if (systemCode(error) === 'EADDRINUSE' && port !== ports.at(-1)) continue
      throw listenFailure(error, host, port, asked !== undefined)
    }
    return (server.address() as { port: number }).port
  }
  throw new UsageError('No port was tried; name one.')
}

function listenFailure(error: unknown, host: string, port: number, asked: boolean): UsageError {
  const sentences: Readonly<Record<string, string>> = {
    EADDRINUSE: asked
      ? `Port ${port} of ${host} is in use by another program: choose another port, leave the port out to get a free one, or stop that program.`
      : `The ports ${firstPort} to ${port} of ${host} are all in use: name a free one.`,
    EACCES: `There is no permission to listen at port ${port}: choose one from 1024 on.`,
    EADDRNOTAVAIL: `${host} is not an address of this machine: leave the host out, or use 127.0.0.1 or 0.0.0.0.`,
    ENOTFOUND: `There is no host '${host}': leave the host out, or use 127.0.0.1 or 0.0.0.0.`,
  }
  return new UsageError(sentences[systemCode(error) ?? ''] ?? `The server could not listen at ${host}:${port}: ${messageOf(error)}.`, {
    cause: error,
  })
}

/** Opens an address in the user's browser; where there is none, the printed address has to do. */
function openInBrowser(url: string): void {
  const [command, ...args] =
    process.platform === 'darwin' ? ['open', url] : process.platform === 'win32' ? ['cmd', '/c', 'start', '', url] : ['xdg-open', url]
  const child = spawn(command as string, args, { stdio: 'ignore', detached: true })
  child.on('error', () => undefined)
  child.unref()
}
