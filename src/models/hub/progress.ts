/** @file Progress of downloads: not too often, and with rate and time left for whoever shows it. */

import type { OnProgress, Progress } from '../../base/progress.ts'

/** A progress receiver that passes on at most ten reports a second; `last()` passes on the one it held back. */
export interface ThrottledProgress {
  (progress: Progress): void
  last(): void
}

/** Limits how often `onProgress` is called. */
export function throttled(onProgress: OnProgress | undefined, everyMs = 100): ThrottledProgress {
  let at = Number.NEGATIVE_INFINITY
  let held: Progress | undefined
  const report = (progress: Progress): void => {
    const now = performance.now()
    held = progress
    if (now - at < everyMs && progress.done !== progress.total) return
    at = now
    report.last()
  }
  report.last = (): void => {
    if (held) onProgress?.(held)
    held = undefined
  }
  return report
}

/** How fast a piece of work goes. */
export interface Rate {
  /** Units per second over the last few seconds. */
  readonly perSecond: number
  /** Seconds left at that rate, when the total is known. */
  readonly secondsLeft?: number
}

/** Follows progress reports and tells rate and time left; forgets what is older than `windowMs`, so that a resumed download is not told too fast. */
export function rateMeter(windowMs = 5000, now: () => number = () => performance.now()): (progress: Progress) => Rate {
  let task: string | undefined
  let seen: { at: number; done: number }[] = []
  return (progress) => {
    const at = now()
    if (progress.task !== task || progress.done < (seen.at(-1)?.done ?? 0)) seen = []
    task = progress.task
    seen.push({ at, done: progress.done })
    while (seen.length > 2 && at - (seen[0]?.at ?? at) > windowMs) seen.shift()
    const first = seen[0] as { at: number; done: number }
    const perSecond = at > first.at ? ((progress.done - first.done) * 1000) / (at - first.at) : 0
    if (progress.total === undefined || perSecond === 0) return { perSecond }
    return { perSecond, secondsLeft: (progress.total - progress.done) / perSecond }
  }
}
