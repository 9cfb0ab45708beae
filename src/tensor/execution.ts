/** @file Running segments one after another: what passes between them, for how long it is kept, and where. */
import { RuntimeFailure, throwIfCancelled, UsageError } from '../base/errors.ts'
import { bytesOf, type DType, sizeOf, type TypedArray } from '../base/types.ts'
import type { LoweredModel } from './lower.ts'
import type { Runtime, RuntimeTensor, Scratch } from './runtime/runtime.ts'
import type { Lease, SessionCache, SessionOptions } from './session-cache.ts'
import { evaluateDim } from './shape.ts'
import type { Tensor } from './tensor.ts'

/** One compiled part of a program. */
export interface Segment {
  readonly key: string
  readonly model: LoweredModel
  /** ONNX input → tensor of the program's graph. */
  readonly feeds: ReadonlyMap<string, Tensor>
}

/** What a run kept between its segments. */
export interface RunReport {
  /** Most bytes of values that lay in memory between two segments. */
  readonly keptBytes: number
  /** Bytes that were written to disk meanwhile. */
  readonly spilledBytes: number
}

/** How segments are run. */
export interface ExecutionOptions {
  readonly cache: SessionCache
  readonly session: SessionOptions
  /** Whether the next segment is made ready while one runs. */
  readonly ahead: boolean
  /** Bytes of values between segments that may stay in memory; what goes beyond is kept on disk. No limit by default. */
  readonly keep?: number | undefined
  readonly signal?: AbortSignal | undefined
}

const arrayTypes: Readonly<Partial<Record<DType, new (n: number) => TypedArray>>> = {
  float32: Float32Array,
  float64: Float64Array,
  float16: Uint16Array,
  int64: BigInt64Array,
  int32: Int32Array,
  bool: Uint8Array,
  uint8: Uint8Array,
  int8: Int8Array,
}

/** A value between segments. */
interface Value {
  tensor: RuntimeTensor | undefined
  /** Place in the scratch file, once it was written. */
  offset: number | undefined
  readonly bytes: number
}

/** One run of segments. */
export class Execution {
  private readonly steps: readonly Segment[]
  private readonly runtime: Runtime
  private readonly options: ExecutionOptions
  private readonly sizes: ReadonlyMap<string, number>
  /** Step after which a tensor is not read any more. */
  private readonly lastUse = new Map<Tensor, number>()
  private readonly values = new Map<Tensor, Value>()
  /** Arrays that can be written over, by type and length. */
  private readonly spare = new Map<string, TypedArray[]>()
  private scratch: Scratch | undefined
  private written = 0
  private keptBytes = 0
  private spilledBytes = 0

  constructor(
    steps: readonly Segment[],
    /** Lengths of the named axes. */
    sizes: ReadonlyMap<string, number>,
    runtime: Runtime,
    options: ExecutionOptions,
  ) {
    this.steps = steps
    this.sizes = sizes
    this.runtime = runtime
    this.options = options
    for (const [i, step] of steps.entries()) for (const t of step.feeds.values()) this.lastUse.set(t, i)
  }

  /** What was kept. */
  get report(): RunReport {
    return { keptBytes: this.keptBytes, spilledBytes: this.spilledBytes }
  }

  /**
   * Runs all segments.
   * @param given values of the inputs.
   * @param results tensors that are handed out, with the array that each is to be written into, if any.
   */
  async run(
    given: ReadonlyMap<Tensor, RuntimeTensor>,
    results: ReadonlyMap<Tensor, RuntimeTensor | null>,
  ): Promise<Map<Tensor, RuntimeTensor>> {
    const { cache, session, ahead, signal } = this.options
    const out = new Map<Tensor, RuntimeTensor>([...given].filter(([t]) => results.has(t)))
    let lease: Promise<Lease> | undefined
    try {
      for (const [i, step] of this.steps.entries()) {
        throwIfCancelled(signal)
        const feeds = await this.feedsOf(step, given, out)
        lease ??= cache.acquire(step.key, step.model, session)
        const own = await lease
        const running = own.session.run(feeds, this.fetchesOf(step, results))
        const next = ahead ? this.steps[i + 1] : undefined
        lease = next && cache.acquire(next.key, next.model, session)
        // A failure to make the next one ready shows when its turn comes.
        lease?.catch(() => undefined)
        const produced = await running.finally(() => own.release())
        this.take(step, produced, results, out)
        await this.tidy(i)
      }
    } finally {
      const waiting = lease
      await waiting?.then(
        (l) => l.release(),
        () => undefined,
      )
      await this.scratch?.close()
    }
    return out
  }

