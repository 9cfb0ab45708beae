/** @file Papers: what is known of each, and its quick run as a job that survives the page and the server. */
import { mkdir, readdir } from 'node:fs/promises'
import { join } from 'node:path'
import { CancelledError, UsageError } from '../base/errors.ts'
import { homeFolders, readJson, sizeOrKind, writeFileWhole } from '../base/files.ts'
import type { Progress } from '../base/progress.ts'
import {
  boundOf,
  commandOf,
  committedResult,
  type Paper,
  type PaperResult,
  paperLoaders,
  paperOf,
  runPaper,
  writeResult,
} from '../papers/index.ts'
import { errorAnswer } from './answers.ts'
import type { BodyOf, ErrorAnswer, PaperAnswer, PaperJob, PaperResultKind, PaperRow } from './protocol.ts'
import { Queue } from './queue.ts'

/** What is kept of a run beside its result. */
interface RunRecord {
  readonly startedAt: string
  readonly done?: true
  readonly error?: ErrorAnswer['error']
}

interface Running {
  readonly abort: AbortController
  readonly finished: Promise<void>
  readonly startedAt: string
  /** When its turn came, in milliseconds. */
  begun?: number
  progress?: Progress
}

/** Where papers come from; tests bring their own. */
export interface PaperShelf {
  readonly loaders: Readonly<Record<string, () => Promise<Paper>>>
  readonly committed: (slug: string) => Promise<PaperResult | undefined>
}

/** The folder of quick runs: `papers` in the data folder. */
const runsFolder = () => join(homeFolders().data, 'papers')

/** The papers of a server, and the quick runs that it and earlier ones made. */
export class Papers {
  private readonly root: string
  private readonly shelf: PaperShelf
  private readonly running = new Map<string, Running>()
  // Two reproductions at a time would only take the cores from each other.
  private readonly queue = new Queue()

  constructor(root = runsFolder(), shelf: PaperShelf = { loaders: paperLoaders, committed: committedResult }) {
    this.root = root
    this.shelf = shelf
  }

  /** All papers, in the order of the table. */
  async list(): Promise<PaperRow[]> {
    const papers = await Promise.all(Object.values(this.shelf.loaders).map((load) => load()))
    return Promise.all(
      papers.map(async ({ slug, title, authors, family, question }) => {
        const verdict = (await this.shelf.committed(slug))?.verdict
        return { slug, title, authors, family, question, ...(verdict ? { verdict } : {}) }
      }),
    )
  }

  /** Everything about one paper. */
  async one(slug: string): Promise<PaperAnswer> {
    const paper = await this.paper(slug)
    const [committed, quick] = await Promise.all([this.result(slug, 'committed'), this.result(slug, 'quick')])
    const { title, authors, source, family, question, claim, data, scale, notReproduced, model, seeds, notes = [] } = paper
    return {
      paper: {
        ...{ slug, title, authors, source, family, question, claim, data, scale, notReproduced, model, seeds, notes },
        baselines: Object.keys(paper.baselines),
        controls: Object.keys(paper.controls),
        gates: paper.gates.map((g) => ({ name: g.name, role: g.role, text: g.text, bound: boundOf(g) })),
      },
      results: { ...(committed ? { committed } : {}), ...(quick ? { quick } : {}) },
      commands: { quick: commandOf(paper, { quick: true }), full: commandOf(paper, {}) },
    }
  }

  /** The report of a result as HTML. */
  async report(slug: string, kind: string): Promise<string> {
    const paper = await this.paper(slug)
    if (kind !== 'committed' && kind !== 'quick') throw new UsageError(`There is no report '${kind}'; ask for 'committed' or 'quick'.`)
    const result = await this.result(slug, kind)
    if (!result)
      throw new UsageError(
        kind === 'quick'
          ? `'${slug}' was not run on this machine yet; press "Run the quick form" in the room Papers.`
          : `No result of '${slug}' ships with this version; '${commandOf(paper, {})} --out report' makes one.`,
      )
    const { reportOf } = await import('../papers/report.ts')
    return reportOf(paper, result)
  }

