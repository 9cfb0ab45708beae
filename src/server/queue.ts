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

  /**
   * Runs long work that stops for others: whenever it waits for `pause`, those who came meanwhile have their turn.
   * @param work gets `pause`; between two of them nobody else runs.
   */
  async inTurns<T>(work: (pause: () => Promise<void>) => Promise<T>, signal?: AbortSignal): Promise<T> {
    let leave = await this.turn(signal)
    try {
      return await work(async () => {
        leave()
        leave = await this.turn(signal)
      })
    } finally {
      leave()
    }
  }

  /** Waits for a turn; it lasts until what is returned is called. */
  private turn(signal: AbortSignal | undefined): Promise<() => void> {
    return new Promise((resolve, reject) => {
      this.run(() => new Promise<void>((end) => resolve(end)), signal).catch(reject)
    })
  }
}
