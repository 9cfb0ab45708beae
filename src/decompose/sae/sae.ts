/** @file The value of a sparse autoencoder: encode, decode and reconstruct as compiled programs, batched over rows. */
import { ShapeError, throwIfCancelled, UsageError } from '../../base/errors.ts'
import { type NDArray, sizeOf } from '../../base/types.ts'
import {
  decodeTraced,
  encodeNormalized,
  type Normalized,
  normalized,
  preActivations,
  rowNorms,
  type SaeTensors,
  topLatents,
} from '../../models/sae/traced.ts'
import { keepsK, type SaeWeights } from '../../models/sae/weights.ts'
import { sparseDecode } from '../../nn/sparse.ts'
import type { Model } from '../../run/index.ts'
import type { SiteInfo } from '../../sites/index.ts'
import {
  abs,
  add,
  cast,
  type Device,
  div,
  gather,
  greater,
  input,
  matmul,
  maximum,
  mul,
  Program,
  SessionCache,
  sqrt,
  sub,
  sum,
  type Tensor,
  transpose,
  weight,
} from '../../tensor/index.ts'

/** Where an autoencoder runs. */
export interface SaeRuntime {
  readonly device?: Device
  readonly threads?: number
}

/** Options of one call. */
export interface SaeCallOptions {
  /** Rows in one run of a program (default 1024, fewer where rows are wide). */
  readonly batchRows?: number
  readonly signal?: AbortSignal | undefined
}

/** The active latents of each row, of kinds that keep k: [rows, k] each. Values of zero are not active. */
export interface SparseActs {
  readonly values: NDArray<Float32Array>
  /** Numbers of the latents, int64. */
  readonly indices: NDArray<BigInt64Array>
}

/** Numbers of one output in one run, so that a run takes some tens of megabytes. */
const outputNumbers = 1 << 24
/** Bytes by which four numbers to a float32 are told. */
const bytesOf = (a: Float32Array) => new Uint8Array(a.buffer, a.byteOffset, a.byteLength)

let nextId = 0

type Programs = Readonly<Record<string, () => Record<string, Tensor>>>

/**
 * A sparse autoencoder or transcoder, ready to run. Arrays are [… , d_in] → [… , d_sae]; where heads are apart, [… , head, d_head] is taken
 * and given back.
 */
export class Sae implements AsyncDisposable {
  readonly weights: SaeWeights
  private readonly runtime: SaeRuntime
  private readonly cache = new SessionCache(Number.POSITIVE_INFINITY)
  private readonly compiled = new Map<string, Promise<Program>>()
  private readonly id = nextId++

  constructor(weights: SaeWeights, runtime: SaeRuntime = {}) {
    this.weights = weights
    this.runtime = runtime
  }

  /** Width of what is encoded, number of latents, width of what is decoded. */
  get dIn(): number {
    return this.weights.dIn
  }
  get dSae(): number {
    return this.weights.dSae
  }
  get dOut(): number {
    return this.weights.dOut
  }

  /** Activations of all latents, [… , d_sae]. */
  async encode(x: NDArray, options: SaeCallOptions = {}): Promise<NDArray<Float32Array>> {
    const { lead } = this.flat(x, this.dIn)
    const { acts } = await this.rows('encode', { x }, { acts: this.dSae }, options)
    return { dtype: 'float32', shape: [...lead, this.dSae], data: (acts as NDArray<Float32Array>).data }
  }

  /** The k kept latents of each row and their values; refuses kinds that keep no fixed number. */
  async encodeSparse(x: NDArray, options: SaeCallOptions = {}): Promise<SparseActs> {
    const k = this.keptCount()
    const { values, indices } = await this.rows('sparse', { x }, { values: k, indices: k }, options)
    return { values: values as NDArray<Float32Array>, indices: indices as NDArray<BigInt64Array> }
  }

  /**
   * Output for activations, [… , d_out].
   * @param x the input that they came from, which only normalisation and skips need.
   */
  async decode(acts: NDArray, x?: NDArray, options: SaeCallOptions = {}): Promise<NDArray<Float32Array>> {
    const needsInput = this.weights.tensors.W_skip !== undefined || ['layer_norm', 'constant_norm_rescale'].includes(this.weights.normalize)
    if (needsInput && !x) throw new UsageError('This autoencoder decodes relative to its input; give the input, too.')
    const { lead } = this.flat(acts, this.dSae)
    const feeds = needsInput ? { acts, x: x as NDArray } : { acts }
    const { output } = await this.rows(needsInput ? 'decodeWith' : 'decode', feeds, { output: this.dOut }, options)
    return { dtype: 'float32', shape: [...lead, this.dOut], data: (output as NDArray<Float32Array>).data }
  }

