/** @file Waiting that an `AbortSignal` ends at once. */

import { CancelledError, throwIfCancelled } from '../../base/errors.ts'

/** Waits some milliseconds; an abort ends it with a `CancelledError`. */
export function pause(milliseconds: number, signal?: AbortSignal): Promise<void> {
  throwIfCancelled(signal)
  return new Promise((resolve, reject) => {
    const onAbort = (): void => {
      clearTimeout(timer)
      reject(new CancelledError())
    }
    const timer = setTimeout(() => {
      signal?.removeEventListener('abort', onAbort)
      resolve()
    }, milliseconds)
    signal?.addEventListener('abort', onAbort, { once: true })
  })
}
