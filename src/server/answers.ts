/** @file Answers: bodies checked by their schema, failures as sentences, long work as lines of JSON. */
import type { Context } from 'hono'
import { ActlensError, CancelledError, messageOf, UsageError } from '../base/errors.ts'
import { type BodyOf, bodies, type ErrorAnswer, type RouteName } from './protocol.ts'

/** The body of a request, checked. */
export async function bodyOf<R extends RouteName>(c: Context, route: R): Promise<BodyOf<R>> {
  if (!/^application\/json\b/.test(c.req.header('content-type') ?? ''))
    throw new UsageError(`Send the body as JSON, with 'content-type: application/json'.`)
  const value: unknown = await c.req.json().catch((error) => {
    throw new UsageError(`The body is not valid JSON (${messageOf(error)}); correct it and send it again.`)
  })
  const parsed = bodies[route].safeParse(value)
  if (parsed.success) return parsed.data as BodyOf<R>
  const [issue] = parsed.error.issues
  const place = issue?.path.length ? `'${issue.path.join('.')}'` : 'the body'
  throw new UsageError(`In ${place} of the request: ${issue?.message ?? 'it does not fit'}. Correct it and send it again.`)
}

/** A failure as the page shows it: the library's sentence, or that something inside failed. */
export function errorAnswer(error: unknown): ErrorAnswer {
  if (error instanceof ActlensError) return { error: { name: error.name, message: error.message } }
  return { error: { name: 'InternalError', message: `Something inside failed: ${messageOf(error)}. Please report it.` } }
}

/** The HTTP status of a failure. */
export function statusOf(error: unknown): 400 | 422 | 499 | 500 {
  if (error instanceof CancelledError) return 499 as 499
  if (error instanceof UsageError) return 400
  return error instanceof ActlensError ? 422 : 500
}

/** Sends lines of JSON while `work` goes on; it is cancelled when the client goes away. Failures become a last line. */
export function lines<Line extends { readonly type: string }>(
  c: Context,
  work: (send: (line: Line | ({ readonly type: 'error' } & ErrorAnswer)) => void, signal: AbortSignal) => Promise<void>,
): Response {
  const gone = new AbortController()
  const signal = AbortSignal.any([gone.signal, c.req.raw.signal])
  const encoder = new TextEncoder()
  const stream = new ReadableStream<Uint8Array>({
    start(controller) {
      const send = (line: unknown) => {
        if (!signal.aborted) controller.enqueue(encoder.encode(`${JSON.stringify(line)}\n`))
      }
      work(send, signal)
        .catch((error) => send({ type: 'error', ...errorAnswer(error) }))
        .finally(() => {
          // A stream that the client has left is closed already.
          if (!gone.signal.aborted) controller.close()
        })
    },
    cancel() {
      gone.abort()
    },
  })
  return c.body(stream, 200, { 'content-type': 'application/x-ndjson; charset=utf-8', 'cache-control': 'no-store' })
}
