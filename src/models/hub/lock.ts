/** @file A lock between processes: a file that only one can create, kept fresh while held, taken over when its holder is gone. */

import { randomUUID } from 'node:crypto'
import { mkdir, open, readFile, rm, stat, utimes } from 'node:fs/promises'
import { hostname } from 'node:os'
import { dirname } from 'node:path'
import { throwIfCancelled } from '../../base/errors.ts'
import { systemCode, writeFailure } from '../../base/files.ts'
import { pause } from './pause.ts'

/** Options of {@link withLock}. */
export interface LockOptions {
  /** Stops the waiting. */
  readonly signal?: AbortSignal | undefined
  /** Called once when another process holds the lock and we begin to wait. */
  readonly onWait?: () => void
  /** Milliseconds without a sign of life after which a holder counts as gone. */
  readonly staleMs?: number
}

interface Holder {
  readonly pid: number
  readonly host: string
  readonly token: string
}

/** Does the work while no other process (or call) holds the lock at `path`; waits for it where one does. */
export async function withLock<T>(path: string, work: () => Promise<T>, options: LockOptions = {}): Promise<T> {
  const staleMs = options.staleMs ?? 20_000
  const own: Holder = { pid: process.pid, host: hostname(), token: randomUUID() }
  await mkdir(dirname(path), { recursive: true }).catch((error) => Promise.reject(writeFailure(error, path)))
  let waited = false
  while (!(await create(path, own))) {
    throwIfCancelled(options.signal)
    const seen = await look(path)
    if (seen && isGone(seen, staleMs)) {
      // Someone else may have taken the dead lock over since we looked: only what we looked at is removed.
      if ((await look(path))?.text === seen.text) await rm(path, { force: true })
      continue
    }
    if (!waited) options.onWait?.()
    waited = true
    await pause(100 + Math.random() * 100, options.signal)
  }
  const heartbeat = setInterval(() => {
    const now = new Date()
    void utimes(path, now, now).catch(() => undefined)
  }, staleMs / 5)
  heartbeat.unref()
  try {
    return await work()
  } finally {
    clearInterval(heartbeat)
    if ((await look(path))?.holder?.token === own.token) await rm(path, { force: true })
  }
}

async function create(path: string, own: Holder): Promise<boolean> {
  try {
    const handle = await open(path, 'wx')
    try {
      await handle.writeFile(JSON.stringify(own))
    } finally {
      await handle.close()
    }
    return true
  } catch (error) {
    if (systemCode(error) === 'EEXIST') return false
    throw writeFailure(error, path)
  }
}

interface Seen {
  readonly text: string
  readonly holder: Holder | undefined
  readonly ageMs: number
}

async function look(path: string): Promise<Seen | undefined> {
  try {
    const [text, { mtimeMs }] = await Promise.all([readFile(path, 'utf8'), stat(path)])
    return { text, holder: parseHolder(text), ageMs: Date.now() - mtimeMs }
  } catch {
    return undefined
  }
}

function parseHolder(text: string): Holder | undefined {
  try {
    return JSON.parse(text) as Holder
  } catch {
    // Created a moment ago and not yet written: its age decides.
    return undefined
  }
}

function isGone({ holder, ageMs }: Seen, staleMs: number): boolean {
  if (ageMs > staleMs) return true
  if (holder === undefined || holder.host !== hostname()) return false
  try {
    process.kill(holder.pid, 0)
    return false
  } catch (error) {
    return systemCode(error) === 'ESRCH'
  }
}
