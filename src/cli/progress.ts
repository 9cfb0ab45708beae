/** @file Progress on stderr: a bar on a terminal, else a line now and then. */
import type { Writable } from 'node:stream'
import { Presets, SingleBar } from 'cli-progress'
import type { OnProgress, Progress } from '../base/progress.ts'
import { type Rate, rateMeter } from '../models/hub/progress.ts'
import { isTerminal } from './io.ts'
import { bytes } from './table.ts'

/** Shows progress until it is stopped; it starts again with the next report. */
export interface ProgressDisplay {
  readonly report: OnProgress
  /** Clears a bar, so that other text may follow. */
  stop(): void
}

/** Milliseconds before the first line, and between two lines, where no bar can be shown. */
const firstLine = 2000
const betweenLines = 10_000

/** A bar on a terminal; elsewhere lines, the first one after two seconds, so that quick work says nothing. */
export function progressDisplay(stderr: Writable, quiet: boolean, now: () => number = () => performance.now()): ProgressDisplay {
  if (quiet) return { report: () => {}, stop: () => {} }
  return isTerminal(stderr) ? bar(stderr) : lines(stderr, now)
}

function bar(stderr: Writable): ProgressDisplay {
  let shown: SingleBar | undefined
  let task: string | undefined
  let meter = rateMeter()
  const stop = () => {
    shown?.stop()
    shown = undefined
    task = undefined
  }
  return {
    stop,
    report(progress) {
      if (progress.task !== task) {
        stop()
        task = progress.task
        meter = rateMeter()
        shown = new SingleBar(
          {
            stream: stderr as NodeJS.WriteStream,
            format: '{task} {bar} {detail}',
            hideCursor: true,
            clearOnComplete: true,
            gracefulExit: false,
          },
          Presets.shades_classic,
        )
        shown.start(progress.total ?? 0, 0, { task, detail: '' })
      }
      shown?.setTotal(progress.total ?? progress.done)
      shown?.update(progress.done, { detail: detailOf(progress, meter(progress)) })
      if (progress.total !== undefined && progress.done >= progress.total) stop()
    },
  }
}

function lines(stderr: Writable, now: () => number): ProgressDisplay {
  let task: string | undefined
  let next = 0
  let said = false
  let meter = rateMeter(5000, now)
  return {
    stop() {},
    report(progress) {
      if (progress.task !== task) {
        task = progress.task
        next = now() + firstLine
        said = false
        meter = rateMeter(5000, now)
      }
      const rate = meter(progress)
      const finished = progress.total !== undefined && progress.done >= progress.total
      if (!(now() >= next || (finished && said))) return
      next = now() + betweenLines
      said = !finished
      stderr.write(`${progress.task}: ${detailOf(progress, rate)}\n`)
    },
  }
}

/** `12.1 MB of 60.8 MB, 4.2 MB a second, 12 s left`. */
function detailOf(progress: Progress, rate: Rate): string {
  const amount = (n: number) => (progress.unit === 'bytes' ? bytes(n) : `${Math.round(n)}`)
  const unit = progress.unit === 'bytes' ? '' : ` ${progress.unit}`
  // Work that goes in steps of seconds has no rate to speak of, and so no time left.
  const steady = rate.perSecond >= 1
  return [
    progress.total === undefined ? `${amount(progress.done)}${unit}` : `${amount(progress.done)} of ${amount(progress.total)}${unit}`,
    ...(steady ? [`${amount(rate.perSecond)}${unit} a second`] : []),
    ...(steady && rate.secondsLeft !== undefined && rate.secondsLeft >= 1 ? [`${Math.ceil(rate.secondsLeft)} s left`] : []),
  ].join(', ')
}
