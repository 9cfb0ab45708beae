/**
 * @file Downloads that survive: the bytes go to a part file, a broken connection is taken up again with a Range request, now and
 * on the next call; a server's promises of length are checked. Whether the bytes are the right ones, the caller's hash says.
 */

import { open, rm, stat } from 'node:fs/promises'
import { type ActlensError, CancelledError, FormatError, messageOf, throwIfCancelled } from '../../base/errors.ts'
import { systemCode, writeFailure } from '../../base/files.ts'
import type { WorkOptions } from '../../base/progress.ts'
import { pause } from './pause.ts'
import { throttled } from './progress.ts'

/** Looks at the bytes as they arrive, from the first on (also those of an earlier, interrupted download). */
export interface ByteSink {
  /** The bytes start again from the first. */
  reset(): void | Promise<void>
  /** Takes the next bytes; `enough` ends the download before the end of the file. */
  push(bytes: Uint8Array): undefined | 'enough' | Promise<undefined | 'enough'>
}

/** Patience with a server; tests make it short. */
export interface Patience {
  /** Attempts without a byte of progress before giving up. */
  readonly attempts?: number
  /** Milliseconds before the second attempt; doubled for each further one, at most 15 s. */
  readonly backoffMs?: number
  /** Milliseconds without a byte after which a connection counts as dead. */
  readonly stallMs?: number
}

/** What to download and where to. */
export interface DownloadOptions extends WorkOptions {
  readonly url: string
  /** The file that bytes are added to. */
  readonly part: string
  /** Bytes that the file must have, when known from elsewhere. */
  readonly size?: number | undefined
  /** Headers of each request. */
  readonly headers?: Readonly<Record<string, string>> | undefined
  /** What is downloaded, for sentences: `model.safetensors of org/name`. */
  readonly what: string
  /** What progress reports say; default `fetching …`. */
  readonly task?: string
  /** Sees the bytes. */
  readonly sink?: ByteSink | undefined
  /** What a refusal means here (status 401, 403, 404, 410), as a sentence. */
  readonly refusal?: ((status: number) => string | undefined) | undefined
  /** Patience with the server. */
  readonly patience?: Patience | undefined
  /** Used instead of the global `fetch`. */
  readonly fetch?: typeof fetch | undefined
}

/** The server does not give this file to us (status 4xx), or cannot be reached at all. */
export class Unreachable extends FormatError {}

/** An attempt that failed and may be repeated. */
class Transient extends Error {
  readonly waitMs: number | undefined
  constructor(message: string, waitMs?: number, cause?: unknown) {
    super(message, { cause })
    this.waitMs = waitMs
  }
}

/** The bytes are not the right ones. Sinks throw it, so that {@link downloadVerified} knows that the part file is worth nothing. */
export class WrongContent extends FormatError {}

/** A sink that judges the bytes at their end. */
export interface Verifier extends ByteSink {
  /** Throws {@link WrongContent} where the bytes are not the right ones. */
  verify(): void | Promise<void>
}

/**
 * Downloads and has the bytes judged; wrong ones are deleted. Where a part of them came from an earlier call, they are fetched
 * once more from the first byte before giving up, since that part may be what was wrong.
 */
export async function downloadVerified(options: Omit<DownloadOptions, 'sink'>, verifier: Verifier): Promise<void> {
  const resumed = ((await stat(options.part).catch(() => undefined))?.size ?? 0) > 0
  try {
    await download({ ...options, sink: verifier })
    await verifier.verify()
  } catch (error) {
    if (!(error instanceof WrongContent)) throw error
    await rm(options.part, { force: true })
    if (!resumed) throw error
    await downloadVerified(options, verifier)
  }
}

/** Downloads the file, or what of it the sink wants, and gives the bytes that the part file holds then. */
export async function download(options: DownloadOptions): Promise<number> {
  throwIfCancelled(options.signal)
  const { attempts = 6, backoffMs = 500 } = options.patience ?? {}
  const part = await openPart(options.part)
  const state: State = { part, have: (await part.stat()).size, total: options.size, enough: false, restarts: 0 }
  try {
    await replay(state, options)
    for (let failures = 0; !state.enough && state.have !== state.total; ) {
      const before = state.have
      try {
        await attempt(state, options)
        if (state.total === undefined) break
      } catch (error) {
        if (!(error instanceof Transient)) throw error
        failures = state.have > before ? 0 : failures + 1
        if (failures >= attempts) throw gaveUp(error, state, options)
        await pause(error.waitMs ?? Math.min(15_000, backoffMs * 2 ** failures), options.signal)
      }
    }
    await part.sync()
    return state.have
  } catch (error) {
    const code = systemCode(error)
    if (code === 'ENOSPC' || code === 'EDQUOT') await part.truncate(0)
    if (error instanceof Error && code !== undefined) throw writeFailure(error, options.part)
    throw error
  } finally {
    await part.close()
  }
}

interface State {
  readonly part: Awaited<ReturnType<typeof open>>
  have: number
  total: number | undefined
  enough: boolean
  /** Times that bytes were thrown away because the server could not continue them. */
  restarts: number
}

