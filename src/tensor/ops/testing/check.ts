/** @file Gradient checks for tests: rules against central differences of the very programs that they differentiate. */
import type { NDArray } from '../../../base/types.ts'
import { sizeOf } from '../../../base/types.ts'
import { differentiate } from '../../grad.ts'
import { Program } from '../../program.ts'
import { SessionCache } from '../../session-cache.ts'
import type { Dim, Shape, Tensor } from '../../tensor.ts'
import { input, mul } from '../index.ts'

/** How the values of an input are drawn: away from kinks and poles where the function has some. */
export type Draw = 'any' | 'positive' | 'unit' | 'apart' | readonly number[]

/** One input of a case. */
export interface CaseInput {
  readonly shape: Shape
  readonly draw?: Draw
  /** Integer inputs are not differentiated. */
  readonly dtype?: 'int64' | 'int32' | 'uint8' | 'bool'
}

/** One gradient to check. */
export interface Case {
  readonly name: string
  readonly inputs: Readonly<Record<string, CaseInput>>
  readonly build: (x: Readonly<Record<string, Tensor>>) => Tensor
  /** float64 unless ONNX Runtime lacks the op for it. */
  readonly dtype?: 'float32' | 'float64'
  /** Lengths of named axes. */
  readonly sizes?: Readonly<Record<string, number>>
  /** Inputs not to differentiate. */
  readonly fixed?: readonly string[]
  /** The second derivative is checked, too, unless this says why not. */
  readonly noSecond?: string
  /** The rule promises something else than the derivative of the forward values. */
  readonly expected?: 'custom'
}

const cache = new SessionCache(1e9)
/** Options of the programs of tests. */
export const testOptions = { device: 'cpu', cache, threads: 1 } as const

/** A repeatable stream of numbers in [0, 1). */
export function stream(seed: number): () => number {
  let state = seed >>> 0
  return () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0
    return state / 2 ** 32
  }
}

const draws: Readonly<Record<Exclude<Draw, readonly number[]>, (n: number, next: () => number) => number[]>> = {
  any: (n, next) => Array.from({ length: n }, () => 3 * next() - 1.5),
  positive: (n, next) => Array.from({ length: n }, () => 0.3 + 1.5 * next()),
  unit: (n, next) => Array.from({ length: n }, () => 1.6 * next() - 0.8),
  // Distinct values with a gap much wider than the step of the differences, none near zero.
  apart: (n, next) => {
    const values = Array.from({ length: n }, (_, i) => 0.37 * (i - n / 2) + 0.11)
    for (let i = n - 1; i > 0; i--) {
      const j = Math.floor(next() * (i + 1))
      const kept = values[i] as number
      values[i] = values[j] as number
      values[j] = kept
    }
    return values
  },
}

const arrays = {
  float32: Float32Array,
  float64: Float64Array,
  int32: Int32Array,
  uint8: Uint8Array,
  bool: Uint8Array,
}

/** An array of numbers in the given type. */
export function arrayOf(dtype: keyof typeof arrays | 'int64', shape: readonly number[], values: readonly number[]): NDArray {
  return { dtype, shape, data: dtype === 'int64' ? BigInt64Array.from(values.map((v) => BigInt(v))) : arrays[dtype].from(values) }
}

interface Prepared {
  readonly y: Tensor
  readonly at: readonly Tensor[]
  readonly names: readonly string[]
  readonly feeds: Record<string, NDArray>
  readonly dtype: 'float32' | 'float64'
}

function prepare(c: Case): Prepared {
  const next = stream(c.name.length * 7919 + 17)
  const dtype = c.dtype ?? 'float64'
  const size = (d: Dim) => (typeof d === 'number' ? d : (c.sizes?.[d] as number))
  const tensors: Record<string, Tensor> = {}
  const feeds: Record<string, NDArray> = {}
  for (const [name, spec] of Object.entries(c.inputs)) {
    tensors[name] = input(name, spec.dtype ?? dtype, spec.shape)
    const shape = spec.shape.map(size)
    const draw = spec.draw ?? 'any'
    const values = typeof draw === 'string' ? draws[draw](sizeOf(shape), next) : draw
    feeds[name] = arrayOf(spec.dtype ?? dtype, shape, values)
  }
  const names = Object.keys(c.inputs).filter((n) => !c.inputs[n]?.dtype && !c.fixed?.includes(n))
  return { y: c.build(tensors), at: names.map((n) => tensors[n] as Tensor), names, feeds, dtype }
}