  private async feedsOf(
    step: Segment,
    given: ReadonlyMap<Tensor, RuntimeTensor>,
    out: ReadonlyMap<Tensor, RuntimeTensor>,
  ): Promise<Record<string, RuntimeTensor>> {
    const feeds: Record<string, RuntimeTensor> = {}
    for (const [name, t] of step.feeds) feeds[name] = given.get(t) ?? out.get(t) ?? (await this.recall(t))
    return feeds
  }

  private fetchesOf(step: Segment, results: ReadonlyMap<Tensor, RuntimeTensor | null>): Record<string, RuntimeTensor | null> {
    const fetches: Record<string, RuntimeTensor | null> = {}
    for (const [t, name] of step.model.outputs) {
      const into = results.get(t)
      if (into) fetches[name] = into
      else if (results.has(t)) fetches[name] ??= null
      else if (this.lastUse.has(t)) fetches[name] ??= this.room(t)
    }
    return fetches
  }

  private take(
    step: Segment,
    produced: Readonly<Record<string, RuntimeTensor>>,
    results: ReadonlyMap<Tensor, unknown>,
    out: Map<Tensor, RuntimeTensor>,
  ): void {
    for (const [t, name] of step.model.outputs) {
      const tensor = produced[name]
      if (!tensor) continue
      if (results.has(t)) out.set(t, tensor)
      else this.values.set(t, { tensor, offset: undefined, bytes: bytesOf(tensor.type as DType, sizeOf(tensor.dims)) })
    }
    this.keptBytes = Math.max(this.keptBytes, this.inMemory)
  }

  private get inMemory(): number {
    let sum = 0
    for (const v of this.values.values()) if (v.tensor) sum += v.bytes
    return sum
  }

  /** A tensor to write a value into, of known shape; null lets the runtime make one. */
  private room(t: Tensor): RuntimeTensor | null {
    const shape = t.shape.map((d) => evaluateDim(d, this.sizes))
    const make = arrayTypes[t.dtype]
    if (!make || shape.some((n) => n === undefined)) return null
    const size = sizeOf(shape as number[])
    const data = this.spare.get(`${t.dtype} ${size}`)?.pop() ?? new make(size)
    return this.runtime.tensor(t.dtype, shape as number[], data)
  }

  /** After a step: forgets what is not read any more, and writes to disk what goes beyond the limit, what is needed last first. */
  private async tidy(done: number): Promise<void> {
    for (const [t, v] of this.values)
      if ((this.lastUse.get(t) ?? -1) <= done) {
        this.values.delete(t)
        if (v.tensor) this.reuse(v.tensor)
      }
    const { keep } = this.options
    if (keep === undefined) return
    const next = new Set(this.steps[done + 1]?.feeds.values())
    const candidates = [...this.values].filter(([t, v]) => v.tensor && !next.has(t))
    candidates.sort(([a], [b]) => this.nextUse(b, done) - this.nextUse(a, done))
    for (const [, v] of candidates) {
      if (this.inMemory <= keep) return
      await this.spill(v)
    }
  }

  private nextUse(t: Tensor, done: number): number {
    for (let i = done + 1; i < this.steps.length; i++) for (const x of (this.steps[i] as Segment).feeds.values()) if (x === t) return i
    return Number.POSITIVE_INFINITY
  }

  private async spill(v: Value): Promise<void> {
    if (v.offset === undefined) {
      if (!this.runtime.scratch) throw new UsageError('Values cannot be kept on disk here; keep them in memory, or recompute them.')
      this.scratch ??= await this.runtime.scratch()
      await this.scratch.write(this.written, bytesIn(v.tensor as RuntimeTensor))
      v.offset = this.written
      this.written += v.bytes
      this.spilledBytes += v.bytes
    }
    this.reuse(v.tensor as RuntimeTensor)
    v.tensor = undefined
  }

  /** A value for the step that reads it, from disk if need be. */
  private async recall(t: Tensor): Promise<RuntimeTensor> {
    const v = this.values.get(t)
    if (!v) throw new RuntimeFailure(`A segment of the program reads a value that none before it made (${t.node.op.name}).`)
    if (!v.tensor) {
      const tensor = this.room(t)
      if (!tensor) throw new RuntimeFailure(`The shape of a value on disk is not known (${t.node.op.name}).`)
      await (this.scratch as Scratch).read(v.offset as number, bytesIn(tensor))
      v.tensor = tensor
      this.keptBytes = Math.max(this.keptBytes, this.inMemory)
    }
    return v.tensor
  }

  private reuse(tensor: RuntimeTensor): void {
    const data = tensor.data as TypedArray
    const key = `${tensor.type} ${data.length}`
    const list = this.spare.get(key)
    if (list) list.push(data)
    else this.spare.set(key, [data])
  }
}

function bytesIn(tensor: RuntimeTensor): Uint8Array {
  const data = tensor.data as TypedArray
  return new Uint8Array(data.buffer, data.byteOffset, data.byteLength)
}