  /** What the autoencoder makes of its input, in the input's own shape. Kinds that keep k latents read only those decoder rows. */
  async reconstruct(x: NDArray, options: SaeCallOptions = {}): Promise<NDArray<Float32Array>> {
    const { lead, trail } = this.flat(x, this.dIn)
    const { output } = await this.rows('reconstruct', { x }, { output: this.dOut }, options)
    const shape = this.dOut === this.dIn ? [...lead, ...trail] : [...lead, this.dOut]
    return { dtype: 'float32', shape, data: (output as NDArray<Float32Array>).data }
  }

  /** Activations and output at once. */
  async forward(x: NDArray, options: SaeCallOptions = {}): Promise<{ acts: NDArray<Float32Array>; output: NDArray<Float32Array> }> {
    const { lead, trail } = this.flat(x, this.dIn)
    const { acts, output } = await this.rows('forward', { x }, { acts: this.dSae, output: this.dOut }, options)
    const shape = this.dOut === this.dIn ? [...lead, ...trail] : [...lead, this.dOut]
    return {
      acts: { dtype: 'float32', shape: [...lead, this.dSae], data: (acts as NDArray<Float32Array>).data },
      output: { dtype: 'float32', shape, data: (output as NDArray<Float32Array>).data },
    }
  }

  /** What {@link saeMetrics} adds up over batches: sums over rows, and how often each latent is active. */
  async measure(x: NDArray<Float32Array>): Promise<Record<keyof ReturnType<ReturnType<Sae['graphs']>['measure']>, Float32Array>> {
    const { count } = this.flat(x, this.dIn)
    const out = await (await this.program('measure')).run({ x: { ...x, shape: [count, this.dIn] } })
    return Object.fromEntries(Object.entries(out).map(([n, a]) => [n, a.data])) as Awaited<ReturnType<Sae['measure']>>
  }

  /** The decoder row of a latent, [d_out]: what it writes when its activation is 1. */
  direction(latent: number): Float32Array {
    this.checkLatent(latent)
    const { data } = this.weights.tensors.W_dec as NDArray<Float32Array>
    const row = data.slice(latent * this.dOut, (latent + 1) * this.dOut)
    if (!this.weights.rescales) return row
    const norm = Math.sqrt(row.reduce((s, v) => s + v * v, 0))
    return row.map((v) => v / norm)
  }

  /** Refuses numbers that are no latents. */
  checkLatent(latent: number): void {
    if (!Number.isInteger(latent) || latent < 0 || latent >= this.dSae)
      throw new UsageError(`There is no latent ${latent}: this autoencoder has latents 0 to ${this.dSae - 1}.`)
  }

  /**
   * The site of a model that the autoencoder reads, by the name in its file.
   * @param name a site to take instead, where the file names none or another is meant.
   */
  site(model: Model, name?: string): SiteInfo {
    return this.siteOf(model, name ?? this.weights.hook, this.dIn, 'reads')
  }

  /** The site whose value the output stands for: of a transcoder another than it reads. */
  outputSite(model: Model, name?: string): SiteInfo {
    return this.siteOf(model, name ?? this.weights.hookOut ?? this.weights.hook, this.dOut, 'writes')
  }

  private siteOf(model: Model, name: string | undefined, wanted: number, does: string): SiteInfo {
    if (name === undefined) throw new UsageError(`The files of this autoencoder do not say which site it ${does}; name the site.`)
    const info = model.site(name)
    const sizes = model.shapeOf(info).slice(2)
    const width = sizes.reduce<number>((p, n) => p * (typeof n === 'number' ? n : Number.NaN), 1)
    if (width !== wanted)
      throw new ShapeError(
        `The autoencoder ${does} ${wanted} numbers, but '${info.site}' of ${model.origin.id} is ${width} wide: it belongs to another site or model.`,
      )
    return info
  }

  /** Frees what was compiled. */
  async dispose(): Promise<void> {
    this.compiled.clear()
    await this.cache.clear()
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.dispose()
  }

  private keptCount(): number {
    const { kind, k } = this.weights
    if (k === undefined || (kind !== 'topk' && kind !== 'abstopk'))
      throw new UsageError(`A ${kind} autoencoder keeps no fixed number of latents; use encode.`)
    return k
  }

  /** Axes before and after those that an array's rows are made of. */
  private flat(x: NDArray, width: number): { lead: readonly number[]; trail: readonly number[]; count: number } {
    for (const axes of [1, 2]) {
      const trail = x.shape.slice(-axes)
      if (trail.length === axes && sizeOf(trail) === width)
        return { lead: x.shape.slice(0, -axes), trail, count: sizeOf(x.shape.slice(0, -axes)) }
    }
    throw new ShapeError(`This autoencoder takes rows of ${width} numbers, not an array of shape [${x.shape.join(', ')}].`)
  }

