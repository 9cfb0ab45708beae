/** @file Speaking with the server: JSON, lines of JSON as they come, binary values; failures as the library's sentences. */
import type {
  CapturesAnswer,
  ErrorAnswer,
  HealthAnswer,
  MethodsAnswer,
  ModelsAnswer,
  PaperJobsAnswer,
  PapersAnswer,
  RequestOf,
  RouteName,
  UploadAnswer,
} from '../../../src/server/protocol.ts'

/** A failure that the server told: its sentence is for the reader. */
export class ApiError extends Error {
  constructor({ error }: ErrorAnswer) {
    super(error.message)
    this.name = error.name
  }
}

/** The server did not answer at all. */
export class GoneError extends Error {
  constructor() {
    super('The server does not answer. What you see is kept; start it again (npm start, or actlens studio) and this page goes on.')
    this.name = 'GoneError'
  }
}

const listeners = new Set<(reachable: boolean) => void>()

/** Tells whenever a request finds the server there or gone. */
export function onReach(listener: (reachable: boolean) => void): () => void {
  listeners.add(listener)
  return () => listeners.delete(listener)
}

async function reach(path: string, init: RequestInit): Promise<Response> {
  try {
    const response = await fetch(`./api/${path}`, { ...init, cache: 'no-store' })
    for (const listener of listeners) listener(true)
    return response
  } catch (error) {
    if (init.signal?.aborted) throw error
    for (const listener of listeners) listener(false)
    throw new GoneError()
  }
}

async function checked(response: Response): Promise<Response> {
  if (response.ok) return response
  const answer = (await response.json().catch(() => undefined)) as ErrorAnswer | undefined
  throw new ApiError(
    answer?.error ? answer : { error: { name: 'HttpError', message: `The server answered ${response.status}. Reload the page.` } },
  )
}

const posting = (body: unknown, signal?: AbortSignal): RequestInit => ({
  method: 'POST',
  headers: { 'content-type': 'application/json' },
  body: JSON.stringify(body),
  ...(signal ? { signal } : {}),
})

/** Whether the server is there, and which run of it. */
export async function health(): Promise<HealthAnswer> {
  return (await (await checked(await reach('health', { signal: AbortSignal.timeout(4000) }))).json()) as HealthAnswer
}

/** Models on this machine. */
export async function models(): Promise<ModelsAnswer> {
  return (await (await checked(await reach('models', {}))).json()) as ModelsAnswer
}

/** Captures of this machine. */
export async function captures(): Promise<CapturesAnswer> {
  return (await (await checked(await reach('captures', {}))).json()) as CapturesAnswer
}

/** The papers of this version. */
export async function papers(): Promise<PapersAnswer> {
  return (await (await checked(await reach('papers', {}))).json()) as PapersAnswer
}

/** How vectors can be made and written. */
export async function methods(): Promise<MethodsAnswer> {
  return (await (await checked(await reach('methods', {}))).json()) as MethodsAnswer
}

/** The quick runs of papers on this machine. */
export async function paperJobs(): Promise<PaperJobsAnswer> {
  return (await (await checked(await reach('paper-jobs', {}))).json()) as PaperJobsAnswer
}

/** Posts a body and returns the JSON answer. */
export async function post<Answer, R extends RouteName>(route: R, body: RequestOf<R>, signal?: AbortSignal): Promise<Answer> {
  return (await (await checked(await reach(route, posting(body, signal)))).json()) as Answer
}

/** Posts a body and returns the binary answer. */
export async function postForBytes<R extends RouteName>(route: R, body: RequestOf<R>, signal?: AbortSignal): Promise<ArrayBuffer> {
  return (await checked(await reach(route, posting(body, signal)))).arrayBuffer()
}

/** Posts a body (or asks, without one) and yields the lines of the answer, those that came together in one list. */
export async function* lines<Line extends { readonly type: string }>(
  route: RouteName,
  body: unknown,
  signal?: AbortSignal,
): AsyncGenerator<Exclude<Line, { type: 'error' }>[], void, undefined> {
  const init = body === undefined ? (signal ? { signal } : {}) : posting(body, signal)
  const response = await checked(await reach(route, init))
  const reader = (response.body as ReadableStream<Uint8Array>).getReader()
  const decoder = new TextDecoder()
  let rest = ''
  let last = ''
  try {
    for (;;) {
      const { done, value } = await reader.read()
      if (done) break
      const parts = (rest + decoder.decode(value, { stream: true })).split('\n')
      rest = parts.pop() as string
      const read = parts.map((p) => JSON.parse(p) as Line)
      for (const line of read) if (line.type === 'error') throw new ApiError(line as unknown as ErrorAnswer)
      last = read.at(-1)?.type ?? last
      if (read.length > 0) yield read as Exclude<Line, { type: 'error' }>[]
    }
    // A server that was killed ends the connection in the middle.
    if (last !== 'end' && last !== 'model') throw new TypeError('cut off')
  } catch (error) {
    if (!(error instanceof TypeError) || signal?.aborted) throw error
    for (const listener of listeners) listener(false)
    throw new GoneError()
  } finally {
    reader.cancel().catch(() => undefined)
  }
}

/** Sends files of one model, and returns what loads it: the file, or the folder of several. `onprogress` is told bytes. */
export async function upload(files: readonly File[], onprogress: (done: number, total: number) => void): Promise<string> {
  const total = files.reduce((n, f) => n + f.size, 0)
  let [before, group] = [0, '']
  let last: UploadAnswer | undefined
  for (const file of files) {
    last = await new Promise<UploadAnswer>((resolve, reject) => {
      // Only this kind of request tells how much was sent.
      const request = new XMLHttpRequest()
      request.open('POST', `./api/upload?name=${encodeURIComponent(file.name)}${group ? `&group=${group}` : ''}`)
      request.upload.onprogress = (e) => onprogress(before + e.loaded, total)
      request.onerror = () => reject(new GoneError())
      request.onload = () => {
        const answer = JSON.parse(request.responseText || '{}') as UploadAnswer & Partial<ErrorAnswer>
        if (request.status === 200) resolve(answer)
        else
          reject(
            new ApiError(
              answer.error
                ? { error: answer.error }
                : { error: { name: 'HttpError', message: `The server answered ${request.status}. Reload the page.` } },
            ),
          )
      }
      request.send(file)
    })
    group = last.group
    before += file.size
  }
  if (!last) throw new ApiError({ error: { name: 'UsageError', message: 'There was no file to send; choose one.' } })
  return files.length === 1 ? last.path : last.folder
}