async function openPart(path: string): Promise<State['part']> {
  try {
    // 'a' creates it without emptying it; writing at a place of our choice needs 'r+'.
    await (await open(path, 'a')).close()
    return await open(path, 'r+')
  } catch (error) {
    throw writeFailure(error, path)
  }
}

/** Shows the sink what an earlier download left. */
async function replay(state: State, options: DownloadOptions): Promise<void> {
  if (state.total !== undefined && state.have > state.total) await startAgain(state, options)
  if (!options.sink) return
  await options.sink.reset()
  const buffer = new Uint8Array(1 << 20)
  for (let at = 0; at < state.have && !state.enough; ) {
    throwIfCancelled(options.signal)
    const { bytesRead } = await state.part.read(buffer, 0, Math.min(buffer.length, state.have - at), at)
    if (bytesRead === 0) break
    at += bytesRead
    // The sink may keep what it is given, so it does not get our buffer itself.
    state.enough = (await options.sink.push(buffer.slice(0, bytesRead))) === 'enough'
  }
}

async function startAgain(state: State, options: DownloadOptions): Promise<void> {
  await state.part.truncate(0)
  state.have = 0
  await options.sink?.reset()
}

/** One request: adds what arrives to the part file. Returns at the end of the body, throws `Transient` when it is worth another. */
async function attempt(state: State, options: DownloadOptions): Promise<void> {
  const stall = new AbortController()
  const stallMs = options.patience?.stallMs ?? 30_000
  let timer = setTimeout(() => stall.abort(), stallMs)
  const signal = options.signal ? AbortSignal.any([options.signal, stall.signal]) : stall.signal
  try {
    const response = await (options.fetch ?? fetch)(options.url, {
      signal,
      headers: {
        ...options.headers,
        // Ranges count the bytes of what is sent, so nothing may be compressed on the way.
        'accept-encoding': 'identity',
        ...(state.have > 0 ? { range: `bytes=${state.have}-` } : {}),
      },
    })
    await accept(response, state, options)
    if (state.have === state.total || !response.body) return
    const report = throttled(options.onProgress)
    for await (const bytes of response.body as unknown as AsyncIterable<Uint8Array>) {
      clearTimeout(timer)
      await take(bytes, state, options)
      report({ task: options.task ?? `fetching ${options.what}`, done: state.have, ...totalOf(state), unit: 'bytes' })
      if (state.enough) return
      timer = setTimeout(() => stall.abort(), stallMs)
    }
    report.last()
    if (state.total !== undefined && state.have < state.total) {
      throw new Transient(`the connection ended after ${state.have} of ${state.total} bytes`)
    }
  } catch (error) {
    if (options.signal?.aborted) throw new CancelledError()
    if (stall.signal.aborted) throw new Transient(`nothing arrived for ${Math.round(stallMs / 1000)} s`)
    // fetch tells network failures as a TypeError with the system error as its cause.
    if (error instanceof TypeError) throw new Transient(networkReason(error), undefined, error)
    throw error
  } finally {
    clearTimeout(timer)
    // Ends the request when we leave before the end of its body.
    stall.abort()
  }
}

const totalOf = (state: State): { total?: number } => (state.total === undefined ? {} : { total: state.total })

async function take(bytes: Uint8Array, state: State, options: DownloadOptions): Promise<void> {
  if (options.size !== undefined && state.have + bytes.length > options.size) {
    await startAgain(state, options)
    throw new FormatError(
      `${options.what}: the server sent more than the ${options.size} bytes that it promised, so nothing was kept. Try again, or use another mirror.`,
    )
  }
  await writeAllAt(state, bytes)
  state.have += bytes.length
  if (options.sink) state.enough = (await options.sink.push(bytes)) === 'enough'
}

async function writeAllAt(state: State, bytes: Uint8Array): Promise<void> {
  for (let from = 0; from < bytes.byteLength; ) {
    from += (await state.part.write(bytes, from, bytes.byteLength - from, state.have + from)).bytesWritten
  }
}

/** Judges status and length headers; afterwards the body continues the part file at `state.have`. */
async function accept(response: Response, state: State, options: DownloadOptions): Promise<void> {
  const range = /^bytes (?:(\d+)-\d+|\*)\/(\d+|\*)$/.exec(response.headers.get('content-range') ?? '')
  const whole = range?.[2] !== undefined && range[2] !== '*' ? Number(range[2]) : undefined
  if (response.status === 206 && range?.[1] !== undefined && Number(range[1]) === state.have) {
    await agreeOnTotal(whole, state, options)
    return
  }
  if (response.status === 200) {
    // The server does not do ranges: the body starts at the first byte.
    if (state.have > 0) await startAgain(state, options)
    const length = response.headers.get('content-length')
    // A length header that is too short may only be wrong; the next request's range tells.
    const plausible = length !== null && !response.headers.get('content-encoding') && Number(length) >= (options.size ?? 0)
    if (plausible) await agreeOnTotal(Number(length), state, options)
    return
  }
  if (response.status === 206 || response.status === 416) {
    if (whole === state.have) {
      state.total ??= whole
      if (state.total === state.have) return
    }
    if (whole !== undefined) await agreeOnTotal(whole, state, options)
    // What we have is longer than the file, or the server answers another range than asked: only a fresh start helps.
    throw await freshStart(
      state,
      options,
      `answered ${response.status} with the range '${response.headers.get('content-range') ?? 'none'}'`,
    )
  }
  throw refused(response, options)
}