  /** Runs a program over the rows of its inputs, in pieces. */
  private async rows(
    name: keyof ReturnType<Sae['graphs']> & string,
    feeds: Readonly<Record<string, NDArray>>,
    widths: Readonly<Record<string, number>>,
    { batchRows, signal }: SaeCallOptions,
  ): Promise<Record<string, NDArray>> {
    const widthOf = (n: string) => (n === 'acts' ? this.dSae : this.dIn)
    const counts = Object.entries(feeds).map(([n, a]) => this.flat(a, widthOf(n)).count)
    const count = counts[0] as number
    if (counts.some((c) => c !== count)) throw new ShapeError(`Activations of ${counts[0]} rows do not go with an input of ${counts[1]}.`)
    for (const [n, a] of Object.entries(feeds))
      if (!(a.data instanceof Float32Array)) throw new ShapeError(`'${n}' is ${a.dtype}, but autoencoders run in float32; convert it.`)
    const widest = Math.max(...Object.values(widths))
    const step = batchRows ?? Math.max(1, Math.min(1024, Math.floor(outputNumbers / widest)))
    const program = await this.program(name)
    const out = Object.fromEntries(
      Object.entries(widths).map(([n, width]) => [
        n,
        n === 'indices'
          ? { dtype: 'int64' as const, shape: [count, width], data: new BigInt64Array(count * width) }
          : { dtype: 'float32' as const, shape: [count, width], data: new Float32Array(count * width) },
      ]),
    )
    const piece = (a: NDArray, width: number, from: number, to: number): NDArray => ({
      dtype: a.dtype,
      shape: [to - from, width],
      data: a.data.subarray(from * width, to * width),
    })
    for (let from = 0; from < count; from += step) {
      throwIfCancelled(signal)
      const to = Math.min(count, from + step)
      const given = Object.fromEntries(Object.entries(feeds).map(([n, a]) => [n, piece(a, widthOf(n), from, to)]))
      const into = Object.fromEntries(Object.entries(widths).map(([n, width]) => [n, piece(out[n] as NDArray, width, from, to)]))
      await program.run(given, { into })
    }
    return out
  }

  private program(name: keyof ReturnType<Sae['graphs']>): Promise<Program> {
    let program = this.compiled.get(name)
    if (!program) {
      const { device = 'cpu', threads } = this.runtime
      program = Program.of(this.graphs()[name]() as Record<string, Tensor>, { device, cache: this.cache, ...(threads ? { threads } : {}) })
      this.compiled.set(name, program)
      program.catch(() => this.compiled.delete(name))
    }
    return program
  }

  private tensors(): SaeTensors {
    return Object.fromEntries(
      Object.entries(this.weights.tensors).map(([name, { shape, data }]) => [
        name,
        weight({ name, dtype: 'float32', shape, place: { data: bytesOf(data), key: `sae ${this.id} ${name}` } }),
      ]),
    )
  }

  private graphs() {
    const sae = this.weights
    const x = input('x', 'float32', ['rows', this.dIn])
    const given = input('acts', 'float32', ['rows', this.dSae])
    const w = this.tensors()
    const by = normalized(sae, x)
    const acts = () => encodeNormalized(sae, w, by.value)
    const decoded = (a: Tensor) => decodeTraced(sae, w, a, x, by)
    const kept = () => topLatents(sae, preActivations(sae, w, by.value))
    return {
      encode: () => ({ acts: acts() }),
      sparse: () => ({ ...kept() }),
      decode: () => ({ output: decoded(given) }),
      decodeWith: () => ({ output: decoded(given) }),
      forward: () => {
        const a = acts()
        return { acts: a, output: decoded(a) }
      },
      measure: () => {
        const a = acts()
        const y = decoded(a)
        // Signed latents are active where they are not zero.
        const on = cast(greater(abs(a), 0), 'float32')
        const e = sub(x, y)
        const [xx, yy, xy] = [sum(mul(x, x), [-1]), sum(mul(y, y), [-1]), sum(mul(x, y), [-1])]
        const lengths = sqrt(mul(xx, yy))
        return {
          fired: sum(on, [0]),
          l0: sum(on),
          l1: sum(abs(a)),
          squares: sum(mul(e, e)),
          cosine: sum(div(xy, maximum(lengths, 1e-30))),
          ratio: sum(sqrt(div(yy, maximum(xx, 1e-30)))),
          outputs: sum(yy),
          products: sum(xy),
        }
      },
      reconstruct: () => ({ output: keepsK.has(sae.kind) && sae.kind !== 'groupmax' ? gathered(sae, w, kept(), x, by) : decoded(acts()) }),
    } satisfies Programs
  }
}

/** The output from the kept latents alone. */
function gathered(sae: SaeWeights, w: SaeTensors, kept: { values: Tensor; indices: Tensor }, x: Tensor, by: Normalized): Tensor {
  const decoder = w.W_dec as Tensor
  const values = sae.rescales ? div(kept.values, gather(rowNorms(decoder), kept.indices, 0)) : kept.values
  const output = by.undo(add(sparseDecode(values, kept.indices, decoder), w.b_dec as Tensor))
  return w.W_skip ? add(output, matmul(x, transpose(w.W_skip, [1, 0]))) : output
}
