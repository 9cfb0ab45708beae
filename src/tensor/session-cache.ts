/** @file Compiled models, kept by content and bounded by the bytes of their weights. */

import type { LoweredModel } from './lower.ts'
import { getRuntime } from './runtime/index.ts'
import type { CompiledModel, Device } from './runtime/runtime.ts'

interface Entry {
  readonly session: Promise<CompiledModel>
  readonly bytes: number
  running: number
}

/** Settings under which a model is compiled; part of its identity. */
export interface SessionOptions {
  readonly device: Device
  readonly threads?: number
  /** Whether matrices are laid out anew for speed; a session that is used once or twice is better off without (default true). */
  readonly prepack?: boolean
  /** Whether the runtime plans one block of memory for a run after it has seen the first, which holds more than is needed at once (default true). */
  readonly memoryPattern?: boolean
  /** Whether the runtime computes once what depends on weights alone (default); not where it would widen all weights of 16 bits. */
  readonly foldConstants?: boolean
}

/** A session in use. */
export interface Lease {
  readonly session: CompiledModel
  /** Gives it back. */
  release(): void
}

/** Which sessions make room: those used longest ago, or those used just before, which suits segments that are gone through in turn. */
export type FreedFirst = 'longest ago' | 'just before'

/** What a cache has done so far; a knob that compiles nothing leaves `compiled` as it was. */
export interface CacheStatistics {
  /** Sessions compiled since the start. */
  readonly compiled: number
  /** Sessions alive. */
  readonly alive: number
  /** Bytes of the weights that they hold. */
  readonly bytes: number
}

/** Sessions by the hash of their model, least recently used ones freed when the bytes exceed the limit. */
export class SessionCache {
  /** Bytes of weights that may stay compiled. */
  limit: number
  private readonly entries = new Map<string, Entry>()
  private compiled = 0
  private readonly order: FreedFirst

  constructor(limit: number, order: FreedFirst = 'longest ago') {
    this.limit = limit
    this.order = order
  }

  /** Counts for tests and `doctor`. */
  get statistics(): CacheStatistics {
    return { compiled: this.compiled, alive: this.entries.size, bytes: this.bytes }
  }

  private get bytes(): number {
    let sum = 0
    for (const e of this.entries.values()) sum += e.bytes
    return sum
  }

  /** Whether a model is compiled already. */
  has(key: string): boolean {
    return this.entries.has(key)
  }

  /** The session of a model, compiled first when needed; it is not freed until the lease is given back. */
  async acquire(key: string, model: LoweredModel, options: SessionOptions): Promise<Lease> {
    let entry = this.entries.get(key)
    if (entry) this.entries.delete(key)
    else {
      // Compiled once it has its place, so that it counts and is not freed while room is made for it.
      entry = { session: Promise.resolve().then(() => this.compile(model, options)), bytes: model.weightBytes, running: 0 }
      this.compiled++
    }
    // Re-inserted, so that the order of the map is the order of use.
    this.entries.set(key, entry)
    entry.running++
    try {
      const session = await entry.session
      const held = entry
      let given = true
      return {
        session,
        release: () => {
          if (given) held.running--
          given = false
        },
      }
    } catch (error) {
      this.entries.delete(key)
      throw error
    }
  }

  private async compile(model: LoweredModel, options: SessionOptions): Promise<CompiledModel> {
    await this.makeRoom()
    const runtime = await getRuntime()
    if (options.prepack === false) void runtime.readAhead?.(model.files).catch(() => undefined)
    return runtime.compile(model.bytes, { ...options, memory: model.memory })
  }

  /** Frees sessions that nobody uses until the limit is kept: those used longest ago, or just before where all are gone through in turn. */
  private async makeRoom(): Promise<void> {
    const oldest = [...this.entries]
    for (const [key, entry] of this.order === 'longest ago' ? oldest : oldest.reverse()) {
      if (this.bytes <= this.limit) return
      if (entry.running === 0 && entry.bytes > 0) await this.free(key)
    }
  }

  /** Frees one session. */
  async free(key: string): Promise<void> {
    const entry = this.entries.get(key)
    if (!entry) return
    this.entries.delete(key)
    await entry.session.then(
      (s) => s.release(),
      () => undefined,
    )
  }

  /** Frees all sessions. */
  async clear(): Promise<void> {
    await Promise.all([...this.entries.keys()].map((key) => this.free(key)))
  }
}