/** The graph of a case, for a look at the ops in it. */
export function graphOf(c: Case): { y: Tensor; at: readonly Tensor[] } {
  const { y, at } = prepare(c)
  return { y, at }
}

/** Largest error of the gradient of a case against central differences, relative to the gradient's scale. */
export async function gradientError(c: Case): Promise<number> {
  const p = prepare(c)
  return errorOf(await weighted(p, p.y, 'seed'), p)
}

/** The same for the gradient of the gradient along a fixed direction. */
export async function secondError(c: Case): Promise<number> {
  const p = prepare(c)
  const first = await weighted(p, p.y, 'seed')
  const d = differentiate({ of: first, at: p.at })
  const inputs = p.at.map((t) => d.map(t))
  const parts: Tensor[] = []
  for (const [i, g] of d.grads.entries()) parts.push(await weighted(p, g, `direction${i}`))
  const of = parts.reduce((a, b) => a.add(b))
  // A function that is linear in all its inputs has a gradient that depends on none of them.
  const names = p.names.filter((_, i) => reaches(of, inputs[i] as Tensor))
  if (names.length === 0) return 0
  return errorOf(of, { ...p, names, at: p.names.flatMap((n, i) => (names.includes(n) ? [inputs[i] as Tensor] : [])) })
}

function reaches(of: Tensor, at: Tensor): boolean {
  try {
    differentiate({ of, at: [at] })
    return true
  } catch (error) {
    if (error instanceof Error && error.message.includes('does not depend on')) return false
    throw error
  }
}

/** `y` times fixed weights, summed: a scalar whose gradient depends on every value of `y`. */
async function weighted(p: Prepared, y: Tensor, name: string): Promise<Tensor> {
  const { y: value } = await (await Program.of({ y }, testOptions)).run(p.feeds)
  const next = stream(name.length * 101 + 5)
  p.feeds[name] = arrayOf(p.dtype, value.shape, draws.any(sizeOf(value.shape), next))
  return mul(y, input(name, p.dtype, y.shape)).sum()
}

async function errorOf(of: Tensor, p: Prepared): Promise<number> {
  const { grads } = differentiate({ of, at: p.at })
  const backward = await Program.of(Object.fromEntries(grads.map((g, i) => [`g${i}`, g])), testOptions)
  const forward = await Program.of({ of }, testOptions)
  const only = (program: Program<string>) => Object.fromEntries(Object.entries(p.feeds).filter(([name]) => program.inputs.has(name)))
  const found = await backward.run(only(backward))
  const value = async () => Number((await forward.run(only(forward))).of.data[0])
  const step = p.dtype === 'float64' ? 1e-5 : 1e-2
  let worst = 0
  for (const [i, name] of p.names.entries()) {
    const x = (p.feeds[name] as NDArray).data as Float64Array
    const g = found[`g${i}`] as NDArray
    const shape = (p.feeds[name] as NDArray).shape
    if (g.shape.join() !== shape.join()) throw new Error(`The gradient at ${name} has shape [${g.shape}], not [${shape}].`)
    const scale = Math.max(1, ...Array.from(g.data as Float64Array, Math.abs))
    for (let k = 0; k < x.length; k++) {
      const kept = x[k] as number
      x[k] = kept + step
      const above = await value()
      x[k] = kept - step
      const below = await value()
      x[k] = kept
      // A NaN must count as an error.
      const error = Math.abs(Number(g.data[k]) - (above - below) / (2 * step)) / scale
      if (!(error <= worst)) worst = error
    }
  }
  return worst
}
