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
}

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

  constructor(limit: number) {
    this.limit = limit
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

  /** Runs `use` with the session of a model, compiling it first when needed; it is not freed meanwhile. */
  async with<T>(key: string, model: LoweredModel, options: SessionOptions, use: (session: CompiledModel) => Promise<T>): Promise<T> {
    let entry = this.entries.get(key)
    if (entry) this.entries.delete(key)
    else {
      await this.makeRoom(model.weightBytes)
      const compile = async () => (await getRuntime()).compile(model.bytes, { ...options, memory: model.memory })
      entry = { session: compile(), bytes: model.weightBytes, running: 0 }
      this.compiled++
    }
    // Re-inserted, so that the order of the map is the order of use.
    this.entries.set(key, entry)
    entry.running++
    try {
      return await use(await entry.session)
    } catch (error) {
      await entry.session.catch(() => this.entries.delete(key))
      throw error
    } finally {
      entry.running--
    }
  }

  private async makeRoom(bytes: number): Promise<void> {
    for (const [key, entry] of [...this.entries]) {
      if (this.bytes + bytes <= this.limit) return
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