  /** The runs of this machine by slug. */
  async jobs(): Promise<Record<string, PaperJob>> {
    const before = (await sizeOrKind(this.root)) === 'folder' ? await readdir(this.root) : []
    const jobs: Record<string, PaperJob> = {}
    for (const slug of new Set([...before, ...this.running.keys()])) {
      const job = await this.job(slug)
      if (job) jobs[slug] = job
    }
    return jobs
  }

  /** Begins a quick run, anew or from its finished steps, or stops it. */
  async act({ slug, action }: BodyOf<'paper-run'>): Promise<PaperJob | undefined> {
    const paper = await this.paper(slug)
    const running = this.running.get(slug)
    if (action === 'cancel') {
      running?.abort.abort()
      await running?.finished
    } else if (!running) await this.run(paper, action === 'fresh')
    return this.job(slug)
  }

  /** Stops what runs; it goes on from its finished steps when it is started again. */
  async close(): Promise<void> {
    for (const { abort } of this.running.values()) abort.abort()
    await Promise.all([...this.running.values()].map((r) => r.finished))
  }

  private async run(paper: Paper, fresh: boolean): Promise<void> {
    const { slug } = paper
    const abort = new AbortController()
    const { signal } = abort
    const startedAt = new Date().toISOString()
    const folder = join(this.root, slug)
    const work = async () => {
      await mkdir(folder, { recursive: true })
      await this.write(slug, { startedAt })
      await this.queue.run(async () => {
        running.begun = performance.now()
        const result = await runPaper(paper, {
          quick: true,
          fresh,
          signal,
          onProgress: (progress) => {
            running.progress = progress
          },
        })
        await writeResult(folder, paper, result)
        await this.write(slug, { startedAt, done: true })
      }, signal)
    }
    const finished = Promise.resolve()
      .then(work)
      .catch(async (error) => {
        if (!(error instanceof CancelledError)) await this.write(slug, { startedAt, ...errorAnswer(error) })
      })
      .finally(() => this.running.delete(slug))
    const running: Running = { abort, finished, startedAt }
    this.running.set(slug, running)
  }

  private async job(slug: string): Promise<PaperJob | undefined> {
    const running = this.running.get(slug)
    if (running) {
      const { startedAt, begun, progress } = running
      if (begun === undefined) return { state: 'waiting', startedAt }
      const seconds = Math.round((performance.now() - begun) / 100) / 10
      return { state: 'running', startedAt, seconds, ...(progress ? { progress } : {}) }
    }
    if (!Object.hasOwn(this.shelf.loaders, slug) || (await sizeOrKind(this.recordPath(slug))) === undefined) return undefined
    const { startedAt, done, error } = (await readJson(this.recordPath(slug))) as RunRecord
    return { state: done ? 'done' : error ? 'failed' : 'stopped', startedAt, ...(error ? { error } : {}) }
  }

  private async result(slug: string, kind: PaperResultKind): Promise<PaperResult | undefined> {
    if (kind === 'committed') return this.shelf.committed(slug)
    const path = join(this.root, slug, 'result.json')
    return (await sizeOrKind(path)) === undefined ? undefined : ((await readJson(path)) as PaperResult)
  }

  private paper(slug: string): Promise<Paper> {
    const load = Object.hasOwn(this.shelf.loaders, slug) ? this.shelf.loaders[slug] : undefined
    return load ? load() : paperOf(slug)
  }

  private recordPath(slug: string): string {
    return join(this.root, slug, 'run.json')
  }

  private write(slug: string, record: RunRecord): Promise<void> {
    return writeFileWhole(this.recordPath(slug), `${JSON.stringify(record, null, 2)}\n`)
  }
}
