/** @file Captures as jobs: each has a folder, so that it survives the page and the server; it can be watched, stopped, and gone on with. */
import { randomBytes } from 'node:crypto'
import { mkdir, readdir, rm } from 'node:fs/promises'
import { join } from 'node:path'
import { CancelledError, UsageError } from '../base/errors.ts'
import { homeFolders, readJson, sizeOrKind, writeFileWhole } from '../base/files.ts'
import { type CaptureManifest, type CaptureProgress, capture } from '../explore/index.ts'
import { errorAnswer } from './answers.ts'
import { editedModel } from './look.ts'
import type { BodyOf, CaptureJob, ErrorAnswer } from './protocol.ts'
import type { Registry } from './registry.ts'

/** What is kept of a job beside its shards. */
interface JobRecord {
  readonly id: string
  readonly createdAt: string
  readonly model: string
  readonly request: Omit<BodyOf<'capture'>, 'data' | 'path' | 'model'>
  /** File of the texts. */
  readonly path: string
  readonly source: string
  readonly error?: ErrorAnswer['error']
}

interface Running {
  readonly abort: AbortController
  readonly finished: Promise<void>
  progress?: CaptureProgress
}

/** Positions in a shard: few enough that progress is told, and others have their turn, a few times a second. */
const shardTokens = 4096

/** The folder of the captures that the studio makes: `captures` in the data folder. */
export const capturesFolder = () => join(homeFolders().data, 'captures')

/** The captures of a server, and those that earlier ones left. */
export class Captures {
  private readonly registry: Registry
  private readonly first: string
  private readonly root: string
  private readonly running = new Map<string, Running>()

  constructor(registry: Registry, first: string, root = capturesFolder()) {
    this.registry = registry
    this.first = first
    this.root = root
  }

  /** All jobs, newest first. */
  async list(): Promise<CaptureJob[]> {
    if ((await sizeOrKind(this.root)) !== 'folder') return []
    const records: JobRecord[] = []
    for (const id of await readdir(this.root)) {
      // A folder without a record is one that is being made or taken away.
      if ((await sizeOrKind(this.recordPath(id))) !== undefined) records.push((await readJson(this.recordPath(id))) as JobRecord)
    }
    records.sort((a, b) => b.createdAt.localeCompare(a.createdAt))
    return Promise.all(records.map((r) => this.jobOf(r)))
  }

  /** Begins a capture; what cannot be done is told by the job. */
  async start({ data, path, model, ...request }: BodyOf<'capture'>): Promise<CaptureJob> {
    if ((data === undefined) === (path === undefined)) throw new UsageError("Give either texts ('data') or a file of texts ('path').")
    if (data !== undefined && data.trim() === '') throw new UsageError('There are no texts to capture from; write some, or name a file.')
    const id = `${Date.now().toString(36)}-${randomBytes(4).toString('hex')}`
    await mkdir(join(this.root, id), { recursive: true })
    const file = path ?? join(this.root, id, corpusName(data as string))
    if (data !== undefined) await writeFileWhole(file, data)
    const record: JobRecord = {
      id,
      createdAt: new Date().toISOString(),
      model: model ?? this.first,
      request,
      path: file,
      source: path ?? `${(data as string).trim().split('\n').length} lines`,
    }
    await this.write(record)
    this.run(record, false)
    return this.jobOf(record)
  }

  /** Stops, goes on with, or takes away a job. */
  async act(id: string, action: BodyOf<'capture-job'>['action']): Promise<CaptureJob | undefined> {
    if ((await sizeOrKind(this.recordPath(id))) === undefined)
      throw new UsageError(`There is no capture '${id}'; it may have been removed in another tab.`)
    const { error: _, ...record } = (await readJson(this.recordPath(id))) as JobRecord
    const running = this.running.get(id)
    running?.abort.abort()
    await running?.finished
    if (action === 'remove') {
      await rm(join(this.root, id), { recursive: true, force: true })
      return undefined
    }
    if (action === 'resume') {
      await this.write(record)
      this.run(record, true)
    }
    return this.jobOf(record)
  }

  /** Stops what runs; it can be gone on with when the server is back. */
  async close(): Promise<void> {
    for (const { abort } of this.running.values()) abort.abort()
    await Promise.all([...this.running.values()].map((r) => r.finished))
  }

  private run(record: JobRecord, resume: boolean): void {
    const abort = new AbortController()
    const { signal } = abort
    const work = async () => {
      const { edits, maxTokens, ...request } = record.request
      await this.registry.use(record.model, { signal }, (held) =>
        held.queue.inTurns(async (pause) => {
          const model = await editedModel(held, edits)
          await capture(model, {
            ...request,
            ...(maxTokens === undefined ? {} : { maxTokens }),
            data: { path: record.path },
            out: this.out(record.id),
            shardTokens,
            resume: resume && (await sizeOrKind(this.out(record.id))) !== undefined,
            signal,
            onProgress: async (progress) => {
              running.progress = progress
              await pause()
            },
          })
        }, signal),
      )
    }
    const finished = work()
      .catch(async (error) => {
        if (!(error instanceof CancelledError)) await this.write({ ...record, ...errorAnswer(error) })
      })
      .finally(() => this.running.delete(record.id))
    const running: Running = { abort, finished }
    this.running.set(record.id, running)
  }

  private async jobOf({ id, createdAt, model, request, source, error }: JobRecord): Promise<CaptureJob> {
    const manifestPath = join(this.out(id), 'manifest.json')
    const manifest = (await sizeOrKind(manifestPath)) === undefined ? undefined : ((await readJson(manifestPath)) as CaptureManifest)
    const running = this.running.get(id)
    const progress = running?.progress
    return {
      id,
      createdAt,
      model,
      sites: request.sites,
      dtype: request.dtype,
      source,
      folder: this.out(id),
      state: running ? 'running' : error ? 'failed' : manifest?.complete ? 'done' : 'stopped',
      tokens: manifest?.tokens ?? 0,
      bytes: (manifest?.shards ?? []).reduce((n, s) => n + s.bytes, 0),
      ...(progress
        ? {
            progress: {
              done: progress.done,
              total: progress.total ?? progress.done,
              bytes: progress.bytes,
              totalBytes: progress.totalBytes,
              tokensPerSecond: progress.tokensPerSecond,
              // JSON knows no infinity.
              secondsLeft: Number.isFinite(progress.secondsLeft) ? progress.secondsLeft : -1,
            },
          }
        : {}),
      ...(error && !running ? { error } : {}),
    }
  }

  private out(id: string): string {
    return join(this.root, id, 'activations')
  }

  private recordPath(id: string): string {
    return join(this.root, id, 'job.json')
  }

  private write(record: JobRecord): Promise<void> {
    return writeFileWhole(this.recordPath(record.id), `${JSON.stringify(record, null, 2)}\n`)
  }
}

/** A file name by which a corpus of such texts is read rightly. */
export function corpusName(data: string): string {
  const [first = ''] = data
    .replace(/^\uFEFF/, '')
    .trimStart()
    .split('\n', 1)
  if (first.startsWith('{')) return 'texts.jsonl'
  const columns = first.trim().split(/[,\t]/)
  return columns.length > 1 && columns.includes('text') ? (first.includes('\t') ? 'texts.tsv' : 'texts.csv') : 'texts.txt'
}
