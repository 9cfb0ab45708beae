/** @file A value that follows its question: the newest question wins, the old answer stays, marked as stale, until the new one comes. */
/** What went wrong, as the reader sees it. */
export interface Failure {
  readonly name: string
  readonly message: string
}

/** Milliseconds up to which a delay counts as short. */
const short = 50
/** Milliseconds for which an answer may go on before a newer question takes its place. */
const moment = 80

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
  /** When the running question was first answered; infinitely late while it is not. */
  #answeredAt = Number.POSITIVE_INFINITY
  /** A newer question waits for the first answer to the running one. */
  #waiting = false

  /**
   * Asks, unless this very question was asked last. `delay`: milliseconds to wait for a newer question. With a short delay
   * the answer that is under way may show its beginning first, so that who slides on without a pause sees answers on the way.
   */
  ask(key: string, work: Work<T>, delay = 0): void {
    if (key === this.#key) return
    this.#key = key
    this.#work = work
    this.stale = true
    this.busy = true
    clearTimeout(this.#timer)
    this.#waiting = false
    if (!this.#running || delay > short) {
      this.#stop()
      this.#timer = setTimeout(() => void this.#run(), delay)
    } else if (this.#answeredAt === Number.POSITIVE_INFINITY) this.#waiting = true
    else this.#timer = setTimeout(() => void this.#run(), Math.max(delay, moment - (performance.now() - this.#answeredAt)))
  }

  /** Asks the same once more. */
  again(): void {
    if (!this.#work) return
    clearTimeout(this.#timer)
    void this.#run()
  }

  /** Ends the work that goes on; what has come stays. */
  stop(): void {
    clearTimeout(this.#timer)
    this.#stop()
    this.busy = false
  }

  /** Asks again if the last question has not been answered. */
  recover(): void {
    if (this.error) this.again()
  }

  /** Forgets question and answer. */
  clear(): void {
    clearTimeout(this.#timer)
    this.#stop()
    this.#key = undefined
    this.#work = undefined
    this.value = undefined
    this.error = undefined
    this.stale = false
    this.busy = false
  }

  #stop(): void {
    this.#running?.abort()
    this.#running = undefined
    this.#waiting = false
    this.#answeredAt = Number.POSITIVE_INFINITY
  }

  async #run(): Promise<void> {
    this.#stop()
    const abort = new AbortController()
    const key = this.#key
    this.#running = abort
    this.busy = true
    try {
      await (this.#work as Work<T>)(abort.signal, (value) => {
        if (abort.signal.aborted) return
        this.value = value
        this.error = undefined
        this.stale = key !== this.#key
        this.#answeredAt = Math.min(this.#answeredAt, performance.now())
        if (this.#waiting) this.#timer = setTimeout(() => void this.#run(), moment)
        this.#waiting = false
      })
    } catch (error) {
      if (abort.signal.aborted) return
      this.error = error instanceof Error ? { name: error.name, message: error.message } : { name: 'Error', message: String(error) }
    } finally {
      if (this.#running === abort) {
        this.#running = undefined
        this.busy = key !== this.#key
        // What waited for an answer that did not come waits no longer.
        if (this.#waiting) void this.#run()
      }
    }
  }
}
