/** @file Who may speak to the server: this machine's own page, or, on an open address, whoever has the token. */
import { timingSafeEqual } from 'node:crypto'
import { isIPv6 } from 'node:net'
import type { Context, MiddlewareHandler } from 'hono'
import { getCookie, setCookie } from 'hono/cookie'

/** What is checked of every request. */
export interface Guard {
  /** Host names that a request may be addressed to; any where undefined. */
  readonly hosts: readonly string[] | undefined
  /** Token that a request must carry, where the address is open to other machines. */
  readonly token: string | undefined
  /** Name of the cookie that keeps it. */
  readonly cookie: string
}

/** Names of this machine that cannot be made to point elsewhere. */
export const loopback = ['127.0.0.1', 'localhost', '[::1]']

/** Whether a host to bind to is reached from this machine only. */
export const isLoopback = (host: string) => loopback.includes(host) || host === '::1' || /^127\./.test(host)

/** A host as it stands in a URL. */
export const inUrl = (host: string) => (isIPv6(host) ? `[${host}]` : host)

const policy = [
  "default-src 'none'",
  // Programs in a tab are WebAssembly.
  "script-src 'self' 'wasm-unsafe-eval'",
  "worker-src 'self'",
  "style-src 'self'",
  "img-src 'self' data: blob:",
  "font-src 'self'",
  "connect-src 'self'",
  "manifest-src 'self'",
  "base-uri 'none'",
  "form-action 'none'",
  "frame-ancestors 'none'",
].join('; ')

/** For a report, a file of its own whose styles are in it: no script runs, nothing is fetched, and it cannot act as the page. */
export const reportPolicy =
  "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; sandbox allow-popups allow-popups-to-escape-sandbox"

/** Headers of every answer: nothing is loaded from elsewhere, nothing is shown inside another page. */
const headers: Readonly<Record<string, string>> = {
  'content-security-policy': policy,
  'x-content-type-options': 'nosniff',
  'x-frame-options': 'DENY',
  'referrer-policy': 'no-referrer',
  // Both together isolate the page, which may then use threads.
  'cross-origin-opener-policy': 'same-origin',
  'cross-origin-embedder-policy': 'require-corp',
  'cross-origin-resource-policy': 'same-origin',
  'permissions-policy': 'camera=(), microphone=(), geolocation=(), interest-cohort=()',
}

/** Refuses requests that do not come from the server's own page, and adds the security headers to every answer. */
export function guarded(guard: Guard): MiddlewareHandler {
  return async (c, next) => {
    for (const [name, value] of Object.entries(headers)) c.header(name, value)
    return refusal(c, guard) ?? (await next())
  }
}

function refusal(c: Context, guard: Guard): Response | undefined {
  const host = c.req.header('host') ?? ''
  const name = host.replace(/:\d+$/, '').toLowerCase()
  // A page elsewhere whose name was made to point here (DNS rebinding) still sends its own name.
  if (guard.hosts && !guard.hosts.includes(name))
    return refused(c, `This server answers to ${guard.hosts.join(', ')} only, not to '${host}': open it under one of these names.`)
  const origin = c.req.header('origin')
  if (origin !== undefined && origin !== `http://${host}` && origin !== `https://${host}`)
    return refused(c, `Requests from other pages (${origin}) are refused: use the page that this server itself serves.`)
  const site = c.req.header('sec-fetch-site')
  const navigation = c.req.header('sec-fetch-mode') === 'navigate' && c.req.method === 'GET' && !c.req.path.startsWith('/api/')
  if (site !== undefined && site !== 'same-origin' && site !== 'none' && !navigation)
    return refused(c, 'Requests from other pages are refused: use the page that this server itself serves.')
  return guard.token === undefined ? undefined : withoutToken(c, guard, guard.token)
}

function withoutToken(c: Context, guard: Guard, token: string): Response | undefined {
  const given = c.req.query('token')
  if (given !== undefined && same(given, token) && c.req.method === 'GET' && !c.req.path.startsWith('/api/')) {
    // The token moves from the address into a cookie, so that links copied from the page do not carry it.
    setCookie(c, guard.cookie, token, { httpOnly: true, sameSite: 'Strict', path: '/' })
    return c.redirect(c.req.path, 302)
  }
  const carried = getCookie(c, guard.cookie) ?? /^Bearer (.+)$/.exec(c.req.header('authorization') ?? '')?.[1] ?? given
  if (carried !== undefined && same(carried, token)) return undefined
  return refused(
    c,
    'This server is open to other machines, so its address carries a token: open it with the address that it printed when it started.',
    401,
  )
}

function same(a: string, b: string): boolean {
  const [x, y] = [Buffer.from(a), Buffer.from(b)]
  return x.length === y.length && timingSafeEqual(x, y)
}

function refused(c: Context, message: string, status: 401 | 403 = 403): Response {
  return c.json({ error: { name: 'RefusedError', message } }, status)
}
