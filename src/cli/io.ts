/** @file What the command line reads and writes, given from outside so that it runs in a test as it does in a terminal. */
import type { Readable, Writable } from 'node:stream'

/** The streams and the interruption of one run of the command line. */
export interface Io {
  readonly stdin: Readable
  readonly stdout: Writable
  readonly stderr: Writable
  /** Aborted by Ctrl-C; its reason is {@link pipeClosed} where nobody reads stdout any more. */
  readonly signal: AbortSignal
}

/** Reason of an abort because the reader of stdout went away (`actlens … | head`): no error, and nothing to say. */
export const pipeClosed = Symbol('stdout was closed')

/** Exit codes of the contract. */
export const exitCodes = { done: 0, failed: 1, usage: 2, interrupted: 130 } as const

/** Writes text, and waits where the reader is slower than we are. */
export async function writeTo(stream: Writable, text: string): Promise<void> {
  if (text === '' || stream.destroyed || stream.write(text)) return
  await new Promise<void>((done) => {
    const finish = () => {
      stream.off('drain', finish).off('close', finish).off('error', finish)
      done()
    }
    stream.once('drain', finish).once('close', finish).once('error', finish)
  })
}

/** Whether a stream is a terminal. */
export function isTerminal(stream: Writable): boolean {
  return 'isTTY' in stream && stream.isTTY === true
}
