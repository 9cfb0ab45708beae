/** @file One shape for the progress of long work, whoever shows it: a terminal, the studio, a test. */

/** A report of how far a piece of work has come. */
export interface Progress {
  /** What is being done, as a short phrase: `fetching model`. */
  readonly task: string
  /** Units done so far. */
  readonly done: number
  /** Units in all, when known. */
  readonly total?: number
  /** Name of the unit: `bytes`, `tokens`, `steps`. */
  readonly unit: string
}

/** Receives progress reports; must be quick, since work waits for it. */
export type OnProgress = (progress: Progress) => void

/** Options that every long-running call takes. */
export interface WorkOptions {
  /** Aborting it stops the work at the next safe point with a `CancelledError`. */
  readonly signal?: AbortSignal
  /** Receives progress reports. */
  readonly onProgress?: OnProgress
}