/** Throws away what came, since the server cannot continue it; an error to repeat, but not for ever. */
async function freshStart(state: State, options: DownloadOptions, what: string): Promise<Error> {
  await startAgain(state, options)
  if (++state.restarts <= 2) return new Transient(`the server ${what}`, 0)
  return new FormatError(`Could not fetch ${options.what}: the server ${what}. Try again, or use another mirror.`)
}

/** The promised size, where there is one, is what counts; else the server's word. */
async function agreeOnTotal(total: number | undefined, state: State, options: DownloadOptions): Promise<void> {
  if (total === undefined || !Number.isSafeInteger(total)) return
  if (options.size === undefined) {
    if (state.have > 0 && state.total !== undefined && state.total !== total) {
      const before = state.total
      state.total = undefined
      throw await freshStart(state, options, `said that the file has ${before} bytes and now says ${total}`)
    }
    state.total = total
  } else if (total !== options.size) {
    await startAgain(state, options)
    throw new FormatError(
      `${options.what}: the server holds ${total} bytes where ${options.size} were promised, so nothing was kept. Try again, or use another mirror.`,
    )
  }
}

/** The error for a status that is not a success: one to repeat for overload and server errors, else a sentence. */
export function refused(response: Response, options: Pick<DownloadOptions, 'what' | 'refusal' | 'url'>): Error {
  const { status } = response
  const answered = `the server ${new URL(options.url).host} answered ${status}`
  if (status === 408 || status === 425 || status === 429 || status >= 500) {
    return new Transient(status === 429 ? `${answered} (too many requests)` : answered, retryAfter(response))
  }
  const meaning = options.refusal?.(status) ?? 'Check the name, and that you may read it.'
  return new Unreachable(`Could not fetch ${options.what}: ${answered}. ${meaning}`)
}

function retryAfter(response: Response): number | undefined {
  const header = response.headers.get('retry-after')
  if (header === null) return undefined
  const seconds = Number(header)
  const ms = Number.isFinite(seconds) ? seconds * 1000 : Date.parse(header) - Date.now()
  return Number.isFinite(ms) ? Math.max(0, Math.min(60_000, ms)) : undefined
}

function networkReason(error: Error): string {
  const cause = error.cause
  const code = systemCode(cause)
  const reasons: Readonly<Record<string, string>> = {
    ENOTFOUND: 'the name of the server could not be resolved (no network?)',
    EAI_AGAIN: 'the name of the server could not be resolved (no network?)',
    ECONNREFUSED: 'the server refused the connection',
    ECONNRESET: 'the connection was reset',
    UND_ERR_SOCKET: 'the connection broke',
    UND_ERR_CONNECT_TIMEOUT: 'the server did not answer',
    ETIMEDOUT: 'the server did not answer',
  }
  return (code && reasons[code]) || (cause ? messageOf(cause) : error.message)
}

function gaveUp(error: Transient, state: State, options: DownloadOptions): ActlensError {
  const hint =
    state.have > 0
      ? `The ${state.have} bytes that arrived are kept, and the next call continues there.`
      : 'Check the network and try again.'
  return new Unreachable(`Could not fetch ${options.what}: ${error.message}. ${hint}${proxyHint()}`, { cause: error })
}

/** Node's own fetch does not use these variables unless told to. */
function proxyHint(): string {
  const named = ['HTTPS_PROXY', 'https_proxy', 'HTTP_PROXY', 'http_proxy'].find((name) => process.env[name])
  return named && !process.env.NODE_USE_ENV_PROXY
    ? ` (${named} is set: with Node 24 or newer, NODE_USE_ENV_PROXY=1 makes Node use it.)`
    : ''
}

/** Repeats a request that may fail for a moment (no answer, overload), as {@link download} does. */
export async function patiently<T>(
  what: string,
  work: () => Promise<T>,
  options: Pick<DownloadOptions, 'patience' | 'signal'>,
): Promise<T> {
  const { attempts = 6, backoffMs = 500 } = options.patience ?? {}
  for (let failures = 1; ; failures++) {
    throwIfCancelled(options.signal)
    try {
      return await work()
    } catch (error) {
      if (options.signal?.aborted) throw new CancelledError()
      const transient = error instanceof TypeError ? new Transient(networkReason(error), undefined, error) : error
      if (!(transient instanceof Transient)) throw error
      if (failures >= attempts) {
        throw new Unreachable(`Could not fetch ${what}: ${transient.message}. Check the network and try again.${proxyHint()}`, {
          cause: error,
        })
      }
      await pause(transient.waitMs ?? Math.min(15_000, backoffMs * 2 ** failures), options.signal)
    }
  }
}
