/** @file Models that the server holds: loaded once for all tabs, the least recently used one let go. */
import { CancelledError, throwIfCancelled } from '../base/errors.ts'
import type { OnProgress, Progress, WorkOptions } from '../base/progress.ts'
import type { Model } from '../run/model.ts'
import { Lens } from './lens.ts'
import { Queue } from './queue.ts'
import { Vectors } from './vectors.ts'

/** A loaded model and what belongs to it. */
export class Held {
  readonly id: string
  readonly model: Model
  readonly queue = new Queue()
  readonly lens: Lens
  readonly vectors: Vectors
  /** Requests that are using it. */
  users = 0
  usedAt = 0

  constructor(id: string, model: Model) {
    this.id = id
    this.model = model
    this.lens = new Lens(model)
    this.vectors = new Vectors(model)
  }
}

/** A load that is going on, and who waits for it. */
interface Loading {
  readonly held: Promise<Held>
  readonly listeners: Set<OnProgress>
  readonly abort: AbortController
  waiters: number
  last?: Progress
}

/** Loads a model by the name a user gives it. */
export type LoadModel = (id: string, options: WorkOptions) => Promise<Model>

/** Models by id. */
export class Registry {
  private readonly loadModel: LoadModel
  private readonly limit: number
  private readonly held = new Map<string, Held>()
  private readonly loading = new Map<string, Loading>()
  private clock = 0

  /** @param limit most models that stay loaded when nobody uses them */
  constructor(loadModel: LoadModel, limit = 2) {
    this.loadModel = loadModel
    this.limit = limit
  }

  /** Ids of loaded models. */
  get loaded(): string[] {
    return [...this.held.keys()]
  }

  /** Runs `work` on a model, which stays loaded meanwhile. */
  async use<T>(id: string, options: WorkOptions, work: (held: Held) => Promise<T>): Promise<T> {
    const held = await this.get(id, options)
    held.users++
    held.usedAt = ++this.clock
    try {
      return await work(held)
    } finally {
      held.users--
      await this.evict()
    }
  }

  /** The model, loaded first where it is not; the load is cancelled when the last one who waits for it goes away. */
  async get(id: string, options: WorkOptions): Promise<Held> {
    const { signal, onProgress } = options
    throwIfCancelled(signal)
    const there = this.held.get(id)
    if (there) return there
    const loading = this.loading.get(id) ?? this.begin(id)
    if (onProgress) {
      loading.listeners.add(onProgress)
      if (loading.last) onProgress(loading.last)
    }
    loading.waiters++
    const leave = leaving(signal)
    try {
      return await Promise.race([loading.held, leave.promise])
    } finally {
      leave.stop()
      if (onProgress) loading.listeners.delete(onProgress)
      if (--loading.waiters === 0) loading.abort.abort()
    }
  }

  private begin(id: string): Loading {
    const abort = new AbortController()
    const listeners = new Set<OnProgress>()
    const load = async (): Promise<Held> => {
      try {
        const model = await this.loadModel(id, { signal: abort.signal, onProgress: (p) => report(p) })
        if (abort.signal.aborted) {
          await model.dispose()
          throw new CancelledError()
        }
        const held = new Held(id, model)
        held.usedAt = ++this.clock
        this.held.set(id, held)
        await this.evict()
        return held
      } finally {
        this.loading.delete(id)
      }
    }
    // Begun a moment later, when it can be found under its id.
    const held = Promise.resolve().then(load)
    // Whoever waits gets the error; when nobody waits it must not end the process.
    held.catch(() => undefined)
    const loading: Loading = { held, listeners, abort, waiters: 0 }
    const report = (p: Progress) => {
      loading.last = p
      for (const listener of listeners) listener(p)
    }
    this.loading.set(id, loading)
    return loading
  }

  private async evict(): Promise<void> {
    const idle = [...this.held.values()].filter((h) => h.users === 0).sort((a, b) => a.usedAt - b.usedAt)
    while (this.held.size > this.limit && idle.length > 1) {
      const oldest = idle.shift() as Held
      this.held.delete(oldest.id)
      await oldest.model.dispose()
    }
  }

  /** Stops loads and frees everything. */
  async close(): Promise<void> {
    for (const loading of this.loading.values()) loading.abort.abort()
    const all = [...this.held.values()]
    this.held.clear()
    for (const held of all) await held.queue.run(() => held.model.dispose())
  }
}

/** A promise that fails when the signal is aborted. */
function leaving(signal: AbortSignal | undefined): { promise: Promise<never>; stop: () => void } {
  let stop = () => {}
  const promise = new Promise<never>((_, reject) => {
    if (!signal) return
    const onAbort = () => reject(new CancelledError())
    signal.addEventListener('abort', onAbort)
    stop = () => signal.removeEventListener('abort', onAbort)
  })
  return { promise, stop }
}
