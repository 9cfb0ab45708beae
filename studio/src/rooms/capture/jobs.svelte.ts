/** @file The captures of the server, asked for as long as the room is open; often while one runs. */
import type { CaptureJob, RequestOf } from '../../../../src/server/protocol.ts'
import { captures, post } from '../../lib/api.ts'
import type { Failure } from '../../lib/live.svelte.ts'

/** Milliseconds between two looks. */
const lookAfter = { running: 500, quiet: 4000 }

class Jobs {
  list = $state.raw<readonly CaptureJob[] | undefined>(undefined)
  error = $state.raw<Failure | undefined>(undefined)
  #timer: ReturnType<typeof setTimeout> | undefined

  /** Follows the jobs; returns what ends it. */
  follow(): () => void {
    void this.look()
    return () => clearTimeout(this.#timer)
  }

  /** Asks now, and again later. */
  async look(): Promise<void> {
    clearTimeout(this.#timer)
    // What is shown is kept while the server is gone.
    const answer = await captures().catch(() => undefined)
    if (answer) this.list = answer.jobs
    const running = this.list?.some((j) => j.state === 'running')
    clearTimeout(this.#timer)
    this.#timer = setTimeout(() => void this.look(), running ? lookAfter.running : lookAfter.quiet)
  }

  /** Begins a capture. */
  async start(request: RequestOf<'capture'>): Promise<void> {
    await this.#doing(() => post<CaptureJob, 'capture'>('capture', request))
  }

  /** Stops, goes on with, or removes one. */
  async act(id: string, action: RequestOf<'capture-job'>['action']): Promise<void> {
    await this.#doing(() => post<unknown, 'capture-job'>('capture-job', { id, action }))
  }

  async #doing(work: () => Promise<unknown>): Promise<void> {
    this.error = undefined
    try {
      await work()
    } catch (error) {
      this.error = error instanceof Error ? { name: error.name, message: error.message } : { name: 'Error', message: String(error) }
    }
    await this.look()
  }
}

/** The captures. */
export const jobs = new Jobs()
