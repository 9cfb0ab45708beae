/** @file A value that follows its question: the newest question wins, the old answer stays, marked as stale, until the new one comes. */
import { GoneError } from './api.ts'

/** What went wrong, as the reader sees it. */
export interface Failure {
  readonly name: string
  readonly message: string
}

type Work<T> = (signal: AbortSignal, put: (value: T) => void) => Promise<void>

/** An answer from the server that is asked for again whenever its question changes. */
export class Live<T> {
  /** The last answer. */
  value = $state.raw<T | undefined>(undefined)
  /** The answer belongs to an older question. */
  stale = $state(false)
  /** An answer is being made. */
  busy = $state(false)
  error = $state.raw<Failure | undefined>(undefined)
  #key: string | undefined
  #work: Work<T> | undefined
  #running: AbortController | undefined
  #timer: ReturnType<typeof setTimeout> | undefined

  /** Asks, unless this very question was asked last. `delay`: milliseconds to wait for a newer question. */
  ask(key: string, work: Work<T>, delay = 0): void {
    if (key === this.#key) return
    this.#key = key
    this.#work = work
    this.stale = true
    this.busy = true
    clearTimeout(this.#timer)
    this.#running?.abort()
    this.#timer = setTimeout(() => void this.#run(), delay)
  }

  /** Asks the same once more. */
  again(): void {
    if (!this.#work) return
    clearTimeout(this.#timer)
    this.#running?.abort()
    void this.#run()
  }

  /** Asks again if the last question has not been answered. */
  recover(): void {
    if (this.error) this.again()
  }

  /** Forgets question and answer. */
  clear(): void {
    clearTimeout(this.#timer)
    this.#running?.abort()
    this.#key = undefined
    this.#work = undefined
    this.value = undefined
    this.error = undefined
    this.stale = false
    this.busy = false
  }

  async #run(): Promise<void> {
    const abort = new AbortController()
    this.#running = abort
    this.busy = true
    try {
      await (this.#work as Work<T>)(abort.signal, (value) => {
        if (abort.signal.aborted) return
        this.value = value
        this.stale = false
        this.error = undefined
      })
    } catch (error) {
      if (abort.signal.aborted) return
      this.error = error instanceof Error ? { name: error.name, message: error.message } : { name: 'Error', message: String(error) }
      // What is shown is still the best there is when the server is only away.
      if (!(error instanceof GoneError)) this.stale = true
    } finally {
      if (this.#running === abort) this.busy = false
    }
  }
}
