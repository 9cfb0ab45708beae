/** @file A lock between processes: a file that only one can create, kept fresh while held, taken over when its holder is gone. */
import { randomUUID } from 'node:crypto'
import { mkdirSync, readFileSync, renameSync, rmSync, statSync, utimesSync, writeFileSync } from 'node:fs'
import { hostname } from 'node:os'
import { dirname } from 'node:path'
import { setTimeout as pause } from 'node:timers/promises'
import { Interrupted } from './say.mjs'

/** Milliseconds without a sign of life after which a holder counts as gone. */
const stale = 20_000

/**
 * Does the work while no other process holds the lock at `path`; waits for it where one does.
 * @param {string} path
 * @param {{ signal: AbortSignal, onWait: () => void }} options
 * @param {() => Promise<void>} work
 */
export async function withLock(path, { signal, onWait }, work) {
  mkdirSync(dirname(path), { recursive: true })
  const own = JSON.stringify({ pid: process.pid, host: hostname(), token: randomUUID() })
  for (let waited = false; !create(path, own); waited = true) {
    if (signal.aborted) throw new Interrupted()
    takeAwayIfDead(path)
    if (!waited) onWait()
    await pause(150)
  }
  const heartbeat = setInterval(() => touch(path), stale / 5)
  heartbeat.unref()
  try {
    await work()
  } finally {
    clearInterval(heartbeat)
    if (read(path) === own) rmSync(path, { force: true })
  }
}

function create(path, own) {
  try {
    writeFileSync(path, own, { flag: 'wx' })
    return true
  } catch (error) {
    if (error.code === 'EEXIST') return false
    throw error
  }
}

function takeAwayIfDead(path) {
  const seen = read(path)
  if (seen === undefined || !isDead(path, seen)) return
  const away = `${path}.dead.${process.pid}`
  try {
    renameSync(path, away)
    // Someone else may have taken the dead lock over since we looked: then it is theirs, and goes back.
    const taken = read(away)
    if (taken !== seen) create(path, taken)
  } catch (error) {
    if (error.code !== 'ENOENT') throw error
  } finally {
    rmSync(away, { force: true })
  }
}

function isDead(path, text) {
  try {
    if (Date.now() - statSync(path).mtimeMs > stale) return true
    const holder = JSON.parse(text)
    if (holder.host !== hostname()) return false
    process.kill(holder.pid, 0)
    return false
  } catch (error) {
    return error.code === 'ESRCH'
  }
}

function read(path) {
  try {
    return readFileSync(path, 'utf8')
  } catch {
    return undefined
  }
}

function touch(path) {
  try {
    const now = new Date()
    utimesSync(path, now, now)
  } catch {
    // The lock was taken away: whoever did so thought us dead, and we finish what we do.
  }
}
