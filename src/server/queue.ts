/** @file A queue for each model: the engine does one thing at a time, and everybody's small steps take turns. */
import { throwIfCancelled } from '../base/errors.ts'

/** Runs tasks one after another, in the order in which they came. */
export class Queue {
  private tail: Promise<unknown> = Promise.resolve()

  /** Waits for its turn, then runs; a task whose signal was aborted meanwhile is not begun. */
  run<T>(task: () => Promise<T>, signal?: AbortSignal): Promise<T> {
    const turn = this.tail.then(async () => {
      throwIfCancelled(signal)
      // Requests that came in during the last task are looked at before the next one: one may cancel it.
      await new Promise<void>((resolve) => setImmediate(resolve))
      throwIfCancelled(signal)
      return task()
    })
    this.tail = turn.catch(() => undefined)
    return turn
  }
}
