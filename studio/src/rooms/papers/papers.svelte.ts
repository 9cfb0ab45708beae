/** @file The papers and their runs, asked for as long as the room is open; often while one runs. */
import type { PaperJob, PaperRow, RequestOf } from '../../../../src/server/protocol.ts'
import { paperJobs, papers, post } from '../../lib/api.ts'
import type { Failure } from '../../lib/live.svelte.ts'

/** Milliseconds between two looks. */
const lookAfter = { running: 400, quiet: 4000 }

/** Whether a run goes on. */
export const isRunning = (job: PaperJob | undefined) => job?.state === 'running' || job?.state === 'waiting'

class Papers {
  list = $state.raw<readonly PaperRow[] | undefined>(undefined)
  jobs = $state.raw<Readonly<Record<string, PaperJob>>>({})
  error = $state.raw<Failure | undefined>(undefined)
  #timer: ReturnType<typeof setTimeout> | undefined

  /** Follows the runs; returns what ends it. */
  follow(): () => void {
    void this.#read()
    void this.look()
    return () => clearTimeout(this.#timer)
  }

  /** Begins, begins anew, or stops the quick run of a paper. */
  async act(slug: string, action: RequestOf<'paper-run'>['action']): Promise<void> {
    await this.#telling(() => post<unknown, 'paper-run'>('paper-run', { slug, action }))
    await this.look()
  }

  /** Asks how far the runs are, and again later. */
  async look(): Promise<void> {
    clearTimeout(this.#timer)
    // What is shown is kept while the server is gone.
    const answer = await paperJobs().catch(() => undefined)
    if (answer) this.jobs = answer.jobs
    if (answer && !this.list) await this.#read()
    clearTimeout(this.#timer)
    const running = Object.values(this.jobs).some(isRunning)
    this.#timer = setTimeout(() => void this.look(), running ? lookAfter.running : lookAfter.quiet)
  }

  async #read(): Promise<void> {
    await this.#telling(async () => {
      this.list = (await papers()).papers
    })
  }

  async #telling(work: () => Promise<unknown>): Promise<void> {
    try {
      await work()
      this.error = undefined
    } catch (error) {
      this.error = error instanceof Error ? { name: error.name, message: error.message } : { name: 'Error', message: String(error) }
    }
  }
}

/** The papers. */
export const shelf = new Papers()
